"""Complete search for a query: splits of the inputs where they are few, of ReLUs where they are many."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.attacks.replay import worth_a_descent
from robustkit.bounds.chain import Statistics, chain_of
from robustkit.bounds.graph import Graph, trace
from robustkit.bounds.layers import check_box, check_weights
from robustkit.bounds.split_network import SplitNetwork
from robustkit.bounds.symbolic import Backward, Relaxation, carries
from robustkit.errors import UnsupportedLayerError
from robustkit.verifiers.branch_and_bound import ROOT_SHARE, TIGHTEN
from robustkit.verifiers.certificate import Evidence, Tree
from robustkit.verifiers.search import Limits, search
from robustkit.verifiers.search_proof import hidden_slopes
from robustkit.vnncomp import baseline
from robustkit.vnncomp.decision import Answer, Result
from robustkit.vnncomp.input_tree import InputTree
from robustkit.vnnlib import Query
from robustkit.vnnlib.queries import Array

FEW_INPUTS = 10
BATCH = 512
MOST_BOXES = 500_000
RELAXATIONS = (Relaxation.PARALLEL, Relaxation.ADAPTIVE)
DESCENTS, DESCENT_STEPS = 4, 10
"""Points of branches from which the gradient is followed at a time, and for how many steps."""


def solve(model: nn.Module, query: Query, timeout: float) -> Answer:
    """Search for an unsafe output by PGD, then split until every part of the box is refuted, or time is up.

    Networks that are not piecewise linear are left to the bounds of ``baseline``. Bounds are computed in float32 on a
    box rounded outwards, and their own rounding is not accounted for: a proof is a proposal until ``decide`` checks it.

    Args:
        model: in eval mode, for inputs ``(B, *query.input_shape)``.
        query: the query.
        timeout: seconds; a batch of bounds that has begun is finished.

    Returns:
        ``SAT`` with an input, ``UNSAT`` with its proof, ``TIMEOUT``, or ``UNKNOWN``.

    Raises:
        RobustkitError: a weight or a corner is not finite in float32, or corners are crossed.
    """
    deadline = time.monotonic() + timeout
    lower, upper = baseline.box_of(query)
    check_weights(model)
    check_box(lower, upper)
    found = baseline.attack(model, query, deadline)
    if found is not None:
        return Answer(Result.SAT, found)
    layers = chain_of(model, lower)
    with torch.no_grad():
        if layers is not None and carries(layers) and lower.numel() <= FEW_INPUTS:
            return _by_inputs(model, layers, query, (lower, upper), deadline)
        try:
            graph = trace(model, lower)
        except UnsupportedLayerError:
            return baseline.bound(model, query, deadline)
        return _by_neurons(model, graph, query, (lower, upper), deadline)


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
    (lower, upper), nodes, tree = box, torch.zeros(1, dtype=torch.int64), InputTree()
    while len(lower):
        if time.monotonic() > deadline:
            return Answer(Result.TIMEOUT, reason=f"{len(lower):,} boxes are left")
        if len(lower) > MOST_BOXES:
            return Answer(Result.UNKNOWN, reason=f"more than {MOST_BOXES:,} open boxes")
        low, high, now = lower[:BATCH], upper[:BATCH], nodes[:BATCH]
        lower, upper, nodes = lower[BATCH:], upper[BATCH:], nodes[BATCH:]
        centre, radius = (high + low) * 0.5, (high - low) * 0.5
        backward = Backward(layers, (centre, radius), Statistics(), relaxations=RELAXATIONS, unstable_only=True)
        specification = rows.expand(len(low), -1, -1)
        best, which = _best_rows(backward.bounds(specification)[0] + offsets, groups)
        open_ = ~(best > 0).all(dim=1)
        broken = _unsafe(model, query, torch.cat([centre, low, high])[: 3 * len(low)])
        if broken is not None:
            return Answer(Result.SAT, broken)
        tree.close(now[~open_], which[~open_])
        if bool(open_.any()):
            moves = backward.to_input(specification).coefficients.flatten(2).abs().sum(1) * radius.flatten(1)
            score = _shares(moves) + _shares(radius.flatten(1) / whole)
            at = score[open_].argmax(1)
            low, high, middle = _halves(low[open_], high[open_], at)
            lower, upper = torch.cat([low, lower]), torch.cat([high, upper])
            nodes = torch.cat([tree.cut(now[open_], at, middle), nodes])
    return Answer(Result.UNSAT, proof=Evidence(tree.trees()))


def _by_neurons(model: nn.Module, graph: Graph, query: Query, box: tuple[Tensor, Tensor], deadline: float) -> Answer:
    """Branch and bound on the best row of each disjunct; where it has several, on the next one after that.

    One row is proved over the whole box: a disjunct that only several of its rows together refute stays open.
    """
    lower, upper = box
    rows, offsets, groups = _stacked(query)
    began = time.monotonic()
    network = SplitNetwork(graph, lower, upper, tighten=TIGHTEN, until=began + ROOT_SHARE * (deadline - began))
    least = network.bounded(network.whole(rows, offsets), iterations=0).lower

    looks = itertools.count(1)

    def look(points: Tensor) -> Tensor | None:
        points = torch.maximum(torch.minimum(points, upper), lower)
        missing = _excess(model, query, points)
        broken = _first_unsafe(points, missing)
        if worth_a_descent(next(looks)) and broken is None:
            best = torch.from_numpy(missing.argsort()[:DESCENTS])
            found = baseline.descend(model, query, points[best], deadline, DESCENT_STEPS)
            if found is not None:  # judged there in float32
                broken = _unsafe(model, query, torch.from_numpy(found).to(points).view_as(points[:1]))
        return None if broken is None else torch.from_numpy(broken).float().view(1, *lower.shape[1:])

    proof: dict[int, Tree] = {}
    for choices in _choices(least, groups):
        for number, chosen in enumerate(choices):
            now = time.monotonic()
            limits = Limits(now + (deadline - now) / (len(choices) - number))
            found = search(network, rows[chosen], offsets[chosen], look, limits)
            if found.x is not None:
                return Answer(Result.SAT, found.x.double().numpy().reshape(-1))
            if not found.reason:
                break
        if found.reason:
            verdict = Result.TIMEOUT if found.reason == "time limit" else Result.UNKNOWN
            return Answer(verdict, reason=f"{found.reason}, bound {found.lower:.4g}")
        for row, tree in zip(chosen.tolist(), found.proof.trees(network), strict=True):
            place = row - int((groups < groups[row]).sum())
            proof[int(groups[row])] = replace(tree, row=np.full_like(tree.row, place))
    return Answer(
        Result.UNSAT, proof=Evidence(tuple(proof[one] for one in sorted(proof)), tuple(hidden_slopes(network)))
    )


def _choices(least: Tensor, groups: Tensor) -> list[list[Tensor]]:
    """Give what is to be proved: of each entry one of its alternatives, which are rows to be proved together.

    Disjuncts of one row are proved together; of another disjunct each row is an alternative, the greatest bound first.
    """
    each = [(groups == one).nonzero().flatten() for one in range(int(groups.max()) + 1)]
    single = [one for one in each if len(one) == 1]
    several = [list(one[least[one].argsort(descending=True)].unsqueeze(1)) for one in each if len(one) > 1]
    return [*([[torch.cat(single)]] if single else []), *several]


def _shares(values: Tensor) -> Tensor:
    """Divide each row by its sum."""
    return values / values.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _stacked(query: Query) -> tuple[Tensor, Tensor, Tensor]:
    """Give all rows ``(R, K)``, their offsets ``(R,)``, and the disjunct of each ``(R,)``."""
    rows = torch.from_numpy(np.concatenate([one.rows for one in query.unsafe])).float()
    offsets = torch.from_numpy(np.concatenate([one.offsets for one in query.unsafe])).float()
    sizes = torch.tensor([len(one.offsets) for one in query.unsafe])
    return rows, offsets, torch.arange(len(sizes)).repeat_interleave(sizes)


def _best_rows(least: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Give the greatest of lower bounds ``(B, R)`` in each disjunct, and its row there, both ``(B, D)``."""
    known = least.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    found = [one.max(dim=1) for one in torch.split(known, groups.bincount().tolist(), dim=1)]
    return torch.stack([one.values for one in found], dim=1), torch.stack([one.indices for one in found], dim=1)


def _unsafe(model: nn.Module, query: Query, points: Tensor) -> Array | None:
    """Give a point ``(n,)`` whose outputs are unsafe, or None."""
    return _first_unsafe(points, _excess(model, query, points))


def _first_unsafe(points: Tensor, missing: Array) -> Array | None:
    hit = np.flatnonzero(missing <= 0)
    if not len(hit):
        return None
    found: Array = points[int(hit[0])].double().numpy().reshape(-1)
    return found


def _excess(model: nn.Module, query: Query, points: Tensor) -> Array:
    """Say by how much points ``(B, ...)`` miss the nearest disjunct, shape ``(B,)``: their outputs are unsafe at 0."""
    outputs = model(points).flatten(1).double().numpy()
    each = [(outputs @ one.rows.T + one.offsets).max(axis=1) for one in query.unsafe]
    missing: Array = np.min(each, axis=0)
    return missing


def _halves(lower: Tensor, upper: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut each box in the middle of one input ``(B,)``; both halves hold the cut, which is given too."""
    low, high = lower.flatten(1).repeat(2, 1), upper.flatten(1).repeat(2, 1)
    every, count = torch.arange(len(lower)), len(lower)
    middle = (low[every, at] + high[every, at]) * 0.5
    high[every, at] = middle
    low[every + count, at] = middle
    return low.view(-1, *lower.shape[1:]), high.view(-1, *upper.shape[1:]), middle
