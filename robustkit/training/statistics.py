"""Running statistics of batch norm that are exact."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn


def has_batch_norm(model: nn.Module) -> bool:
    """Say whether a network has a layer of batch norm."""
    return any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in model.modules())


def make_precise(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by those of some batches, each counted alike; the mode is left as it was.

    Source: Wu & Johnson 2021, arXiv 2105.07576, Sec. 3.
    """
    mode = model.training
    update_bn(batches, model)
    model.train(mode)
