"""A network as a chain of layers, for the two bounds that are dear to training: intervals and symbolic bounds.

The engine traces a graph and carries lower and upper coefficients apart; for a plain stack of layers that costs more
than the arithmetic. What is not on the list here goes to the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.errors import RobustkitError
from robustkit.models.architectures import Normalize
from robustkit.models.named import Residual

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
PLAIN = (nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten, nn.BatchNorm1d, nn.BatchNorm2d, Normalize, Residual)
"""Layers of a chain, of exactly these types: a subclass may compute something else."""


def chain_of(model: nn.Module, example: Tensor) -> list[nn.Module] | None:
    """Give the layers of a network in order, nested stacks unrolled.

    Args:
        model: any module.
        example: one input, shape ``(1, ...)``.

    Returns:
        The layers, or None where it is no plain stack of ``PLAIN`` layers that ends in a ``Linear``.
    """
    layers = plain_layers(model)
    if layers is None:
        return None
    try:
        shapes = shapes_of(layers, example)
    except RuntimeError:  # it fails on such an input; whoever calls the network says so
        return None
    return layers if all(map(_fits, layers, shapes)) else None


def plain_layers(model: nn.Module) -> list[nn.Module] | None:
    """Give the layers of a plain stack as ``chain_of`` does, without running it: whether they fit is not looked at."""
    layers = _unrolled(model)
    inner = [_unrolled(path) for one in layers if isinstance(one, Residual) for path in (one.long, one.short)]
    norms = [one for one in (*layers, *chain(*inner)) if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]
    plain = layers and all(map(_carried, layers)) and type(layers[-1]) is nn.Linear and len(set(norms)) == len(norms)
    return layers if plain else None


def _fits(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Say whether a layer gets inputs of the usual dimensions, and as many channels as it has numbers for."""
    dimensions = {nn.Linear: 1, nn.BatchNorm1d: 1, nn.Conv2d: 3, nn.BatchNorm2d: 3, Normalize: 3, Residual: 3}
    if len(shape) != dimensions.get(type(layer), len(shape)):
        return False
    if isinstance(layer, Normalize):
        return layer.mean.numel() == layer.std.numel() == shape[0]
    return not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) or layer.num_features == shape[0]


@torch.no_grad()
def shapes_of(layers: Sequence[nn.Module], z: Tensor) -> list[tuple[int, ...]]:
    """Give the shape of every layer's input, for inputs ``(B, ...)`` of the first; without the batch."""
    shapes, z = [], z[:1]
    for layer in layers:
        shapes.append(tuple(z.shape[1:]))
        z = z if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) else layer(z)
    return shapes


def _unrolled(model: nn.Module) -> list[nn.Module]:
    if type(model) is nn.Sequential and not altered(model):
        return [layer for child in model for layer in _unrolled(child)]
    nothing = type(model) in (nn.Identity, nn.Dropout, nn.Dropout2d) and not altered(model)
    return [] if nothing else [model]


def _carried(layer: nn.Module) -> bool:
    if type(layer) not in PLAIN or altered(layer):
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return layer.affine and layer.track_running_stats and layer.momentum is not None
    if isinstance(layer, Residual):
        parts = [*_unrolled(layer.long), *_unrolled(layer.short), layer.relu]
        return all(_carried(one) and not isinstance(one, Residual) for one in parts)
    return True


def altered(layer: nn.Module) -> bool:
    """Say whether something was put into a layer that its own numbers do not show: a hook, a patched forward."""
    hooked = bool(layer._forward_hooks or layer._forward_pre_hooks)
    return hooked or "parametrizations" in layer._modules or "forward" in vars(layer)


@dataclass(frozen=True)
class Affine:
    """``z * scale + shift`` per channel; both of shape ``(C,)``."""

    scale: Tensor
    shift: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Map values of shape ``(B, C, ...)``."""
        return torch.addcmul(per_channel(self.shift, z), z, per_channel(self.scale, z))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Give one number per channel a shape that goes with ``(B, C, ...)``."""
    return values.view(-1, *[1] * (like.ndim - 2))


class Statistics:
    """What batch norm bounds with: in train mode the mean and variance of the last clean batch."""

    def __init__(self) -> None:
        self._seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._held = False

    def __getitem__(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Give mean and variance of the last clean batch at a batch norm in train mode.

        Raises:
            RobustkitError: it has seen none.
        """
        if layer not in self._seen:
            raise RobustkitError("expected a call on the clean batch before bounds of batch norm in train mode")
        return self._seen[layer]

    def __setitem__(self, layer: nn.Module, statistics: tuple[Tensor, Tensor]) -> None:
        self._seen[layer] = statistics

    def affine(self, layer: nn.Module) -> Affine:
        """Give a layer that acts on each channel apart as such a map.

        Args:
            layer: batch norm, or ``Normalize``.
        """
        if isinstance(layer, Normalize):
            scale = 1.0 / layer.std.flatten()
            return Affine(scale, -layer.mean.flatten() * scale)
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
        mean, variance = self[layer] if layer.training else (layer.running_mean, layer.running_var)
        assert mean is not None and variance is not None  # it tracks them, or the chain would not carry it
        scale = layer.weight * torch.rsqrt(variance + layer.eps)
        return Affine(scale, layer.bias - mean * scale)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the statistics of the batch just seen while parts of it are worked on, and pass their gradients on.

        The graph that they come from must still stand: what the parts ask of them is carried back through it.
        """
        origins, self._held = self._seen, True
        self._seen = {
            layer: (mean.detach().requires_grad_(), variance.detach().requires_grad_())
            for layer, (mean, variance) in origins.items()
        }
        try:
            yield
            roots = [one for pair in origins.values() for one in pair]
            wanted = [one.grad for pair in self._seen.values() for one in pair]
            asked = [(root, grad) for root, grad in zip(roots, wanted, strict=True) if grad is not None]
            if asked:
                torch.autograd.backward([root for root, _ in asked], [grad for _, grad in asked])
        finally:
            self._seen, self._held = {}, False

    def take(self, layer: BatchNorm, z: Tensor) -> None:
        """Take the statistics of a clean batch ``(B, C, ...)``, and update the layer's running ones; not while held."""
        if self._held:
            return
        over = [0, *range(2, z.ndim)]
        variance, mean = torch.var_mean(z, over, correction=0)
        self[layer] = mean, variance
        share, count = layer.momentum or 0.0, z.numel() // z.shape[1]
        with torch.no_grad():
            assert layer.running_mean is not None and layer.running_var is not None
            assert layer.num_batches_tracked is not None
            layer.running_mean.lerp_(mean, share)
            layer.running_var.lerp_(variance * (count / max(count - 1, 1)), share)
            layer.num_batches_tracked += 1


def forward(layers: Sequence[nn.Module], x: Tensor, statistics: Statistics) -> Tensor:
    """Compute what the layers compute, and take the statistics that batch norm in train mode will bound with.

    Args:
        layers: of a chain.
        x: inputs, shape ``(B, ...)``.
        statistics: filled in.

    Returns:
        Outputs, shape ``(B, K)`` for a whole network.
    """
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.training:
            statistics.take(layer, x)
            x = statistics.affine(layer)(x)
        elif isinstance(layer, Residual):
            x = (forward(_unrolled(layer.long), x, statistics) + forward(_unrolled(layer.short), x, statistics)).relu()
        else:
            x = layer(x)
    return x


Box = tuple[Tensor, Tensor]
"""Centre and radius, of equal shape."""


def intervals(
    layers: Sequence[nn.Module], box: Box, statistics: Statistics, relus: list[tuple[Tensor, Tensor]] | None = None
) -> Box:
    """Propagate a box through layers.

    Args:
        layers: of a chain.
        box: centre and radius of the inputs, each ``(B, ...)``.
        statistics: of batch norm.
        relus: where the lower and upper bounds of every ReLU's input are put, in order.

    Returns:
        Centre and radius of the outputs.

    Source: Gowal et al. 2018, arXiv 1810.12715, Sec. 3.
    """
    for layer in layers:
        box = _through(layer, box, statistics, relus)
    return box


def _through(layer: nn.Module, box: Box, statistics: Statistics, relus: list[tuple[Tensor, Tensor]] | None) -> Box:
    centre, radius = box
    if isinstance(layer, nn.Conv2d):
        size = layer.stride, layer.padding, layer.dilation
        return layer(centre), functional.conv2d(radius, layer.weight.abs(), None, *size)  # type: ignore[arg-type]
    if isinstance(layer, nn.Linear):
        return layer(centre), functional.linear(radius, layer.weight.abs())
    if isinstance(layer, nn.ReLU):
        lower, upper = centre - radius, centre + radius
        if relus is not None:
            relus.append((lower, upper))
        lower, upper = lower.relu(), upper.relu()
        return (upper + lower) * 0.5, (upper - lower) * 0.5
    if isinstance(layer, Residual):
        long, short = (intervals(_unrolled(one), box, statistics, relus) for one in (layer.long, layer.short))
        return _through(layer.relu, (long[0] + short[0], long[1] + short[1]), statistics, relus)
    if isinstance(layer, nn.Flatten):
        return centre.flatten(1), radius.flatten(1)
    affine = statistics.affine(layer)
    return affine(centre), radius * per_channel(affine.scale.abs(), radius)
