from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import networks
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.errors import UsageError
from robustkit.margins import robust_loss
from robustkit.threat import LinfBall
from robustkit.training import Moment, Trainee, TrainingMethod
from robustkit.training.expressive import CCIBP, MTLIBP, ExpIBP
from robustkit.training.fast import FastIBP
from robustkit.training.regularisers import relu_balance, tightness
from robustkit.training.sabr import SABR

X, Y = networks.inputs(6), torch.tensor([0, 1, 2, 3, 0, 1])
REGULARISED: list[TrainingMethod] = [FastIBP(), SABR(steps=2), MTLIBP(steps=2), CCIBP(steps=2), ExpIBP(steps=2)]


def moment(eps: float, progress: float) -> Moment:
    return Moment(LinfBall(eps), 0.3, torch.Generator().manual_seed(7), 0, progress)


def intervals(*pairs: tuple[float, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor([[one for one, _ in pairs]]), torch.tensor([[one for _, one in pairs]])


def test_tightness_by_hand() -> None:
    box = intervals((0.0, 0.2), (0.5, 0.9))  # mean width 0.3
    wide, narrow = intervals((-1.0, 1.0), (0.0, 1.0), (2.0, 5.0)), intervals((0.0, 0.5))  # mean widths 2 and 0.5
    torch.testing.assert_close(tightness(box, [wide, narrow], 0.5), torch.tensor((0.5 - 0.15) / (0.5 * 2)))


def test_relu_balance_by_hand() -> None:
    # centres 3 and 1 active, -1 dead, 0 in between; their mean is 0.75
    layer = intervals((2.0, 4.0), (0.5, 1.5), (-2.0, -0.0625), (-1.0, 1.0))
    centres = [3.0, 1.0, -1.03125, 0.0]
    mean = sum(centres) / 4
    first = 1.03125 / 4.0
    second = (-1.03125 - mean) ** 2 / ((3.0 - mean) ** 2 + (1.0 - mean) ** 2)
    expected = (max(0.0, 0.9 - first) + max(0.0, 0.9 - min(second, 1 / second))) / 0.9
    torch.testing.assert_close(relu_balance([layer], 0.9), torch.tensor(expected))
    flipped = (-layer[1], -layer[0])
    torch.testing.assert_close(relu_balance([flipped], 0.9), torch.tensor(expected))


@pytest.mark.parametrize(
    "layer",
    [intervals((1.0, 2.0), (2.0, 3.0)), intervals((-1.0, 1.0), (-2.0, 1.0)), intervals((0.0, 0.0), (0.0, 0.0))],
    ids=["all active", "none decided", "no width"],
)
def test_a_layer_without_dead_neurons_is_skipped_and_gradients_stay_finite(layer: tuple[Tensor, Tensor]) -> None:
    lower, upper = (one.clone().requires_grad_() for one in layer)
    usual = intervals((2.0, 4.0), (-2.0, -1.0), (-3.0, -2.0))
    both = relu_balance([(lower, upper), usual], 0.9)
    torch.testing.assert_close(both, 0.5 * relu_balance([usual], 0.9))
    total = both + tightness((lower, upper), [(lower, upper)], 0.5)
    gradients = torch.autograd.grad(total, (lower, upper))
    assert all(torch.isfinite(one).all() for one in gradients)


def test_an_infinite_interval_counts_as_no_layer() -> None:
    infinite = intervals((-math.inf, math.inf), (1.0, 2.0))
    assert relu_balance([infinite], 0.5).item() == 0.0
    assert tightness(intervals((0.0, math.nan)), [intervals((0.0, 1.0))], 0.5).item() == 0.0


@pytest.mark.parametrize("progress", [0.25, 1.0])
def test_fast_ibp_adds_regularisers_that_fade_with_the_ramp(progress: float) -> None:
    model = networks.make("conv").train()
    network, ball = BoundedNetwork(model, X[:1]), LinfBall(0.05)
    loss = FastIBP(regularisation=0.8, tolerance=0.7).loss(Trainee(model, X[:1]), X, Y, moment(0.05, progress))
    box = ball.box(X)
    _, layers = network.interval_pass(*box, torch.zeros(6, 1, 4))
    penalty = tightness(box, layers, 0.7) + relu_balance(layers, 0.7)
    robust = robust_loss(network.lower_margins(X, Y, ball, BoundMethod.IBP), Y)
    assert penalty > 0.1
    torch.testing.assert_close(loss, robust + 0.8 * (1 - progress) * penalty)


@pytest.mark.parametrize("method", REGULARISED, ids=repr)
@pytest.mark.parametrize("kind", ["conv", "batch_norm"])
def test_at_eps_zero_the_natural_loss_is_regularised_over_a_tiny_ball(method: Any, kind: str) -> None:
    model = networks.make(kind).train()
    natural = functional.cross_entropy(model(X), Y)
    regularised = method.loss(Trainee(model, X[:1]), X, Y, moment(0.0, 0.0))
    bounds = Trainee(model, X[:1]).bounds
    bounds(X)
    box = LinfBall(1e-6).box(X)
    _, layers = bounds.interval_pass(*box, torch.zeros(6, 1, 4))
    penalty = tightness(box, layers, 0.5) + relu_balance(layers, 0.5)
    assert penalty > 0.01
    torch.testing.assert_close(regularised, natural + 0.5 * penalty, rtol=1e-4, atol=1e-5)
    for unwanted in (moment(0.0, 1.0), moment(0.0, 0.0)):
        plain = method if unwanted.progress else replace(method, regularisation=0.0)
        torch.testing.assert_close(plain.loss(Trainee(model, X[:1]), X, Y, unwanted), natural)


@pytest.mark.parametrize("method", REGULARISED, ids=repr)
def test_every_step_bounds_once_and_regularises_the_box_it_trains_on(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes: list[tuple[Tensor, Tensor]] = []
    original = BoundedNetwork.interval_pass

    def spy(self: BoundedNetwork, lb: Tensor, ub: Tensor, specification: Tensor) -> Any:
        boxes.append((lb, ub))
        return original(self, lb, ub, specification)

    monkeypatch.setattr(BoundedNetwork, "interval_pass", spy)
    model = networks.make("conv").train()
    plain, weighted = (
        replace(method, regularisation=one).loss(Trainee(model, X[:1]), X, Y, moment(0.05, 0.25)) for one in (0.0, 0.4)
    )
    assert len(boxes) == 2, "one pass a step"
    lb, ub = boxes[1]
    share = 0.4 if isinstance(method, SABR) else 1.0
    assert (ub - lb).max().item() == pytest.approx(2 * share * 0.05, abs=1e-6)
    _, layers = original(BoundedNetwork(model, X[:1]), lb, ub, torch.zeros(6, 1, 4))
    penalty = tightness((lb, ub), layers, 0.5) + relu_balance(layers, 0.5)
    torch.testing.assert_close(weighted - plain, 0.4 * 0.75 * penalty, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [FastIBP, SABR, MTLIBP, CCIBP, ExpIBP])
def test_options_that_cannot_be_meant_are_refused(method: Any) -> None:
    assert method().initialisation == "ibp"
    with pytest.raises(UsageError, match=r"expected regularisation of at least 0, got -0\.1"):
        method(regularisation=-0.1)


def test_a_tolerance_outside_its_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected tolerance in \(0, 1\], got 0"):
        FastIBP(tolerance=0)
