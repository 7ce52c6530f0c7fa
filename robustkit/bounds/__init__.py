"""Bounds: what a network can output over a box of inputs."""

from robustkit.bounds.method import BoundMethod, intersect
from robustkit.bounds.network import BoundedNetwork

__all__ = ["BoundMethod", "BoundedNetwork", "intersect"]
