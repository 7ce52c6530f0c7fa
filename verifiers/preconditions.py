"""What every verifier asks of a model and a batch, however it is called."""

from __future__ import annotations

from torch import Tensor, nn

from robustkit.attacks.base import check_inputs
from robustkit.errors import UsageError
from robustkit.threat import LinfBall

MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
"""Layers that compute something else in train mode."""


def check_mode(model: nn.Module) -> None:
    """Refuse a model that computes something else in its mode than when it is used.

    Args:
        model: any network; it is not run, so that batch norm keeps its statistics.

    Raises:
        UsageError: batch norm or dropout in train mode; the layer is named.
    """
    for name, layer in model.named_modules():
        if layer.training and isinstance(layer, MODAL):
            raise UsageError(
                f"expected a model in eval mode, got {type(layer).__name__} at {name!r} in train mode; "
                "call model.eval() first"
            )


def check_batch(model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall) -> None:
    """Refuse a batch for which no verdict means anything.

    Args:
        model: the network.
        x: inputs, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        ball: the ball around each input; outside its pixel range it holds no point, or not the input.

    Raises:
        UsageError: the model is in train mode, or inputs lie outside the pixel range or are NaN.
    """
    check_mode(model)
    check_inputs(x, y, ball)
