"""From a single layer to the operation that the proof checker reasons about; what it does not know it refuses.

Types are compared exactly: a subclass or a parametrised layer may compute anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustkit.errors import UnsupportedLayerError
from robustkit.models.affine import Elementwise
from robustkit.models.architectures import Normalize
from robustkit.verifiers.exact_network import Convolution, Dense, ExactNetwork, Scale, Sum

DOUBT = 16
"""Units of 2^-53 by which a weight that had to be computed may be off; at most five roundings give one."""


def read_layer(network: ExactNetwork, layer: nn.Module, value: int, name: str) -> int:
    """Append the operation of a single layer.

    Args:
        network: what it is appended to.
        layer: of a type in ``READERS``, exactly.
        value: number of its input.
        name: what it is called in a message.

    Returns:
        Number of its output.

    Raises:
        UnsupportedLayerError: another type, or settings that are not carried; the layer is named.
    """
    if type(layer) not in READERS:
        raise refused(name, layer, "no rule for it")
    return READERS[type(layer)](network, layer, value, name)


def _linear(network: ExactNetwork, layer: nn.Linear, value: int, name: str) -> int:
    if network.shapes[value] != (layer.in_features,):
        raise refused(name, layer, f"an input of shape {network.shapes[value]}")
    weight, bias = _exact(layer.weight, name), _bias(layer, layer.out_features, name)
    operation = Dense(weight, bias, bias.abs(), max(weight.shape))
    return network.add(operation, (value,), (layer.out_features,))


def _convolution(network: ExactNetwork, layer: nn.Conv2d, value: int, name: str) -> int:
    before = network.shapes[value]
    if len(before) != 3 or before[0] != layer.in_channels:
        raise refused(name, layer, f"an input of shape {before}")
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros" or tuple(layer.dilation) != (1, 1):
        raise refused(name, layer, "padding by name or by other than zeros, or dilation")
    weight, bias = _exact(layer.weight, name), _bias(layer, layer.out_channels, name)
    stride, padding = (layer.stride[0], layer.stride[1]), (int(layer.padding[0]), int(layer.padding[1]))
    return _convolve(network, value, weight, bias, stride, padding, layer.groups, name)


def _pool(network: ExactNetwork, layer: nn.AvgPool2d, value: int, name: str) -> int:
    shape = network.shapes[value]
    kernel, stride, padding = (_pair(one) for one in (layer.kernel_size, layer.stride, layer.padding))
    plain = kernel == stride and padding == (0, 0) and not layer.ceil_mode and layer.divisor_override is None
    if len(shape) != 3 or not plain:
        raise refused(name, layer, "windows that overlap or leave gaps, padding, ceil_mode or a divisor")
    weight = torch.full((shape[0], 1, *kernel), 1.0 / math.prod(kernel), dtype=torch.float64)
    bias = torch.zeros(shape[0], dtype=torch.float64)
    return _convolve(network, value, weight, bias, stride, padding, shape[0], name, DOUBT)


def _convolve(
    network: ExactNetwork,
    value: int,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    name: str,
    doubt: int = 0,
) -> int:
    before = network.shapes[value]
    sides = [
        (side + 2 * pad - kernel) // step + 1
        for side, kernel, step, pad in zip(before[1:], weight.shape[2:], stride, padding, strict=True)
    ]
    if min(sides) < 1:
        raise UnsupportedLayerError(f"expected images no smaller than the kernel at {name}, got {before}")
    after = (weight.shape[0], *sides)
    spread = bias.repeat_interleave(math.prod(sides))
    terms = max(weight[0].numel(), weight.shape[0] // groups * math.prod(weight.shape[2:]))
    operation = Convolution(weight, spread, spread.abs(), terms, doubt, before, after, stride, padding, groups)
    return network.add(operation, (value,), after)


def _batch_norm(network: ExactNetwork, layer: nn.BatchNorm1d | nn.BatchNorm2d, value: int, name: str) -> int:
    dimensions = 3 if isinstance(layer, nn.BatchNorm2d) else 1
    shape = network.shapes[value]
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise refused(name, layer, "training mode or no running statistics")
    if len(shape) != dimensions or shape[0] != layer.num_features:
        raise refused(name, layer, f"an input of shape {shape}")
    mean, variance = _exact(layer.running_mean, name), _exact(layer.running_var, name) + layer.eps
    if not (variance > 0).all():
        raise refused(name, layer, "a variance that is not positive")
    ones = torch.ones_like(mean)
    weight = _exact(layer.weight, name) if layer.weight is not None else ones
    bias = _exact(layer.bias, name) if layer.bias is not None else 0.0 * ones
    # sum, root, quotient: each rounded once, so the scale is off by less than DOUBT units
    return _scale(network, value, weight / variance.sqrt(), mean, bias)


def _normalize(network: ExactNetwork, layer: Normalize, value: int, name: str) -> int:
    mean, std = _exact(layer.mean, name).flatten(), _exact(layer.std, name).flatten()
    if not len(mean) == len(std) == network.shapes[value][0] or len(network.shapes[value]) != 3:
        raise refused(name, layer, f"an input of shape {network.shapes[value]}")
    if not (std > 0).all():
        raise refused(name, layer, "a deviation that is not positive")
    return _scale(network, value, 1.0 / std, mean, torch.zeros_like(mean))


def _scale(network: ExactNetwork, value: int, weight: Tensor, mean: Tensor, bias: Tensor) -> int:
    """Append ``z = weight (x - mean) + bias`` per channel, as ``weight x + (bias - weight mean)``."""
    shape = network.shapes[value]
    product = weight * mean
    pixels = math.prod(shape[1:])
    parts = (weight, bias - product, bias.abs() + product.abs())
    spread, shift, size = (one.repeat_interleave(pixels) for one in parts)
    operation = Scale(spread, shift, size, terms=1, doubt=DOUBT)
    return network.add(operation, (value,), shape)


def _activation(network: ExactNetwork, layer: nn.ReLU | nn.LeakyReLU, value: int, name: str) -> int:
    slope = float(layer.negative_slope) if isinstance(layer, nn.LeakyReLU) else 0.0
    if not 0.0 <= slope <= 1.0:
        raise refused(name, layer, "a slope outside [0, 1]")
    return network.add_activation(slope, value, in_place=layer.inplace)


def _flatten(network: ExactNetwork, layer: nn.Flatten, value: int, name: str) -> int:
    shape = network.shapes[value]
    if layer.start_dim != 1 or layer.end_dim not in (-1, len(shape)):
        raise refused(name, layer, "other than all dimensions of a sample")
    return network.add(Sum(), (value,), (math.prod(shape),))


def _unflatten(network: ExactNetwork, layer: nn.Unflatten, value: int, name: str) -> int:
    shape, given = tuple(layer.unflattened_size), network.shapes[value]
    whole = all(isinstance(one, int) and one > 0 for one in shape) and (math.prod(shape),) == given
    if layer.dim != 1 or not whole:
        raise refused(name, layer, f"other than a flat sample of shape {given} as a whole")
    return network.add(Sum(), (value,), shape)


def _elementwise(network: ExactNetwork, layer: Elementwise, value: int, name: str) -> int:
    shape = network.shapes[value]
    if tuple(layer.scale.shape) != shape or tuple(layer.shift.shape) != shape:
        raise refused(name, layer, f"an input of shape {shape}")
    scale, shift = _exact(layer.scale, name).flatten(), _exact(layer.shift, name).flatten()
    return network.add(Scale(scale, shift, shift.abs(), terms=1), (value,), shape)


def _exact(tensor: Tensor, name: str) -> Tensor:
    """Copy parameters to float64 on the CPU, which holds every narrower number exactly."""
    wide = tensor.detach().cpu().double()
    if not tensor.is_floating_point() or not wide.isfinite().all():
        raise UnsupportedLayerError(f"expected finite real parameters at {name}, got others: it cannot be checked")
    return wide


def _bias(layer: nn.Linear | nn.Conv2d, size: int, name: str) -> Tensor:
    return torch.zeros(size, dtype=torch.float64) if layer.bias is None else _exact(layer.bias, name)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def refused(name: str, layer: nn.Module, what: str) -> UnsupportedLayerError:
    """Say which layer cannot be carried, and what stands in the way."""
    return UnsupportedLayerError(f"the proof checker cannot carry {type(layer).__name__} ({name}): {what}")


def _nothing(network: ExactNetwork, layer: nn.Module, value: int, name: str) -> int:
    if layer.training and not isinstance(layer, nn.Identity):
        raise refused(name, layer, "training mode")
    return value


READERS: dict[type[nn.Module], Callable[..., int]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.AvgPool2d: _pool,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    nn.ReLU: _activation,
    nn.LeakyReLU: _activation,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    Elementwise: _elementwise,
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
}
