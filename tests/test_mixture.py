"""A mixture of two networks: its logits, and bounds that no point of the ball contradicts."""

from __future__ import annotations

import math

import pytest
import torch
from networks import inputs, make
from torch import Tensor, nn

from robustkit.attacks import PGD, IntervalGradient
from robustkit.bounds import BoundedMixture, BoundedNetwork, BoundMethod, bounded
from robustkit.bounds.mixture import mixed_margins
from robustkit.errors import UsageError
from robustkit.margins import certified, logit_margins
from robustkit.models import Mixture, fingerprint
from robustkit.threat import LinfBall
from robustkit.verifiers import make_verifier


def given(*logits: float) -> nn.Module:
    """A network that gives the same logits for everything."""
    model = nn.Linear(1, len(logits))
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor(logits))
    return model


def mixture(weight: float = 0.8, seed: int = 0) -> Mixture:
    natural, robust = make("conv", seed), make("mlp", seed + 100)
    with torch.no_grad():
        robust[-1].weight.mul_(25.0)  # margins wide enough for something to be certified
    return Mixture(natural, robust, weight).eval()


def test_logits_by_hand() -> None:
    """g = (1/4, 3/4), h = (9/10, 1/10): with weight 4/5 the mixture is (0.77, 0.23)."""
    model = Mixture(given(0.0, math.log(3)), given(math.log(9), 0.0), 0.8)
    torch.testing.assert_close(model(torch.zeros(1, 1)).exp(), torch.tensor([[0.77, 0.23]]))


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_logits_and_gradients_are_finite_where_probabilities_underflow(weight: float) -> None:
    model = Mixture(given(0.0, 500.0, -500.0), given(300.0, 0.0, -800.0), weight)
    x = torch.zeros(1, 1, requires_grad=True)
    logits = model(x)
    logits.sum().backward()
    assert logits.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


def test_the_robust_network_alone_is_what_a_weight_of_one_gives() -> None:
    model, x = mixture(1.0), inputs(4)
    torch.testing.assert_close(model(x), torch.log_softmax(model.robust(x), dim=1))


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.1, math.nan])
def test_weights_that_are_no_share_are_refused(weight: float) -> None:
    with pytest.raises(UsageError, match=r"weight of the robust network in \(0, 1\], got"):
        Mixture(given(0.0), given(0.0), weight)


def test_the_weight_is_part_of_what_a_network_is_known_by() -> None:
    assert fingerprint(mixture(0.7)) != fingerprint(mixture(0.8))


def test_margins_by_hand() -> None:
    """h = (8/10, 1/10, 1/10) at worst: with weight 3/4 the ratio is at least 0.6 / (0.25 + 0.075)."""
    lower = mixed_margins(torch.tensor([[0.0, math.log(8), math.log(8)]]), torch.tensor([0]), 0.75)
    assert lower[0].tolist() == pytest.approx([0.0, math.log(0.6 / 0.325), math.log(0.6 / 0.325)], abs=1e-4)


@pytest.mark.parametrize("weight", [0.55, 0.8, 1.0])
def test_certified_is_where_the_robust_probability_margin_exceeds_the_published_threshold(weight: float) -> None:
    margins = 3.0 * torch.randn(500, 5, generator=torch.Generator().manual_seed(0)).double() + 4.0
    y = torch.zeros(500, dtype=torch.long)
    margins[:, 0] = 0.0
    odds = torch.exp(-margins)
    least = ((1.0 - odds) / odds.sum(dim=1, keepdim=True))[:, 1:].min(dim=1).values
    expected = least > (1.0 - weight) / weight
    assert 20 < int(expected.sum()) < 480
    assert torch.equal(certified(mixed_margins(margins, y, weight), y), expected)


def test_no_bound_of_one_class_is_no_bound_at_all() -> None:
    lower = mixed_margins(torch.tensor([[0.0, -torch.inf, 5.0], [9.0, 0.0, 9.0]]), torch.tensor([0, 1]), 0.9)
    assert lower[0].tolist() == [0.0, -math.inf, -math.inf]
    assert (lower[1, [0, 2]] > 0).all() and lower[1, 1] == 0.0


@pytest.mark.parametrize("weight", [0.01, 0.3, 0.5])
def test_nothing_is_certified_where_the_natural_network_has_half_a_say(weight: float) -> None:
    margins = torch.full((1, 3), 1000.0)
    assert (mixed_margins(margins, torch.tensor([0]), weight)[0, 1:] < 0).all()


def worst_seen(model: Mixture, x: Tensor, y: Tensor, ball: LinfBall) -> Tensor:
    """The least margins at uniform points, at corners and at the points of an attack."""
    draw = torch.Generator().manual_seed(0)
    corners = [x + ball.eps * torch.randn(x.shape, generator=draw).sign() for _ in range(30)]
    points = [ball.sample(x, draw) for _ in range(30)] + [ball.project(one, x) for one in corners]
    points += [PGD(steps=20)(model, x, y, ball).x_adv, x]
    with torch.no_grad():
        return torch.stack([logit_margins(model(one), y) for one in points]).min(dim=0).values


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("weight", [0.4, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_point_of_the_ball_lies_below_the_bound(eps: float, weight: float, seed: int) -> None:
    model, x, ball = mixture(weight, seed), inputs(8), LinfBall(eps)
    y = model(x).argmax(dim=1)
    network = bounded(model, x[:1])
    assert isinstance(network, BoundedMixture) and network.classes == 4
    torch.testing.assert_close(network(x), model(x))
    seen = worst_seen(model, x, y, ball)
    for method in BoundMethod:
        lower = network.lower_margins(x, y, ball, method)
        assert (lower <= seen + 1e-4).all(), method
        assert (lower.gather(1, y[:, None]) == 0.0).all()


def test_something_is_certified_and_less_with_a_smaller_weight() -> None:
    x, ball = inputs(40), LinfBall(0.005)
    counts = []
    for weight in (0.5, 0.7, 0.95, 1.0):
        model = mixture(weight)
        y = model.robust(x).argmax(dim=1)
        counts.append(int(certified(bounded(model, x[:1]).lower_margins(x, y, ball, BoundMethod.CROWN), y).sum()))
    assert counts == sorted(counts) and counts[0] == 0 and counts[1] > 0 and counts[-1] > counts[1]


def test_verifiers_and_attacks_take_a_mixture() -> None:
    model, x, ball = mixture(0.9), inputs(20), LinfBall(0.01)
    y = model(x).argmax(dim=1)
    for name in ("crown", "cascade"):
        outcome = make_verifier(name).prepare(model, x[:1])(x, y, ball)
        assert outcome.verified.any(), name
    wide = LinfBall(0.2)
    found = IntervalGradient(steps=5, restarts=1)(model, x, y, wide)
    assert wide.contains(found.x_adv, x).all()
    assert (found.margin <= 0).any()


def test_layers_of_the_natural_network_need_no_bounds() -> None:
    natural = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9, 4))
    assert isinstance(bounded(Mixture(natural, make("mlp"), 0.9), inputs(1)), BoundedMixture)
    assert isinstance(bounded(make("mlp"), inputs(1)), BoundedNetwork)
