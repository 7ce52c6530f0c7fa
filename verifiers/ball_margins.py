"""Margins over boxes without splits, many boxes at once, the cheapest sound bound first; part of the trusted half."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustkit.verifiers.activation_lines import adaptive, parallel
from robustkit.verifiers.exact_network import Dense, ExactNetwork, Sum
from robustkit.verifiers.execution_error import executed
from robustkit.verifiers.sound_bounds import BUDGET, Region, enclose, intervals, lower_bound


def ball_margins(network: ExactNetwork, lb: Tensor, ub: Tensor, labels: Tensor) -> Tensor:
    """Bound the least margin of a label over each box from below, rounding accounted for.

    Intervals are tried first; then lines over their bounds; and what is still not above 0 is enclosed in full, every
    activation bounded by lines of its own. A box that is proved is not bounded any further.
    How tight the last bound is may depend a little on which boxes are enclosed together.

    Args:
        network: the operations, with ``K >= 2`` outputs.
        lb: least inputs, float64 of shape ``(B, n)``.
        ub: greatest inputs, none below ``lb``.
        labels: integers in ``[0, K)``, shape ``(B,)``.

    Returns:
        Float64 of shape ``(B,)``: numbers that no margin undercuts, by the semantics of the network; minus infinity
        where nothing is known.
    """
    sizes = [network.size(value) for value in range(len(network.shapes))]
    stages: tuple[tuple[Callable[..., Tensor], int], ...] = (
        (_from_intervals, 4 * sum(sizes)),
        (_from_lines, 2 * max(sizes) ** 2),  # as many rows as neurons, at the worst
    )
    margins = torch.full((len(labels),), -torch.inf, dtype=torch.float64)
    for stage, numbers in stages:
        left = (~(margins > 0)).nonzero().flatten()
        for boxes in torch.split(left, max(1, BUDGET // numbers)) if len(left) else ():
            found = stage(network, lb[boxes], ub[boxes], _rows(labels[boxes], sizes[-1]))
            margins[boxes] = torch.maximum(margins[boxes], found)
    return margins


def _rows(labels: Tensor, classes: int) -> Tensor:
    """Give the rows ``e_y - e_j`` of every wrong class, shape ``(B, K - 1, K)``."""
    unit = torch.eye(classes, dtype=torch.float64)
    rows = unit[labels].unsqueeze(1) - unit
    wrong = torch.arange(classes) != labels.unsqueeze(1)
    return rows[wrong].reshape(len(labels), classes - 1, classes)


def _from_intervals(network: ExactNetwork, lb: Tensor, ub: Tensor, rows: Tensor) -> Tensor:
    """Bound by intervals up to the last activation; where that proves nothing, by lines over the same intervals."""
    region = intervals(network, lb, ub)
    last = lower_bound(network, len(network.steps), rows, region, (), stop=_last_activation(network))
    margins = _least(executed(network, region, rows, last))
    left = (~(margins > 0)).nonzero().flatten()
    if len(left):
        margins[left] = torch.maximum(margins[left], _from_region(network, region.take(left), rows[left]))
    return margins


def _from_lines(network: ExactNetwork, lb: Tensor, ub: Tensor, rows: Tensor) -> Tensor:
    return _from_region(network, enclose(network, lb, ub), rows)


def _from_region(network: ExactNetwork, region: Region, rows: Tensor) -> Tensor:
    """Bound by one backward pass with adaptive lines and one with parallel ones: of each row the better."""
    widest = max(network.size(value) for value in range(len(network.shapes)))
    kinds = [
        [choose(activation, region.lower[value], region.upper[value]) for activation, value in network.activations()]
        for choose in (adaptive, parallel)
    ]
    parts = []
    for part in torch.split(rows, max(1, BUDGET // (len(rows) * widest)), dim=1):
        bounds = [lower_bound(network, len(network.steps), part, region, relaxations) for relaxations in kinds]
        parts.append(torch.maximum(*map(_known, bounds)))
    return _least(executed(network, region, rows, torch.cat(parts, dim=1)))


def _last_activation(network: ExactNetwork) -> int:
    """Give the first value from which the network is one linear function to its end, without paths beside it."""
    value = len(network.steps)
    while value:
        step = network.steps[value - 1]
        if not isinstance(step.operation, Dense | Sum) or step.inputs != (value - 1,):
            break
        value -= 1
    return value


def _known(bounds: Tensor) -> Tensor:
    return bounds.where(bounds.isfinite(), -torch.inf)


def _least(bounds: Tensor) -> Tensor:
    return _known(bounds).min(dim=1).values
