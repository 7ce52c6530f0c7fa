"""Every method against an exact oracle: thresholds just beside the true minimum are never decided wrongly."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from families import CLASSES, FAMILIES, member, points, radius_of, shape_of
from oracle import margin, minimum
from torch import Tensor, nn

from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import VERIFIERS, make_verifier
from robustkit.vnncomp import Result, Solve, baseline, complete
from robustkit.vnnlib.queries import Disjunct, Query

CUT_BY_INPUTS = ("dense", "conv", "batch_norm")
GAPS = (1e-2, -1e-2, 1e-3, -1e-3)
"""What the worst margin is moved to, as a share of 1 + the greatest logit: true properties and false ones."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A ball with the worst margin in it, which is positive or not only because of the bias of one logit."""

    x: Tensor
    y: Tensor
    ball: LinfBall
    least: float
    clean: float
    scale: float


def samples(family: str, seed: int, count: int) -> tuple[nn.Sequential, list[Sample]]:
    """A network and some of its samples, each with the oracle's minimum over a random ball."""
    model, found = member(family, seed), []
    shares = 10.0 ** np.random.default_rng(seed).uniform(-2.5, 0.0, count)
    for x, share in zip(points(family, count, seed), shares, strict=True):
        ball = LinfBall(float(np.float32(share * radius_of(family))))
        with torch.no_grad():
            logits = model(x[None])[0]
        top = logits.topk(2)
        y = int(top.indices[0])
        # the box that every method starts from lies outside the ball by a rounding, far below the gaps
        least = margin(model, y, *(one[0] for one in ball.box(x[None]))).value
        clean = float(top.values[0] - top.values[1])
        found.append(Sample(x[None], torch.tensor([y]), ball, least, clean, 1.0 + float(logits.abs().max())))
    return model, found


def moved(model: nn.Sequential, one: Sample, gap: float) -> float:
    """Move the bias of the sample's own logit so that the worst margin is ``gap * scale``; give the change."""
    change = gap * one.scale - one.least
    with torch.no_grad():
        model[-1].bias[one.y] += change
    return change


def sweep(family: str, name: str, seed: int, count: int) -> dict[tuple[bool, Verdict], int]:
    """Count the verdicts of one verifier, by whether the property is true."""
    model, found = samples(family, seed, count)
    own, seen = model[-1].bias.detach().clone(), {}
    for one, gap in itertools.product(found, GAPS):
        change = moved(model, one, gap)
        if one.clean + change > 0:
            verify = make_verifier(name).prepare(model, one.x)
            (verdict,) = verify(one.x, one.y, one.ball).verdicts()
            seen[gap > 0, verdict] = seen.get((gap > 0, verdict), 0) + 1
        with torch.no_grad():
            model[-1].bias.copy_(own)
    return seen


def hold(family: str, name: str, seeds: range, count: int) -> None:
    """No verdict is wrong; the complete verifier leaves none open."""
    total: dict[tuple[bool, Verdict], int] = {}
    for seed in seeds:
        for key, number in sweep(family, name, seed, count).items():
            total[key] = total.get(key, 0) + number
    for true, verdict in total:
        assert true or not verdict.startswith("verified"), "a false property is verified"
        assert not (true and verdict is Verdict.FALSIFIED), "a true property is falsified"
        assert verdict is not Verdict.MISCLASSIFIED
    decided = total.get((True, Verdict.VERIFIED), 0) + total.get((False, Verdict.FALSIFIED), 0)
    assert sum(total.values()) >= len(seeds) * count * 2
    assert total.get((True, Verdict.VERIFIED), 0) > 0, "some true property is verified, or nothing was tested"
    if name == "complete":
        assert decided == sum(total.values()), f"complete decides everything, got {total}"


EACH = list(itertools.product(FAMILIES, VERIFIERS))


@pytest.mark.parametrize(("family", "name"), EACH)
def test_no_verifier_is_wrong_beside_the_exact_minimum(family: str, name: str) -> None:
    hold(family, name, range(2 if name == "complete" else 1), 4)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), EACH)
def test_no_verifier_is_wrong_on_many_networks(family: str, name: str) -> None:
    hold(family, name, range(100, 125), 4)


@dataclass(frozen=True, eq=False)
class Part:
    """A disjunct of the unsafe set, moved so that its least greatest row is exactly 0, and its scale."""

    rows: Tensor
    offsets: Tensor
    scale: float

    def at(self, gap: float) -> Disjunct:
        """The disjunct that the network misses by ``gap * scale``; below 0 it reaches it."""
        return Disjunct(self.rows.double().numpy(), self.offsets.double().numpy() + gap * self.scale)


def parts(model: nn.Module, lb: Tensor, ub: Tensor, sizes: tuple[int, ...], seed: int) -> list[Part]:
    """Random disjuncts of so many rows each."""
    draw, found = torch.Generator().manual_seed(seed), []
    for size in sizes:
        rows = torch.randn(size, CLASSES, generator=draw)
        offsets = 0.5 * torch.randn(size, generator=draw)
        value = minimum(model, rows, offsets, lb, ub).value
        found.append(Part(rows, offsets.double() - value, 1.0 + abs(value)))
    return found


def by_inputs(monkeypatch: pytest.MonkeyPatch) -> Solve:
    monkeypatch.setattr(complete, "FEW_INPUTS", 10**6)
    return complete.solve


def by_neurons(monkeypatch: pytest.MonkeyPatch) -> Solve:
    monkeypatch.setattr(complete, "FEW_INPUTS", 0)
    return complete.solve


def by_bounds(monkeypatch: pytest.MonkeyPatch) -> Solve:
    return baseline.solve


def answers(family: str, solve: Solve, sizes: tuple[int, ...], seed: int, gap: float) -> list[tuple[bool, Result]]:
    """What is answered of a union in every order, all parts missed and each part reached; SAT answers are replayed."""
    model, x = member(family, seed), points(family, 1, seed)[0]
    ball, found = LinfBall(radius_of(family)), []
    lb, ub = ball.box(x)
    whole, exact = parts(model, lb, ub, sizes, seed), copy.deepcopy(model).double()
    corners = [one.double().flatten().numpy() for one in (lb, ub)]
    for reached in (None, *range(len(sizes))):
        unsafe = [one.at(-gap if place == reached else gap) for place, one in enumerate(whole)]
        for order in itertools.permutations(unsafe):
            query = Query(corners[0], corners[1], order, input_shape=shape_of(family))
            answer = solve(model, query, 20.0)
            found.append((reached is not None, answer.verdict))
            if answer.verdict is Result.SAT:
                assert answer.x is not None and query.contains(answer.x)
                with torch.no_grad():
                    y = exact(torch.from_numpy(answer.x).view(1, *shape_of(family)))[0].numpy()
                assert query.excess(y) <= 1e-5
    return found


Choose = Callable[[pytest.MonkeyPatch], Solve]
EVERY = [
    (family, solver)
    for family in FAMILIES
    for solver in (by_inputs, by_neurons, by_bounds)
    if shape_of(family) == (3,) or solver is not by_inputs  # 16 inputs are too many to halve
]


def hold_unions(family: str, solver: Choose, solve: Solve, sizes: tuple[int, ...], seed: int) -> None:
    """No answer is wrong; complete search decides, by neurons where one row of each disjunct is all there is."""
    found = set(answers(family, solve, sizes, seed, 1e-2))
    assert (False, Result.SAT) not in found, "an unreachable set is called reachable"
    assert (True, Result.UNSAT) not in found, "a reachable set is called unreachable"
    whole = solver is not by_bounds and set(sizes) == {1}  # else a row at a time is proved over the whole box
    if whole or (solver is by_inputs and family in CUT_BY_INPUTS):
        assert found == {(False, Result.UNSAT), (True, Result.SAT)}, "it decides everything"


@pytest.mark.parametrize(("family", "solver"), EVERY)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1), (3,), (2, 2)], ids=str)
def test_unions_of_conjunctions_are_decided_rightly_in_every_order(
    family: str, solver: Choose, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_unions(family, solver, solver(monkeypatch), sizes, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "solver"), EVERY)
def test_unions_of_many_networks_are_decided_rightly(
    family: str, solver: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = solver(monkeypatch)
    for seed in range(100, 115):
        for sizes in ((1, 1, 1), (2, 1), (3,), (2, 2)):
            hold_unions(family, solver, solve, sizes, seed)
