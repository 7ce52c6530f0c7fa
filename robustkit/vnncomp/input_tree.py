"""The boxes that a search by inputs has cut and closed, written down as the trees of a proof."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustkit.verifiers.certificate import Split, Tree
from robustkit.verifiers.claims import Array


class InputTree:
    """Grows with a search: node 0 is the whole box, and every cut of a box adds its two parts.

    One tree of boxes serves all disjuncts; what differs is the row that refutes each of them in a leaf.
    """

    def __init__(self) -> None:
        self._cuts: list[tuple[Array, Array, Array]] = []
        self._closed: list[tuple[Array, Array]] = []
        self._size = 1

    def cut(self, nodes: Tensor, inputs: Tensor, thresholds: Tensor) -> Tensor:
        """Cut boxes at an input each.

        Args:
            nodes: of the boxes, shape ``(B,)``.
            inputs: which input is cut, shape ``(B,)``.
            thresholds: where, shape ``(B,)``; both parts hold it.

        Returns:
            Nodes of the parts, shape ``(2 B,)``: all lower ones, then all upper ones.
        """
        self._cuts.append((nodes.numpy(), inputs.numpy(), thresholds.double().numpy()))
        first, self._size = self._size, self._size + 2 * len(nodes)
        return torch.arange(first, self._size)

    def close(self, nodes: Tensor, rows: Tensor) -> None:
        """Note that every disjunct is refuted in some boxes.

        Args:
            nodes: of the boxes, shape ``(B,)``.
            rows: which row of each of ``D`` disjuncts is positive all over them, shape ``(B, D)``.
        """
        self._closed.append((nodes.numpy(), rows.numpy()))

    def trees(self) -> tuple[Tree, ...]:
        """Lay the proof out, a tree for each disjunct; finished where every box was cut or closed."""
        parent, kind = np.full(self._size, -1), np.full(self._size, int(Split.ROOT))
        neuron, threshold, depth = np.full(self._size, -1), np.zeros(self._size), np.zeros(self._size, dtype=np.int64)
        first = 1
        for nodes, inputs, thresholds in self._cuts:
            mine, first = slice(first, first + 2 * len(nodes)), first + 2 * len(nodes)
            parent[mine], neuron[mine], threshold[mine] = (np.tile(one, 2) for one in (nodes, inputs, thresholds))
            kind[mine] = np.repeat([int(Split.BELOW), int(Split.ABOVE)], len(nodes))
            depth[mine] = depth[parent[mine]] + 1
        leaf, rows = (np.concatenate(one) for one in zip(*self._closed, strict=True))
        return tuple(
            Tree(
                parent=parent,
                kind=kind.astype(np.int8),
                layer=np.full(self._size, -1, dtype=np.int32),
                neuron=neuron,
                threshold=threshold,
                leaf=leaf,
                row=row.astype(np.int32),
                beta=np.zeros(int(depth[leaf].sum())),
            )
            for row in rows.T
        )
