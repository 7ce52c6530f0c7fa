"""Branch and bound: split what a bound cannot decide until every branch is decided, or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from robustkit.bounds.branches import Branches, SplitNetwork
from robustkit.verifiers.certificate import Split, Tree
from robustkit.verifiers.claims import Array
from robustkit.verifiers.leaf_programs import solve_leaf

ROOT_STEPS, STEPS = 100, 10
CANDIDATES = 3
"""Neurons that are tried out before one of them is split."""

Look = Callable[[Tensor], Tensor | None]
"""Tries points of the box ``(N, ...)``: gives one that breaks the property, shape ``(1, ...)``, or None."""


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        until: by the clock of ``time.monotonic``.
        batch: branches bounded together.
        most: branches kept waiting at most.
    """

    until: float
    batch: int = 256
    most: int = 100_000


@dataclass
class Proof:
    """The tree of all branches so far, and the slopes and multipliers that proved those that are done.

    Attributes:
        parent: of each node; -1 for the whole box, of which there is one for each row.
        kind: how it was cut.
        column: at which unstable neuron.
        done: branches with a positive bound.
    """

    parent: list[int] = field(default_factory=list)
    kind: list[Split] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    done: list[Branches] = field(default_factory=list)

    def plant(self, roots: Branches) -> Branches:
        """Begin with the whole box, once for each row."""
        return replace(roots, node=self._add([-1] * len(roots), [Split.ROOT] * len(roots), [-1] * len(roots)))

    def cut(self, branches: Branches, neuron: Tensor) -> Branches:
        """Split branches at a neuron each, ``(D,)``."""
        parents, columns, count = branches.node.tolist(), neuron.tolist(), len(branches)
        kinds = [Split.ACTIVE] * count + [Split.INACTIVE] * count
        return replace(branches.split(neuron), node=self._add(parents * 2, kinds, columns * 2))

    def open(self, branches: Branches) -> Branches:
        """Keep the branches with a positive bound as done, and give the others."""
        proved = branches.lower > 0
        self.done.append(branches[proved])
        return branches[~proved]

    @property
    def least(self) -> float:
        """The least bound of a branch that is done; infinite where none is."""
        return min((float(one.lower.min()) for one in self.done if len(one)), default=torch.inf)

    def trees(self, network: SplitNetwork) -> list[Tree]:
        """Lay out the finished proof, a tree for each row."""
        done = Branches.together(self.done)
        parent, column = np.array(self.parent), np.array(self.column)
        root = np.arange(len(parent))
        for node in range(len(parent)):
            root[node] = node if parent[node] < 0 else root[parent[node]]
        return [self._tree(network, done, parent, column, root == one) for one in np.flatnonzero(parent < 0)]

    def _tree(
        self,
        network: SplitNetwork,
        done: Branches,
        parent: Array,
        column: Array,
        mine: Array,
    ) -> Tree:
        nodes = np.flatnonzero(mine)
        place = np.full(len(mine), -1)
        place[nodes] = np.arange(len(nodes))
        leaves = done[torch.from_numpy(mine)[done.node]]
        layer, neuron = network.places()
        at = column[nodes]  # -1 where nothing was split: the last entry below
        return Tree(
            parent=np.where(parent[nodes] < 0, -1, place[parent[nodes]]).astype(np.int64),
            kind=np.array([self.kind[one] for one in nodes], dtype=np.int8),
            layer=np.append(layer, -1)[at].astype(np.int32),
            neuron=np.append(neuron, -1)[at].astype(np.int64),
            threshold=np.zeros(len(nodes)),
            leaf=place[leaves.node.numpy()].astype(np.int64),
            row=np.zeros(len(leaves), dtype=np.int32),
            beta=self._multipliers(leaves, parent, column),
            columns=tuple(neuron[layer == one].astype(np.int64) for one in range(len(network.unstable))),
            alpha=tuple(
                leaves.alpha[:, torch.from_numpy(layer == one)].numpy().astype(np.float32)
                for one in range(len(network.unstable))
            ),
        )

    def _multipliers(self, leaves: Branches, parent: Array, column: Array) -> Array:
        """Give the multipliers of every leaf, each leaf's from the root down."""
        found: list[float] = []
        for node, beta in zip(leaves.node.tolist(), leaves.beta.double().numpy(), strict=True):
            path: list[float] = []
            while parent[node] >= 0:
                path.append(float(beta[column[node]]))
                node = int(parent[node])
            found += reversed(path)
        return np.array(found, dtype=np.float64)

    def _add(self, parents: list[int], kinds: list[Split], columns: list[int]) -> Tensor:
        first = len(self.parent)
        self.parent += parents
        self.kind += kinds
        self.column += columns
        return torch.arange(first, len(self.parent))


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


def search(network: SplitNetwork, rows: Tensor, offsets: Tensor, look: Look, limits: Limits) -> Found:
    """Prove that every row is positive over the box, or find a point where the property breaks.

    Args:
        network: over the box of one sample.
        rows: linear functions of the outputs, shape ``(R, K)``.
        offsets: added to them, shape ``(R,)``.
        look: tries points.
        limits: when to stop.

    Returns:
        What was found; proved only where every branch has a positive bound.

    Source: Wang et al. 2021, arXiv 2103.06624; Bunel et al. 2020, arXiv 1909.06588.
    """
    proof = Proof()
    root = network.bounded(proof.plant(network.whole(rows, offsets)), iterations=ROOT_STEPS)
    broken, waiting = look(root.worst), proof.open(root)
    while len(waiting) and broken is None:
        lowest = float(waiting.lower.min())
        if time.monotonic() > limits.until:
            return Found(lowest, proof, reason="time limit")
        if len(waiting) > limits.most:
            return Found(lowest, proof, reason=f"more than {limits.most:,} open branches")
        order = waiting.lower.argsort()
        now, later = waiting[order[: limits.batch // 2]], waiting[order[limits.batch // 2 :]]
        decided = (now.sign != 0).all(dim=1)
        if bool(decided.any()):
            leaves = [solve_leaf(network, now[place : place + 1]) for place in decided.nonzero().flatten().tolist()]
            open_leaves = proof.open(Branches.together(leaves))
            if len(open_leaves):
                tie = "a tie: the least margin of a branch is zero to rounding"
                return Found(
                    lowest, proof, x=(point := look(open_leaves.worst)), reason="" if point is not None else tie
                )
            now = now[~decided]
        left = now
        if len(now):
            left = proof.open(network.bounded(_split(network, proof, now, limits.batch), iterations=STEPS))
            broken = look(left.worst)
        waiting = Branches.together([later, left])
    return Found(proof.least, proof, x=broken)


def _split(network: SplitNetwork, proof: Proof, branches: Branches, batch: int) -> Branches:
    """Split every branch at the neuron that promises most; several levels at once while there are few branches."""
    while True:
        branches = proof.cut(branches, _choose(network, branches))
        free = (branches.sign == 0).any(dim=1)
        if 4 * len(branches) > batch or not bool(free.all()):
            return branches


def _choose(network: SplitNetwork, branches: Branches) -> Tensor:
    """Give the neuron to split of each branch, shape ``(D,)``: of the loosest few, the one whose halves are best.

    Source: De Palma et al. 2021, arXiv 2104.06718 (filtered smart branching); the score is our own: how much the lines
    of a neuron may have cost the bound.
    """
    score = torch.where(branches.sign == 0, branches.looseness, -1.0)
    candidates = score.topk(min(CANDIDATES, score.shape[1]), dim=1).indices
    every, gains = torch.arange(len(branches)), []
    for neuron in candidates.unbind(1):
        halves = network.bounded(branches.split(neuron), iterations=0).lower.view(2, -1)
        gain = halves.clamp(max=0.0).sum(0) + halves.amin(0)
        gains.append(torch.where(branches.sign[every, neuron] == 0, gain, -torch.inf))
    return candidates.gather(1, torch.stack(gains, dim=1).argmax(1, keepdim=True)).squeeze(1)
