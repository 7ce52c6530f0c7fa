from __future__ import annotations

import copy
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.bounds import BoundedNetwork
from robustkit.errors import UsageError
from robustkit.margins import logit_margins, margin_specification, robust_loss
from robustkit.models import make_model
from robustkit.models.named import Residual
from robustkit.threat import LinfBall
from robustkit.training import Moment, Trainee
from robustkit.training.latent import attacked_margins, connected, split_network
from robustkit.training.taps import STAPS, TAPS

X, Y = networks.inputs(6), torch.tensor([0, 1, 2, 3, 0, 1])


def moment(eps: float = 0.05, progress: float = 1.0) -> Moment:
    return Moment(LinfBall(eps), 1.0, torch.Generator().manual_seed(7), 0, progress)


class Wrapper(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.body, self.factor = networks.make("mlp"), factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits if self.factor == 1.0 else self.factor * logits


def test_the_classifier_keeps_as_many_relus_as_asked() -> None:
    model = make_model("cnn7_bn", (1, 28, 28), 10, width=4)
    assert isinstance(model, nn.Sequential)
    for relus, first in ((1, nn.Flatten), (2, nn.Conv2d), (5, nn.Conv2d)):
        split = split_network(model, relus, torch.rand(1, 1, 28, 28))
        assert isinstance(split.classifier[0], first)
        assert sum(isinstance(one, nn.ReLU) for one in split.classifier) == relus
        assert (split.before, split.relus) == (6 - relus, 6)
        assert split.classifier[-1] is model[-1]


def residual() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), Residual(2, 3, down=True)]
        return nn.Sequential(*stem, nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("kind", ["mlp", "conv", "batch_norm", "residual"])
def test_the_latent_box_holds_what_the_first_part_gives(kind: str) -> None:
    model = residual() if kind == "residual" else networks.make(kind)
    split, ball = split_network(model, 1, X), LinfBall(0.1)
    _, layers = BoundedNetwork(model, X[:1]).interval_pass(*ball.box(X), margin_specification(Y, 4))
    lower, upper = split.latent_box(layers)
    head = model[: len(model) - len(split.classifier)]
    draw = torch.Generator().manual_seed(3)
    for _ in range(50):
        z = head(ball.sample(X, draw))
        assert (lower - 1e-5 <= z).all() and (z <= upper + 1e-5).all()


def test_the_connector_passes_gradients_on_to_the_bound_nearby() -> None:
    lb = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0], requires_grad=True)
    ub = torch.tensor([4.0, 4.0, 4.0, 4.0, 3.0], requires_grad=True)
    point = torch.tensor([0.0, 0.5, 2.0, 4.0, 3.0])
    joined = connected(point, lb, ub)
    assert torch.equal(joined, point)
    low, high = torch.autograd.grad((joined * torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0])).sum(), (lb, ub))
    torch.testing.assert_close(low, torch.tensor([1.0, 1.5, 0.0, 0.0, 0.5]))
    torch.testing.assert_close(high, torch.tensor([0.0, 0.0, 0.0, 1.0, 0.5]))


def test_the_latent_attack_is_exact_on_a_linear_classifier() -> None:
    lb, ub = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 3.0]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]])
    margins = attacked_margins(
        lambda z: z @ weight.T, (lb, ub), torch.tensor([0]), torch.full((1, 3, 2), 0.5), steps=4, rel_step_size=0.5
    )
    # z_0 - z_1 is least at (0, 3), z_0 - (2 z_0 - z_1) at (1, 1)
    torch.testing.assert_close(margins, torch.tensor([[0.0, -3.0, 0.0]]))


@pytest.mark.parametrize("progress", [0.25, 1.0])
@pytest.mark.parametrize("kind", ["mlp", "conv", "batch_norm"])
def test_the_loss_is_the_product_and_the_attack_is_within_the_bound(kind: str, progress: float) -> None:
    model = networks.make(kind).train()
    method, now = TAPS(steps=10, regularisation=0.0), moment(progress=progress)
    loss = method.loss(Trainee(copy.deepcopy(model), X[:1]), X, Y, now)
    bounds = BoundedNetwork(model, X[:1])
    bounds(X)
    split, box = split_network(model, 1, X), LinfBall(0.05).box(X)
    proved, layers = bounds.interval_pass(*box, margin_specification(Y, 4))
    latent = split.latent_box(layers)
    start = moment().uniform(torch.zeros(6, 4, *latent[0].shape[1:]))
    seen = attacked_margins(split.second_part(X), latent, Y, start, steps=10, rel_step_size=0.25)
    torch.testing.assert_close(loss, (robust_loss(seen, Y, "none") * robust_loss(proved, Y, "none")).mean())
    assert (seen >= proved - 1e-4).all(), "an attack finds nothing below a bound"
    corner = attacked_margins(split.second_part(X), latent, Y, start, steps=0, rel_step_size=0.25)
    assert seen.sum() < corner.sum()
    regularised = TAPS(steps=10).loss(Trainee(copy.deepcopy(model), X[:1]), X, Y, moment(progress=progress))
    assert (regularised > loss) == (progress < 1)


@pytest.mark.parametrize("kind", ["mlp", "batch_norm"])
def test_without_width_the_attack_sees_the_clean_margins(kind: str) -> None:
    model = networks.make(kind).train()
    expected = logit_margins(copy.deepcopy(model)(X), Y)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = split_network(model, 1, X)
    z = copy.deepcopy(model[: len(model) - len(split.classifier)])(X)
    classify = split.second_part(X)
    margins = attacked_margins(classify, (z, z), Y, torch.rand(6, 4, *z.shape[1:]), steps=2, rel_step_size=0.25)
    torch.testing.assert_close(margins, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.training for one in model.modules())


def test_staps_starts_from_the_small_box(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[tuple[Tensor, Tensor]] = []
    original = BoundedNetwork.interval_pass

    def spy(self: BoundedNetwork, lb: Tensor, ub: Tensor, specification: Tensor) -> Any:
        boxes.append((lb, ub))
        return original(self, lb, ub, specification)

    monkeypatch.setattr(BoundedNetwork, "interval_pass", spy)
    model, (low, high) = networks.make("mlp").train(), LinfBall(0.05).box(X)
    for method, share in ((TAPS(steps=2), 1.0), (STAPS(steps=2, subselection=0.3), 0.3)):
        method.loss(Trainee(model, X[:1]), X, Y, moment())
        lb, ub = boxes.pop()
        assert not boxes, "one pass a step"
        assert (ub - lb).max().item() == pytest.approx(2 * share * 0.05, abs=1e-6)
        assert (lb >= low - 1e-6).all() and (ub <= high + 1e-6).all()


def test_a_wrapped_sequential_trains_like_the_sequential() -> None:
    wrapper = Wrapper(1.0).train()
    bare = wrapper.body
    losses = [TAPS(steps=2).loss(Trainee(one, X[:1]), X, Y, moment()) for one in (wrapper, bare)]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_a_network_that_cannot_be_cut_is_refused_at_the_first_step(eps: float) -> None:
    for model, message in (
        (Wrapper(2.0), r"expected an nn.Sequential, or a module .* got Wrapper; write the network so"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 4)), r"last 1 .*, got one of 1 ReLUs"),
    ):
        with pytest.raises(UsageError, match=message):
            TAPS().loss(Trainee(model.train(), X[:1]), X, Y, moment(eps))


def test_relus_that_are_no_modules_are_refused() -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x)

    layers = [nn.Flatten(), nn.Linear(36, 6), Functional(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(5, 4)).train()
    with pytest.raises(UsageError, match=r"expected every ReLU as an nn.ReLU of its own, found 2 of them but 3"):
        TAPS().loss(Trainee(model, X[:1]), X, Y, moment())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TAPS(classifier_relus=0), "expected classifier_relus of at least 1, got 0"),
        (lambda: TAPS(steps=0), "expected steps of at least 1, got 0"),
        (lambda: TAPS(rel_step_size=0), "expected rel_step_size above 0, got 0"),
        (lambda: STAPS(subselection=2), r"expected subselection in \(0, 1\], got 2"),
        (lambda: STAPS(attack_steps=0), "expected attack_steps of at least 1, got 0"),
        (lambda: STAPS(regularisation=-1), "expected regularisation of at least 0, got -1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_while_eps_is_zero_the_loss_is_natural() -> None:
    model = networks.make("mlp").train()
    loss = TAPS().loss(Trainee(model, X[:1]), X, Y, moment(0.0))
    torch.testing.assert_close(loss, functional.cross_entropy(model(X), Y))
