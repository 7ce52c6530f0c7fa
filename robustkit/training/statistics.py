"""Batch norm where a batch is worked on in parts, and where its running statistics are not exact enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from robustkit.training.parallel import World

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def norms_of(model: nn.Module) -> list[BatchNorm]:
    """List the layers of batch norm."""
    return [one for one in model.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]


@contextmanager
def of_the_whole_batch(model: nn.Module, x: Tensor, world: World) -> Iterator[None]:
    """Hold batch norm to the statistics of the whole batch while its parts are worked on.

    One pass without gradients finds them, layer by layer over all processes; they are constants for the gradient.
    Attacks see them as well. Afterwards the running statistics have moved as one pass in train mode would move them.

    Args:
        model: in train mode.
        x: the samples of the batch that this process has, shape ``(B, ...)``.
        world: the processes that have the others.
    """
    norms = norms_of(model)
    before = [(one.running_mean, one.running_var) for one in norms]
    found: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}

    def measure(layer: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
        mean, variance, count = _moments(given[0], world)
        layer.running_mean, layer.running_var = mean, variance
        found[layer] = mean, variance, count

    hooks = [one.register_forward_pre_hook(measure) for one in norms]
    try:
        for one in norms:
            one.eval()
        with torch.no_grad():
            model(x)
        for hook in hooks:
            hook.remove()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for one, (mean, variance) in zip(norms, before, strict=True):
            one.running_mean, one.running_var = mean, variance
            one.train()
    for one in norms:
        if one in found:
            batch_mean, batch_variance, count = found[one]
            _move(one, batch_mean, batch_variance * (count / max(count - 1, 1)))


def _moments(z: Tensor, world: World) -> tuple[Tensor, Tensor, int]:
    """Give mean, variance and count per channel over the values ``(B, C, ...)`` of all processes."""
    flat = z.transpose(0, 1).flatten(1).double()
    sums = torch.stack([flat.sum(1), flat.square().sum(1), torch.full_like(flat[:, 0], flat.shape[1])])
    total, squares, count = world.total(sums)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0.0)
    return mean.to(z), variance.to(z), flat.shape[1] * world.size


@torch.no_grad()
def _move(layer: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None
    layer.num_batches_tracked += 1
    share = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean, share)
    layer.running_var.lerp_(variance, share)


def make_precise(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by those of some batches, each counted alike; the mode is left as it was.

    Source: Wu & Johnson 2021, arXiv 2105.07576, Sec. 3.
    """
    mode = model.training
    update_bn(batches, model)
    model.train(mode)
