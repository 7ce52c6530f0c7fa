from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.bounds import BoundedNetwork, BoundMethod, intersect
from robustkit.bounds import network as bounds_network
from robustkit.errors import RobustkitError, UnsupportedLayerError
from robustkit.margins import certified, logit_margins, margin_specification
from robustkit.models import Normalize
from robustkit.threat import LinfBall


def bounded(kind: str, seed: int = 0) -> BoundedNetwork:
    return BoundedNetwork(networks.make(kind, seed), networks.inputs(1))


def worst_points(model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall) -> Tensor:
    """Margins at uniform samples, random corners and the end of a short gradient descent, the least of each entry."""
    lb, ub = ball.inner_box(x)
    draw = torch.Generator().manual_seed(3)
    points = [ball.sample(x, draw) for _ in range(60)]
    points += [torch.where(torch.rand(x.shape, generator=draw) < 0.5, lb, ub) for _ in range(60)]
    for target in range(networks.CLASSES):
        at = x.clone()
        for _ in range(20):
            at.requires_grad_(True)
            slope = torch.autograd.grad(logit_margins(model(at), y)[:, target].sum(), at)[0]
            at = ball.project(at.detach() - 0.3 * ball.eps * slope.sign(), x)
        points.append(at)
    with torch.no_grad():
        return torch.stack([logit_margins(model(point), y) for point in points]).amin(dim=0)


@pytest.mark.parametrize(
    ("method", "intervals_first"), [*((method, False) for method in BoundMethod), (BoundMethod.SYMBOLIC, True)]
)
@pytest.mark.parametrize("kind", networks.KINDS)
def test_no_point_of_the_ball_lies_below_the_bound(kind: str, method: BoundMethod, intervals_first: bool) -> None:
    for seed in (0, 1):
        network = bounded(kind, seed)
        x, y = networks.inputs(5), torch.tensor([0, 1, 2, 3, 0])
        for eps in (0.0, 0.02, 0.1, 0.4):
            ball = LinfBall(eps)
            margins = network.lower_margins(x, y, ball, method, intervals_first=intervals_first).detach()
            assert torch.isfinite(margins).all()
            reached = worst_points(network.model, x, y, ball)
            gap = (margins - reached).max().item()
            assert gap <= 1e-4, f"{method} on {kind} at eps {eps}: a point lies {gap} below the lower bound"


@pytest.mark.parametrize("method", BoundMethod)
@pytest.mark.parametrize("kind", networks.KINDS)
def test_a_ball_of_radius_zero_gives_the_exact_margins(kind: str, method: BoundMethod) -> None:
    network = bounded(kind)
    x, y = networks.inputs(4), torch.tensor([3, 2, 1, 0])
    margins = network.lower_margins(x, y, LinfBall(0.0), method).detach()
    exact = logit_margins(network.model(x), y).detach()
    torch.testing.assert_close(margins, exact, atol=2e-3 if kind in ("sigmoid", "tanh") else 1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", BoundMethod)
def test_a_smaller_ball_never_has_smaller_margins(method: BoundMethod) -> None:
    network = bounded("conv")
    x, y = networks.inputs(4), torch.tensor([0, 1, 2, 3])
    wide = network.lower_margins(x, y, LinfBall(0.1), method).detach()
    tight = network.lower_margins(x, y, LinfBall(0.03), method).detach()
    if method is BoundMethod.IBP:
        assert (tight >= wide - 1e-6).all()
    else:  # adaptive lines may differ between radii, but not by the factor of three
        assert tight.mean() > wide.mean()


def test_hand_numbers_of_one_hidden_relu() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.fill_(2.0)
        model[1].bias.fill_(-1.0)
        model[3].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[3].bias.copy_(torch.tensor([0.5, 0.0]))
    network = BoundedNetwork(model.eval(), torch.full((1, 1), 0.5))
    x, y = torch.full((1, 1), 0.5), torch.tensor([0])
    ball = LinfBall(0.25)  # z in [-0.5, 0.5], relu(z) in [0, 0.5], margin = 2 relu(z) + 0.5
    expected = {
        BoundMethod.IBP: 0.5,
        BoundMethod.SYMBOLIC: 0.0,  # relu(z) >= z / 2, least at z = -0.5
        BoundMethod.CROWN: 0.5,  # the two lower lines tie; z is not taken
        BoundMethod.ALPHA_CROWN: 0.5,
    }
    for method, value in expected.items():
        margins = network.lower_margins(x, y, ball, method)
        assert margins[0, 0] == 0.0
        assert margins[0, 1].item() == pytest.approx(value, abs=1e-5), method


def test_intersection_is_as_tight_as_each_and_ignores_nan() -> None:
    network = bounded("mlp")
    x, y = networks.inputs(6), torch.tensor([0, 1, 2, 3, 0, 1])
    parts = [network.lower_margins(x, y, LinfBall(0.1), one).detach() for one in BoundMethod]
    best = intersect(*parts)
    assert all((best >= one).all() for one in parts)
    assert any((best > one).any() for one in parts)
    assert intersect(torch.tensor([torch.nan, 1.0]), torch.tensor([2.0, torch.nan])).tolist() == [2.0, 1.0]
    assert intersect(torch.tensor([torch.nan])).item() == -torch.inf


def test_alpha_crown_is_no_looser_than_crown() -> None:
    network = bounded("conv", seed=4)
    x, y = networks.inputs(6), torch.tensor([0, 1, 2, 3, 0, 1])
    crown, alpha = (
        network.lower_margins(x, y, LinfBall(0.3), one).detach() for one in (BoundMethod.CROWN, BoundMethod.ALPHA_CROWN)
    )
    assert (alpha >= crown - 1e-5).all()
    assert (alpha > crown + 1e-3).any()


@pytest.mark.parametrize("kind", networks.KINDS)
def test_input_coefficients_bound_the_network_from_above(kind: str) -> None:
    network = bounded(kind)
    x = networks.inputs(5)
    lb, ub = LinfBall(0.05).box(x)
    specification = torch.eye(networks.CLASSES).expand(5, -1, -1)
    coefficients, upper = network.input_coefficients(lb, ub, specification)
    assert coefficients.shape == (5, networks.CLASSES, 1, 6, 6)
    highest = torch.einsum("brchw,bchw->br", coefficients.clamp(min=0), ub) + torch.einsum(
        "brchw,bchw->br", coefficients.clamp(max=0), lb
    )
    offset = upper - highest  # of the linear upper bound
    with torch.no_grad():
        for _ in range(100):
            point = LinfBall(0.05).sample(x, torch.Generator().manual_seed(5))
            line = torch.einsum("brchw,bchw->br", coefficients, point) + offset
            assert (network.model(point) <= line + 1e-4).all()


def relu_inputs(kind: str, model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What enters each ReLU, in network order; ``nn.ReLU`` calls the function too."""
    seen: list[Tensor] = []
    original = torch.relu

    def relu(z: Tensor) -> Tensor:
        seen.append(z)
        return original(z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "relu", relu)
        model(x)
    return seen


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize(("kind", "count"), [("mlp", 2), ("conv", 3), ("batch_norm", 2), ("residual", 3), ("tanh", 0)])
def test_an_interval_pass_bounds_what_enters_every_relu(kind: str, count: int, eps: float) -> None:
    network, x, y, ball = bounded(kind), networks.inputs(5), torch.tensor([0, 1, 2, 3, 0]), LinfBall(eps)
    lb, ub = ball.box(x)
    margins, layers = network.interval_pass(lb, ub, margin_specification(y, 4))
    torch.testing.assert_close(margins, network.lower_margins(x, y, ball, BoundMethod.IBP))
    assert len(layers) == count
    draw = torch.Generator().manual_seed(3)
    for _ in range(50):
        points = ball.sample(x, draw)
        for (lower, upper), z in zip(layers, relu_inputs(kind, network.model, points), strict=True):
            assert lower.shape == upper.shape == z.shape
            assert (lower - 1e-5 <= z).all() and (z <= upper + 1e-5).all()


def test_an_interval_pass_gives_hand_numbers_and_gradients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -2.0], [1.0, 1.0]]))
        model[1].bias.copy_(torch.tensor([0.0, -3.0]))
        model[3].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        model[3].bias.zero_()
    x = torch.tensor([[[[0.5, 0.25]]]])
    network = BoundedNetwork(model, x)
    lb, ub = LinfBall(0.125).box(x)
    margins, [(lower, upper)] = network.interval_pass(lb, ub, margin_specification(torch.tensor([0]), 2))
    torch.testing.assert_close(lower, torch.tensor([[-0.375, -2.5]]))
    torch.testing.assert_close(upper, torch.tensor([[0.375, -2.0]]))
    torch.testing.assert_close(margins, torch.tensor([[0.0, 0.0]]))
    (gradient,) = torch.autograd.grad((upper - lower).sum(), model[1].weight)
    torch.testing.assert_close(gradient, torch.tensor([[0.25, -0.25], [0.25, 0.25]]))


def test_an_interval_pass_refuses_what_bounds_refuse() -> None:
    network, x, specification = bounded("mlp"), networks.inputs(1), margin_specification(torch.tensor([0]), 4)
    with pytest.raises(RobustkitError, match="expected a box with finite corners"):
        network.interval_pass(x + 0.1, x, specification)
    with torch.no_grad():
        network.model[1].weight[0, 0] = torch.nan
    with pytest.raises(RobustkitError, match=r"expected finite weights, but '1.weight'"):
        network.interval_pass(x, x, specification)


def test_it_shares_parameters_and_buffers_with_the_network() -> None:
    model = networks.make("batch_norm")
    network = BoundedNetwork(model, networks.inputs(1))
    x, y = networks.inputs(3), torch.tensor([0, 1, 2])
    for change in (lambda: model[4].weight.data.mul_(0.5), lambda: model[1].running_mean.add_(0.3)):
        change()
        for method in (BoundMethod.IBP, BoundMethod.SYMBOLIC):
            margins = network.lower_margins(x, y, LinfBall(0.0), method).detach()
            torch.testing.assert_close(margins, logit_margins(model(x), y).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [BoundMethod.IBP, BoundMethod.CROWN_IBP, BoundMethod.SYMBOLIC])
def test_training_bounds_use_the_statistics_of_the_clean_batch_and_reach_every_parameter(method: BoundMethod) -> None:
    model = networks.make("batch_norm").train()
    network = BoundedNetwork(model, networks.inputs(1))
    x, y = networks.inputs(8), torch.arange(8) % 4
    before = model[1].running_mean.clone()
    logits = network(x)
    assert not torch.equal(model[1].running_mean, before), "the clean batch moves the running statistics"
    moved = model[1].running_mean.clone()
    margins = network.lower_margins(x, y, LinfBall(0.0), method)
    torch.testing.assert_close(margins, logit_margins(logits, y), atol=1e-4, rtol=1e-4)
    assert torch.equal(model[1].running_mean, moved), "bounds do not"
    network.lower_margins(x, y, LinfBall(0.1), method).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(one is not None and torch.isfinite(one).all() for one in gradients)


def test_bounds_leave_mode_gradients_and_randomness_alone() -> None:
    model = networks.make("conv").train()
    model[0].weight.requires_grad_(False)
    state = torch.get_rng_state()
    network = BoundedNetwork(model, networks.inputs(1))
    assert model.training
    model.eval()
    network.lower_margins(networks.inputs(2), torch.tensor([0, 1]), LinfBall(0.1), BoundMethod.ALPHA_CROWN)
    assert not model.training
    assert [one.requires_grad for one in model.parameters()] == [False, *[True] * 7]
    assert all(one.grad is None for one in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_split_batch_has_the_same_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    network = bounded("conv")
    x, y = networks.inputs(7), torch.arange(7) % 4
    whole = network.lower_margins(x, y, LinfBall(0.1), BoundMethod.CROWN).detach()
    monkeypatch.setitem(bounds_network.BUDGET, "cpu", 1)
    split = network.lower_margins(x, y, LinfBall(0.1), BoundMethod.CROWN).detach()
    torch.testing.assert_close(split, whole)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.MaxPool2d(2), "cannot bound MaxPool2d at '1': max-pooling"),
        (nn.LeakyReLU(-0.1), r"LeakyReLU at '1'.*negative slope in \[0, 1\]"),
        (nn.LeakyReLU(1.5), "LeakyReLU at '1'"),
        (nn.AvgPool2d(2, ceil_mode=True), "AvgPool2d at '1'.*ceil_mode=False"),
        (nn.BatchNorm2d(2, affine=False), "BatchNorm2d at '1'.*affine"),
        (nn.Softplus(), "cannot bound the operation Softplus"),
        (nn.GELU(), "cannot trace the network for bounds: .*Erf"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_an_unsupported_layer_is_refused_by_name(layer: nn.Module, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), layer, nn.Flatten(), nn.LazyLinear(4)).eval()
    model(networks.inputs(1))
    with pytest.raises(UnsupportedLayerError, match=message):
        BoundedNetwork(model, networks.inputs(1))


def test_dropout_is_bounded_in_eval_mode_only() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Dropout(0.5)).eval()
    network = BoundedNetwork(model, networks.inputs(1))
    x, y = networks.inputs(2), torch.tensor([0, 1])
    network.lower_margins(x, y, LinfBall(0.1), BoundMethod.IBP)
    model.train()
    with pytest.raises(UnsupportedLayerError, match="Dropout at '2' in train mode"):
        network.lower_margins(x, y, LinfBall(0.1), BoundMethod.IBP)


def test_weights_and_inputs_that_are_not_finite_are_an_error() -> None:
    network = bounded("mlp")
    x, y = networks.inputs(2), torch.tensor([0, 1])
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(RobustkitError, match="finite corners"):
        network.lower_margins(broken, y, LinfBall(0.1), BoundMethod.IBP)
    with torch.no_grad():
        network.model[1].weight[0, 0] = torch.nan
    with pytest.raises(RobustkitError, match=r"'1.weight' holds NaN"):
        network.lower_margins(x, y, LinfBall(0.1), BoundMethod.IBP)


def test_after_a_failure_the_engine_is_built_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    network = bounded("mlp")
    x, y = networks.inputs(2), torch.tensor([0, 1])
    expected = network.lower_margins(x, y, LinfBall(0.1), BoundMethod.CROWN).detach()
    broken = network._engine._modules["adaptive"]

    def fail(**_: object) -> None:
        raise NotImplementedError("no such thing")

    monkeypatch.setattr(broken, "compute_bounds", fail)
    with pytest.raises(UnsupportedLayerError, match="crown bounds cannot carry this network: no such thing"):
        network.lower_margins(x, y, LinfBall(0.1), BoundMethod.CROWN)
    torch.testing.assert_close(network.lower_margins(x, y, LinfBall(0.1), BoundMethod.CROWN).detach(), expected)
    assert network._engine._modules["adaptive"] is not broken


def test_the_engine_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    network = bounded("conv")
    network.lower_margins(networks.inputs(1), torch.tensor([0]), LinfBall(0.1), BoundMethod.ALPHA_CROWN)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


def test_symbolic_bounds_on_the_authors_checkpoint_give_the_authors_value(shared: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    data = torchvision.datasets.MNIST(shared / "data", train=False)
    x, y = data.data[:200].unsqueeze(1).float() / 255, data.targets[:200]
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    path = shared / "models" / "mixtrain" / "mnist_small_mixtrain_0.3.pth"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = BoundedNetwork(model.eval(), x[:1])
    with torch.no_grad():
        margins = network.lower_margins(x, y, LinfBall(0.3), BoundMethod.SYMBOLIC)
    assert certified(margins, y).double().mean().item() == pytest.approx(0.665)


KERNEL = nn.Parameter(torch.arange(18.0).reshape(2, 1, 3, 3) / 18)


class Functional(nn.Module):
    """A network whose pooling, activation or product no module shows."""

    def __init__(self, function: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.function = function
        self.kernel = KERNEL
        self.head = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.function(x).flatten(1))
        return logits


@pytest.mark.parametrize(
    ("function", "features", "message"),
    [
        (lambda x: functional.avg_pool2d(x, 3, 2, padding=1), 9, "AveragePool .*stride equal to the kernel"),
        (lambda x: functional.avg_pool2d(x, 3, 1), 16, "AveragePool .*stride equal to the kernel"),
        (lambda x: functional.avg_pool2d(x, 4, 4, ceil_mode=True), 4, "cannot bound|cannot trace"),
        (
            lambda x: functional.avg_pool2d(x, 2, 2, divisor_override=3),
            9,
            "gives other logits|cannot bound|cannot trace",
        ),
        (lambda x: functional.leaky_relu(x, 1.7), 36, r"LeakyRelu .*negative slope in \[0, 1\] only, this one is 1.7"),
        (lambda x: torch.matmul(x, x.transpose(2, 3)), 36, "MatMul .*product of two values"),
        (lambda x: x * x, 36, "Mul .*product of two values|cannot bound the operation Pow"),
    ],
)
def test_what_is_bounded_unsoundly_is_refused_where_no_module_shows_it(
    function: Callable[[Tensor], Tensor], features: int, message: str
) -> None:
    with pytest.raises(UnsupportedLayerError, match=message):
        BoundedNetwork(Functional(function, features).eval(), networks.inputs(1))


@pytest.mark.parametrize("method", BoundMethod)
def test_functional_pooling_without_padding_is_sound(method: BoundMethod) -> None:
    torch.manual_seed(0)
    model = Functional(lambda x: functional.avg_pool2d(x, 2), 9).eval()
    x, y, ball = networks.inputs(3), torch.tensor([0, 1, 2]), LinfBall(0.1)
    margins = BoundedNetwork(model, x).lower_margins(x, y, ball, method).detach()
    assert (margins - worst_points(model, x, y, ball)).max() <= 1e-4


def test_grouped_convolutions_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3)).eval()
    with pytest.raises(UnsupportedLayerError, match="Conv2d at '0': its linear bounds are sound for groups=1 only"):
        BoundedNetwork(model, torch.rand(1, 2, 6, 6))


def test_weights_computed_in_the_forward_pass_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 36)), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x.flatten(1), self.weight * 2.0, self.bias)

    with pytest.raises(UnsupportedLayerError, match="computed in the forward pass"):
        BoundedNetwork(Scaled().eval(), networks.inputs(1))


@pytest.mark.parametrize("method", BoundMethod)
def test_the_engine_carries_normalised_batches(method: BoundMethod) -> None:
    model = nn.Sequential(Normalize((0.3, 0.5), (0.2, 0.4)), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU())
    model = nn.Sequential(*model, nn.Conv2d(3, 2, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4)).eval()
    x, y, ball = torch.rand(5, 2, 6, 6), torch.arange(5) % 4, LinfBall(0.03)
    network = BoundedNetwork(model, x[:1])
    network._layers, network._symbolic = None, False  # only the engine
    lower = network.lower_margins(x, y, ball, method).detach()
    one_by_one = [network.lower_margins(x[i : i + 1], y[i : i + 1], ball, method).detach() for i in range(5)]
    torch.testing.assert_close(lower, torch.cat(one_by_one), rtol=1e-3, atol=1e-3)
    for _ in range(100):
        with torch.no_grad():
            logits = model(ball.project(x + (2 * torch.rand(x.shape) - 1) * ball.eps, x))
        assert (logit_margins(logits, y) >= lower - 1e-4).all()
