"""What a search has proved so far, and how it is laid out as the trees of a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from robustkit.bounds.branches import Branches
from robustkit.bounds.split_network import SplitNetwork
from robustkit.verifiers.certificate import HiddenSlopes, Split, Tree
from robustkit.verifiers.claims import Array


@dataclass(frozen=True)
class Leaves:
    """Branches that are proved: their nodes ``(L,)``, slopes and multipliers ``(L, U)`` and bounds ``(L,)``."""

    node: Tensor
    alpha: Tensor
    beta: Tensor
    lower: Tensor

    @classmethod
    def of(cls, branches: Branches) -> Leaves:
        """Keep what a proof needs, in the main memory."""
        return cls(*(getattr(branches, one.name).cpu() for one in fields(cls)))

    @classmethod
    def together(cls, parts: Sequence[Leaves]) -> Leaves:
        """Join several sets."""
        return cls(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def __len__(self) -> int:
        return len(self.node)

    def __getitem__(self, chosen: Tensor) -> Leaves:
        """Give some of them."""
        return Leaves(*(getattr(self, one.name)[chosen] for one in fields(self)))

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return sum(getattr(self, one.name).nbytes for one in fields(self))


@dataclass
class Proof:
    """The tree of all branches so far, and the slopes and multipliers that proved those that are done.

    Attributes:
        parent: of each node; -1 for the whole box, of which there is one for each row.
        kind: how it was cut.
        column: at which unstable neuron.
        done: branches with a positive bound.
        bytes: memory that these take.
    """

    parent: list[int] = field(default_factory=list)
    kind: list[Split] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    done: list[Leaves] = field(default_factory=list)
    bytes: int = 0

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
        if bool(proved.any()):
            self.done.append(Leaves.of(branches[proved]))
            self.bytes += self.done[-1].bytes
        return branches[~proved]

    @property
    def nodes(self) -> int:
        """Number of all branches so far."""
        return len(self.parent)

    @property
    def roots(self) -> int:
        """Number of rows: nodes that nothing was cut from."""
        return self.parent.count(-1)

    def forget(self, nodes: int) -> None:
        """Go back to so many nodes; none of those after them is done."""
        for one in (self.parent, self.kind, self.column):
            del one[nodes:]

    @property
    def least(self) -> float:
        """The least bound of a branch that is done; infinite where none is."""
        return min((float(one.lower.min()) for one in self.done), default=torch.inf)

    def trees(self, network: SplitNetwork) -> list[Tree]:
        """Lay out the finished proof, a tree for each row."""
        done = Leaves.together(self.done)
        parent, column = np.array(self.parent), np.array(self.column)
        root = np.arange(len(parent))
        for node in range(len(parent)):
            root[node] = node if parent[node] < 0 else root[parent[node]]
        return [self._tree(network, done, parent, column, root == one) for one in np.flatnonzero(parent < 0)]

    def _tree(
        self,
        network: SplitNetwork,
        done: Leaves,
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

    def _multipliers(self, leaves: Leaves, parent: Array, column: Array) -> Array:
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


def hidden_slopes(network: SplitNetwork) -> list[HiddenSlopes]:
    """Lay out the slopes that hidden bounds were optimised with, for a certificate."""
    steps = list(network.unstable)
    found = []
    for at, (neurons, alpha) in network.slopes.items():
        before = [network.unstable[one] for one in steps[: steps.index(at)]]
        columns = tuple(one.places.cpu().numpy().astype(np.int64) for one in before)
        slopes = tuple(alpha[:, one.columns].cpu().numpy() for one in before)
        found.append(HiddenSlopes(steps.index(at), neurons.cpu().numpy().astype(np.int64), columns, slopes))
    return found
