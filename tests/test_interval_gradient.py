import itertools

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks import PGD, IntervalGradient
from robustkit.attacks.interval_gradient import interval_gradient
from robustkit.attacks.pooled import PooledNetwork
from robustkit.bounds import BoundedNetwork
from robustkit.errors import UnsupportedLayerError
from robustkit.margins import margin_specification
from robustkit.threat import LinfBall

BALL = LinfBall(0.1)


def planted() -> nn.Module:
    """Logits ``(0.1, relu(4 (x1 - 0.52)), -1)``: at x = (0.5, 0.5) class 0, with a gradient of 0 in every pixel.

    The violation, class 1 at any x1 > 0.545, lies behind a dead ReLU: no gradient at the sample points to it.
    """
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 4.0], [1.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([-2.08, 0.0]))
        model[2].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
        model[2].bias.copy_(torch.tensor([0.1, 0.0, -1.0]))
    return model


X, Y = torch.full((1, 2), 0.5), torch.tensor([0])


@pytest.mark.parametrize("inner", ["pgd", "cw"])
@pytest.mark.parametrize(("move", "x1"), [("corner", 0.6), ("small", 0.55)])
def test_finds_a_violation_that_no_gradient_points_to(inner: str, move: str, x1: float) -> None:
    model = planted()
    plain = PGD(random_start=False)(model, X, Y, BALL)
    assert plain.margin.item() == pytest.approx(0.1)
    attack = IntervalGradient(inner=inner, move=move, restarts=1, interval_iters=1)  # type: ignore[arg-type]
    found = attack(model, X, Y, BALL)
    assert found.margin.item() == pytest.approx(0.1 - 4 * (x1 - 0.52), abs=1e-5)
    assert found.x_adv[0].tolist() == pytest.approx([0.5, x1], abs=1e-6)


def test_one_relu_by_hand() -> None:
    """Over x1 in [0.45, 0.55], z = 4 (x1 - 0.52) lies in [-0.28, 0.12]: slope 0.12 / 0.4 = 0.3."""
    network = BoundedNetwork(planted(), X)
    gradient, upper = interval_gradient(network, X - 0.05, X + 0.05, Y, 3)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 1.2]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(upper, torch.tensor([0.02]), atol=1e-5, rtol=0)


def test_of_a_linear_model_it_is_the_gradient() -> None:
    model = nn.Linear(4, 3)
    x, y = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    gradient, upper = interval_gradient(BoundedNetwork(model, x[:1]), x - 0.1, x + 0.1, y, 3)
    weight = model.weight.detach()
    gaps = -margin_specification(y, 3) @ weight
    bounds = -margin_specification(y, 3) @ model(x).detach().unsqueeze(2)
    bounds = bounds.squeeze(2) + 0.1 * gaps.abs().sum(dim=2)
    bounds[torch.arange(5), y] = -torch.inf
    best, rival = bounds.max(dim=1)
    torch.testing.assert_close(gradient, gaps[torch.arange(5), rival], atol=1e-5, rtol=0)
    torch.testing.assert_close(upper, best, atol=1e-5, rtol=0)


def test_boxes_widen_by_threes_to_half_the_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a margin of 100 no class can win anywhere: all four boxes are tried, and the point stays."""
    model, widths = planted(), []
    with torch.no_grad():
        model[2].bias[0] = 100.0
    real = BoundedNetwork.input_coefficients

    def recording(network: BoundedNetwork, lb: Tensor, ub: Tensor, specification: Tensor) -> tuple[Tensor, Tensor]:
        widths.append(float((ub - lb).max()) / 2)
        return real(network, lb, ub, specification)

    monkeypatch.setattr(BoundedNetwork, "input_coefficients", recording)
    found = IntervalGradient(restarts=1, interval_iters=1, hopeless="stay")(model, X, Y, LinfBall(0.3))
    assert widths == pytest.approx([0.01, 0.03, 0.09, 0.15], abs=1e-6)
    assert torch.equal(found.x_adv, X)


def test_only_what_stands_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearer a sample is to the violation, the sooner its box is wide enough."""
    model, rows = planted(), []
    real = BoundedNetwork.input_coefficients

    def recording(network: BoundedNetwork, lb: Tensor, ub: Tensor, specification: Tensor) -> tuple[Tensor, Tensor]:
        rows.append(len(lb))
        return real(network, lb, ub, specification)

    monkeypatch.setattr(BoundedNetwork, "input_coefficients", recording)
    x = torch.tensor(
        [[0.5, 0.518], [0.5, 0.50], [0.5, 0.2], [0.5, 0.58]]
    )  # won at 0.03, at 0.05, never, from the start
    found = IntervalGradient(restarts=1, interval_iters=1)(model, x, torch.zeros(4, dtype=torch.long), BALL)
    assert rows == [3, 3, 3, 2]
    assert (found.margin <= 0).tolist() == [True, True, False, True]


def test_a_point_that_nothing_can_win_around_is_drawn_anew() -> None:
    """From (0.5, 0.3) the widest box reaches 0.45: no class can win, and no gradient leads on; a draw gets away."""
    model = planted()
    x, far = torch.full((20, 2), 0.5), LinfBall(0.3)
    x[:, 1] = 0.3
    y = torch.zeros(20, dtype=torch.long)
    stay, redraw = (
        IntervalGradient(restarts=1, interval_iters=3, hopeless=one)(model, x, y, far).margin  # type: ignore[arg-type]
        for one in ("stay", "redraw")
    )
    assert (stay > 0).all()
    assert 0 < (redraw <= 0).sum() < 20  # a draw lies above 0.52 with probability 0.13, three times


@pytest.mark.parametrize("together", [2, 3, 9])
def test_widths_bounded_together_give_the_same_points(together: int) -> None:
    """Each sample takes its narrowest box that is won, whatever wider ones stand beside it."""
    x = torch.tensor([[0.5, 0.518], [0.5, 0.50], [0.5, 0.2], [0.5, 0.49]])
    network, y = BoundedNetwork(planted(), x[:1]), torch.zeros(4, dtype=torch.long)
    gradient, radius = IntervalGradient()._interval_gradient(network, x, y, 3, BALL)
    assert radius.tolist() == pytest.approx([0.03, 0.05, 0.0, 0.0])
    both = IntervalGradient(widths_at_once=together)._interval_gradient(network, x, y, 3, BALL)
    torch.testing.assert_close(both[0], gradient)
    torch.testing.assert_close(both[1], radius)


def test_breaks_whatever_its_inner_attack_breaks() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    x = torch.rand(40, 8, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(dim=1)
    plain = PGD(steps=10, random_start=False)(model, x, y, BALL)
    margins = [IntervalGradient(steps=10, restarts=restarts)(model, x, y, BALL).margin for restarts in (1, 2, 4)]
    assert (plain.margin <= 0).any()
    for fewer, more in itertools.pairwise([plain.margin, *margins]):
        assert (more <= fewer).all()


def test_an_unsupported_layer_is_named_and_the_model_restored() -> None:
    for layer, name in ((nn.Softplus(), "Softplus"), (nn.Sequential(nn.MaxPool2d(1), nn.Softplus()), "MaxPool2d")):
        model = nn.Sequential(nn.Conv2d(1, 2, 2), layer, nn.Flatten(), nn.Linear(8, 2)).train()
        x = torch.full((1, 1, 3, 3), 0.5)
        with pytest.raises(UnsupportedLayerError, match=name):
            IntervalGradient()(model, x, model(x).argmax(dim=1), BALL)
        assert all(one.training for one in model.modules())


def pooling() -> nn.Module:
    torch.manual_seed(7)
    first = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    last = [nn.Conv2d(4, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*first, *last).eval()


def rows(count: int) -> Tensor:
    return -margin_specification(torch.arange(count) % 3, 3)


def test_coefficients_without_a_pool_to_choose_are_those_of_the_bounds() -> None:
    """One hidden layer behind the input: its intervals are exact, so that lines and rows are the symbolic ones."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    plain, pooled = nn.Sequential(*layers), nn.Sequential(*layers[:2], nn.MaxPool2d(1), *layers[2:])
    x = torch.rand(5, 1, 6, 6)
    lb, ub = LinfBall(0.2).box(x)
    expected = BoundedNetwork(plain, x[:1]).input_coefficients(lb, ub, rows(5))
    found = PooledNetwork(pooled, x[:1]).input_coefficients(lb, ub, rows(5))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_in_a_tiny_box_the_coefficients_are_the_gradient() -> None:
    model, x = pooling(), torch.rand(4, 1, 8, 8)
    coefficients, most = PooledNetwork(model, x[:1]).input_coefficients(x - 1e-7, x + 1e-7, rows(4))
    x.requires_grad_()
    wanted = torch.einsum("brk,bk->br", rows(4), model(x))
    torch.testing.assert_close(most, wanted, rtol=1e-4, atol=1e-4)
    for row in range(3):
        (gradient,) = torch.autograd.grad(wanted[:, row].sum(), x, retain_graph=True)
        torch.testing.assert_close(coefficients[:, row], gradient, rtol=1e-3, atol=1e-5)


def test_a_network_with_pools_is_attacked_at_least_as_well_as_by_the_inner_attack() -> None:
    model, ball = pooling(), LinfBall(0.4)
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(dim=1)
    inner = PGD(steps=10, random_start=False)(model, x, y, ball)
    found = IntervalGradient(steps=10, restarts=1)(model, x, y, ball)
    assert 0 < int((inner.margin <= 0).sum()) < 60
    assert (found.margin <= inner.margin).all()
    assert (found.margin < inner.margin).any()
    assert all(one.grad is None for one in model.parameters())


class Branching(nn.Module):
    """Adds in place, by operators and by methods, as residual networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)
        self.second, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.pool(torch.relu(self.first(x)))
        out = self.second(z)
        out += z
        out = torch.relu(z + out)
        logits: Tensor = self.last(out.view(out.size(0), -1))
        return logits


class Odd(nn.Module):
    """Calls a layer of its own by a parameter: what can be traced cannot always be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.shift, self.relu = nn.MaxPool2d(2), nn.Parameter(torch.ones(9)), nn.ReLU()
        self.last = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.flatten(self.pool(x), 1) + self.relu(self.shift))
        return logits


def test_what_cannot_be_followed_is_refused_in_a_line() -> None:
    with pytest.raises(UnsupportedLayerError, match="cannot follow the code of this network"):
        PooledNetwork(Odd().eval(), torch.rand(1, 1, 6, 6))


def test_branches_are_followed() -> None:
    torch.manual_seed(5)
    model, x = Branching().eval(), torch.rand(3, 1, 8, 8)
    coefficients, _ = PooledNetwork(model, x[:1]).input_coefficients(x - 1e-7, x + 1e-7, rows(3))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((rows(3)[:, 1] * model(x)).sum(), x)
    torch.testing.assert_close(coefficients[:, 1], gradient, rtol=1e-3, atol=1e-5)
