"""The operations of a graph that a stack of plain layers can hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from robustkit.models.affine import Convolution
from robustkit.models.graph import NoStackError, Step, Walk


def _gemm(walk: Walk, step: Step) -> None:
    weight, bias = walk.constant(step, 1), walk.constant(step, 2)
    settings = step.attributes
    if weight is None or len(walk.shape) != 2 or walk.shape[0] != 1 or settings.get("transA", 0):
        raise NoStackError(f"Gemm at {step.name}")
    weight = weight if settings.get("transB", 0) else weight.T
    shift = 0.0 if bias is None else settings.get("beta", 1.0) * bias.astype(np.float64)
    walk.dense(settings.get("alpha", 1.0) * weight.astype(np.float64), shift, (1, len(weight)))


def _matmul(walk: Walk, step: Step) -> None:
    right = step.inputs[0] == walk.value
    weight = walk.constant(step, 1 if right else 0)
    rows = walk.shape[:-1] if right or len(walk.shape) == 1 else (*walk.shape[:-2], walk.shape[-1])
    if weight is None or weight.ndim != 2 or math.prod(rows) != 1:
        raise NoStackError(f"MatMul at {step.name}")
    if right:
        walk.dense(weight.T, 0.0, (*walk.shape[:-1], weight.shape[1]))
    else:
        vector = len(walk.shape) == 1
        walk.dense(weight, 0.0, (len(weight),) if vector else (*walk.shape[:-2], len(weight), 1))


def _conv(walk: Walk, step: Step) -> None:
    weight, bias, settings = walk.constant(step, 1), walk.constant(step, 2), step.attributes
    top, left, bottom, right = settings.get("pads", (0, 0, 0, 0)) if len(walk.shape) == 4 else (0, 0, 1, 1)
    automatic = settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if weight is None or walk.shape[0] != 1 or automatic or (top, left) != (bottom, right):
        raise NoStackError(f"Conv at {step.name}")
    if walk.flat:
        walk.parts.append(nn.Unflatten(1, walk.shape[1:]))
        walk.flat = False
    stride, dilation = (tuple(settings.get(name, (1, 1))) for name in ("strides", "dilations"))
    shift = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    groups = settings.get("group", 1)
    walk.parts.append(Convolution(weight.astype(np.float64), shift, stride, (top, left), dilation, groups))
    kernel = zip(walk.shape[2:], weight.shape[2:], stride, (top, left), dilation, strict=True)
    sides = ((side + 2 * pad - far * (size - 1) - 1) // step + 1 for side, size, step, pad, far in kernel)
    walk.shape = (1, len(weight), *sides)


def _average_pool(walk: Walk, step: Step) -> None:
    settings = step.attributes
    kernel = tuple(settings["kernel_shape"])
    apart = tuple(settings.get("strides", (1, 1))) == kernel
    odd = any(settings.get("pads", ())) or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if walk.flat or len(walk.shape) != 4 or not apart or odd or settings.get("ceil_mode", 0):
        raise NoStackError(f"AveragePool at {step.name}")
    walk.parts.append(nn.AvgPool2d(kernel))
    walk.shape = (*walk.shape[:2], walk.shape[2] // kernel[0], walk.shape[3] // kernel[1])


def _batch_norm(walk: Walk, step: Step) -> None:
    numbers = [walk.constant(step, place) for place in range(1, 5)]
    if len(walk.shape) < 2 or any(one is None for one in numbers) or step.attributes.get("training_mode", 0):
        raise NoStackError(f"BatchNormalization at {step.name}")
    weight, bias, mean, variance = (np.asarray(one, dtype=np.float64) for one in numbers)
    scale = weight / np.sqrt(variance + step.attributes.get("epsilon", 1e-5))
    shape = (1, -1, *[1] * (len(walk.shape) - 2))
    walk.scale(scale.reshape(shape), (bias - mean * scale).reshape(shape), rounded=True)


def _arithmetic(walk: Walk, step: Step) -> None:
    first = step.inputs[0] == walk.value
    number = walk.constant(step, 1 if first else 0)
    assert number is not None
    number = number.astype(np.float64)
    if step.operation == "Div" and (not first or not number.all()):
        raise NoStackError(f"Div at {step.name}")
    sign = 1.0 if first else -1.0
    maps: dict[str, tuple[Any, Any]] = {
        "Add": (1.0, number),
        "Sub": (sign, -sign * number),
        "Mul": (number, 0.0),
        "Div": (np.reciprocal(number, where=number != 0, out=np.ones_like(number)), 0.0),
    }
    walk.scale(*maps[step.operation], rounded=step.operation == "Div")


def _reshape(walk: Walk, step: Step) -> None:
    wanted = walk.constant(step, 1)
    if wanted is None or step.attributes.get("allowzero", 0) or (wanted == 0)[len(walk.shape) :].any():
        raise NoStackError(f"Reshape at {step.name}")
    shape = [walk.shape[place] if size == 0 else int(size) for place, size in enumerate(wanted.tolist())]
    rest = math.prod(walk.shape) // max(1, math.prod(size for size in shape if size > 0))
    walk.reshape(tuple(rest if size < 0 else size for size in shape))


def _flatten(walk: Walk, step: Step) -> None:
    axis = step.attributes.get("axis", 1) % (len(walk.shape) + 1)
    walk.reshape((math.prod(walk.shape[:axis]), math.prod(walk.shape[axis:])))


def _squeeze(walk: Walk, step: Step) -> None:
    axes = _axes(walk, step)
    kept = [n for place, n in enumerate(walk.shape) if (place not in axes if axes else n != 1)]
    walk.reshape(tuple(kept))


def _unsqueeze(walk: Walk, step: Step) -> None:
    axes, sizes = _axes(walk, step, more=True), iter(walk.shape)
    walk.reshape(tuple(1 if place in axes else next(sizes) for place in range(len(walk.shape) + len(axes))))


def _axes(walk: Walk, step: Step, *, more: bool = False) -> set[int]:
    given = walk.constant(step, 1)
    axes = list(step.attributes.get("axes", ())) if given is None else given.reshape(-1).tolist()
    return {int(one) % (len(walk.shape) + (len(axes) if more else 0)) for one in axes}


def _activation(walk: Walk, step: Step) -> None:
    made: dict[str, Callable[[], nn.Module]] = {
        "Relu": nn.ReLU,
        "Sigmoid": nn.Sigmoid,
        "Tanh": nn.Tanh,
        "LeakyRelu": lambda: nn.LeakyReLU(step.attributes.get("alpha", 0.01)),
    }
    walk.parts.append(made[step.operation]())


def _nothing(walk: Walk, step: Step) -> None:
    """Pass over an operation that does nothing in inference."""
    if walk.value != step.inputs[0]:
        raise NoStackError(f"{step.operation} at {step.name}")


OPERATIONS: dict[str, Callable[[Walk, Step], None]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "LeakyRelu"), _activation),
    **dict.fromkeys(("Identity", "Dropout"), _nothing),
}
"""What a stack may hold."""


def stored(step: Step) -> npt.NDArray[Any]:
    """Give the value of a ``Constant``."""
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in step.attributes:
            return np.asarray(step.attributes[name])
    raise NoStackError(f"Constant at {step.name}")


def computed(step: Step, given: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Compute from constants what exporters compute of shapes."""
    axis = step.attributes.get("axis", 0)
    if step.operation == "Gather":
        return np.take(given[0], given[1], axis=axis)
    if step.operation == "Concat":
        return np.concatenate(given, axis=axis)
    if step.operation == "Unsqueeze" and given[0].ndim == 0:
        return given[0].reshape(1)
    if step.operation in ("Identity", "Cast"):
        return given[0]
    raise NoStackError(f"{step.operation} of constants at {step.name}")
