"""What every attack has to hold to, in one table."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks import ATTACKS, Attack, compose_attack
from robustkit.errors import RobustkitError, UsageError
from robustkit.margins import logit_margins, worst_margin
from robustkit.threat import LinfBall

SMALL: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 5, "rel_step_size": 0.5},
    "cw": {"steps": 5, "rel_step_size": 0.5},
    "fgsm": {},
    "mi-fgsm": {"steps": 4},
    "apgd-ce": {"steps": 6},
    "apgd-dlr": {"steps": 6},
    "apgd-t": {"steps": 6},
    "fab": {"steps": 4, "restarts": 2},
    "square": {"n_queries": 60, "restarts": 2},
    "targeted-pgd": {"steps": 8, "restarts": 2},
    "autoattack": {"steps": 6, "n_queries": 30},
    "interval-gradient": {"steps": 3, "rel_step_size": 0.5},
    "torchattacks-pgd": {"steps": 5, "rel_step_size": 0.5},
    "torchattacks:VMIFGSM": {"steps": 3, "N": 2},
    "pgd+square": {},
}
"""A small budget for each attack, a battery and one of the library's by name among them."""

LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
"""Classes that an attack needs, where it needs more than 2."""

GRADIENT_FREE = {"square"}

BALL = LinfBall(0.1)
every_attack = pytest.mark.parametrize("name", SMALL)


@dataclass(frozen=True)
class Case:
    """A network, and the shape of the inputs it takes."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int


def mlp(classes: int) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))


def conv(classes: int) -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15, classes)
    return nn.Sequential(*layers, nn.Dropout(0.5))


CASES = {
    "rows-2": Case(lambda: mlp(2), (8, 6), 2),
    "rows-3": Case(lambda: mlp(3), (8, 6), 3),
    "rows-12": Case(lambda: mlp(12), (8, 6), 12),
    "images-4": Case(lambda: conv(4), (8, 2, 7, 5), 4),
}


def attack_of(name: str, **more: Any) -> Attack:
    options: Mapping[str, dict[str, Any]] = {**SMALL, name: {**SMALL[name], **more}}
    return compose_attack(name, options)


def samples(model: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of which every second is misclassified from the start, pixels of 0 and 1 among them."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    x.flatten()[::5] = x.flatten()[::5].round()
    logits = predict(model, x)
    y = logits.argmax(dim=1)
    y[::2] = (y[::2] + 1) % logits.shape[1]
    return x, y, 100 + 7 * torch.arange(len(x))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    modes = [one.training for one in model.modules()]
    logits: Tensor = model.eval()(x)
    for one, training in zip(model.modules(), modes, strict=True):
        one.training = training
    return logits


def margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return worst_margin(logit_margins(predict(model, x), y), y)


def state(model: nn.Module) -> list[Any]:
    """Everything outside its result that an attack could change."""
    modes = [one.training for one in model.modules()]
    weights = [(one.tolist(), one.requires_grad, one.grad) for one in model.parameters()]
    buffers = [one.tolist() for one in model.buffers()]
    numbers = np.random.get_state(legacy=False)
    draws = [torch.get_rng_state().tolist(), str(numbers), random.getstate()]
    return [modes, weights, buffers, draws, torch.is_grad_enabled()]


def test_the_table_has_every_attack() -> None:
    assert set(ATTACKS) <= set(SMALL)


@pytest.mark.parametrize("case", CASES)
@every_attack
def test_points_lie_in_the_ball_and_all_else_stays(name: str, case: str) -> None:
    attack, given = attack_of(name), CASES[case]
    model = given.make().train()
    model[0].eval()  # a frozen layer stays frozen
    next(model.parameters()).requires_grad_(False)
    x, y, index = samples(model, given.shape)
    if given.classes < LEAST_CLASSES.get(name, 2):
        with pytest.raises(
            UsageError, match=rf"at least {LEAST_CLASSES[name]} classes .*, got {given.classes}; attack"
        ):
            attack(model, x, y, BALL, index)
        return
    x_before, y_before, before = x.clone(), y.clone(), state(model)
    found = attack(model, x, y, BALL, index)
    assert torch.equal(x, x_before), "the input was changed"
    assert torch.equal(y, y_before), "the labels were changed"
    assert state(model) == before
    assert (found.x_adv.shape, found.x_adv.dtype) == (x.shape, x.dtype)
    assert not found.x_adv.requires_grad
    exact = found.x_adv.double()
    assert (exact - x.double()).abs().max() <= BALL.eps, "outside the ball"
    assert exact.min() >= 0 and exact.max() <= 1, "outside the pixel range"
    start, end = margins(model, x, y), margins(model, found.x_adv, y)
    assert (end <= start + 1e-6).all(), "worse than the start"
    torch.testing.assert_close(found.margin.float(), end, atol=1e-5, rtol=0)
    assert torch.equal(found.x_adv[start <= 0], x[start <= 0]), "a sample that was wrong at first was moved"


@every_attack
def test_all_is_restored_after_an_exception(name: str) -> None:
    model = conv(4).train()
    model[3].eval()
    calls: list[int] = []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise KeyError("the model fails")

    x, y, index = samples(model, (4, 2, 7, 5))
    model[2].register_forward_hook(fail)
    before = state(model)
    with pytest.raises((KeyError, RobustkitError), match=r"the model fails|bounds"):
        attack_of(name)(model, x, y, BALL, index)
    assert state(model) == before


@every_attack
def test_the_same_seed_gives_the_same_points_in_any_batch(name: str) -> None:
    model, attack = conv(4), attack_of(name)
    x, y, index = samples(model, (11, 2, 7, 5))
    whole = attack(model, x, y, BALL, index)
    torch.manual_seed(99)
    assert torch.equal(attack(model, x, y, BALL, index).x_adv, whole.x_adv)
    order = torch.tensor([7, 3, 10, 0, 5, 1, 9, 2, 4, 8, 6])
    for one in order.split([1, 4, 6]):
        part = attack(model, x[one], y[one], BALL, index[one])
        torch.testing.assert_close(part.x_adv, whole.x_adv[one], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "square", "torchattacks-pgd"])
def test_another_seed_draws_otherwise(name: str) -> None:
    model = conv(4)
    x, y, index = samples(model, (6, 2, 7, 5))
    seen: list[float] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].detach().sum())))
    looks = []
    for seed in (0, 1, 0):
        seen.clear()
        attack_of(name, seed=seed)(model, x, y, LinfBall(0.001), index)
        looks.append(list(seen))
    assert looks[0] == looks[2]
    assert looks[0] != looks[1]


@pytest.mark.parametrize("shape", [(5, 6), (5, 1, 2, 3)], ids=["rows", "images"])
@every_attack
def test_linear_models_are_attacked_to_their_exact_optimum(name: str, shape: tuple[int, ...]) -> None:
    """The least of ``w.x + b`` over an L-inf ball is ``w.x + b - eps |w|_1``; the wrong classes are constants."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    x = 0.5 + 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0] * 6, [0.0] * 6, [0.3, -0.2, 0.5, 0.1, -0.4, 0.2], [0.0] * 6]))
        model[1].bias.copy_(torch.tensor([-1.0, 0.0, 0.1, -2.0]))
    y = torch.full((5,), 2)
    optimum = margins(model, x, y).double() - BALL.eps * 1.7
    assert (optimum > 0).all()
    attack = attack_of(name, **({"steps": 12} if name in ("pgd", "fab", "torchattacks:VMIFGSM") else {}))
    found = attack(model, x, y, BALL).margin
    if name == "square":  # its small squares never reach the last row and column: published so
        assert (found < optimum + BALL.eps * 1.7 / 2).all()
        return
    torch.testing.assert_close(found, optimum, atol=2e-5, rtol=0)
    with torch.no_grad():
        model[1].bias[2] -= optimum.max() + 0.01  # now every sample has a misclassified point, in a corner of its ball
    assert (attack(model, x, y, BALL).margin <= 0).all()


class Opaque(nn.Module):
    """A network whose forward takes no gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.network(x)
        return logits


@every_attack
def test_a_model_without_gradients_is_offered_the_attack_that_needs_none(name: str) -> None:
    model = Opaque(conv(4))
    x, y, index = samples(model, (6, 2, 7, 5))
    if name in GRADIENT_FREE:
        open_to_see = attack_of(name)(model.network, x, y, BALL, index)
        assert torch.equal(attack_of(name)(model, x, y, BALL, index).x_adv, open_to_see.x_adv)
        return
    with pytest.raises(RobustkitError, match="--method square" if name != "interval-gradient" else r"square|bounds"):
        attack_of(name)(model, x, y, BALL, index)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "interval-gradient"])  # bounds are in float32
def test_double_precision_under_inference_mode(name: str) -> None:
    model = conv(4)
    x, y, index = samples(model, (6, 2, 7, 5))
    model.double()
    with torch.inference_mode():
        x = x.double() * 0.987654321
        found = attack_of(name)(model, x, y, BALL, index)
    assert found.x_adv.dtype == torch.float64
    assert BALL.contains(found.x_adv, x).all()


@every_attack
def test_a_flat_model_is_survived(name: str) -> None:
    """A gradient of zero throughout makes NaN inside the library; nothing of it may come out."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    nn.init.zeros_(model[1].weight)
    nn.init.eye_(model[1].bias.data.reshape(1, 4))
    x = torch.full((3, 1, 2, 3), 0.5)
    found = attack_of(name)(model, x, torch.zeros(3, dtype=torch.long), BALL)
    assert found.margin.tolist() == [1.0] * 3
    assert BALL.contains(found.x_adv, x).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@every_attack
def test_a_model_on_a_gpu(name: str) -> None:
    model = conv(4)
    x, y, index = samples(model, (8, 2, 7, 5))
    here = attack_of(name)(model, x, y, BALL, index)
    before = torch.cuda.get_rng_state()
    there = attack_of(name)(model.cuda(), x.cuda(), y.cuda(), BALL, index)
    assert there.x_adv.is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert BALL.contains(there.x_adv.cpu(), x).all()
    assert torch.equal(there.margin.cpu() > 0, here.margin > 0)
