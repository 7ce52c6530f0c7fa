"""What every verifier asks of a model and a batch, however it is called."""

from __future__ import annotations

from torch import Tensor, nn

from robustkit.attacks.base import check_inputs
from robustkit.bounds.layers import check_weights
from robustkit.errors import RobustkitError, UsageError
from robustkit.threat import LinfBall
from robustkit.verifiers.base import Outcome, Screen
from robustkit.verifiers.certificate import model_digest

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


def checking(model: nn.Module, screen: Screen) -> Screen:
    """Refuse batches for which no verdict means anything, and weights that are no longer those prepared for.

    Args:
        model: the network.
        screen: what verifies a batch.

    Returns:
        The same, raising ``UsageError`` where the model is in train mode or inputs lie outside the pixel range or are
        NaN, and ``RobustkitError`` where weights are not finite or have changed.
    """
    prepared = model_digest(model)

    def checked(x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None) -> Outcome:
        check_mode(model)
        check_inputs(x, y, ball)
        check_weights(model)
        if model_digest(model) != prepared:
            raise RobustkitError(
                "expected the weights that the verifier was prepared for, got others; prepare it again"
            )
        return screen(x, y, ball, index)

    return checked
