"""Networks by name, checkpoints, and any module of the user."""
