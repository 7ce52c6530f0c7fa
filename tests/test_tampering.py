"""Certificates of the complete search, tampered with and signed again: refused, or their claim is true all the same."""

import copy
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from families import member, points, radius_of
from oracle import TOLERANCE, margin
from torch import nn

from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import Complete, Outcome
from robustkit.verifiers.certificate import Certificate, Tree
from robustkit.verifiers.certificate_file import load_certificate
from robustkit.verifiers.checker import check
from robustkit.verifiers.claims import Ball

GAP = 0.02
SEEDS = range(3)


@cache
def proved(family: str, seed: int) -> tuple[nn.Sequential, Certificate, float]:
    """A network moved until the worst margin of a ball is ``GAP``, the certificate of it, and the exact margin."""
    model, x = member(family, seed), points(family, 1, seed)
    ball = LinfBall(float(np.float32(radius_of(family))))
    with torch.no_grad():
        y = model(x).argmax(dim=1)
        model[-1].bias[y] += GAP - margin(model, int(y), *(one[0] for one in ball.box(x))).value
    with TemporaryDirectory() as folder:
        outcome = Outcome.begin(model, x, y)
        Complete(certificates=folder).prepare(model, x).go_on(outcome, x, y, ball, 0, until=math.inf)
        assert outcome.verdicts() == [Verdict.VERIFIED]
        certificate = load_certificate(next(Path(folder).iterdir()))
    return model, certificate, margin(model, int(y), *(one[0] for one in ball.box(x))).value


def shuffled(tree: Tree, rng: np.random.Generator) -> dict[str, Any]:
    return {"leaf": rng.permutation(tree.leaf)}


def other_slopes(tree: Tree, rng: np.random.Generator) -> dict[str, Any]:
    return {"alpha": tuple(rng.random(one.shape).astype(np.float32) for one in tree.alpha)}


def other_multipliers(tree: Tree, rng: np.random.Generator) -> dict[str, Any]:
    return {"beta": tree.beta * rng.exponential(size=tree.beta.shape) + (rng.random(tree.beta.shape) < 0.1)}


def no_multipliers(tree: Tree, rng: np.random.Generator) -> dict[str, Any]:
    return {"beta": np.zeros_like(tree.beta)}


def huge_multipliers(tree: Tree, rng: np.random.Generator) -> dict[str, Any]:
    return {"beta": 10.0 ** rng.uniform(0, 300, tree.beta.shape)}


def flipped_splits(tree: Tree, rng: np.random.Generator) -> dict[str, Any]:
    kind = tree.kind.copy()
    kind[1:] = 3 - kind[1:]  # 1 and 2, active and inactive
    return {"kind": kind}


def other_neurons(tree: Tree, rng: np.random.Generator) -> dict[str, Any]:
    neuron, layer = tree.neuron.copy(), tree.layer
    for parent in np.unique(tree.parent[1:]):
        neuron[tree.parent == parent] = rng.integers(4)
    return {"neuron": neuron, "layer": layer}


def a_leaf_less(tree: Tree, rng: np.random.Generator) -> dict[str, Any]:
    return {"leaf": tree.leaf[:-1], "row": tree.row[:-1], "alpha": tuple(one[:-1] for one in tree.alpha)}


TAMPER = (
    *(shuffled, other_slopes, other_multipliers, no_multipliers, huge_multipliers, flipped_splits, other_neurons),
    a_leaf_less,
)


@pytest.mark.parametrize("tamper", TAMPER)
def test_another_tree_proves_no_more_than_is_true(tamper: Any) -> None:
    rng, accepted, split = np.random.default_rng(0), 0, 0
    for seed in SEEDS:
        model, certificate, exact = proved("dense", seed)
        assert check(certificate, model).proved
        split += sum(len(one.leaf) > 1 for one in certificate.trees)
        for _ in range(6):
            trees = [replace(one, **tamper(one, rng)) if len(one.leaf) > 1 else one for one in certificate.trees]
            checked = check(Certificate.build(model, certificate.claim, trees, certificate.hidden), model)
            accepted += checked.proved
            assert not checked.proved or checked.margin <= exact + TOLERANCE
    assert split > 0, "there are splits to tamper with"
    assert accepted < 6 * len(SEEDS) or tamper is other_slopes, "some of it is refused"


@pytest.mark.parametrize("tamper", ["random", "swapped", "elsewhere"])
def test_other_slopes_of_hidden_bounds_prove_no_more_than_is_true(tamper: str) -> None:
    rng, seen = np.random.default_rng(0), 0
    for seed in SEEDS:
        model, certificate, exact = proved("dense", seed)
        for _ in range(6):
            hidden = []
            for one in certificate.hidden:
                alpha, neurons = one.alpha, one.neurons
                if tamper == "random":
                    alpha = tuple(rng.integers(0, 256, slopes.shape, dtype=np.uint8) for slopes in alpha)
                elif tamper == "swapped":
                    alpha = tuple(np.roll(slopes, len(neurons), axis=0) for slopes in alpha)
                else:
                    neurons = rng.permutation(neurons)
                hidden.append(replace(one, alpha=alpha, neurons=neurons))
            seen += len(hidden)
            checked = check(Certificate.build(model, certificate.claim, certificate.trees, hidden), model)
            assert not checked.proved or checked.margin <= exact + TOLERANCE
    assert seen > 0, "there are slopes to tamper with"


@pytest.mark.parametrize("wrong", [{"neurons": [99]}, {"neurons": [0, 0]}, {"layer": 0}, {"twice": True}])
def test_slopes_of_hidden_bounds_that_fit_no_network_are_refused(wrong: dict[str, Any]) -> None:
    model, certificate, _ = proved("dense", 0)
    assert certificate.hidden
    one = certificate.hidden[0]
    if "neurons" in wrong:
        count = len(wrong["neurons"])
        alpha = tuple(np.zeros((2 * count, slopes.shape[1]), dtype=np.uint8) for slopes in one.alpha)
        hidden = [replace(one, neurons=np.array(wrong["neurons"]), alpha=alpha)]
    elif "layer" in wrong:
        hidden = [replace(one, layer=9, columns=one.columns[:1] * 9, alpha=one.alpha[:1] * 9)]
    else:
        hidden = [one, one]
    checked = check(Certificate.build(model, certificate.claim, certificate.trees, hidden), model)
    assert not checked.proved
    assert "expected slopes of" in checked.reason


@pytest.mark.parametrize("family", ["dense", "conv"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_tree_proves_no_claim_that_is_false(family: str, seed: int) -> None:
    model, certificate, exact = proved(family, seed)
    claim, trees, hidden = certificate.claim, certificate.trees, certificate.hidden
    assert isinstance(claim, Ball)
    assert 0 < check(certificate, model).margin <= exact + TOLERANCE
    lowered = copy.deepcopy(model)
    with torch.no_grad():
        lowered[-1].bias[claim.label] -= 1.05 * GAP
    assert not check(Certificate.build(lowered, claim, trees, hidden), lowered).proved, "another model"
    seen, moved = [], np.clip(claim.x + np.float32(0.1), 0, 1)
    for other in (
        *(replace(claim, eps=factor * claim.eps) for factor in (0.5, 1.001, 1.2, 1.5, 2.0)),
        replace(claim, label=(claim.label + 1) % 3),
        replace(claim, x=moved),
        replace(claim, x=1 - claim.x),
    ):
        lb, ub = LinfBall(other.eps).box(torch.from_numpy(other.x))
        least = margin(model, other.label, lb, ub).value
        checked = check(Certificate.build(model, other, trees, hidden), model)
        seen.append(checked.proved)
        assert not checked.proved or 0 < checked.margin <= least + TOLERANCE
    assert seen[0] and not all(seen), "a smaller ball needs no other proof"
