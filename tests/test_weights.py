from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import networks
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from robustkit.errors import UsageError
from robustkit.threat import LinfBall
from robustkit.training import Moment, Trainee, TrainingMethod
from robustkit.training.adversarial import PGDTraining
from robustkit.training.method import Share
from robustkit.training.trades import TRADES
from robustkit.training.weights import divergences, energy_weights, loss_weights, weighted

X, Y = networks.inputs(6), torch.tensor([0, 1, 2, 3, 0, 1])


def moment(eps: float = 0.05, weight: float = 2.0) -> Moment:
    return Moment(LinfBall(eps), weight, torch.Generator().manual_seed(7), 0)


def test_energy_weights_by_hand() -> None:
    logits = torch.tensor([[math.log(2.0), math.log(6.0)], [-math.log(4.0), -math.log(4.0)], [100.0, 0.0]])
    expected = [1 / math.log(9.0), 1 / math.log(3.0), 0.01]  # energies -log 8, log 2, -100
    torch.testing.assert_close(energy_weights(logits), torch.tensor(expected))


def test_loss_weights_by_hand() -> None:
    losses = torch.tensor([0.0, 2 * math.log(3.0)])
    torch.testing.assert_close(loss_weights(losses, 2.0), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(loss_weights(losses, 1e6), torch.tensor([0.5, 0.5]), atol=1e-5, rtol=0)


def test_divergence_by_hand() -> None:
    clean, moved = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]])
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    torch.testing.assert_close(divergences(clean, moved), torch.tensor([expected]))


def test_weights_by_loss_have_the_gradient_of_the_worst_distribution() -> None:
    losses = torch.tensor([0.3, 1.2, 0.7], requires_grad=True)
    (own,) = torch.autograd.grad(weighted(losses, torch.zeros(3, 2), "done", temperature=0.4), losses)
    worst = 0.4 * torch.logsumexp(losses / 0.4, dim=0)
    torch.testing.assert_close(own, torch.autograd.grad(worst, losses)[0])


def points(model: Any) -> tuple[list[Tensor], Any]:
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].detach().clone()) if module.training else None
    )
    return seen, hook


@pytest.mark.parametrize("weights", ["none", "weat", "done"])
@pytest.mark.parametrize("kind", [PGDTraining, TRADES])
def test_the_loss_is_the_weighted_one(kind: Any, weights: Any) -> None:
    model = networks.make("mlp").train()
    options = {"weat_kl": 3.0} if kind is PGDTraining else {}
    method = kind(steps=3, weights=weights, done_temperature=0.5, **options)
    seen, hook = points(model)
    loss = method.loss(Trainee(model, X[:1]), X, Y, moment())
    hook.remove()
    x_adv = seen[-1]
    assert torch.equal(seen[0], X) == (kind is TRADES or weights == "weat")
    assert not torch.equal(x_adv, X)
    clean, moved = model(X), model(x_adv)
    divergence = functional.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    natural, adversarial = (functional.cross_entropy(one, Y, reduction="none") for one in (clean, moved))
    each = natural + 2.0 * divergence if kind is TRADES else adversarial
    if kind is PGDTraining and weights == "weat":
        each = each + 3.0 * divergence
    energy = -torch.logsumexp(clean, dim=1)
    expected = {
        "none": each.mean(),
        "weat": (each / torch.log(1 + energy.abs().exp())).mean(),
        "done": ((each / 0.5).softmax(0) * each).sum(),
    }
    torch.testing.assert_close(loss, expected[weights])
    if weights == "done":
        assert loss > each.mean()


@pytest.mark.parametrize("method", [PGDTraining(weights="weat"), TRADES(weights="done")], ids=repr)
def test_while_eps_is_zero_nothing_is_weighted(method: TrainingMethod) -> None:
    model = networks.make("mlp").train()
    loss = method.loss(Trainee(model, X[:1]), X, Y, moment(eps=0.0))
    assert loss.item() == functional.cross_entropy(model(X), Y).item()


@pytest.mark.parametrize("method", [PGDTraining(steps=2, weights="weat"), TRADES(steps=2, weights="weat")], ids=repr)
def test_weights_by_energy_add_up_over_shares(method: TrainingMethod) -> None:
    model = networks.make("mlp")

    def loss(share: Share) -> float:
        here = replace(moment(), share=share)
        return method.loss(Trainee(model, X[:1]), share.take(X), share.take(Y), here).item()

    assert statistics.mean(loss(Share(part, 3)) for part in range(3)) == pytest.approx(loss(Share()), rel=1e-5)


@pytest.mark.parametrize("kind", [PGDTraining, TRADES])
def test_options_that_cannot_be_meant_are_refused(kind: Any) -> None:
    with pytest.raises(UsageError, match="expected done_temperature above 0, got 0"):
        kind(done_temperature=0)


def test_a_negative_weight_of_the_divergence_is_refused() -> None:
    with pytest.raises(UsageError, match="expected weat_kl of at least 0, got -1"):
        PGDTraining(weat_kl=-1)
