"""Which layers can be bounded: everything else is refused by name, before any bound is computed."""

from __future__ import annotations

from torch import nn

from robustkit.errors import UnsupportedLayerError

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


def check_operations(operations: list[str]) -> None:
    """Refuse the operations of a traced graph that no test covers.

    Args:
        operations: their names, in the order they are computed.

    Raises:
        UnsupportedLayerError: names the operation and its place in the graph.
    """
    for place, operation in enumerate(operations):
        if operation not in OPERATIONS:
            raise UnsupportedLayerError(
                f"cannot bound the operation {operation} (number {place + 1} of {len(operations)} in the traced "
                f"graph); supported: {', '.join(sorted(OPERATIONS))}"
            )


def _refusal(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d | nn.AdaptiveMaxPool2d):
        return "max-pooling has no tested bound"
    if isinstance(layer, nn.LeakyReLU) and not 0.0 <= layer.negative_slope <= 1.0:
        return f"its lines are sound for a negative slope in [0, 1] only, this one is {layer.negative_slope}"
    if isinstance(layer, nn.AvgPool2d):
        padded = layer.padding not in (0, (0, 0))
        if layer.ceil_mode or layer.divisor_override is not None or (padded and not layer.count_include_pad):
            return "its bounds assume ceil_mode=False, count_include_pad=True and no divisor_override"
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not (layer.affine and layer.track_running_stats):
        return "batch norm needs affine=True and track_running_stats=True"
    return None
