"""robustkit: train, attack, verify and compare robust neural networks."""

import os

__version__ = "0.1.0"

# Read once, when torch is loaded. Threads that spin while they wait make small operations up to twenty times slower on
# a machine that does anything else; a user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
