"""robustkit: train, attack, verify and compare robust neural networks."""

__version__ = "0.1.0"
