from __future__ import annotations

import math

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.errors import UsageError
from robustkit.margins import margin_specification, robust_loss
from robustkit.threat import LinfBall
from robustkit.training import EpsRamp, Moment, Trainee
from robustkit.training.crown_ibp import CrownIBP, fused_loss
from robustkit.training.dual import Dual

X, Y = networks.inputs(6), torch.tensor([0, 1, 2, 3, 0, 1])


def moment(eps: float, progress: float, weight: float = 0.3) -> Moment:
    return Moment(LinfBall(eps), weight, torch.Generator().manual_seed(7), 0, progress)


def fused(network: BoundedNetwork, eps: float) -> Tensor:
    box, specification = LinfBall(eps).box(X), margin_specification(Y, network.classes)
    margins = network.output_bounds(*box, specification, BoundMethod.IBP)
    return fused_loss(network, box, Y, margins)


@pytest.mark.parametrize("eps", [0.0, 0.02, 0.1, 0.4])
@pytest.mark.parametrize("kind", ["mlp", "conv", "residual", "batch_norm"])
def test_no_point_of_the_ball_has_a_loss_above_the_fused_bound(kind: str, eps: float) -> None:
    for seed in (0, 1):
        model = networks.make(kind, seed)
        bound, ball, draw = fused(BoundedNetwork(model, X[:1]), eps), LinfBall(eps), torch.Generator().manual_seed(3)
        lb, ub = ball.inner_box(X)
        points = [ball.sample(X, draw) for _ in range(50)]
        points += [torch.where(torch.rand(X.shape, generator=draw) < 0.5, lb, ub) for _ in range(50)]
        at = X.clone()
        for _ in range(20):
            at.requires_grad_(True)
            (slope,) = torch.autograd.grad(functional.cross_entropy(model(at), Y, reduction="sum"), at)
            at = ball.project(at.detach() + 0.3 * eps * slope.sign(), X)
            points.append(at)
        with torch.no_grad():
            reached = torch.stack([functional.cross_entropy(model(one), Y, reduction="none") for one in points])
        assert (reached.amax(dim=0) <= bound + 1e-4).all()


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_without_a_ball_the_fused_bound_is_the_loss_also_of_large_logits(factor: float) -> None:
    model = networks.make("mlp")
    with torch.no_grad():
        for parameter in model[5].parameters():
            parameter.mul_(factor)
    exact = functional.cross_entropy(model(X), Y, reduction="none")
    torch.testing.assert_close(fused(BoundedNetwork(model, X[:1]), 0.0), exact, rtol=1e-3, atol=1e-3 * factor)


def test_fused_bound_of_a_linear_network_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [2.0]]))
        model[1].bias.copy_(torch.tensor([0.0, -1.0]))
    x, y = torch.tensor([[[[0.5]]]]), torch.tensor([0])
    network, box = BoundedNetwork(model, x), LinfBall(0.25).box(x)
    margins = network.output_bounds(*box, margin_specification(y, 2), BoundMethod.IBP)
    # v_1 = 2x - 1 lies in [-0.5, 0.5], where the chord of exp is highest at 0.5 and touches it
    torch.testing.assert_close(fused_loss(network, box, y, margins), torch.tensor([math.log(1 + math.exp(0.5))]))


def test_huge_bounds_stay_finite() -> None:
    model = networks.make("mlp").train()
    with torch.no_grad():
        model[5].weight.mul_(1e4)
    bound = fused(BoundedNetwork(model, X[:1]), 0.3)
    (gradient,) = torch.autograd.grad(bound.sum(), model[1].weight)
    assert torch.isfinite(bound).all() and torch.isfinite(gradient).all()
    assert (bound > 1e4).any()


def test_the_gradient_goes_through_the_chords() -> None:
    model = networks.make("mlp").double().train()
    inputs = X.double()
    network, ball, weight = BoundedNetwork(model, inputs[:1]), LinfBall(0.1), model[5].weight
    specification = margin_specification(Y, 4).double()

    def total() -> Tensor:
        box = ball.box(inputs)
        return fused_loss(network, box, Y, network.output_bounds(*box, specification, BoundMethod.IBP)).sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    step = 1e-5
    for place in ((0, 0), (1, 3), (3, 9)):
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                weight[place] += sign * step
            values.append(total().item())
        with torch.no_grad():
            weight[place] += step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(gradient[place].item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("fusion", [True, False])
def test_beta_falls_and_mixes_linear_bounds_and_intervals(fusion: bool, progress: float) -> None:
    model = networks.make("conv").train()
    method = CrownIBP(beta_end=0.2, loss_fusion=fusion)
    loss = method.loss(Trainee(model, X[:1]), X, Y, moment(0.05, progress))
    network, ball, beta = BoundedNetwork(model, X[:1]), LinfBall(0.05), 1 - 0.8 * progress
    wide, tight = (network.lower_margins(X, Y, ball, one) for one in (BoundMethod.IBP, BoundMethod.CROWN_IBP))
    mixed = beta * fused(network, 0.05).mean() + (1 - beta) * robust_loss(wide, Y)
    robust = mixed if fusion else robust_loss(beta * tight + (1 - beta) * wide, Y)
    torch.testing.assert_close(loss, 0.7 * functional.cross_entropy(model(X), Y) + 0.3 * robust)


def test_at_the_target_it_is_interval_training(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[BoundMethod] = []
    original = BoundedNetwork.output_bounds

    def spy(self: BoundedNetwork, lb: Tensor, ub: Tensor, rows: Tensor, how: BoundMethod, **options: bool) -> object:
        asked.append(how)
        return original(self, lb, ub, rows, how, **options)

    monkeypatch.setattr(BoundedNetwork, "output_bounds", spy)
    model = networks.make("conv").train()
    CrownIBP().loss(Trainee(model, X[:1]), X, Y, moment(0.05, 1.0))
    assert asked == [BoundMethod.IBP]
    asked.clear()
    CrownIBP().loss(Trainee(model, X[:1]), X, Y, moment(0.05, 0.5))
    assert asked == [BoundMethod.IBP, BoundMethod.CROWN_IBP]
    ramp = EpsRamp(0.1, 1.0, 3.0)
    assert [CrownIBP(kappa_end=0.2).weight(ramp, time, []) for time in (0.0, 2.0, 3.0)] == pytest.approx([0, 0.4, 0.8])


@pytest.mark.parametrize("name", ["kappa_end", "beta_end"])
def test_shares_outside_their_range_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"expected {name} in \[0, 1\], got 1.5"):
        CrownIBP(**{name: 1.5})  # type: ignore[arg-type]


def test_dual_minimises_the_symbolic_robust_loss_of_the_batch() -> None:
    model = networks.make("conv").train()
    loss = Dual().loss(Trainee(model, X[:1]), X, Y, moment(0.05, 1.0))
    network, ball = BoundedNetwork(model, X[:1]), LinfBall(0.05)
    margins = network.lower_margins(X, Y, ball, BoundMethod.SYMBOLIC, intervals_first=True)
    torch.testing.assert_close(loss, robust_loss(margins, Y))
    assert loss < robust_loss(network.lower_margins(X, Y, ball, BoundMethod.IBP), Y)
    natural = Dual().loss(Trainee(model, X[:1]), X, Y, moment(0.0, 0.0))
    torch.testing.assert_close(natural, functional.cross_entropy(model(X), Y))
