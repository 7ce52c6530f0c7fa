"""Bounds of a chain that are linear in the inputs, run backward from rows of a layer.

Every unstable ReLU stands between two lines. Where they are parallel, the lower and the upper bound of a row have the
same coefficients and one pass gives both; else the upper bound of a row is minus the lower bound of its negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.bounds.chain import Affine, Box, Statistics, intervals, shapes_of
from robustkit.models.named import Residual

BUDGET = 2**24
"""Numbers that the coefficients at one layer may take outside training; more rows are split."""


class Relaxation(Enum):
    """The lower line of an unstable ReLU; the upper one is always the chord."""

    PARALLEL = "parallel"
    """Parallel to the upper line. Source: Wang et al. 2018, arXiv 1811.02625; Weng et al. 2018, arXiv 1804.09699."""
    ADAPTIVE = "adaptive"
    """The better of 0 and z. Source: Zhang et al. 2018, arXiv 1811.00866."""


@dataclass(frozen=True)
class Lines:
    """The lines around a ReLU: ``lower z <= relu(z) <= upper z + offset``, each of the shape of its input.

    Parallel lines are one tensor, ``lower is upper``.
    """

    lower: Tensor
    upper: Tensor
    offset: Tensor

    @classmethod
    def between(cls, lb: Tensor, ub: Tensor, relaxation: Relaxation) -> Lines:
        """Give the lines for inputs in ``[lb, ub]``; NaN, which proves nothing, where these are not finite."""
        active, unstable = lb >= 0, (lb < 0) & (ub > 0)
        upper = torch.where(unstable, ub / torch.where(unstable, ub - lb, 1.0), active.to(lb))
        upper = torch.where(torch.isfinite(ub - lb), upper, torch.nan)
        adaptive = relaxation is Relaxation.ADAPTIVE
        lower = (active | (unstable & (ub > -lb))).to(lb) if adaptive else upper
        return cls(lower, upper, torch.where(unstable, -lb * upper, 0.0))


@dataclass(frozen=True)
class Window:
    """How patches lie on a layer.

    Attributes:
        groups: which patch each group has, counted over samples and, in each, along rows of the image; shape ``(G,)``.
        stride: between patches, ``(height, width)``.
        padding: zeros around the layer, likewise.
    """

    groups: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """Linear functions of a layer's outputs: ``R`` of them in each of ``G`` groups that look at the same numbers.

    Attributes:
        coefficients: shape ``(G, R, ...)``: of the whole layer, a group a sample; or of a patch of it.
        low: constant of the lower bound, shape ``(G, R)``.
        high: constant of the upper bound, shape ``(G, R)``.
        window: where the groups are patches, how they lie.
    """

    coefficients: Tensor
    low: Tensor
    high: Tensor
    window: Window | None = None

    def with_negatives(self) -> Rows:
        """Give the rows, and behind them their negatives."""
        coefficients, low, high = (torch.cat([one, -one], dim=1) for one in (self.coefficients, self.low, self.high))
        return replace(self, coefficients=coefficients, low=low, high=high)

    def plus(self, low: Tensor, high: Tensor) -> Rows:
        """Add to the constants."""
        return replace(self, low=self.low + low, high=self.high + high)

    def seen(self, values: Tensor) -> Tensor:
        """Give the entries of a layer's values ``(B, ...)`` that each group looks at, shape ``(G, ...)``."""
        if self.window is None:
            return values
        size = self.coefficients.shape[-2:]
        patches = functional.unfold(values, size, padding=self.window.padding, stride=self.window.stride)
        flat = patches.transpose(1, 2).flatten(0, 1)
        # A look-up by rows: unlike indexing, its gradient is fast on a CPU.
        return functional.embedding(self.window.groups, flat).view(-1, values.shape[1], *size)

    def dot(self, values: Tensor, *, absolute: bool = False) -> Tensor:
        """Multiply coefficients, or their absolute values, by what each group sees, and add up: shape ``(G, R)``."""
        given = self.coefficients.abs() if absolute else self.coefficients
        return torch.bmm(given.flatten(2), self.seen(values).flatten(1).unsqueeze(2)).squeeze(2)


def carries(layers: Sequence[nn.Module]) -> bool:
    """Say whether rows can be run back through a chain: each ReLU right after a convolution or a linear layer, or
    after one and its batch norm; no dilation, and no residual block."""
    for at, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU):
            before = at - 2 if at and isinstance(layers[at - 1], nn.BatchNorm1d | nn.BatchNorm2d) else at - 1
            if before < 0 or not isinstance(layers[before], nn.Conv2d | nn.Linear):
                return False
        elif isinstance(layer, Residual) or (isinstance(layer, nn.Conv2d) and layer.dilation != (1, 1)):
            return False
    return True


class Backward:
    """Runs rows back through the layers before them, between lines that hidden bounds give.

    Args:
        layers: of a chain that ``carries`` holds for.
        box: centre and radius of the inputs, each ``(B, ...)``.
        statistics: of batch norm.
        relaxations: by which lines hidden layers are bounded; of several, and then of intervals too, the tightest bound
            of each neuron is taken. The last is used for the outputs.
        unstable_only: bound in this way only those neurons whose sign intervals cannot tell.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        box: Box,
        statistics: Statistics,
        *,
        relaxations: Sequence[Relaxation] = (Relaxation.PARALLEL,),
        unstable_only: bool,
    ) -> None:
        self.layers, self.box, self.statistics, self.relaxations = layers, box, statistics, relaxations
        self.hidden: dict[int, Box] = {}
        """Lower and upper bounds of the input of every ReLU, by its place among the layers."""
        self.lines: dict[tuple[int, Relaxation], Lines] = {}
        self.shapes = shapes_of(layers, box[0])
        self._bound_hidden(unstable_only)

    def bounds(self, specification: Tensor) -> Box:
        """Bound ``C @ outputs``.

        Args:
            specification: ``C``, shape ``(B, R, K)``.

        Returns:
            Lower and upper bounds, each ``(B, R)``.
        """
        zero = specification.new_zeros(specification.shape[:2])
        return self._bounded(Rows(specification, zero, zero), len(self.layers), self.relaxations[-1])

    def to_input(self, specification: Tensor, relaxation: Relaxation = Relaxation.PARALLEL) -> Rows:
        """Give bounds of ``C @ outputs`` that are linear in the inputs; only lower ones unless lines are parallel.

        The relaxation is one of those that hidden layers were bounded by.
        """
        zero = specification.new_zeros(specification.shape[:2])
        return self._back(Rows(specification, zero, zero), len(self.layers), relaxation)

    def concretised(self, rows: Rows) -> Box:
        """Take the least and the greatest value over the box, each ``(G, R)``."""
        terms, spread = rows.dot(self.box[0]), rows.dot(self.box[1], absolute=True)
        return rows.low + terms - spread, rows.high + terms + spread

    def _bounded(self, rows: Rows, at: int, relaxation: Relaxation) -> Box:
        """Bound rows of the input of layer ``at``, each ``(G, R)``."""
        if relaxation is Relaxation.PARALLEL:
            return self.concretised(self._back(rows, at, relaxation))
        low, _ = self.concretised(self._back(rows.with_negatives(), at, relaxation))
        count = rows.low.shape[1]
        return low[:, :count], -low[:, count:]

    def _bound_hidden(self, unstable_only: bool) -> None:
        """Bound the inputs of every ReLU."""
        box, begin = self.box, 0
        for at, layer in enumerate(self.layers):
            if isinstance(layer, nn.ReLU):
                centre, radius = intervals(self.layers[begin:at], box, self.statistics)
                lb, ub = centre - radius, centre + radius
                if self.hidden:  # the intervals of the first layer are exact
                    lb, ub = self._refined(at, lb, ub, unstable_only=unstable_only)
                self.hidden[at] = lb, ub
                for relaxation in self.relaxations:
                    self.lines[at, relaxation] = Lines.between(lb, ub, relaxation)
                low, high = lb.relu(), ub.relu()
                box, begin = ((high + low) * 0.5, (high - low) * 0.5), at + 1

    def _refined(self, at: int, lb: Tensor, ub: Tensor, *, unstable_only: bool) -> Box:
        """Bound neurons linearly: those wanted are brought to the front of each group, the others left out."""
        wanted = (lb < 0) & (ub > 0) if unstable_only else torch.ones_like(lb, dtype=torch.bool)
        by_group = wanted.flatten(2).transpose(1, 2).flatten(0, 1) if wanted.ndim > 2 else wanted
        counts = by_group.sum(1)
        groups = counts.nonzero().squeeze(1) if wanted.ndim > 2 else torch.arange(len(lb), device=lb.device)
        most = int(counts.max())
        if not most:
            return lb, ub
        neurons = by_group[groups].sort(dim=1, descending=True, stable=True).indices[:, :most]
        split = not torch.is_grad_enabled() and wanted.ndim > 2  # else a group is a sample, and the caller split those
        size = self._affordable(at, most) if split else len(groups)
        parts = [
            self._tightest(at, some, few)
            for some, few in zip(torch.split(groups, size), torch.split(neurons, size), strict=True)
        ]
        chosen = by_group[groups].gather(1, neurons)
        places = groups[:, None].expand_as(neurons)[chosen], neurons[chosen]
        low, high = (
            _put(one, places, torch.cat(part)[chosen])
            for one, part in zip((lb, ub), zip(*parts, strict=True), strict=True)
        )
        if len(self.relaxations) > 1:
            low, high = torch.maximum(lb, low), torch.minimum(ub, high)
        # Rounding makes the bounds of tiny boxes cross; in order they hold, crossed they turn intervals inside out.
        return torch.minimum(low, high), torch.maximum(low, high)

    def _tightest(self, at: int, groups: Tensor, neurons: Tensor) -> Box:
        """Bound neurons of the input of a ReLU by every relaxation, and take the best."""
        rows, before = self._of_neurons(at, groups, neurons)
        each = [self._bounded(rows, before, relaxation) for relaxation in self.relaxations]
        low, high = zip(*each, strict=True)
        return reduce(torch.maximum, low), reduce(torch.minimum, high)

    def _affordable(self, at: int, rows: int) -> int:
        largest = max(int(torch.Size(shape).numel()) for shape in self.shapes[:at])
        return max(1, BUDGET // (rows * largest))

    def _of_neurons(self, at: int, groups: Tensor, neurons: Tensor) -> tuple[Rows, int]:
        """Write neurons ``(G, R)`` of the input of a ReLU as rows of the input of the layer before, and say which."""
        before = at - 2 if isinstance(self.layers[at - 1], nn.BatchNorm1d | nn.BatchNorm2d) else at - 1
        layer = self.layers[before]
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight, bias = layer.weight, layer.bias if layer.bias is not None else layer.weight.new_zeros(len(layer.weight))
        if before < at - 1:
            affine = self.statistics.affine(self.layers[at - 1])
            weight = weight * affine.scale.view(-1, *[1] * (weight.ndim - 1))
            bias = bias * affine.scale + affine.shift
        constant = functional.embedding(neurons, bias.unsqueeze(1)).squeeze(2)
        given = functional.embedding(neurons, weight.flatten(1)).view(*neurons.shape, *weight.shape[1:])
        window = None
        if isinstance(layer, nn.Conv2d):
            stride, padding, _ = _geometry(layer)
            window = Window(groups, stride, padding)
        return self._inside(Rows(given, constant, constant, window), before), before

    def _back(self, rows: Rows, at: int, relaxation: Relaxation) -> Rows:
        """Run rows of the input of layer ``at`` back to the network's input."""
        for place in reversed(range(at)):
            layer = self.layers[place]
            if isinstance(layer, nn.ReLU):
                rows = _past_relu(self.lines[place, relaxation], rows)
            elif isinstance(layer, nn.Conv2d):
                rows = self._inside(_past_conv(layer, self.shapes[place], rows), place)
            elif isinstance(layer, nn.Linear):
                given = rows.coefficients
                constant = given @ layer.bias if layer.bias is not None else torch.zeros_like(rows.low)
                rows = replace(rows, coefficients=given @ layer.weight).plus(constant, constant)
            elif isinstance(layer, nn.Flatten):
                given = rows.coefficients
                rows = replace(rows, coefficients=given.reshape(*given.shape[:2], *self.shapes[place]))
            else:
                rows = _past_affine(self.statistics.affine(layer), rows)
        return rows

    def _inside(self, rows: Rows, place: int) -> Rows:
        """Let no patch reach beside its layer, the input of ``place``, unless zeros meet it there anyway."""
        window = rows.window
        if window is None or window.padding == (0, 0) or place == 0 or isinstance(self.layers[place - 1], nn.ReLU):
            return rows
        beside = rows.seen(torch.ones((len(self.box[0]), 1, *self.shapes[place][1:]), device=self.box[0].device))
        return replace(rows, coefficients=rows.coefficients * beside.unsqueeze(1))


def _put(bound: Tensor, places: tuple[Tensor, Tensor], values: Tensor) -> Tensor:
    """Put values into bounds ``(B, C, ...)``, at groups (samples, and places of the image) and channels."""
    if bound.ndim == 2:
        return bound.index_put(places, values)
    batch, channels, *sides = bound.shape
    flat = bound.flatten(2).transpose(1, 2).flatten(0, 1).index_put(places, values)
    return flat.view(batch, -1, channels).transpose(1, 2).reshape(batch, channels, *sides)


def _past_relu(lines: Lines, rows: Rows) -> Rows:
    given, upper = rows.coefficients, rows.seen(lines.upper).unsqueeze(1)
    offsets, spread = rows.dot(lines.offset), rows.dot(lines.offset, absolute=True)
    low, high = (offsets - spread) * 0.5, (offsets + spread) * 0.5  # negative and positive coefficients
    if lines.lower is lines.upper:
        return replace(rows, coefficients=given * upper).plus(low, high)
    lower = rows.seen(lines.lower).unsqueeze(1)
    through = given * ((lower + upper) * 0.5) + given.abs() * ((lower - upper) * 0.5)
    return replace(rows, coefficients=through).plus(low, torch.full_like(high, torch.inf))


def _past_conv(layer: nn.Conv2d, shape: tuple[int, ...], rows: Rows) -> Rows:
    given, (stride, padding, kernel) = rows.coefficients.flatten(0, 1), _geometry(layer)
    window, spare = rows.window, (0, 0)
    if window is None:
        height, width = (
            size - ((out - 1) * step - 2 * pad + reach)
            for size, out, step, pad, reach in zip(shape[1:], given.shape[2:], stride, padding, kernel, strict=True)
        )
        spare = (height, width)
    else:
        window = replace(
            window,
            stride=(window.stride[0] * stride[0], window.stride[1] * stride[1]),
            padding=(window.padding[0] * stride[0] + padding[0], window.padding[1] * stride[1] + padding[1]),
        )
        padding = (0, 0)

    def transposed(z: Tensor) -> Tensor:
        return functional.conv_transpose2d(z, layer.weight, None, stride, padding, spare)

    through = _as_matrix(transposed, given) if _pays(rows, layer) else transposed(given)
    constant = torch.zeros_like(rows.low)
    if layer.bias is not None:
        constant = (given.sum((2, 3)) @ layer.bias).view_as(rows.low)
    return replace(rows, coefficients=through.view(*rows.low.shape, *through.shape[1:]), window=window).plus(
        constant, constant
    )


def _pays(rows: Rows, layer: nn.Conv2d) -> bool:
    """Say whether one product of matrices is faster than a convolution: for small patches and a few channels it is."""
    return rows.window is not None and layer.in_channels <= 3 and max(rows.coefficients.shape[-2:]) <= 4


def _as_matrix(linear: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    size = given[0].numel()
    image = linear(torch.eye(size, device=given.device).view(size, *given.shape[1:]))
    return (given.flatten(1) @ image.flatten(1)).view(-1, *image.shape[1:])


def _past_affine(affine: Affine, rows: Rows) -> Rows:
    given = rows.coefficients
    constant = (given.flatten(3).sum(3) if given.ndim > 3 else given) @ affine.shift
    scale = affine.scale.view(-1, *[1] * (given.ndim - 3))
    return replace(rows, coefficients=given * scale).plus(constant, constant)


def _geometry(layer: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Give stride, padding and kernel, each (height, width)."""
    assert not isinstance(layer.padding, str)  # the chain does not carry it
    return (
        (layer.stride[0], layer.stride[1]),
        (layer.padding[0], layer.padding[1]),
        (layer.kernel_size[0], layer.kernel_size[1]),
    )
