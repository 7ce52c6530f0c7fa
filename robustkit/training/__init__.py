"""Training methods, one loop, and its schedules."""
