"""Certificates: what is claimed of a network over a box, and the trees that prove it; data only, no reasoning.

**Claim.** No point of a box, in real arithmetic, has an output in an unsafe set. The set is a union of disjuncts; an
output ``y`` lies in one where ``rows @ y + offsets <= 0`` holds in *all* its rows. A ``Ball`` claims that a sample
keeps its label: one disjunct for each other class in ascending order, of the single row ``e_label - e_other`` and
offset 0. A ``Box`` spells its disjuncts out.

**Proof.** One ``Tree`` for each disjunct. Node 0 is the root and stands for the whole box; every other node cuts its
parent in two by the sign of a pre-activation (kinds 1 and 2) or at a threshold of an input (kinds 3 and 4), and comes
after its parent. Every node has no child or exactly two complementary ones. A leaf names the row of its disjunct that
is positive all over it, with the slopes of the lower lines of that row's backward pass (``alpha``) and a multiplier for
each split on its path (``beta``), as in alpha-CROWN (Xu et al. 2021, arXiv 2011.13824) and beta-CROWN (Wang et al.
2021, arXiv 2103.06624). Nothing in a certificate is believed but its claim: any slope and any multiplier in range
gives a sound bound, and ``checker`` computes it. Activations are numbered in the order in which the network applies
them; a residual block counts its inner one first. A neuron, like an input, is numbered by its place in the flattened
tensor of a sample.

``certificate_file`` is its form on the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import nn

from robustkit.errors import UsageError
from robustkit.verifiers.claims import Array, Ball, Box, array_digest, claim_digest, expect_array


class Split(IntEnum):
    """How a node was cut from its parent."""

    ROOT = 0
    ACTIVE = 1
    INACTIVE = 2
    BELOW = 3
    ABOVE = 4


@dataclass(frozen=True)
class Node:
    """A node of a tree, to build one from.

    Attributes:
        parent: position of its parent; -1 for the root.
        kind: how it was cut from its parent.
        layer: of ``ACTIVE`` and ``INACTIVE``: which activation; else -1.
        neuron: which neuron of that layer, or which input.
        threshold: of ``BELOW`` (``x <= threshold``) and ``ABOVE`` (``x >= threshold``); else 0.
    """

    parent: int = -1
    kind: Split = Split.ROOT
    layer: int = -1
    neuron: int = -1
    threshold: float = 0.0


@dataclass(frozen=True)
class Leaf:
    """A leaf of a tree, to build one from.

    Attributes:
        node: position of its node.
        row: row of the disjunct that is positive there.
        beta: a multiplier for each split on the way from the root to it, in this order, at least 0; of splits at an
            input it does nothing. Empty for zeros.
        alpha: of each activation layer a slope in [0, 1] for each neuron, flat. Empty where the whole tree has none.
    """

    node: int
    row: int = 0
    beta: Sequence[float] = ()
    alpha: Sequence[Array] = ()


@dataclass(frozen=True, eq=False)
class Tree:
    """The proof of one disjunct: ``N`` nodes and ``L`` leaves in arrays.

    Attributes:
        parent: int64, shape ``(N,)``; -1 for node 0.
        kind: int8, shape ``(N,)``; the values of ``Split``.
        layer: int32, shape ``(N,)``.
        neuron: int64, shape ``(N,)``.
        threshold: float64, shape ``(N,)``.
        leaf: position of each leaf's node, int64, shape ``(L,)``.
        row: row proved in each leaf, int32, shape ``(L,)``.
        beta: float64, the multipliers of all leaves one after the other, each leaf's from the root down.
        columns: of each activation layer the ``m`` neurons whose slopes are given, int64, shape ``(m,)``; the slope of
            the others is 1 where ``u > -l``, else 0.
        alpha: of each activation layer the slopes, float32, shape ``(L, m)``, or ``(1, m)`` for all leaves.
    """

    parent: Array
    kind: Array
    layer: Array
    neuron: Array
    threshold: Array
    leaf: Array
    row: Array
    beta: Array
    columns: tuple[Array, ...] = ()
    alpha: tuple[Array, ...] = ()

    def __post_init__(self) -> None:
        nodes = {"parent": np.int64, "kind": np.int8, "layer": np.int32, "neuron": np.int64, "threshold": np.float64}
        for name, dtype in nodes.items():
            expect_array(name, getattr(self, name), dtype, 1, len(self.parent))
        for name, dtype in {"leaf": np.int64, "row": np.int32}.items():
            expect_array(name, getattr(self, name), dtype, 1, len(self.leaf))
        expect_array("beta", self.beta, np.float64, 1)
        if len(self.columns) != len(self.alpha):
            raise UsageError(f"expected slopes for {len(self.columns)} layers, got {len(self.alpha)}; give as many")
        for columns, alpha in zip(self.columns, self.alpha, strict=True):
            expect_array("columns", columns, np.int64, 1)
            expect_array("alpha", alpha, np.float32, 2)
            if alpha.shape[1] != len(columns) or alpha.shape[0] not in (1, len(self.leaf)):
                raise UsageError(
                    f"expected alpha of shape ({len(self.leaf)} or 1, {len(columns)}), got {alpha.shape}; give a slope "
                    "for each leaf and column"
                )

    @classmethod
    def build(cls, nodes: Sequence[Node], leaves: Sequence[Leaf]) -> Tree:
        """Lay nodes and leaves out in arrays.

        Args:
            nodes: the root first, parents before their children.
            leaves: one for each node without children, in any order.

        Returns:
            The tree; whether it proves anything is for the checker to say.

        Raises:
            UsageError: only some leaves have slopes, or a leaf has some but not all of its multipliers.
        """
        depths = _depths([one.parent for one in nodes])
        betas = [one.beta or [0.0] * depths[one.node] for one in leaves]
        wrong = [one.node for one, beta in zip(leaves, betas, strict=True) if len(beta) != depths[one.node]]
        layers = {len(one.alpha) for one in leaves}
        if wrong or len(layers) > 1:
            raise UsageError(
                f"expected a multiplier for each split above a leaf and slopes for all leaves or for none, got others "
                f"(nodes {wrong[:3]}, layers {sorted(layers)}); give all of them or none"
            )
        alpha = tuple(
            np.stack([one.alpha[k] for one in leaves]).astype(np.float32) for k in range(max(layers, default=0))
        )
        return cls(
            parent=np.array([one.parent for one in nodes], dtype=np.int64),
            kind=np.array([one.kind for one in nodes], dtype=np.int8),
            layer=np.array([one.layer for one in nodes], dtype=np.int32),
            neuron=np.array([one.neuron for one in nodes], dtype=np.int64),
            threshold=np.array([one.threshold for one in nodes], dtype=np.float64),
            leaf=np.array([one.node for one in leaves], dtype=np.int64),
            row=np.array([one.row for one in leaves], dtype=np.int32),
            beta=np.array([value for beta in betas for value in beta], dtype=np.float64),
            columns=tuple(np.arange(one.shape[1], dtype=np.int64) for one in alpha),
            alpha=alpha,
        )


@dataclass(frozen=True, eq=False)
class HiddenSlopes:
    """Slopes by which neurons of an activation's input are bounded over the whole box.

    Attributes:
        layer: which activation.
        neurons: of its input, int64, shape ``(m,)``.
        columns: of each activation before it the ``k`` neurons whose slopes are given, int64, shape ``(k,)``.
        alpha: of each activation before it the slopes in 255ths, uint8, shape ``(2 m, k)``: for the lower bounds of all
            neurons, then for the upper ones.
    """

    layer: int
    neurons: Array
    columns: tuple[Array, ...]
    alpha: tuple[Array, ...]

    def __post_init__(self) -> None:
        expect_array("neurons", self.neurons, np.int64, 1)
        if not len(self.columns) == len(self.alpha) == self.layer:
            raise UsageError(
                f"expected slopes for {self.layer} layers, got {len(self.alpha)}; give one for each before"
            )
        for columns, alpha in zip(self.columns, self.alpha, strict=True):
            expect_array("columns", columns, np.int64, 1)
            expect_array("alpha", alpha, np.uint8, 2, 2 * len(self.neurons))
            if alpha.shape[1] != len(columns):
                raise UsageError(f"expected {len(columns)} slopes in a row, got {alpha.shape[1]}; give one per column")


@dataclass(frozen=True, eq=False)
class Evidence:
    """A proof apart from what it proves.

    Attributes:
        trees: one for each disjunct of a claim; empty where there is no proof.
        hidden: slopes for hidden bounds over the whole box, for trees that do not cut inputs; in rising order.
    """

    trees: tuple[Tree, ...] = ()
    hidden: tuple[HiddenSlopes, ...] = ()


@dataclass(frozen=True, eq=False)
class Certificate:
    """A claim, its proof, and what they are about.

    Attributes:
        claim: what is proved.
        trees: one for each disjunct of the claim.
        model: SHA-256 of the network's parameters and buffers, by ``model_digest``.
        input: SHA-256 of the claim, by ``claim_digest``.
        hidden: slopes for hidden bounds over the whole box, for trees that do not cut inputs; in rising order.
    """

    claim: Ball | Box
    trees: tuple[Tree, ...]
    model: str
    input: str
    hidden: tuple[HiddenSlopes, ...] = ()

    @classmethod
    def build(
        cls, model: nn.Module, claim: Ball | Box, trees: Sequence[Tree], hidden: Sequence[HiddenSlopes] = ()
    ) -> Certificate:
        """Bind a claim and its proof to a network."""
        return cls(claim, tuple(trees), model_digest(model), claim_digest(claim), tuple(hidden))


def model_digest(model: nn.Module) -> str:
    """Give the SHA-256 of the names, types, shapes and bytes of all parameters and buffers, in hexadecimal digits."""
    tensors = {name: one.detach().cpu().contiguous() for name, one in model.state_dict().items()}
    arrays = {name: one.reshape(-1).view(torch.uint8).numpy() for name, one in tensors.items()}
    kinds = [f"{name} {one.dtype} {tuple(one.shape)}" for name, one in tensors.items()]
    return array_digest(arrays, "\n".join(sorted(kinds)))


def _depths(parents: Sequence[int]) -> list[int]:
    """Count the splits above each node."""
    depths: list[int] = []
    for position, parent in enumerate(parents):
        if parent >= position:
            raise UsageError(f"expected the parent of node {position} before it, got {parent}; list parents first")
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths
