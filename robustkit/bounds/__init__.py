"""Sound bounds on what a network can output over a box."""
