"""Branch and bound: split what a bound cannot decide until every branch is decided, or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.bounds.branches import Branches
from robustkit.bounds.split_network import SplitNetwork
from robustkit.verifiers.base import Tell
from robustkit.verifiers.leaf_programs import solve_leaf
from robustkit.verifiers.search_proof import Proof
from robustkit.verifiers.waiting import Queue

ROOT_STEPS, STEPS = 100, 5
CANDIDATES = 6
"""Neurons that are tried out before one of them is split."""
LEAST_GAIN = 1e-4
"""What a half counts that gains nothing."""
TIE = "a tie: the least margin of a branch is zero to rounding"
TELL_EVERY = 0.5
"""Seconds between two words on how far the search has come."""

Look = Callable[[Tensor], Tensor | None]
"""Tries points of the box ``(N, ...)``: gives one that breaks the property, shape ``(1, ...)``, or None."""


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        until: by the clock of ``time.monotonic``.
        batch: branches bounded together.
        memory: bytes that branches may take, those that wait and those that are proved together.
    """

    until: float
    batch: int = 256
    memory: float = 2e9


@dataclass(frozen=True)
class Found:
    """What a search came to: a proof, a point, or a reason why neither.

    Attributes:
        lower: lower bound of all rows over the whole box; positive where the property is proved.
        proof: all branches; finished where there is neither a point nor a reason.
        x: a point that breaks the property, shape ``(1, ...)``.
        reason: why the search gave up; empty where it did not.
    """

    lower: float
    proof: Proof
    x: Tensor | None = None
    reason: str = ""


def search(
    network: SplitNetwork, rows: Tensor, offsets: Tensor, look: Look, limits: Limits, *, tell: Tell = lambda _: None
) -> Found:
    """Prove that every row is positive over the box, or find a point where the property breaks.

    Args:
        network: over the box of one sample.
        rows: linear functions of the outputs, shape ``(R, K)``.
        offsets: added to them, shape ``(R,)``.
        look: tries points.
        limits: when to stop.
        tell: is told how far it has come.

    Returns:
        What was found; proved only where every branch has a positive bound.

    Source: Wang et al. 2021, arXiv 2103.06624; Bunel et al. 2020, arXiv 1909.06588.
    """
    proof, waiting, batch, told = Proof(), Queue(), limits.batch, time.monotonic()
    root = network.bounded(proof.plant(network.whole(rows, offsets)), iterations=ROOT_STEPS, until=limits.until)
    broken = look(root.worst)
    waiting.push(proof.open(root))
    while len(waiting) and broken is None:
        lowest, now = waiting.lowest, time.monotonic()
        if now > limits.until:
            return Found(lowest, proof, reason="time limit")
        if waiting.bytes + proof.bytes > limits.memory or batch < 2:
            return Found(lowest, proof, reason=f"memory limit of {limits.memory / 1e9:.3g} GB")
        if now > told + TELL_EVERY:
            tell(f"{proof.nodes:,} branches, {len(waiting):,} open, bound {lowest:.3g}")
            told = now
        branches = waiting.pop(batch // 2, rows.device)
        decided = (branches.sign != 0).all(dim=1)
        if bool(decided.any()):
            broken, tied = _settle(network, proof, branches[decided], look)
            if tied:
                return Found(lowest, proof, x=broken, reason="" if broken is not None else TIE)
        nodes = proof.nodes
        try:
            left = proof.open(_halved(network, proof, branches[~decided], batch, limits.until))
        except torch.OutOfMemoryError:
            proof.forget(nodes)
            waiting.push(branches[~decided])
            batch //= 2
            continue
        broken = look(left.worst) if len(left) else None
        waiting.push(left)
    return Found(proof.least, proof, x=broken)


def _settle(network: SplitNetwork, proof: Proof, branches: Branches, look: Look) -> tuple[Tensor | None, bool]:
    """Solve branches without a neuron left to split; give a point that breaks the property, and whether any is open."""
    leaves = [solve_leaf(network, branches[place : place + 1]) for place in range(len(branches))]
    left = proof.open(Branches.together(leaves))
    return (look(left.worst), True) if len(left) else (None, False)


def _halved(network: SplitNetwork, proof: Proof, branches: Branches, batch: int, until: float) -> Branches:
    """Split branches, and bound their parts."""
    if not len(branches):
        return branches
    return network.bounded(_split(network, proof, branches, batch), iterations=STEPS, until=until)


def _split(network: SplitNetwork, proof: Proof, branches: Branches, batch: int) -> Branches:
    """Split every branch at the neuron that promises most; several levels at once while there are few branches."""
    while True:
        branches = proof.cut(branches, choose(network, branches))
        free = (branches.sign == 0).any(dim=1)
        if 4 * len(branches) > batch or not bool(free.all()):
            return branches


def choose(network: SplitNetwork, branches: Branches) -> Tensor:
    """Give the neuron to split of each branch, shape ``(D,)``: of the loosest few, the one whose halves gain most.

    Gains are multiplied, as in strong branching for integer programmes.

    Source: De Palma et al. 2021, arXiv 2104.06718 (filtered smart branching); the score that filters is our own: how
    much the lines of a neuron may have cost the bound.
    """
    score = torch.where(branches.sign == 0, branches.looseness, -1.0)
    candidates = score.topk(min(CANDIDATES, score.shape[1]), dim=1).indices
    every, gains = torch.arange(len(branches), device=score.device), []
    for neuron in candidates.unbind(1):
        halves = network.bounded(branches.split(neuron), iterations=0).lower.view(2, -1)
        gain = (halves.clamp(max=0.0) - branches.lower).clamp(min=LEAST_GAIN).prod(0)
        gains.append(torch.where(branches.sign[every, neuron] == 0, gain, -torch.inf))
    return candidates.gather(1, torch.stack(gains, dim=1).argmax(1, keepdim=True)).squeeze(1)
