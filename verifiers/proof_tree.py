"""Whether a tree of splits covers its box, and what the splits on the way to a leaf say.

Leaves cover the box exactly if every node with children has two and they are complementary: the two signs of one
neuron, or both sides of one threshold of one input. A point on the border lies in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustkit.errors import RobustkitError
from robustkit.verifiers.certificate import HiddenSlopes, Split, Tree
from robustkit.verifiers.claims import Array
from robustkit.verifiers.exact_network import ExactNetwork


class ProofError(RobustkitError):
    """A certificate that does not prove what it claims."""


@dataclass(frozen=True)
class Splits:
    """The splits above some leaves, in no order; each array has an entry for each split of each leaf.

    Attributes:
        leaf: which of the leaves.
        kind: how it was cut.
        layer: which activation.
        neuron: which neuron or input.
        threshold: of an input.
        beta: the multiplier.
    """

    leaf: Array
    kind: Array
    layer: Array
    neuron: Array
    threshold: Array
    beta: Array

    def of_layer(self, layer: int) -> Splits:
        """Give those at the neurons of an activation."""
        return self._only((self.kind <= Split.INACTIVE) & (self.layer == layer))

    def of_kind(self, kind: Split) -> Splits:
        """Give those that were cut in one way."""
        return self._only(self.kind == kind)

    def _only(self, mask: Array) -> Splits:
        parts = (self.leaf, self.kind, self.layer, self.neuron, self.threshold, self.beta)
        return Splits(*(one[mask] for one in parts))


def check_tree(tree: Tree, network: ExactNetwork, rows: int) -> None:
    """Make sure that the leaves of a tree cover its box and that all its numbers are in range.

    Args:
        tree: the tree.
        network: what its layers and neurons are of.
        rows: number of rows of its disjunct.

    Raises:
        ProofError: they do not; the message says what is wrong.
    """
    count = len(tree.parent)
    if not count or tree.parent[0] != -1 or tree.kind[0] != Split.ROOT:
        raise ProofError("expected a tree whose node 0 is the root, got another")
    parent, kind = tree.parent[1:], tree.kind[1:]
    if not ((parent >= 0) & (parent < np.arange(1, count))).all():
        raise ProofError("expected every node after its parent, got a tree with an orphan or a cycle")
    children = np.bincount(parent, minlength=count)
    if not np.isin(children, (0, 2)).all():
        raise ProofError(f"expected no child or two, got {children.max()} at a node: its part is not covered")
    _check_pairs(tree)
    if not np.array_equal(np.sort(tree.leaf), np.flatnonzero(children == 0)):
        raise ProofError("expected a proof for every node without children, got other leaves")
    if not ((tree.row >= 0) & (tree.row < rows)).all():
        raise ProofError(f"expected rows in [0, {rows}), got others")
    _check_splits(kind, tree.layer[1:], tree.neuron[1:], network)
    if not (tree.beta >= 0).all() or len(tree.beta) != depths(tree)[tree.leaf].sum():
        raise ProofError("expected a multiplier of at least 0 for each split above each leaf, got others")
    _check_slopes(tree, network)


def check_hidden(hidden: Sequence[HiddenSlopes], network: ExactNetwork) -> None:
    """Make sure that slopes of hidden bounds are about neurons that the network has.

    Raises:
        ProofError: they are not.
    """
    values = [value for _, value in network.activations()]
    layers = [one.layer for one in hidden]
    if layers != sorted(set(layers)) or not set(layers) <= set(range(len(values))):
        raise ProofError(f"expected slopes of some of {len(values)} activations in rising order, got {layers}")
    for one in hidden:
        for places, value in zip((one.neurons, *one.columns), (values[one.layer], *values[: one.layer]), strict=True):
            inside = ((places >= 0) & (places < network.size(value))).all()
            if not inside or len(np.unique(places)) != len(places):
                raise ProofError("expected slopes of distinct neurons that the network has, got others")


def depths(tree: Tree) -> Array:
    """Count the splits above each node, shape ``(N,)``."""
    found = [0] * len(tree.parent)
    for node, parent in enumerate(tree.parent[1:].tolist(), 1):
        found[node] = found[parent] + 1
    return np.array(found, dtype=np.int64)


def starts(tree: Tree) -> Array:
    """Give where the multipliers of each leaf begin, shape ``(L,)``."""
    lengths = depths(tree)[tree.leaf]
    found: Array = np.cumsum(lengths) - lengths
    return found


def splits_above(tree: Tree, depth: Array, start: Array, leaves: Array) -> Splits:
    """Collect the splits above some leaves of a checked tree.

    Args:
        tree: the tree.
        depth: of its nodes, by ``depths``.
        start: of its multipliers, by ``starts``.
        leaves: positions among its leaves, shape ``(C,)``.
    """
    node, leaf = tree.leaf[leaves], np.arange(len(leaves))
    found = []
    while (below := node > 0).any():
        node, leaf = node[below], leaf[below]
        found.append((leaf, node, start[leaves[leaf]] + depth[node] - 1))
        node = tree.parent[node]
    empty = np.zeros(0, dtype=np.int64)
    which, nodes, betas = (np.concatenate(one) for one in zip(*found, strict=True)) if found else (empty, empty, empty)
    kind, layer, neuron, threshold = (one[nodes] for one in (tree.kind, tree.layer, tree.neuron, tree.threshold))
    return Splits(which, kind, layer, neuron, threshold, tree.beta[betas])


def _check_pairs(tree: Tree) -> None:
    """Compare the two children of every node; each has exactly two or none."""
    order = np.argsort(tree.parent[1:], kind="stable") + 1
    one, other = order[0::2], order[1::2]
    same = [getattr(tree, name)[one] == getattr(tree, name)[other] for name in ("neuron", "threshold")]
    signs = np.sort(np.stack([tree.kind[one], tree.kind[other]]), axis=0)
    at_neuron = (signs[0] == Split.ACTIVE) & (signs[1] == Split.INACTIVE) & (tree.layer[one] == tree.layer[other])
    at_input = (signs[0] == Split.BELOW) & (signs[1] == Split.ABOVE)
    good = same[0] & same[1] & (at_neuron | at_input)
    if not good.all():
        node = tree.parent[one[~good][0]]
        raise ProofError(f"expected complementary children of node {node}, got others: its part is not covered")


def _check_splits(kind: Array, layer: Array, neuron: Array, network: ExactNetwork) -> None:
    sizes = np.array([network.size(value) for _, value in network.activations()], dtype=np.int64)
    at_neuron = kind <= Split.INACTIVE
    if not ((layer >= 0) & (layer < len(sizes)))[at_neuron].all():
        raise ProofError(f"expected splits at one of {len(sizes)} activations, got another")
    limit = np.full(len(kind), network.size(0))
    limit[at_neuron] = sizes[layer[at_neuron]]
    if not ((neuron >= 0) & (neuron < limit)).all():
        raise ProofError("expected splits at neurons that the network has, got another")


def _check_slopes(tree: Tree, network: ExactNetwork) -> None:
    values = [value for _, value in network.activations()]
    if len(tree.alpha) not in (0, len(values)):
        raise ProofError(f"expected slopes for {len(values)} activations or none, got {len(tree.alpha)}")
    for value, columns, alpha in zip(values, tree.columns, tree.alpha, strict=False):
        distinct = len(np.unique(columns)) == len(columns)
        if not distinct or not ((columns >= 0) & (columns < network.size(value))).all():
            raise ProofError("expected slopes of distinct neurons that the network has, got others")
        if not ((alpha >= 0) & (alpha <= 1)).all():
            raise ProofError("expected slopes in [0, 1], got others")
