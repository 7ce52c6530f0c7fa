"""Bounds of a network over boxes whose every rounding error is accounted for (``rounding``).

In a backward pass what is kept is an inequality, ``target >= A . z + c - r`` for all inputs of the box, where the
float64 numbers ``A`` are exact by definition: no error travels through coefficients. An operation computes a new ``A'``
that is not quite what it should be; since ``|z| <= H`` is known, the difference ``D`` costs at most ``|D| . H``, which
is added to ``r``. For ``z = W h + b`` that is ``gamma |A| (|W| H)``, one dot product with a vector that is the same for
all rows. Where every entry of ``A'`` was rounded once it is ``u |A'| . H``; this is kept as a share that the
coefficients are off by (``owed``) until the next step, which adds its own vector before it multiplies. This form of
running error analysis is our own design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.errors import UsageError
from robustkit.verifiers.activation_lines import Relaxation, adaptive, parallel, relax
from robustkit.verifiers.certificate import HiddenSlopes
from robustkit.verifiers.exact_network import Activation, Dense, ExactNetwork, Scale, Step
from robustkit.verifiers.rounding import LARGEST, UNDERFLOW, UNIT, down, gamma, up

BUDGET = 2**18
"""Numbers in the largest array of coefficients that is worked on at once: few enough for a processor's cache."""


@dataclass(frozen=True)
class Region:
    """What is known of every value of a network over ``B`` boxes.

    Attributes:
        lower: least entries of each value, each of shape ``(B, n)``.
        upper: greatest entries.
        size: greatest magnitudes.
        slack: of each linear step, the error that a coefficient of 1 of each output causes, ``(B, n_out)``; else None.
    """

    lower: list[Tensor]
    upper: list[Tensor]
    size: list[Tensor]
    slack: list[Tensor | None]

    def take(self, boxes: Tensor) -> Region:
        """Repeat the boxes at the positions given, shape ``(L,)``; a single box needs no copy."""
        if len(self.lower[0]) == 1:
            return self
        slack = [None if one is None else one[boxes] for one in self.slack]
        lower, upper, size = ([one[boxes] for one in kind] for kind in (self.lower, self.upper, self.size))
        return Region(lower, upper, size, slack)


def lower_bound(
    network: ExactNetwork,
    start: int,
    rows: Tensor,
    region: Region,
    relaxations: Sequence[Relaxation],
    multipliers: Sequence[Tensor | None] = (),
    *,
    stop: int = 0,
) -> Tensor:
    """Bound linear functions of a value from below, by one backward pass.

    Args:
        network: the operations.
        start: number of the value.
        rows: coefficients of its entries, shape ``(B, R, n)``; ``B`` may be 1 for all boxes.
        region: what is known of every value in front of it.
        relaxations: of every activation in front of it, in order.
        multipliers: of every activation, what is subtracted from the coefficients of its input, ``(B, n)``, or None.
            Sound where the entry times ``z`` is at least 0 all over the region that the bound is for.
        stop: number of the value at which the pass ends, whose bounds then take the place of the box; everything
            between must depend on the input through this value alone.

    Returns:
        Shape ``(B, R)``: numbers that no point of the box undercuts, in real arithmetic; minus infinity or NaN where
        nothing is known.

    Raises:
        UsageError: something between the two values takes one in front of ``stop``.
    """
    coefficients, owed = {start: rows}, {start: 0.0}
    constant = torch.zeros(rows.shape[:2], dtype=torch.float64)
    radius = torch.zeros_like(constant)
    for index in range(start - 1, stop - 1, -1):
        a = coefficients.pop(index + 1, None)
        if a is None:
            continue
        operation, inputs = network.steps[index].operation, network.steps[index].inputs
        shift: Tensor | float = 0.0
        due, size = owed.pop(index + 1), region.size[index + 1]
        if isinstance(operation, Dense):
            slack = region.slack[index]
            assert slack is not None
            radius = radius + _dot(a.abs(), slack + due * size if due else slack)  # what is owed too, see _slack
            shift, due = _dot(a, operation.bias.expand(1, -1)), 0.0
            a = operation.transpose(a.reshape(-1, a.shape[2])).reshape(*a.shape[:2], -1)
        elif isinstance(operation, Activation):
            radius, relaxation = radius + _paid(a, due, size), relaxations[operation.number]
            multiplier = multipliers[operation.number] if multipliers else None
            negative = a.clamp(max=0)
            shift = _dot(negative, relaxation.offset)
            radius = radius + gamma(a.shape[2]) * shift.abs()  # all its terms have one sign
            a = (a - negative) * relaxation.low.unsqueeze(1) + negative * relaxation.high.unsqueeze(1)
            due = 2 * UNIT  # of the two products one is 0, the other rounded once
            if multiplier is not None:
                radius = radius + _paid(a, due, region.size[inputs[0]])
                a = a - multiplier.unsqueeze(1)  # rounded once, which is 2 UNIT again
        constant = constant + shift
        radius = radius + 2 * UNIT * constant.abs() + UNDERFLOW
        for value in inputs:
            if value in coefficients:
                for one, rounding in ((coefficients[value], owed[value]), (a, due)):
                    radius = radius + _paid(one, rounding, region.size[value])
                coefficients[value], owed[value] = coefficients[value] + a, 2 * UNIT
            else:
                coefficients[value], owed[value] = a, due
    if coefficients.keys() != {stop}:
        raise UsageError(f"expected value {stop} to cut the network, got a path around it; choose another to stop at")
    radius = radius + _paid(coefficients[stop], owed[stop], region.size[stop])
    return _concretise(coefficients[stop], constant, radius, region, stop)


def _paid(a: Tensor, rounding: float, size: Tensor) -> Tensor | float:
    """Give what coefficients ``(B, R, n)`` cost that are off by a share ``rounding`` of themselves, ``(B, R)``."""
    return rounding * _dot(a.abs(), size) if rounding else 0.0


def _concretise(a: Tensor, constant: Tensor, radius: Tensor, region: Region, value: int) -> Tensor:
    """Give the least ``a . z + constant`` over the bounds of a value, less the radius and all that is rounded here."""
    least = _dot(a.clamp(min=0), region.lower[value]) + _dot(a.clamp(max=0), region.upper[value])
    total = constant + least
    radius = radius + gamma(2 * a.shape[2]) * _dot(a.abs(), region.size[value]) + 2 * UNIT * total.abs() + UNDERFLOW
    return down(total - radius)


def enclose(network: ExactNetwork, lb: Tensor, ub: Tensor, hidden: Sequence[HiddenSlopes] = ()) -> Region:
    """Enclose every value of a network over boxes, in order.

    The input of every activation is bounded by intervals, and where that leaves it unstable by backward passes with
    adaptive and with parallel lower lines, and with slopes that are given; all are intersected.

    Args:
        network: the operations.
        lb: least inputs, shape ``(B, n)``.
        ub: greatest inputs, none below ``lb``.
        hidden: slopes for some neurons, by ``check_hidden``; only for a single box.

    Returns:
        The bounds of every value.
    """
    region = Region([lb], [ub], [_size(lb, ub)], [])
    kinds: tuple[list[Relaxation], list[Relaxation]] = ([], [])
    for step in network.steps:
        if isinstance(step.operation, Activation):
            low, high = _refine(network, step.inputs[0], region, kinds)
            for one in hidden:
                if one.layer == step.operation.number and len(one.neurons):
                    low, high = _refine_by(network, step.inputs[0], region, one)
            for kind, choose in zip(kinds, (adaptive, parallel), strict=True):
                kind.append(choose(step.operation, low, high))
        _extend(region, step)
    return region


def intervals(network: ExactNetwork, lb: Tensor, ub: Tensor) -> Region:
    """Enclose every value of a network over boxes by intervals alone: looser than ``enclose``, and far cheaper.

    Args:
        network: the operations.
        lb: least inputs, shape ``(B, n)``.
        ub: greatest inputs, none below ``lb``.

    Returns:
        The bounds of every value.
    """
    region = Region([lb], [ub], [_size(lb, ub)], [])
    for step in network.steps:
        _extend(region, step)
    return region


def _extend(region: Region, step: Step) -> None:
    """Append the bounds of the next value, by intervals."""
    operation, inputs = step.operation, step.inputs
    lower, upper = ([bound[value] for value in inputs] for bound in (region.lower, region.upper))
    low, high, slack = lower[0], upper[0], None
    if isinstance(operation, Dense):
        slack = _slack(operation, region.size[inputs[0]])
        positive, negative = operation.weight.clamp(min=0), operation.weight.clamp(max=0)
        ends = [
            operation.times(positive, one) + operation.times(negative, other) + operation.bias
            for one, other in ((low, high), (high, low))
        ]
        low, high = down(ends[0] - slack - UNDERFLOW), up(ends[1] + slack + UNDERFLOW)
    elif isinstance(operation, Activation):
        low = torch.where(low < 0, down(operation.slope * low) if operation.slope else 0.0, low)
        high = torch.where(high < 0, up(operation.slope * high) if operation.slope else 0.0, high)
    elif len(inputs) == 2:
        low, high = down(lower[0] + lower[1]), up(upper[0] + upper[1])
    # also where a sum overflowed on its way
    low, high = low.where(low.abs() <= LARGEST, -torch.inf), high.where(high.abs() <= LARGEST, torch.inf)
    region.slack.append(slack)
    region.lower.append(low)
    region.upper.append(high)
    region.size.append(_size(low, high))


def _refine(
    network: ExactNetwork, value: int, region: Region, kinds: tuple[list[Relaxation], list[Relaxation]]
) -> tuple[Tensor, Tensor]:
    """Intersect the bounds of a value with those of backward passes, in place, and give them."""
    lower, upper = region.lower[value].clone(), region.upper[value].clone()
    operations = [one.operation for one in network.steps[:value]]
    mixed = sum(isinstance(one, Dense) and not isinstance(one, Scale) for one in operations)
    unstable = (lower < 0) & (upper > 0)
    most = int(unstable.sum(dim=1).max())
    if not most or (not kinds[0] and mixed <= 1):  # intervals of one mixing operation are exact
        return lower, upper
    columns = unstable.sort(dim=1, descending=True, stable=True).indices[:, :most]  # of every box its own come first
    widest = max(map(network.size, range(value + 1)))
    for chunk in torch.split(columns, max(1, BUDGET // (2 * len(lower) * widest)), dim=1):
        rows = torch.zeros(len(lower), chunk.shape[1], network.size(value), dtype=torch.float64)
        rows.scatter_(2, chunk.unsqueeze(2), 1.0)
        mine = unstable.gather(1, chunk)
        for relaxations in kinds if kinds[0] else kinds[:1]:
            bounds = lower_bound(network, value, torch.cat([rows, -rows], dim=1), region, relaxations)
            low, high = bounds.where(bounds.isfinite() & mine.repeat(1, 2), -torch.inf).chunk(2, dim=1)
            lower.scatter_(1, chunk, torch.maximum(lower.gather(1, chunk), low))
            upper.scatter_(1, chunk, torch.minimum(upper.gather(1, chunk), -high))
    region.lower[value], region.upper[value], region.size[value] = lower, upper, _size(lower, upper)
    return lower, upper


def _refine_by(network: ExactNetwork, value: int, region: Region, hidden: HiddenSlopes) -> tuple[Tensor, Tensor]:
    """Intersect the bounds of some neurons with those by slopes that are given for each of them, and give all."""
    lower, upper = region.lower[value].clone(), region.upper[value].clone()
    before, neurons = network.activations()[: hidden.layer], torch.tensor(hidden.neurons)
    units = torch.cat([torch.eye(len(neurons), dtype=torch.float64)] * 2)
    units[len(neurons) :] *= -1.0
    bounds = []
    numbers = sum(network.size(one) for _, one in before) + network.size(value)
    for chunk in torch.split(torch.arange(len(units)), max(1, BUDGET // (4 * numbers))):
        rows = torch.zeros(len(chunk), 1, network.size(value), dtype=torch.float64)
        rows[:, 0, neurons] = units[chunk]
        relaxations = []
        for (activation, at), columns, alpha in zip(before, hidden.columns, hidden.alpha, strict=True):
            low, high = region.lower[at], region.upper[at]
            slopes = (high > -low).double().repeat(len(chunk), 1)
            slopes[:, torch.tensor(columns)] = torch.tensor(alpha[chunk.numpy()] / 255.0)
            relaxations.append(relax(activation, low, high, slopes))
        bounds.append(lower_bound(network, value, rows, region, relaxations)[:, 0])
    low, high = torch.cat(bounds).chunk(2)
    lower[0, neurons] = torch.maximum(lower[0, neurons], low.where(low.isfinite(), -torch.inf))
    upper[0, neurons] = torch.minimum(upper[0, neurons], -high.where(high.isfinite(), -torch.inf))
    region.lower[value], region.upper[value], region.size[value] = lower, upper, _size(lower, upper)
    return lower, upper


def _slack(operation: Dense, size: Tensor) -> Tensor:
    """Give the error per unit coefficient of each output of ``z = W h + b``, ``|h| <= size``.

    Forward, each output is two sums of ``terms`` products and the bias. Backward, a new coefficient is a sum of
    ``terms`` products, off by ``gamma |A| |W|``, hence ``gamma |A| (|W| H)``; the bias enters by a sum over outputs.
    Weights that are off by ``doubt`` units, and the bias with them, add as much of ``|W| H`` and of ``bias_size``.
    """
    reach = operation.times(operation.weight.abs(), size)
    terms = 2 * operation.terms + operation.doubt
    return gamma(terms) * reach + gamma(terms + len(operation.bias)) * operation.bias_size + UNDERFLOW


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Give ``(B, R)`` of the dot products of ``a`` ``(B, R, n)`` and ``b`` ``(B, n)``; either ``B`` may be 1."""
    return (a @ b.unsqueeze(2)).squeeze(2)


def _size(lower: Tensor, upper: Tensor) -> Tensor:
    """Give the greatest magnitude; infinity where it is too large to reason about, which then proves nothing."""
    size = torch.maximum(lower.abs(), upper.abs())
    return size.where(size <= LARGEST, torch.inf)
