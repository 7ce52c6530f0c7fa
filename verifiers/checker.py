"""The trusted half of complete verification: whoever found a proof, and however, this decides whether it is one.

It believes nothing but the claim. It forms the box itself, reads the network itself, bounds every activation itself,
makes sure that the leaves cover the box, and bounds the row of every leaf with the slopes and multipliers that it is
given, each of which is sound whatever it is; rounding is accounted for (``sound_bounds``). It shares no code with the
bounds that searches use, and it needs no gradients. What remains to be trusted is this file, ``proof_tree``,
``sound_bounds``, ``exact_network`` and ``network_reader``, Python, and float64 arithmetic that rounds to nearest in
numpy and torch on a CPU, where convolutions of float64 are matrix products.

What is proved is about the network in real arithmetic with the parameters as they are stored; a float32 execution of it
may differ by its own rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.errors import RobustkitError
from robustkit.verifiers.certificate import (
    Array,
    Ball,
    Box,
    Certificate,
    Disjunct,
    Split,
    Tree,
    claim_digest,
    model_digest,
)
from robustkit.verifiers.certificate_file import load_certificate
from robustkit.verifiers.exact_network import ExactNetwork
from robustkit.verifiers.network_reader import read_network
from robustkit.verifiers.proof_tree import ProofError, Splits, check_tree, depths, splits_above, starts
from robustkit.verifiers.sound_bounds import BUDGET, Region, Relaxation, enclose, lower_bound, relax


@dataclass(frozen=True)
class Checked:
    """What the checker found.

    Attributes:
        proved: the claim of the certificate holds.
        margin: least lower bound over all leaves that are not empty; infinite where all are, NaN where not proved.
        leaves: number of leaves, of all trees.
        seconds: taken.
        reason: why it is not proved; empty where it is.
        claim: what was to be proved, in a few words; empty where it cannot be read.
    """

    proved: bool
    margin: float
    leaves: int
    seconds: float
    reason: str = ""
    claim: str = ""


def check_file(path: str | Path, model: nn.Module) -> Checked:
    """Read a certificate and check it.

    Args:
        path: the file.
        model: the network it is about, in eval mode.

    Returns:
        What was found; a file that cannot be read proves nothing.
    """
    began = time.perf_counter()
    try:
        certificate = load_certificate(path)
    except RobustkitError as error:
        return Checked(False, float("nan"), 0, time.perf_counter() - began, str(error))
    return check(certificate, model)


def check(certificate: Certificate, model: nn.Module) -> Checked:
    """Decide whether a certificate proves its claim of a network.

    Args:
        certificate: the claim and its proof.
        model: the network it is about, in eval mode.

    Returns:
        ``proved`` only where the claim is true. Else ``reason`` says what is missing; it may be true.
    """
    began = time.perf_counter()
    margin, reason = float("nan"), ""
    try:
        with torch.inference_mode(), np.errstate(all="ignore"):
            margin = _least_margin(certificate, model)
    except RobustkitError as error:
        reason = str(error)
    leaves = sum(len(one.leaf) for one in certificate.trees)
    return Checked(margin > 0, margin, leaves, time.perf_counter() - began, reason, certificate.claim.summary)


def _least_margin(certificate: Certificate, model: nn.Module) -> float:
    """Prove every tree, or raise."""
    claim = certificate.claim
    if claim_digest(claim) != certificate.input:
        raise ProofError("expected the claim that was signed, got another: the certificate was changed")
    if model_digest(model) != certificate.model:
        raise ProofError("expected the network of the certificate, got one with other parameters; give the right one")
    if not (torch.full((64,), 2.0**-1074, dtype=torch.float64) * 1.0 > 0).all():
        raise ProofError("expected arithmetic with gradual underflow, got flushing to zero; switch it off")
    network = read_network(model, claim.x.shape if isinstance(claim, Ball) else claim.lb.shape)
    lb, ub = box_of(claim)
    disjuncts = _disjuncts(claim, network.size(len(network.steps)))
    if not len(disjuncts) == len(certificate.trees) > 0:
        raise ProofError(f"expected a tree for each of {len(disjuncts)} disjuncts, got {len(certificate.trees)}")
    for tree, disjunct in zip(certificate.trees, disjuncts, strict=True):
        check_tree(tree, network, len(disjunct.rows))
    plain = any(not _cuts_inputs(tree) for tree in certificate.trees)
    root = enclose(network, lb, ub) if plain else None
    margins = [
        _prove(network, tree, disjunct, lb, ub, None if _cuts_inputs(tree) else root)
        for tree, disjunct in zip(certificate.trees, disjuncts, strict=True)
    ]
    return min(margins)


def box_of(claim: Ball | Box) -> tuple[Tensor, Tensor]:
    """Form the box that a claim is about.

    Args:
        claim: a ball is rounded outward in float64 and cut to the pixel range.

    Returns:
        ``lb, ub``, float64 of shape ``(1, n)``: every real point of the claim lies between them.

    Raises:
        ProofError: the sample of a ball lies outside the pixel range.
    """
    if isinstance(claim, Ball):
        x = claim.x.astype(np.float64).reshape(1, -1)
        if not ((x >= claim.lower) & (x <= claim.upper)).all():
            raise ProofError(f"expected a sample in [{claim.lower}, {claim.upper}], got one outside")
        lb = np.maximum(np.nextafter(x - claim.eps, -np.inf), claim.lower)
        ub = np.minimum(np.nextafter(x + claim.eps, np.inf), claim.upper)
    else:
        lb, ub = claim.lb.reshape(1, -1), claim.ub.reshape(1, -1)
    return torch.tensor(lb), torch.tensor(ub)


def _disjuncts(claim: Ball | Box, outputs: int) -> tuple[Disjunct, ...]:
    """Spell out what a claim rules out."""
    if isinstance(claim, Box):
        if any(one.rows.shape[1] != outputs for one in claim.disjuncts):
            raise ProofError(f"expected rows over {outputs} outputs, got others; give one entry per output")
        return claim.disjuncts
    if claim.label >= outputs:
        raise ProofError(f"expected a label below {outputs}, got {claim.label}")
    unit = np.eye(outputs)
    others = [other for other in range(outputs) if other != claim.label]
    return tuple(Disjunct(unit[[claim.label]] - unit[[other]], np.zeros(1)) for other in others)


def _cuts_inputs(tree: Tree) -> bool:
    return bool((tree.kind >= Split.BELOW).any())


def _prove(network: ExactNetwork, tree: Tree, disjunct: Disjunct, lb: Tensor, ub: Tensor, root: Region | None) -> float:
    """Prove every leaf of a checked tree, or raise; give the least margin."""
    least = float("inf")
    for leaves, margins in leaf_margins(network, tree, disjunct, lb, ub, root=root):
        if not (margins > 0).all():
            first = leaves[np.flatnonzero(~(margins > 0))[0]]
            raise ProofError(
                f"a leaf is not proved: row {tree.row[first]} at node {tree.leaf[first]} is bounded by "
                f"{margins[~(margins > 0)][0]:.6g} only, which is not above 0"
            )
        least = min(least, float(margins.min()))
    return least


def leaf_margins(
    network: ExactNetwork, tree: Tree, disjunct: Disjunct, lb: Tensor, ub: Tensor, *, root: Region | None = None
) -> Iterator[tuple[Array, Array]]:
    """Bound from below, in each leaf, the row that it names.

    Args:
        network: the operations.
        tree: a tree that ``check_tree`` lets pass.
        disjunct: its rows and offsets.
        lb: least inputs of the whole box, shape ``(1, n)``.
        ub: greatest inputs.
        root: the network's bounds over the whole box, to be used for every leaf; None to bound the box of each leaf.

    Yields:
        Positions of some leaves and their margins: infinity for a leaf that holds no point, minus infinity or NaN where
        nothing is known.
    """
    depth, start = depths(tree), starts(tree)
    for leaves in _chunks(network, len(tree.leaf)):
        splits = splits_above(tree, depth, start, leaves)
        low, high, void = _cut(splits, lb, ub, len(leaves))
        region = root or _enclose_all(network, low, high)
        relaxations, multipliers, crossed = _relax_leaves(network, tree, leaves, splits, region)
        rows = torch.tensor(disjunct.rows[tree.row[leaves]]).unsqueeze(1)
        bound = lower_bound(network, len(network.steps), rows, region, relaxations, multipliers).numpy()[:, 0]
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


def _enclose_all(network: ExactNetwork, lb: Tensor, ub: Tensor) -> Region:
    """Bound the network over the box of every leaf, over equal boxes once."""
    boxes, inverse = torch.unique(torch.cat([lb, ub], dim=1), dim=0, return_inverse=True)
    low, high = boxes.chunk(2, dim=1)
    region = enclose(network, low, high)
    return region.take(inverse) if len(boxes) > 1 else region


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
