"""Interval gradients through max-pooling, which has no bounds here: an attack need not be sound."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from robustkit.errors import UnsupportedLayerError
from robustkit.models.architectures import Normalize
from robustkit.models.modes import in_eval_mode

Op = Callable[..., Any]

POOLS = (nn.MaxPool2d,)
ORDERED = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, Normalize, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d),
)
"""Layers in eval mode whose outputs rise, or fall, with all the inputs they depend on."""
ORDERED_CALLS: dict[Op | str, Op] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add), torch.add),  # none of them in place
    **dict.fromkeys((torch.flatten, "flatten"), torch.flatten),
    "view": Tensor.view,
}
RELU_CALLS: frozenset[Op] = frozenset({torch.relu, functional.relu})


@dataclass(frozen=True)
class Span:
    """A value of the network over a box.

    Attributes:
        lower: least value, shape ``(B, ...)``, by intervals.
        upper: greatest value, likewise.
        value: at the middle of the box, of a network that is linear there: differentiable in the middle.
    """

    lower: Tensor
    upper: Tensor
    value: Tensor

    def mapped(self, op: Op, *others: Any, **options: Any) -> Span:
        """Apply what rises, or falls, with the values."""
        ends = [_applied(op, side, self, others, options) for side in ("lower", "upper")]
        value = _applied(op, "value", self, others, options)
        return Span(torch.minimum(*ends), torch.maximum(*ends), value)


class PooledNetwork:
    """The interval gradient of a network with max-pooling: each pool keeps the input that is largest in the middle.

    A ReLU that intervals cannot decide stands between its parallel lines, as in the symbolic bounds; the hidden bounds
    are those of intervals. The coefficients are exact for the network whose pools are frozen so, and no bounds of the
    network itself.

    Args:
        model: whose forward can be followed: ``Conv2d``, ``Linear``, ``ReLU``, ``MaxPool2d``, batch norm, average
            pooling, sums and reshapes.
        example: one input, shape ``(1, ...)``.

    Raises:
        UnsupportedLayerError: there is no max-pooling, or another operation, which is named.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        try:
            with in_eval_mode(model):
                self._traced = fx.GraphModule(model, _Tracer().trace(model))
                if not any(isinstance(one, POOLS) for one in self._traced.modules()):
                    raise UnsupportedLayerError("expected a network with max-pooling, found none")
                rows = torch.eye(model(example).shape[1], device=example.device).unsqueeze(0)
                self.input_coefficients(example, example, rows.to(example))
        except Exception as error:  # whatever a user's forward does
            raise UnsupportedLayerError(f"cannot follow the code of this network: {error}") from None

    def input_coefficients(self, lb: Tensor, ub: Tensor, specification: Tensor) -> tuple[Tensor, Tensor]:
        """Give linear functions near ``C @ logits`` over a box: their coefficients, and their greatest values.

        Args:
            lb: lower corners, shape ``(B, ...)``.
            ub: upper corners, of the same shape.
            specification: ``C``, shape ``(B, R, K)``.

        Returns:
            The coefficients, shape ``(B, R, ...)``, and the greatest values, shape ``(B, R)``.
        """
        with in_eval_mode(self.model), torch.enable_grad():
            middle = ((lb + ub) * 0.5).detach().requires_grad_()
            follow = _Follow(self._traced)
            outputs: Span = follow.run(Span(lb, ub, middle))
            wanted = torch.einsum("brk,bk->br", specification, outputs.value)
            found = [self._row(one, middle, follow, ub - lb) for one in wanted.unbind(1)]
        return torch.stack([one[0] for one in found], 1), wanted.detach() + torch.stack([one[1] for one in found], 1)

    @staticmethod
    def _row(wanted: Tensor, middle: Tensor, follow: _Follow, width: Tensor) -> tuple[Tensor, Tensor]:
        """Give the coefficients of one row, and how far it can rise above its value in the middle."""
        inputs = [middle, *(relu for relu, _ in follow.relus)]
        slopes = torch.autograd.grad(wanted.sum(), inputs, retain_graph=True, materialize_grads=True)
        rise = (slopes[0].abs() * width).flatten(1).sum(1) * 0.5
        for slope, (_, half) in zip(slopes[1:], follow.relus, strict=True):
            rise = rise + (slope.abs() * half).flatten(1).sum(1)
        return slopes[0], rise


class _Tracer(fx.Tracer):
    """Follows into modules but torch's own and ``Normalize``."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalize) or super().is_leaf_module(m, module_qualified_name)


class _Follow(fx.Interpreter):
    """Computes with spans in place of tensors."""

    def __init__(self, root: fx.GraphModule) -> None:
        super().__init__(root)
        self.extra_traceback = False
        self.relus: list[tuple[Tensor, Tensor]] = []
        """The value of every ReLU, and half the distance of its lines."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer, span = self.fetch_attr(target), args[0]
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros"):
            return _affine(layer, span)
        if isinstance(layer, nn.ReLU):
            return self._relu(span)
        if isinstance(layer, POOLS):
            return _pooled(layer, span)
        if isinstance(layer, ORDERED):
            return span.mapped(layer)
        raise UnsupportedLayerError(f"cannot follow {type(layer).__name__} at {target!r}")

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in RELU_CALLS:
            return self._relu(args[0])
        return _ordered(target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0].value.size(*args[1:], **kwargs) if target == "size" else _ordered(target, args, kwargs)

    def _relu(self, span: Span) -> Span:
        lower, upper = span.lower, span.upper
        unstable = (lower < 0) & (upper > 0)
        slope = torch.where(unstable, upper / torch.where(unstable, upper - lower, 1.0), (lower >= 0).to(lower))
        half = torch.where(unstable, -lower * slope * 0.5, 0.0)
        value = span.value * slope + half
        self.relus.append((value, half))
        return Span(lower.relu(), upper.relu(), value)


def _ordered(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Span:
    if target not in ORDERED_CALLS or not any(isinstance(one, Span) for one in args):
        raise UnsupportedLayerError(f"cannot follow {getattr(target, '__name__', target)}")
    first, *others = args if isinstance(args[0], Span) else reversed(args)
    found: Span = first.mapped(ORDERED_CALLS[target], *others, **kwargs)
    return found


def _affine(layer: nn.Conv2d | nn.Linear, span: Span) -> Span:
    middle, radius = (span.upper + span.lower) * 0.5, (span.upper - span.lower) * 0.5
    with torch.no_grad():
        centre = layer(middle)
        if isinstance(layer, nn.Linear):
            spread = functional.linear(radius, layer.weight.abs())
        else:
            settings: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
            spread = functional.conv2d(radius, layer.weight.abs(), None, *settings)
    return Span(centre - spread, centre + spread, layer(span.value))


def _pooled(layer: nn.MaxPool2d, span: Span) -> Span:
    """Pool the ends, and of the values keep those at the places that are largest in the middle."""
    settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    middle = (span.upper + span.lower) * 0.5
    at: Tensor = functional.max_pool2d(middle, *settings, return_indices=True)[1]
    value = span.value.flatten(2).gather(2, at.flatten(2)).view(at.shape)
    return Span(layer(span.lower), layer(span.upper), value)


def _applied(op: Op, side: str, span: Span, others: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    given = [getattr(one, side) if isinstance(one, Span) else one for one in others]
    applied: Tensor = op(getattr(span, side), *given, **options)
    return applied
