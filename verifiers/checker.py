"""The trusted half of complete verification: whoever found a proof, and however, this decides whether it is one.

It believes nothing but the claim. It forms the box itself, reads the network itself, bounds every activation itself,
makes sure that the leaves cover the box, and bounds the row of every leaf with the slopes and multipliers that it is
given, each of which is sound whatever it is; rounding is accounted for (``sound_bounds``). It shares no code with the
bounds that searches use, and it needs no gradients.

What remains to be trusted is this file, ``proof_tree``, ``leaves``, ``ball_margins``, ``sound_bounds``,
``activation_lines``, ``rounding``, ``exact_network``, ``network_reader``, ``layer_rules``, ``forward_code``,
``execution_error`` and the claim's own form in ``claims``; Python, and ``torch.fx`` where a network has a ``forward``
of its own; and float64 arithmetic that rounds to nearest in numpy and torch on a CPU, where convolutions of float64 are
matrix products.

What is proved is about the network with the parameters as they are stored, in real arithmetic; or, on demand, about its
executions in float32, from which ``execution_error`` takes what their own rounding may cost (``Semantics``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.errors import RobustkitError
from robustkit.verifiers.ball_margins import ball_margins
from robustkit.verifiers.certificate import Certificate, Split, Tree, model_digest
from robustkit.verifiers.certificate_file import load_certificate
from robustkit.verifiers.claims import Array, Ball, Box, Disjunct, claim_digest
from robustkit.verifiers.exact_network import ExactNetwork, Semantics
from robustkit.verifiers.leaves import Enclosures, leaf_margins
from robustkit.verifiers.network_reader import read_network
from robustkit.verifiers.proof_tree import ProofError, check_hidden, check_tree
from robustkit.verifiers.sound_bounds import enclose


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


def check_file(path: str | Path, model: nn.Module, semantics: Semantics = Semantics.REAL) -> Checked:
    """Read a certificate and check it.

    Args:
        path: the file.
        model: the network it is about, in eval mode.
        semantics: which outputs of the network it is to prove right.

    Returns:
        What was found; a file that cannot be read proves nothing.
    """
    began = time.perf_counter()
    try:
        certificate = load_certificate(path)
    except RobustkitError as error:
        return Checked(False, float("nan"), 0, time.perf_counter() - began, str(error))
    return check(certificate, model, semantics=semantics)


def check(
    certificate: Certificate, model: nn.Module, until: float = math.inf, semantics: Semantics = Semantics.REAL
) -> Checked:
    """Decide whether a certificate proves its claim of a network.

    Args:
        certificate: the claim and its proof.
        model: the network it is about, in eval mode.
        until: when to stop, by the clock of ``time.monotonic``; it is looked at after each batch of leaves.
        semantics: which outputs of the network it is to prove right.

    Returns:
        ``proved`` only where the claim is true. Else ``reason`` says what is missing; it may be true.
    """
    began = time.perf_counter()
    margin, reason = float("nan"), ""
    try:
        with torch.inference_mode(), np.errstate(all="ignore"):
            margin = _least_margin(certificate, model, until, semantics)
    except RobustkitError as error:
        reason = str(error)
    leaves = sum(len(one.leaf) for one in certificate.trees)
    return Checked(margin > 0, margin, leaves, time.perf_counter() - began, reason, certificate.claim.summary)


def check_balls(network: ExactNetwork, claims: Sequence[Ball]) -> Tensor:
    """Prove many claims of one network that need no splits, and with them no certificate.

    Args:
        network: as ``read_network`` reads it for samples of this shape.
        claims: the claims.

    Returns:
        For each a number that no margin of its label over its ball undercuts, by the semantics that the network was
        read for: float64 of shape ``(B,)``. The claim is proved where it is above 0; minus infinity where nothing is
        known.

    Raises:
        ProofError: a sample outside its pixel range or of another shape, a label that is none, or arithmetic that
            flushes to zero.
    """
    _expect_gradual_underflow()
    outputs = network.size(len(network.steps))
    for claim in claims:
        if claim.x.shape != network.shapes[0] or not claim.label < outputs:
            raise ProofError(
                f"expected samples of shape {network.shapes[0]} with labels below {outputs}, got {claim.x.shape} with "
                f"{claim.label}; give claims of this network"
            )
    if not claims or outputs < 2:  # of a single class there is nothing to prove
        return torch.full((len(claims),), -torch.inf, dtype=torch.float64)
    with torch.inference_mode(), np.errstate(all="ignore"):
        boxes = [box_of(claim) for claim in claims]
        lb, ub = (torch.cat(ends) for ends in zip(*boxes, strict=True))
        margins = ball_margins(network, lb, ub, torch.tensor([claim.label for claim in claims]))
    return margins.clone()


def _expect_gradual_underflow() -> None:
    if not (torch.full((64,), 2.0**-1074, dtype=torch.float64) * 1.0 > 0).all():
        raise ProofError("expected arithmetic with gradual underflow, got flushing to zero; switch it off")


def _least_margin(certificate: Certificate, model: nn.Module, until: float, semantics: Semantics) -> float:
    """Prove every tree, or raise."""
    claim = certificate.claim
    if claim_digest(claim) != certificate.input:
        raise ProofError("expected the claim that was signed, got another: the certificate was changed")
    if model_digest(model) != certificate.model:
        raise ProofError("expected the network of the certificate, got one with other parameters; give the right one")
    _expect_gradual_underflow()
    network = read_network(model, claim.x.shape if isinstance(claim, Ball) else claim.lb.shape, semantics)
    lb, ub = box_of(claim)
    disjuncts = _disjuncts(claim, network.size(len(network.steps)))
    if not len(disjuncts) == len(certificate.trees) > 0:
        raise ProofError(f"expected a tree for each of {len(disjuncts)} disjuncts, got {len(certificate.trees)}")
    for tree, disjunct in zip(certificate.trees, disjuncts, strict=True):
        check_tree(tree, network, len(disjunct.rows))
    check_hidden(certificate.hidden, network)
    plain = any(not _cuts_inputs(tree) for tree in certificate.trees)
    root = enclose(network, lb, ub, certificate.hidden) if plain else None
    enclosures = Enclosures(network)
    provers = [
        _prove(tree, leaf_margins(network, tree, disjunct, lb, ub, root=region, enclosures=enclosures))
        for tree, disjunct in zip(certificate.trees, disjuncts, strict=True)
        for region in [None if _cuts_inputs(tree) else root]
    ]
    least = float("inf")
    for margins in zip_longest(*provers, fillvalue=float("inf")):  # side by side: trees of equal boxes share bounds
        if time.monotonic() > until:
            raise ProofError("the time for it was over before all leaves were bounded")
        least = min(least, *margins)
    return least


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


def _prove(tree: Tree, bounded: Iterator[tuple[Array, Array]]) -> Iterator[float]:
    """Prove every leaf of a checked tree, or raise; give the least margins of some leaves after others."""
    for leaves, margins in bounded:
        if not (margins > 0).all():
            first = leaves[np.flatnonzero(~(margins > 0))[0]]
            raise ProofError(
                f"a leaf is not proved: row {tree.row[first]} at node {tree.leaf[first]} is bounded by "
                f"{margins[~(margins > 0)][0]:.6g} only, which is not above 0"
            )
        yield float(margins.min())
