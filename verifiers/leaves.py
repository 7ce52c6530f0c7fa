"""Bounds of the leaves of a tree: its splits, its slopes and its multipliers, put to use."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from robustkit.verifiers.activation_lines import Relaxation, relax
from robustkit.verifiers.certificate import Split, Tree
from robustkit.verifiers.claims import Array, Disjunct
from robustkit.verifiers.exact_network import ExactNetwork
from robustkit.verifiers.execution_error import executed
from robustkit.verifiers.proof_tree import Splits, depths, splits_above, starts
from robustkit.verifiers.sound_bounds import Region, enclose, lower_bound

BUDGET = 2**22
"""Numbers in all values of the leaves that are bounded together, four times over."""


class Enclosures:
    """Encloses a network over the boxes of some leaves, and remembers the last: trees with equal boxes share it.

    Args:
        network: the operations.
    """

    def __init__(self, network: ExactNetwork) -> None:
        self._network = network
        self._last: tuple[Tensor, Region] | None = None

    def of(self, lb: Tensor, ub: Tensor) -> Region:
        """Bound the network over boxes, shape ``(B, n)``; over equal ones once."""
        corners = torch.cat([lb, ub], dim=1)
        if self._last is None or not torch.equal(self._last[0], corners):
            boxes, inverse = torch.unique(corners, dim=0, return_inverse=True)
            low, high = boxes.chunk(2, dim=1)
            region = enclose(self._network, low, high)
            self._last = corners, region.take(inverse) if len(boxes) > 1 else region
        return self._last[1]


def leaf_margins(
    network: ExactNetwork,
    tree: Tree,
    disjunct: Disjunct,
    lb: Tensor,
    ub: Tensor,
    *,
    root: Region | None = None,
    enclosures: Enclosures | None = None,
) -> Iterator[tuple[Array, Array]]:
    """Bound from below, in each leaf, the row that it names.

    Args:
        network: the operations.
        tree: a tree that ``check_tree`` lets pass.
        disjunct: its rows and offsets.
        lb: least inputs of the whole box, shape ``(1, n)``.
        ub: greatest inputs.
        root: the network's bounds over the whole box, to be used for every leaf; None to bound the box of each leaf.
        enclosures: of this network, to share between trees that are bounded side by side.

    Yields:
        Positions of some leaves and their margins: infinity for a leaf that holds no point, minus infinity or NaN where
        nothing is known.
    """
    depth, start = depths(tree), starts(tree)
    enclosures = enclosures or Enclosures(network)
    for leaves in _chunks(network, len(tree.leaf)):
        splits = splits_above(tree, depth, start, leaves)
        low, high, void = _cut(splits, lb, ub, len(leaves))
        region = root or enclosures.of(low, high)
        relaxations, multipliers, crossed = _relax_leaves(network, tree, leaves, splits, region)
        rows = torch.tensor(disjunct.rows[tree.row[leaves]]).unsqueeze(1)
        real = lower_bound(network, len(network.steps), rows, region, relaxations, multipliers)
        bound = executed(network, region, rows, real).numpy()[:, 0]
        # rounding down once more pays for adding the offset
        margins = np.nextafter(bound + disjunct.offsets[tree.row[leaves]], -np.inf)
        margins[~np.isfinite(margins)] = -np.inf
        margins[void | crossed] = np.inf
        yield leaves, margins


def _chunks(network: ExactNetwork, leaves: int) -> Iterator[Array]:
    """Give positions of leaves that fit into memory together."""
    numbers = 4 * sum(network.size(value) for value in range(len(network.shapes)))
    size = max(1, BUDGET // numbers)
    for first in range(0, leaves, size):
        yield np.arange(first, min(first + size, leaves))


def _cut(splits: Splits, lb: Tensor, ub: Tensor, leaves: int) -> tuple[Tensor, Tensor, Array]:
    """Give the box of every leaf, and which are empty (those come back as some box that is not)."""
    low, high = (np.repeat(one.numpy(), leaves, axis=0) for one in (lb, ub))
    below, above = splits.of_kind(Split.BELOW), splits.of_kind(Split.ABOVE)
    np.minimum.at(high, (below.leaf, below.neuron), below.threshold)
    np.maximum.at(low, (above.leaf, above.neuron), above.threshold)
    void: Array = np.logical_or.reduce(low > high, axis=1)
    return torch.tensor(low), torch.tensor(np.maximum(low, high)), void


def _relax_leaves(
    network: ExactNetwork, tree: Tree, leaves: Array, splits: Splits, region: Region
) -> tuple[list[Relaxation], list[Tensor | None], Array]:
    """Relax every activation of every leaf within what its splits leave.

    An active split says ``z >= 0`` and an inactive one ``z <= 0``. With ``beta >= 0`` the target is at least itself
    less ``beta z`` in the one case and plus ``beta z`` in the other, so ``beta`` is subtracted from or added to the
    coefficient of ``z``. A path that holds both has ``z = 0``, where any multiplier is sound.

    Returns:
        Of every activation its lines and its multipliers; and which leaves are empty, for the splits leave no value
        to a neuron although its bounds are rounded outward.
    """
    relaxations: list[Relaxation] = []
    multipliers: list[Tensor | None] = []
    crossed: Array = np.zeros(len(leaves), dtype=bool)
    for activation, value in network.activations():
        lower, upper = region.lower[value], region.upper[value]
        found, multiplier = splits.of_layer(activation.number), None
        if len(found.leaf):
            low, high = (one.expand(len(leaves), -1).numpy().copy() for one in (lower, upper))
            active, inactive = found.of_kind(Split.ACTIVE), found.of_kind(Split.INACTIVE)
            np.maximum.at(low, (active.leaf, active.neuron), 0.0)
            np.minimum.at(high, (inactive.leaf, inactive.neuron), 0.0)
            np.logical_or(crossed, (low > high).any(axis=1), out=crossed)
            signed = np.zeros_like(low)
            np.add.at(signed, (active.leaf, active.neuron), active.beta)
            np.subtract.at(signed, (inactive.leaf, inactive.neuron), inactive.beta)
            lower, upper, multiplier = torch.tensor(low), torch.tensor(high), torch.tensor(signed)
        multipliers.append(multiplier)
        relaxations.append(relax(activation, lower, upper, _slopes(tree, activation.number, leaves, lower, upper)))
    return relaxations, multipliers, crossed


def _slopes(tree: Tree, layer: int, leaves: Array, lower: Tensor, upper: Tensor) -> Tensor:
    """Lay the slopes of a certificate over the adaptive ones."""
    slopes = (upper > -lower).double()
    if not tree.alpha or not len(tree.columns[layer]):
        return slopes
    alpha = tree.alpha[layer]
    given = torch.tensor((alpha if len(alpha) == 1 else alpha[leaves]).astype(np.float64))
    slopes = slopes.expand(max(len(slopes), len(given)), -1).clone()
    slopes[:, torch.tensor(tree.columns[layer])] = given
    return slopes
