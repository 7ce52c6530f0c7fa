"""Bounds: what a network can output over a box of inputs."""

from __future__ import annotations

from torch import Tensor, nn

from robustkit.bounds.chain import altered
from robustkit.bounds.method import BoundMethod, intersect
from robustkit.bounds.mixture import BoundedMixture
from robustkit.bounds.network import BoundedNetwork
from robustkit.models.mixture import Mixture

__all__ = ["BoundMethod", "Bounded", "BoundedMixture", "BoundedNetwork", "bounded", "intersect"]

Bounded = BoundedNetwork | BoundedMixture
"""Any model prepared for bound propagation."""


def bounded(model: nn.Module, example: Tensor) -> Bounded:
    """Prepare any model for bound propagation: the one place that knows which kind of model needs which bounds.

    Args:
        model: on its device.
        example: one input, shape ``(1, ...)``.

    Raises:
        UnsupportedLayerError: a layer cannot be bounded soundly; the layer is named.
    """
    if isinstance(model, Mixture) and type(model) is Mixture and not altered(model):
        return BoundedMixture(model, example)
    return BoundedNetwork(model, example)  # what else a mixture may compute, the engine refuses
