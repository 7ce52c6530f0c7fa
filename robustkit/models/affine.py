"""Linear layers and elementwise maps in float64, folded into one another where that computes the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robustkit.models.architectures import Normalize

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scaling:
    """``z * scale + shift``, element by element; both of the shape of a sample.

    Of all three kinds, ``rounded`` says that a number may differ from the exact one.
    """

    scale: Array
    shift: Array
    rounded: bool = False


@dataclass(frozen=True, eq=False)
class Dense:
    """``weight @ z + bias``; ``weight`` of shape ``(out, in)``."""

    weight: Array
    bias: Array
    rounded: bool = False


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution of images; ``weight`` of shape ``(out, in / groups, height, width)``."""

    weight: Array
    bias: Array
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    rounded: bool = False


Part = Scaling | Dense | Convolution | nn.Module
"""A layer that can be folded, or any other as it is."""


class Elementwise(nn.Module):
    """``z * scale + shift``, element by element.

    Args:
        scale: of the shape of a sample.
        shift: of the same shape.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, z: Tensor) -> Tensor:
        """Map values of shape ``(B, ...)``."""
        return z * self.scale + self.shift


def fold(parts: Iterable[Part]) -> list[Part]:
    """Merge every elementwise map with the linear layer before or after it, where the result is the same function.

    A shift in front of a convolution that pads with zeros stays apart, for the padding is not shifted.
    """
    stack: list[Part] = []
    for part in parts:
        _push(stack, part)
    return stack


def layers_of(parts: Iterable[Part]) -> list[nn.Module]:
    """Make torch's layers of float32 weights."""
    return [_layer(one) for one in parts]


def exact(parts: Iterable[Part]) -> bool:
    """Say whether ``layers_of`` holds the very numbers that the parts were made from, none of them rounded."""
    return all(isinstance(one, nn.Module) or _exact(one) for one in parts)


def _exact(part: Scaling | Dense | Convolution) -> bool:
    if isinstance(part, Scaling):
        return not part.rounded and not _normalizes(part) and _is_float32(part.scale) and _is_float32(part.shift)
    return not part.rounded and _is_float32(part.weight) and _is_float32(part.bias)


def _is_float32(values: Array) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float32) == values).all())


def _push(stack: list[Part], part: Part) -> None:
    last = stack[-1] if stack else None
    if isinstance(part, Scaling):
        merged = _after(last, part)
        if merged is not None:
            stack.pop()
            _push(stack, merged)
        elif (part.scale != 1.0).any() or (part.shift != 0.0).any():
            stack.append(part)
    elif isinstance(last, Scaling) and isinstance(part, nn.Flatten):
        stack.pop()
        _push(stack, part)
        _push(stack, replace(last, scale=last.scale.reshape(-1), shift=last.shift.reshape(-1)))
    else:
        merged = _before(last, part) if isinstance(last, Scaling) else None
        if merged is not None:
            stack.pop()
        stack.append(part if merged is None else merged)


def _after(last: Part | None, part: Scaling) -> Part | None:
    """Merge a linear layer with the elementwise map that follows it; None where they do not merge."""
    if isinstance(last, Scaling):
        rounded = _rounds(last.shift, part) or last.rounded
        return Scaling(last.scale * part.scale, last.shift * part.scale + part.shift, rounded)
    if isinstance(last, Dense):
        rounded = _rounds(last.bias, part) or last.rounded
        return Dense(part.scale[:, None] * last.weight, last.bias * part.scale + part.shift, rounded)
    if isinstance(last, Convolution) and _per_channel(part):
        scale, shift = part.scale[:, 0, 0], part.shift[:, 0, 0]
        rounded = _rounds(last.bias, Scaling(scale, shift, part.rounded)) or last.rounded
        weight = last.weight * scale[:, None, None, None]
        return replace(last, weight=weight, bias=last.bias * scale + shift, rounded=rounded)
    return None


def _before(first: Scaling, part: Part) -> Part | None:
    """Merge an elementwise map with the linear layer that follows it; None where they do not merge."""
    rounded = first.rounded or bool((first.scale != 1.0).any() or first.shift.any())
    if isinstance(part, Dense):
        return Dense(part.weight * first.scale, part.bias + part.weight @ first.shift, part.rounded or rounded)
    if isinstance(part, Convolution) and part.groups == 1 and _per_channel(first):
        scale, shift = first.scale[:, 0, 0], first.shift[:, 0, 0]
        if not shift.any() or part.padding == (0, 0):
            bias = part.bias + np.einsum("oihw,i->o", part.weight, shift)
            weight = part.weight * scale[:, None, None]
            return replace(part, weight=weight, bias=bias, rounded=part.rounded or rounded)
    return None


def _rounds(bias: Array, part: Scaling) -> bool:
    """Say whether ``bias * scale + shift`` may be rounded: not where the scale is 1 and no sum loses a bit.

    Source: Knuth's TwoSum gives the error of a sum of two numbers without overflow.
    """
    total = bias + part.shift
    other = total - bias
    error = (bias - (total - other)) + (part.shift - other)
    return part.rounded or bool((part.scale != 1.0).any() or (error != 0.0).any())


def _per_channel(part: Scaling) -> bool:
    return part.scale.ndim == 3 and all(bool((one == one[:, :1, :1]).all()) for one in (part.scale, part.shift))


def _normalizes(part: Scaling) -> bool:
    """Say whether it becomes a ``Normalize``, whose numbers are quotients."""
    return _per_channel(part) and bool((part.scale > 0).all())


def _layer(part: Part) -> nn.Module:
    if isinstance(part, nn.Module):
        return part
    if isinstance(part, Scaling):
        if _normalizes(part):
            scale, shift = part.scale[:, 0, 0], part.shift[:, 0, 0]
            return Normalize((-shift / scale).tolist(), (1.0 / scale).tolist())
        return Elementwise(_float32(part.scale), _float32(part.shift))
    outs, ins = part.weight.shape[:2]
    made: nn.Linear | nn.Conv2d
    if isinstance(part, Dense):
        made = nn.Linear(ins, outs, device="meta")
    else:
        size = (part.weight.shape[2], part.weight.shape[3])
        options = (part.stride, part.padding, part.dilation, part.groups)
        made = nn.Conv2d(ins * part.groups, outs, size, *options, device="meta")
    made.weight = nn.Parameter(_float32(part.weight))
    made.bias = nn.Parameter(_float32(part.bias))
    return made


def _float32(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
