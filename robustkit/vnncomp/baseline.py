"""A verifier made of what there is: PGD on the property, then linear bounds. Sound up to float32; incomplete."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.bounds.layers import check_box, check_weights
from robustkit.errors import UnsupportedLayerError
from robustkit.verifiers.certificate import Evidence, Leaf, Node, Tree
from robustkit.vnncomp.decision import Answer, Result
from robustkit.vnnlib import Disjunct, Query
from robustkit.vnnlib.queries import Array

STARTS = 8
STEPS = 60
MOST_ATTACKED = 512
"""Disjuncts that are attacked together."""
METHODS = (BoundMethod.CROWN, BoundMethod.ALPHA_CROWN)


def solve(model: nn.Module, query: Query, timeout: float) -> Answer:
    """Search for an unsafe output by PGD, then refute every disjunct by bounds.

    A disjunct is refuted where one of its rows is above 0 over the whole box. Bounds are computed in float32, on a
    box rounded outwards; their own rounding is not accounted for.

    Args:
        model: in eval mode, for inputs ``(B, *query.input_shape)``.
        query: the query.
        timeout: seconds; a bound that has begun is finished.

    Returns:
        ``SAT`` with an input, ``UNSAT`` with the rows that are positive, ``TIMEOUT``, or ``UNKNOWN`` where neither
        succeeds.

    Raises:
        RobustkitError: a weight or a corner is not finite in float32, or corners are crossed.
    """
    deadline = time.monotonic() + timeout
    check_weights(model)
    check_box(*box_of(query))
    found = attack(model, query, deadline)
    return Answer(Result.SAT, found) if found is not None else bound(model, query, deadline)


def bound(model: nn.Module, query: Query, deadline: float) -> Answer:
    """Refute every disjunct by bounds alone; see ``solve``.

    Args:
        model: in eval mode.
        query: the query.
        deadline: on the monotonic clock.
    """
    left, rows, refused = list(range(len(query.unsafe))), [0] * len(query.unsafe), ""
    network: BoundedNetwork | None = None
    for method in METHODS:
        if time.monotonic() > deadline:
            return Answer(Result.TIMEOUT, reason=f"before {method.value}")
        try:
            network = network or BoundedNetwork(model, box_of(query)[0])
            best = _best_rows(network, query, left, method)
            rows = [best[place][1] if place in best else row for place, row in enumerate(rows)]
            left = [place for place in left if not best[place][0] > 0.0]
        except UnsupportedLayerError as error:
            refused += f"; {error}"
        if not left:
            return Answer(Result.UNSAT, proof=Evidence(tuple(Tree.build([Node()], [Leaf(0, row)]) for row in rows)))
    return Answer(Result.UNKNOWN, reason=f"no counterexample found, {len(left)} disjuncts not refuted{refused}")


def attack(model: nn.Module, query: Query, deadline: float) -> Array | None:
    """Search the box for an unsafe output by projected gradient descent on each disjunct's greatest row.

    Args:
        model: in eval mode.
        query: the query.
        deadline: on the monotonic clock.

    Returns:
        An input, flat, whose outputs are unsafe in float32; None where none is found.

    Own design: signed steps that shrink linearly from a quarter of the box, starts drawn uniformly, one in the middle.
    """
    lower, upper = box_of(query)
    draw = torch.Generator().manual_seed(0)
    share = torch.rand(STARTS, *lower.shape[1:], generator=draw)
    share[0] = 0.5
    return descend(model, query, lower + share * (upper - lower), deadline)


def descend(model: nn.Module, query: Query, starts: Tensor, deadline: float, steps: int = STEPS) -> Array | None:
    """Search the box for an unsafe output from given points, for each disjunct from all of them; see ``attack``.

    Args:
        model: in eval mode.
        query: the query.
        starts: points of the box, shape ``(S, *query.input_shape)``.
        deadline: on the monotonic clock.
        steps: gradient steps.
    """
    for first in range(0, len(query.unsafe), MOST_ATTACKED):
        found = _descend(model, query, query.unsafe[first : first + MOST_ATTACKED], starts, deadline, steps)
        if found is not None:
            return found
    return None


def _descend(
    model: nn.Module, query: Query, unsafe: tuple[Disjunct, ...], starts: Tensor, deadline: float, steps: int
) -> Array | None:
    lower, upper = box_of(query)
    x = starts.repeat(len(unsafe), *[1] * (lower.ndim - 1))
    rows, offsets = _padded(unsafe)
    with torch.enable_grad():
        for step in range(steps + 1):
            x.requires_grad_(True)
            values = _excess(model(x), rows, offsets)
            hit = (values <= 0.0).nonzero().flatten()
            if len(hit):
                deepest = hit[values[hit].argmin()]
                return x[deepest].detach().double().numpy().reshape(-1)
            if step == steps or time.monotonic() > deadline:
                return None
            (slope,) = torch.autograd.grad(values.sum(), x)
            size = 0.25 * (1.0 - step / steps)
            x = (x - size * (upper - lower) * slope.sign()).detach()
            x = torch.maximum(torch.minimum(x, upper), lower)
    return None


def _excess(outputs: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """Give the greatest row of each start's own disjunct, shape ``(B,)``."""
    whole = outputs.reshape(len(rows), len(outputs) // len(rows), -1)
    return (torch.einsum("drk,dsk->dsr", rows, whole) + offsets[:, None]).amax(dim=2).flatten()


def _padded(unsafe: tuple[Disjunct, ...]) -> tuple[Tensor, Tensor]:
    """Stack disjuncts of several lengths, shape ``(D, R, K)`` and ``(D, R)``; what is added never counts."""
    longest = max(len(one.offsets) for one in unsafe)
    rows = np.zeros((len(unsafe), longest, unsafe[0].rows.shape[1]))
    offsets = np.full((len(unsafe), longest), -np.inf)
    for place, one in enumerate(unsafe):
        rows[place, : len(one.offsets)], offsets[place, : len(one.offsets)] = one.rows, one.offsets
    return torch.from_numpy(rows).float(), torch.from_numpy(offsets).float()


def _best_rows(
    network: BoundedNetwork, query: Query, places: list[int], method: BoundMethod
) -> dict[int, tuple[float, int]]:
    """Give the greatest lower bound of a row of each of some disjuncts, and which row that is."""
    lower, upper = box_of(query)
    unsafe = [query.unsafe[place] for place in places]
    rows = torch.from_numpy(np.concatenate([one.rows for one in unsafe])).float()
    bounds, _ = network.output_bounds(lower, upper, rows[None], method, upper=False)
    sizes = [len(one.offsets) for one in unsafe]
    known = np.nan_to_num(bounds[0].detach().double().numpy(), nan=-np.inf)
    parts = np.split(known, np.cumsum(sizes)[:-1])
    least = [part + one.offsets for one, part in zip(unsafe, parts, strict=True)]
    return {place: (float(one.max()), int(one.argmax())) for place, one in zip(places, least, strict=True)}


def box_of(query: Query) -> tuple[Tensor, Tensor]:
    """Give the corners in float32, rounded outwards, as a batch of one."""
    corners = []
    for exact, towards in ((query.lower, -np.inf), (query.upper, np.inf)):
        with np.errstate(over="ignore"):  # infinite corners are refused by whoever bounds them
            near = exact.astype(np.float32)
        wrong = near > exact if towards < 0 else near < exact
        outer = np.where(wrong, np.nextafter(near, np.float32(towards)), near)
        corners.append(torch.from_numpy(outer).reshape(1, *(query.input_shape or exact.shape)))
    return corners[0], corners[1]
