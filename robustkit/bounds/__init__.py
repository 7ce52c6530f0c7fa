"""Bounds: what a network can output over a box of inputs."""

from robustkit.bounds.autolirpa import BoundedNetwork
from robustkit.bounds.method import BoundMethod, intersect

__all__ = ["BoundMethod", "BoundedNetwork", "intersect"]
