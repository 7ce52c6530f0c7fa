"""Complete search for a query: splits of the inputs where they are few, of ReLUs where they are many."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.bounds.branches import SplitNetwork
from robustkit.bounds.chain import Statistics, chain_of
from robustkit.bounds.layers import check_box, check_weights
from robustkit.bounds.symbolic import Backward, Relaxation, carries
from robustkit.verifiers.search import Limits, search
from robustkit.vnncomp import baseline
from robustkit.vnncomp.decision import Answer, Result
from robustkit.vnnlib import Query
from robustkit.vnnlib.queries import Array

FEW_INPUTS = 10
BATCH = 512
MOST_BOXES = 500_000
RELAXATIONS = (Relaxation.PARALLEL, Relaxation.ADAPTIVE)


def solve(model: nn.Module, query: Query, timeout: float) -> Answer:
    """Search for an unsafe output by PGD, then split until every part of the box is refuted, or time is up.

    Plain stacks of layers only; other networks are left to ``baseline.solve``. Bounds are computed in float32 on a box
    rounded outwards; their own rounding is not accounted for.

    Args:
        model: in eval mode, for inputs ``(B, *query.input_shape)``.
        query: the query.
        timeout: seconds; a batch of bounds that has begun is finished.

    Returns:
        ``SAT`` with an input, ``UNSAT``, ``TIMEOUT``, or ``UNKNOWN``.

    Raises:
        RobustkitError: a weight or a corner is not finite in float32, or corners are crossed.
    """
    deadline = time.monotonic() + timeout
    lower, upper = baseline.box_of(query)
    check_weights(model)
    check_box(lower, upper)
    layers = chain_of(model, lower)
    if layers is None or not carries(layers):
        return baseline.solve(model, query, timeout)
    found = baseline.attack(model, query, deadline)
    if found is not None:
        return Answer(Result.SAT, found)
    splits = _by_inputs if lower.numel() <= FEW_INPUTS else _by_neurons
    with torch.no_grad():
        return splits(model, layers, query, (lower, upper), deadline)


def _by_inputs(
    model: nn.Module, layers: Sequence[nn.Module], query: Query, box: tuple[Tensor, Tensor], deadline: float
) -> Answer:
    """Halve boxes along the input that moves the outputs most, until each refutes every disjunct.

    How much an input moves them is read from parallel lines: with other lower lines a coefficient may be zero although
    its input is what makes the lines loose. The share of its width that is left counts as much, so that no input is cut
    to nothing while another, whose part is hidden in the lines, stays whole. Own design.
    """
    whole = (box[1] - box[0]).flatten(1).clamp(min=torch.finfo(torch.float32).tiny)
    rows, offsets, groups = _stacked(query)
    lower, upper = box
    while len(lower):
        if time.monotonic() > deadline:
            return Answer(Result.TIMEOUT, reason=f"{len(lower):,} boxes are left")
        if len(lower) > MOST_BOXES:
            return Answer(Result.UNKNOWN, reason=f"more than {MOST_BOXES:,} open boxes")
        low, high, later = lower[:BATCH], upper[:BATCH], (lower[BATCH:], upper[BATCH:])
        centre, radius = (high + low) * 0.5, (high - low) * 0.5
        backward = Backward(layers, (centre, radius), Statistics(), relaxations=RELAXATIONS, unstable_only=True)
        specification = rows.expand(len(low), -1, -1)
        open_ = ~_refuted(backward.bounds(specification)[0] + offsets, groups)
        broken = _unsafe(model, query, torch.cat([centre, low, high])[: 3 * len(low)])
        if broken is not None:
            return Answer(Result.SAT, broken)
        if bool(open_.any()):
            moves = backward.to_input(specification).coefficients.flatten(2).abs().sum(1) * radius.flatten(1)
            score = _shares(moves) + _shares(radius.flatten(1) / whole)
            low, high = _halves(low[open_], high[open_], score[open_].argmax(1))
            lower, upper = torch.cat([low, later[0]]), torch.cat([high, later[1]])
        else:
            lower, upper = later
    return Answer(Result.UNSAT)


def _by_neurons(
    model: nn.Module, layers: Sequence[nn.Module], query: Query, box: tuple[Tensor, Tensor], deadline: float
) -> Answer:
    """Branch and bound on the best row of each disjunct."""
    lower, upper = box
    rows, offsets, groups = _stacked(query)
    centre, radius = (upper + lower) * 0.5, (upper - lower) * 0.5
    backward = Backward(layers, (centre, radius), Statistics(), relaxations=RELAXATIONS, unstable_only=True)
    network = SplitNetwork(layers, backward, Statistics())
    least = backward.bounds(rows[None])[0][0] + offsets
    chosen = torch.stack([torch.where(groups == one, least, -torch.inf).argmax() for one in groups.unique()])  # type: ignore[no-untyped-call]

    def look(points: Tensor) -> Tensor | None:
        broken = _unsafe(model, query, torch.maximum(torch.minimum(points, upper), lower))
        return None if broken is None else torch.from_numpy(broken).float().view(1, *lower.shape[1:])

    found = search(network, rows[chosen], offsets[chosen], look, Limits(deadline))
    if found.x is not None:
        return Answer(Result.SAT, found.x.double().numpy().reshape(-1))
    if found.reason:
        verdict = Result.TIMEOUT if found.reason == "time limit" else Result.UNKNOWN
        return Answer(verdict, reason=f"{found.reason}, bound {found.lower:.4g}")
    return Answer(Result.UNSAT)


def _shares(values: Tensor) -> Tensor:
    """Divide each row by its sum."""
    return values / values.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _stacked(query: Query) -> tuple[Tensor, Tensor, Tensor]:
    """Give all rows ``(R, K)``, their offsets ``(R,)``, and the disjunct of each ``(R,)``."""
    rows = torch.from_numpy(np.concatenate([one.rows for one in query.unsafe])).float()
    offsets = torch.from_numpy(np.concatenate([one.offsets for one in query.unsafe])).float()
    sizes = torch.tensor([len(one.offsets) for one in query.unsafe])
    return rows, offsets, torch.arange(len(sizes)).repeat_interleave(sizes)


def _refuted(least: Tensor, groups: Tensor) -> Tensor:
    """Say which boxes refute every disjunct: by a row of each that is positive, of lower bounds ``(B, R)``."""
    count = int(groups.max()) + 1
    positive = torch.zeros((len(least), count)).index_add(1, groups, (least > 0).float())
    return (positive > 0).all(dim=1)


def _unsafe(model: nn.Module, query: Query, points: Tensor) -> Array | None:
    """Give a point ``(n,)`` whose outputs are unsafe, or None."""
    outputs = model(points).flatten(1).double().numpy()
    for one in query.unsafe:
        hit = np.flatnonzero((outputs @ one.rows.T + one.offsets <= 0).all(axis=1))
        if len(hit):
            found: Array = points[int(hit[0])].double().numpy().reshape(-1)
            return found
    return None


def _halves(lower: Tensor, upper: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Cut each box in the middle of one input ``(B,)``; both halves hold the cut."""
    low, high = lower.flatten(1).repeat(2, 1), upper.flatten(1).repeat(2, 1)
    every, count = torch.arange(len(lower)), len(lower)
    middle = (low[every, at] + high[every, at]) * 0.5
    high[every, at] = middle
    low[every + count, at] = middle
    return low.view(-1, *lower.shape[1:]), high.view(-1, *upper.shape[1:])
