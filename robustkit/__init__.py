"""robustkit: train, attack, verify and compare robust neural networks."""

from robustkit._process import keep_freed_memory, wait_without_spinning

__version__ = "0.1.0"

wait_without_spinning()
keep_freed_memory()
