"""Networks and inputs on which floating-point arithmetic lies: nothing false may be called verified or unsat.

What holds is decided in rational arithmetic (``exactly``), with the parameters as they are stored.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from proofs import random_tree, root_only
from torch import Tensor, nn

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.errors import RobustkitError, UnsupportedLayerError
from robustkit.models import export_onnx, read_onnx
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import VERIFIERS, make_verifier
from robustkit.verifiers.certificate import Certificate
from robustkit.verifiers.checker import box_of, check
from robustkit.verifiers.claims import Ball
from robustkit.verifiers.network_reader import read_network
from robustkit.vnncomp import Result, baseline, complete, decide
from robustkit.vnncomp.recheck import claim_of
from robustkit.vnnlib import Property
from robustkit.vnnlib.queries import Disjunct, Query


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def exactly(model: nn.Sequential, x: list[Fraction]) -> list[Fraction]:
    """The outputs in rational arithmetic."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight = [[Fraction(one) for one in row] for row in layer.weight.tolist()]
            bias = [Fraction(one) for one in layer.bias.tolist()]
            x = [sum((a * b for a, b in zip(row, x, strict=True)), c) for row, c in zip(weight, bias, strict=True)]
        else:
            slope = Fraction(getattr(layer, "negative_slope", 0.0))
            x = [max(one, slope * one) for one in x]
    return x


@dataclass(frozen=True, eq=False)
class Trap:
    """A false claim: class 0 within a ball around an input, and a point of the ball where class 1 is ahead."""

    model: nn.Sequential
    x: Tensor
    ball: LinfBall
    broken: Fraction

    def holds(self) -> bool:
        """Whether the point lies in the ball, and class 1 is ahead there, in rational arithmetic."""
        ball, centre = self.ball, Fraction(self.x.item())
        inside = abs(self.broken - centre) <= Fraction(ball.eps)
        inside &= Fraction(ball.lower) <= self.broken <= Fraction(ball.upper)
        first, second = exactly(self.model, [self.broken])
        return inside and first < second


def hidden(*layers: nn.Module) -> Trap:
    """Layers that let a number in [0, 1] through in real arithmetic: where it is above 1/2, class 1 is ahead."""
    model = nn.Sequential(*layers, linear([[0.0], [1.0]], [0.5, 0.0])).eval()
    return Trap(model, torch.tensor([[0.25]]), LinfBall(0.5), Fraction(3, 4))


def absorbed(w: float) -> Trap:
    """``relu(x + w) - w``: x is lost where w is great."""
    return hidden(linear([[1.0]], [w]), nn.ReLU(), linear([[1.0]], [-w]))


def merged(w: float) -> Trap:
    """``relu(x + w) - w - 1/2`` as the margin itself; the stored biases are exact."""
    model = nn.Sequential(linear([[1.0]], [w]), nn.ReLU(), linear([[0.0], [1.0]], [0.5, -w])).eval()
    return Trap(model, torch.tensor([[0.25]]), LinfBall(0.5), Fraction(3, 4))


def cancelled(w: float) -> Trap:
    """``w x + x - w x``: the middle one is lost in sums from the left, and in products of weights."""
    return hidden(linear([[1.0]] * 3, [0.0] * 3), nn.ReLU(), linear([[w, 1.0, -w]], [0.0]))


def reordered(w: float) -> Trap:
    """``w + x - w`` with the great numbers in weights, each on a neuron that is 1."""
    first = linear([[0.0], [1.0], [0.0]], [1.0, 0.0, 1.0])
    return hidden(first, nn.ReLU(), linear([[w, 1.0, -w]], [0.0]))


def behind_a_switch(w: float) -> Trap:
    """A switch that rounding turns off: ``relu(8 (relu(x + w) - w) - 4)`` is 2 at 3/4, and 0 in short arithmetic.

    After the idea of Zombori et al., ICLR 2021 (Fooling a complete neural network verifier): behaviour that hides
    behind a weight so great that a verifier's rounding erases it. The network is our own.
    """
    switch = linear([[8.0]], [-4.0])
    return hidden(
        linear([[1.0]], [w]), nn.ReLU(), linear([[1.0]], [-w]), nn.ReLU(), switch, nn.ReLU(), linear([[1.0]], [0.0])
    )


def vanishing(times: int) -> Trap:
    """``x`` times 2^-100 again and again, then as often 2^100: it underflows on the way."""
    small, great = [linear([[2.0**-100]], [0.0]) for _ in range(times)], [linear([[2.0**100]], [0.0])] * times
    return hidden(*small, nn.ReLU(), *great)


NEXT = float(np.nextafter(np.float32(1e8), np.float32(np.inf)))
GREAT = (1e8, NEXT, 3e10, 2.0**60, 1e30)
MAKERS: tuple[Callable[[Any], Trap], ...] = (absorbed, merged, cancelled, reordered, behind_a_switch)
TRAPS = {f"{maker.__name__}-{w:.9g}": maker(w) for maker in MAKERS for w in GREAT}
TRAPS |= {f"vanishing-{times}": vanishing(times) for times in (2, 6, 12)}


def sliver(side: int, eps: float, x: float = 0.3) -> Trap:
    """A claim that breaks only between the greatest (least) float32 number of a ball and its real end."""
    centre = Fraction(float(np.float32(x)))
    end = centre + side * Fraction(eps)
    near = np.float32(float(end))
    if side * (Fraction(float(near)) - end) > 0:
        near = np.nextafter(near, np.float32(-side * np.inf))
    gap = side * (end - Fraction(float(near)))
    assert gap > 0
    steep = 2.0**20
    # side (x - near) is exact in float32 for x so close, and at most gap in the ball
    model = nn.Sequential(
        linear([[side * 1.0]], [-side * float(near)]),
        nn.ReLU(),
        linear([[0.0], [steep]], [steep * float(gap) / 2, 0.0]),
    ).eval()
    return Trap(model, torch.tensor([[float(np.float32(x))]]), LinfBall(eps), end)


SLIVERS = {f"sliver{side:+d}-{eps:g}": sliver(side, eps) for side, eps in itertools.product((1, -1), (0.1, 8 / 255))}
ALL = TRAPS | SLIVERS


@pytest.mark.parametrize("name", ALL)
def test_every_trap_is_a_false_claim(name: str) -> None:
    assert ALL[name].holds()


def verdict_of(verifier: str, trap: Trap) -> Verdict | None:
    """What a verifier says; None where it refuses, by an error of its own."""
    try:
        verify = make_verifier(verifier).prepare(trap.model, trap.x)
        return verify(trap.x, torch.tensor([0]), trap.ball).verdicts()[0]
    except RobustkitError:
        return None


AGAINST = list(itertools.product(VERIFIERS, ALL))


@pytest.mark.parametrize(("verifier", "name"), AGAINST)
def test_no_verifier_calls_a_false_claim_verified(verifier: str, name: str) -> None:
    assert verdict_of(verifier, ALL[name]) != "verified"


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_weights_that_change_after_preparing_are_refused(verifier: str) -> None:
    trap = ALL["absorbed-1e+30"]
    model = copy.deepcopy(trap.model)
    with torch.no_grad():
        model[-1].weight.zero_()  # a margin of 1/2 everywhere, as float32 believes of the trap
        verify = make_verifier(verifier).prepare(model, trap.x)
        model.load_state_dict(trap.model.state_dict())
    with pytest.raises(RobustkitError, match="expected the weights that the verifier was prepared for"):
        verify(trap.x, torch.tensor([0]), trap.ball)


@pytest.mark.parametrize("name", SLIVERS)
def test_a_box_rounded_inward_would_lose_the_sliver(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinfBall, "box", LinfBall.inner_box)
    verdict = verdict_of("ibp", ALL[name])
    assert verdict is not None and verdict.startswith("verified")


@pytest.mark.parametrize("name", ALL)
def test_the_checker_proves_no_false_claim(name: str) -> None:
    trap = ALL[name]
    claim = Ball(trap.x[0].numpy(), trap.ball.eps, 0)
    assert not check(root_only(trap.model, claim, 1), trap.model).proved
    network, rng = read_network(trap.model, (1,)), np.random.default_rng(0)
    lb, ub = (one.numpy() for one in box_of(claim))
    for splits in (1, 2, 4, 8):
        tree = random_tree(network, lb, ub, rng, splits)
        assert not check(Certificate.build(trap.model, claim, [tree]), trap.model).proved


def asked(trap: Trap, *more: Disjunct) -> Query:
    """Whether class 1 can be level or ahead within the exact ball, rounded outward as a reader of files does."""
    lb, ub = (one[0].numpy() for one in box_of(Ball(trap.x[0].numpy(), trap.ball.eps, 0)))
    ahead = Disjunct(np.array([[1.0, -1.0]]), np.zeros(1))
    return Query(lb, ub, (ahead, *more), input_shape=(1,))


def by_neurons(model: nn.Module, query: Query, timeout: float) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complete, "FEW_INPUTS", 0)
        return complete.solve(model, query, timeout)


SOLVERS = {"baseline": baseline.solve, "inputs": complete.solve, "neurons": by_neurons}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ALL)
def test_no_proof_of_a_solver_that_a_reachable_set_is_unreachable_is_accepted(solver: str, name: str) -> None:
    trap = ALL[name]
    try:
        answer = SOLVERS[solver](trap.model, asked(trap), 5.0)
    except RobustkitError:
        return
    if answer.verdict is Result.UNSAT:  # what float32 believes
        certificate = Certificate.build(trap.model, claim_of(asked(trap)), answer.proof.trees, answer.proof.hidden)
        assert not check(certificate, trap.model).proved


@pytest.mark.parametrize("name", SLIVERS)
def test_no_decision_loses_a_sliver(name: str, tmp_path: Path) -> None:
    trap = ALL[name]
    export_onnx(trap.model, (1,), tmp_path / "n.onnx")
    network = read_onnx(tmp_path / "n.onnx")
    for solver in SOLVERS.values():
        decision = decide(network, Property((asked(trap),)), 5.0, solver)
        assert decision.verdict is not Result.UNSAT
        if decision.verdict is Result.SAT:
            assert decision.counterexample is not None
            assert exactly(trap.model, [Fraction(decision.counterexample.x[0])])[0] <= Fraction(1, 10**4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("reached", [None, 0, 1, 2])
def test_every_disjunct_must_be_refuted_whatever_their_order(solver: str, reached: int | None) -> None:
    identity = nn.Sequential(linear([[1.0], [-1.0]], [0.0, 0.0]), nn.ReLU(), linear([[1.0, 1.0]], [0.0])).eval()  # |x|
    limits = [-0.001, -0.5, -2.0]  # |x| <= limit, which nothing reaches
    if reached is not None:
        limits[reached] = 0.1
    unsafe = [Disjunct(np.array([[1.0]]), np.array([-limit])) for limit in limits]
    for order in itertools.permutations(unsafe):
        query = Query(np.array([-1.0]), np.array([1.0]), order, input_shape=(1,))
        verdict = SOLVERS[solver](identity, query, 5.0).verdict
        assert verdict in ({Result.UNSAT, Result.UNKNOWN} if reached is None else {Result.SAT})
        assert solver == "baseline" or verdict is not Result.UNKNOWN


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_leaky_relu_below_zero(verifier: str) -> None:
    ball, x = LinfBall(0.5, lower=-2.0, upper=-1.0), torch.tensor([[-1.5]])  # LeakyReLU(1/2) maps it to [-1, -1/2]
    for bias, verdict in ((1.01, Verdict.VERIFIED), (0.99, Verdict.FALSIFIED)):
        model = nn.Sequential(linear([[1.0]], [0.0]), nn.LeakyReLU(0.5), linear([[1.0], [0.0]], [bias, 0.0])).eval()
        found = verdict_of(verifier, Trap(model, x, ball, Fraction(-2)))
        assert found in ((verdict, None) if verdict is Verdict.VERIFIED else (verdict, Verdict.UNKNOWN, None))


@pytest.mark.parametrize("method", BoundMethod)
def test_bounds_of_leaky_relu_below_zero(method: BoundMethod) -> None:
    model = nn.Sequential(linear([[1.0]], [0.0]), nn.LeakyReLU(0.5), linear([[1.0], [0.0]], [0.0, 0.0])).eval()
    rows = torch.tensor([[[1.0, 0.0]]])
    box = torch.tensor([[-2.0]]), torch.tensor([[-1.0]])
    try:
        lower, upper = BoundedNetwork(model, box[0]).output_bounds(*box, rows, method)
    except UnsupportedLayerError:
        return
    assert lower.item() == pytest.approx(-1.0, abs=1e-5)
    assert upper.item() == pytest.approx(-0.5, abs=1e-5)
