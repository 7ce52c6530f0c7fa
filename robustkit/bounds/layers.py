"""Which layers, weights and boxes can be bounded: everything else is refused before any bound is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.errors import RobustkitError, UnsupportedLayerError

OPERATIONS = frozenset(
    {
        *("Input", "Params", "Buffers", "Constant", "PrimConstant", "Shape", "Gather", "Identity"),
        *("Linear", "MatMul", "Conv", "BatchNormalization", "Add", "Sub", "Neg", "Mul", "Div"),
        *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "AveragePool", "GlobalAveragePool"),
        *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Dropout"),
    }
)
"""Operations of the traced graph that the tests hold against sampling."""


def check_layers(model: nn.Module) -> None:
    """Refuse the layers whose bounds would be unsound or are not covered by a test.

    Args:
        model: any network.

    Raises:
        UnsupportedLayerError: names the layer, where it stands, and why.
    """
    for name, layer in model.named_modules():
        reason = _refusal(layer)
        if reason:
            raise UnsupportedLayerError(
                f"cannot bound {type(layer).__name__} at {name or 'the top'!r}: {reason}; "
                "choose another layer, or attack this network without verifying it"
            )


def check_weights(model: nn.Module) -> None:
    """Refuse parameters and buffers that are not finite.

    Args:
        model: any network.

    Raises:
        RobustkitError: names the first that holds NaN or infinity.
    """
    for name, value in model.state_dict(keep_vars=True).items():
        if value.is_floating_point() and not bool(torch.isfinite(value.detach()).all()):
            raise RobustkitError(f"expected finite weights, but {name!r} holds NaN or infinity; train or load again")


def check_box(lb: Tensor, ub: Tensor) -> None:
    """Refuse what is no box.

    Args:
        lb: lower corners, of any shape.
        ub: upper corners, of the same shape.

    Raises:
        RobustkitError: a corner is not finite, or the two are crossed.
    """
    if not bool((torch.isfinite(lb) & torch.isfinite(ub) & (lb <= ub)).all()):
        raise RobustkitError("expected a box with finite corners and lb <= ub; check the inputs for NaN")


def check_operations(nodes: Iterable[Any]) -> None:
    """Refuse the operations of a traced graph that no test covers, or that are known to be bounded unsoundly.

    Args:
        nodes: of auto-LiRPA's graph: each with its ``inputs``, and what the exporter knows of it in ``attr``.

    Raises:
        UnsupportedLayerError: names the operation and its place in the graph.
    """
    nodes = list(nodes)
    variable: set[int] = set()
    for place, node in enumerate(nodes):
        operation = type(node).__name__.removeprefix("Bound")
        where = f"the operation {operation} (number {place + 1} of {len(nodes)} in the traced graph)"
        if operation not in OPERATIONS:
            raise UnsupportedLayerError(f"cannot bound {where}; supported: {', '.join(sorted(OPERATIONS))}")
        given = [one for one in node.inputs if id(one) in variable]
        if operation == "Input" or given:
            variable.add(id(node))
        reason = _unsound(operation, node.attr or {}, len(given))
        if operation in ("Linear", "Conv"):
            stored = all(type(one).__name__ in ("BoundParams", "BoundBuffers") for one in node.inputs[1:])
            reason = reason or (
                None if stored else "its weights are computed in the forward pass; store them as they are"
            )
        if reason:
            raise UnsupportedLayerError(f"cannot bound {where}: {reason}")


def _unsound(operation: str, attributes: Mapping[str, Any], variable_inputs: int) -> str | None:
    """Say why an operation would be bounded unsoundly, if it would: functional use shows in no module."""
    if operation == "AveragePool":
        kernel, strides = attributes["kernel_shape"], attributes["strides"]
        if any(attributes.get("pads") or ()) or attributes.get("ceil_mode") or list(kernel) != list(strides):
            return "its bounds assume a stride equal to the kernel, no padding and ceil_mode=False"
    if operation == "Conv" and attributes.get("group", 1) != 1:
        return "its linear bounds are sound for groups=1 only"
    if operation == "LeakyRelu" and not 0.0 <= attributes.get("alpha", 0.01) <= 1.0:
        return f"its lines are sound for a negative slope in [0, 1] only, this one is {attributes['alpha']:g}"
    if operation in ("MatMul", "Mul", "Div") and variable_inputs > 1:
        return "a product of two values that depend on the input has no tested bound"
    return None


def _refusal(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d | nn.AdaptiveMaxPool2d):
        return "max-pooling has no tested bound"
    if isinstance(layer, nn.LeakyReLU) and not 0.0 <= layer.negative_slope <= 1.0:
        return f"its lines are sound for a negative slope in [0, 1] only, this one is {layer.negative_slope}"
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups != 1:
        return f"its linear bounds are sound for groups=1 only, this one has {layer.groups}"
    if isinstance(layer, nn.AvgPool2d):
        padded, apart = layer.padding not in (0, (0, 0)), _pair(layer.kernel_size) == _pair(layer.stride)
        if layer.ceil_mode or layer.divisor_override is not None or padded or not apart:
            return "its bounds assume a stride equal to the kernel, no padding, ceil_mode=False and no divisor_override"
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not (layer.affine and layer.track_running_stats):
        return "batch norm needs affine=True and track_running_stats=True"
    return None


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
