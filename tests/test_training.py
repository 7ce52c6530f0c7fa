import copy
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.attacks import PGD, AttackResult
from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.config import TrainConfig
from robustkit.data import Dataset, Split
from robustkit.errors import RobustkitError, UnsupportedLayerError, UsageError
from robustkit.margins import logit_margins, margin_specification, robust_loss
from robustkit.progress import Silent
from robustkit.threat import LinfBall
from robustkit.training import (
    METHODS,
    STATE_FILE,
    EpochMetrics,
    EpsRamp,
    Moment,
    Trainee,
    TrainingMethod,
    make_method,
    train,
)
from robustkit.training.adversarial import PGDTraining
from robustkit.training.crown_ibp import CrownIBP
from robustkit.training.dual import Dual
from robustkit.training.expressive import CCIBP, MTLIBP, ExpIBP
from robustkit.training.fast import FastIBP
from robustkit.training.fgsm import FGSMRS
from robustkit.training.ibp import IBP
from robustkit.training.method import Share
from robustkit.training.mixtrain import MixTrain
from robustkit.training.natural import Natural
from robustkit.training.sabr import SABR, small_boxes
from robustkit.training.taps import STAPS, TAPS
from robustkit.training.trades import TRADES
from robustkit.world import ALONE, World

FAST: list[TrainingMethod] = [
    Natural(),
    FGSMRS(),
    PGDTraining(steps=3),
    PGDTraining(steps=3, weights="weat"),
    TRADES(steps=3),
    TRADES(steps=3, weights="done"),
    IBP(),
    FastIBP(),
    CrownIBP(beta_end=0.5),
    CrownIBP(beta_end=0.5, loss_fusion=False),
    Dual(),
    SABR(steps=3),
    TAPS(steps=3),
    STAPS(steps=3, attack_steps=2),
    MTLIBP(steps=2),
    CCIBP(alpha=0.1, steps=2),
    ExpIBP(alpha=0.1, steps=2),
    MixTrain(k=3, schedule="adaptive", clean_floor=0.5),
    MixTrain(k=2, bound="crown-ibp"),
]
PLAN = TrainConfig(eps=0.05, epochs=3, batch_size=10, lr=3e-2, ramp_end=2 / 3)


def split(count: int, seed: int) -> Split:
    """Images of four classes: one quadrant is bright."""
    draw = torch.Generator().manual_seed(seed)
    x, y = 0.5 * torch.rand(count, 1, 6, 6, generator=draw), torch.arange(count) % 4
    for image, label in zip(x, y.tolist(), strict=True):
        row, column = 3 * (label // 2), 3 * (label % 2)
        image[0, row : row + 3, column : column + 3] += 0.4
    return Split(x, y, torch.arange(count))


def dataset(val: int = 12) -> Dataset:
    parts = split(48, 1), split(val, 2), split(8, 3)
    return Dataset("quadrants", 4, ("a", "b", "c", "d"), *parts, "mlp", 0.05, (0.0,), (1.0,))


def run(
    folder: Path,
    method: TrainingMethod,
    model: nn.Module,
    *,
    data: Dataset | None = None,
    val_n: int = 8,
    seed: int = 5,
    reporter: Silent | None = None,
    record: Callable[[list[EpochMetrics]], None] = lambda history: None,
    world: World = ALONE,
    **changes: Any,
) -> list[EpochMetrics]:
    data = data or dataset()
    data = replace(data, val=data.val.take(val_n))
    plan, reporter = replace(PLAN, **changes), reporter or Silent()
    return train(model, data, method, plan, seed=seed, folder=folder, reporter=reporter, record=record, world=world)


def fit(
    folder: Path, method: TrainingMethod, *, model: nn.Module | None = None, **changes: Any
) -> tuple[nn.Module, list[EpochMetrics]]:
    model = networks.make("mlp") if model is None else model
    return model, run(folder, method, model, **changes)


def moment(eps: float = 0.05, weight: float = 0.3, seed: int = 7) -> Moment:
    return Moment(LinfBall(eps), weight, torch.Generator().manual_seed(seed), 0)


def batch() -> tuple[Tensor, Tensor]:
    part = split(12, 4)
    return part.x, part.y


def without_seconds(history: Sequence[EpochMetrics]) -> list[list[float]]:
    """Every figure but the time; NaN, which equals nothing, becomes -1."""
    rows = [[one[name] for name in EpochMetrics.__annotations__ if name != "seconds"] for one in history]  # type: ignore[literal-required]
    return [[-1.0 if math.isnan(figure) else figure for figure in row] for row in rows]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], value), name


@pytest.mark.parametrize("method", FAST, ids=repr)
def test_every_method_lowers_its_own_loss_and_leaves_the_network_in_eval_mode(
    method: TrainingMethod, tmp_path: Path
) -> None:
    model = networks.make("mlp")
    x, y = batch()

    def loss() -> float:
        return method.loss(Trainee(model, x[:1]), x, y, moment()).item()

    before = loss()
    seen = replace(dataset(), val=dataset().train)
    _, history = fit(tmp_path, method, model=model, data=seen, val_n=48, epochs=24, ramp_start=1 / 24, ramp_end=3 / 24)
    assert not model.training
    assert loss() < 0.8 * before
    assert [one["epoch"] for one in history] == list(range(1, 25))
    assert history[-1]["val_clean"] > 0.7
    assert all(math.isnan(one["val_vra"]) == (method.validation_bound is None) for one in history)
    assert history[-1]["lr"] == pytest.approx(0.015 * (1.0 + math.cos(math.pi * 95 / 96))), "that of the last step"
    assert [one["eps"] for one in history] == pytest.approx([0.0, 0.025, *[0.05] * 22])


def test_natural_loss_is_the_cross_entropy() -> None:
    model, (x, y) = networks.make("mlp").train(), batch()
    loss = Natural().loss(Trainee(model, x[:1]), x, y, moment())
    assert loss.item() == functional.cross_entropy(model(x), y).item()


def test_fgsm_rs_steps_once_from_a_point_of_the_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y), seen = networks.make("mlp").train(), batch(), []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    loss = FGSMRS().loss(Trainee(model, x[:1]), x, y, moment())
    start, x_adv = seen
    assert loss.item() == functional.cross_entropy(model(x_adv), y).item()
    assert LinfBall(0.05).contains(start, x).all() and LinfBall(0.05).contains(x_adv, x).all()
    assert (start != x).any()
    start.requires_grad_()
    gradient = torch.autograd.grad(functional.cross_entropy(model(start), y), start)[0]
    torch.testing.assert_close(x_adv, LinfBall(0.05).project(start + 1.25 * 0.05 * gradient.sign(), x))


def test_trades_adds_the_divergence_at_the_worst_point() -> None:
    model, (x, y) = networks.make("mlp").train(), batch()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    loss = TRADES(beta=2.0, steps=7).loss(Trainee(model, x[:1]), x, y, moment(weight=2.0))
    x_adv = seen[-1]
    assert LinfBall(0.05).contains(x_adv, x).all()
    clean, moved = model(x).softmax(dim=1), model(x_adv).softmax(dim=1)
    divergence = (clean * (clean.log() - moved.log())).sum(dim=1)
    torch.testing.assert_close(loss, functional.cross_entropy(model(x), y) + 2.0 * divergence.mean())
    random = model(LinfBall(0.05).sample(x)).softmax(dim=1)
    assert divergence.mean() > 2.0 * (clean * (clean.log() - random.log())).sum(dim=1).mean()


@pytest.mark.parametrize("kind", ["mlp", "conv", "batch_norm"])
def test_expressive_losses_combine_a_bound_and_an_attack(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y), seen = networks.make(kind).train(), batch(), spy_on_pgd(monkeypatch)
    losses = {}
    for method in (MTLIBP(alpha=0.3), CCIBP(alpha=0.3), ExpIBP(alpha=0.3)):
        trainee = Trainee(copy.deepcopy(model), x[:1])
        losses[method.name] = method.loss(trainee, x, y, moment(weight=0.3))
        bounds = Trainee(copy.deepcopy(model), x[:1]).bounds
        bounds(x)
        proved = bounds.lower_margins(x, y, LinfBall(0.05), BoundMethod.IBP)
        x_adv = seen[-1][3]
        reached = bounds.lower_margins(x_adv, y, LinfBall(0.0), BoundMethod.IBP)
        if kind != "batch_norm":
            torch.testing.assert_close(reached, logit_margins(model(x_adv), y), atol=1e-5, rtol=1e-4)
        ibp, adv = robust_loss(proved, y), robust_loss(reached, y)
        expected = {
            "mtl-ibp": 0.3 * ibp + 0.7 * adv,
            "cc-ibp": robust_loss(0.3 * proved + 0.7 * reached, y),
            "exp-ibp": ibp**0.3 * adv**0.7,
        }
        torch.testing.assert_close(losses[method.name], expected[method.name])
        assert ibp > adv
    assert losses["exp-ibp"] < losses["mtl-ibp"], "the geometric mean is below the arithmetic one"


def test_the_attack_of_an_expressive_loss_has_a_radius_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y), seen = networks.make("mlp").train(), batch(), spy_on_pgd(monkeypatch)
    MTLIBP(attack_scale=2.1, steps=3).loss(Trainee(model, x[:1]), x, y, moment())
    assert [ball.eps for _, ball, *_ in seen] == pytest.approx([2.1 * 0.05])
    assert not LinfBall(0.05).contains(seen[0][3], x).all()


@pytest.mark.parametrize("subselection", [0.1, 0.4, 1.0])
def test_sabr_bounds_a_small_box_within_the_ball(subselection: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y), seen = networks.make("mlp").train(), batch(), spy_on_pgd(monkeypatch)
    method, trainee = SABR(subselection=subselection), Trainee(model, x[:1])
    lb, ub = small_boxes(trainee, x, y, moment(), subselection=subselection, steps=8, rel_step_size=0.5)
    low, high = LinfBall(0.05).box(x)
    assert (lb >= low - 1e-6).all() and (ub <= high + 1e-6).all() and (lb >= 0).all() and (ub <= 1).all()
    inside = (lb > 1e-6) & (ub < 1 - 1e-6)
    assert ((ub - lb)[inside] - 2 * subselection * 0.05).abs().max() < 1e-6
    nearest = torch.minimum(torch.maximum(seen[0][3], lb), ub)
    assert (nearest - seen[0][3]).abs().max() <= 1e-6, "the attacked point lies in its box"
    loss = method.loss(trainee, x, y, moment())
    own, _ = trainee.bounds.output_bounds(lb, ub, margin_specification(y, 4), BoundMethod.IBP, upper=False)
    torch.testing.assert_close(loss, robust_loss(own, y))
    whole = robust_loss(trainee.bounds.lower_margins(x, y, LinfBall(0.05), BoundMethod.IBP), y)
    assert loss <= whole + 1e-5


def test_trades_without_beta_is_natural() -> None:
    model, (x, y) = networks.make("mlp").train(), batch()
    loss = TRADES(beta=0.0).loss(Trainee(model, x[:1]), x, y, moment(weight=0.0))
    assert loss.item() == functional.cross_entropy(model(x), y).item()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_ibp_loss_mixes_natural_and_robust_loss_by_kappa(weight: float) -> None:
    model, (x, y) = networks.make("conv").train(), batch()
    loss = IBP().loss(Trainee(model, x[:1]), x, y, moment(weight=weight))
    margins = BoundedNetwork(model, x[:1]).lower_margins(x, y, LinfBall(0.05), BoundMethod.IBP)
    natural, robust = functional.cross_entropy(model(x), y), functional.cross_entropy(-margins, y)
    assert robust > natural
    torch.testing.assert_close(loss, (1 - weight) * natural + weight * robust)


def test_kappa_falls_with_the_ramp() -> None:
    ramp = EpsRamp(0.1, 1.0, 3.0)
    assert [IBP(kappa_end=0.5).weight(ramp, time, []) for time in (0.0, 1.0, 2.0, 3.0, 9.0)] == [0, 0, 0.25, 0.5, 0.5]
    assert IBP(kappa_end=0.0).weight(ramp, 3.0, []) == 1.0


@pytest.mark.parametrize("bound", ["symbolic", "ibp", "crown-ibp", "crown"])
def test_mixtrain_loss_adds_the_robust_loss_of_the_drawn_rows(bound: Any) -> None:
    model, (x, y) = networks.make("conv").train(), batch()
    loss = MixTrain(k=3, mixing=1.0, bound=bound).loss(Trainee(model, x[:1]), x, y, moment(weight=0.7))
    draw = torch.Generator().manual_seed(7)
    torch.rand((), generator=draw)
    few = torch.randint(12, (3,), generator=draw)
    network, ball = BoundedNetwork(model, x[:1]), LinfBall(0.05)
    margins = network.lower_margins(x[few], y[few], ball, BoundMethod(bound), intervals_first=True)
    torch.testing.assert_close(loss, functional.cross_entropy(model(x), y) + 0.7 * robust_loss(margins, y[few]))


def test_mixtrain_without_mixing_is_natural() -> None:
    model, (x, y) = networks.make("mlp").train(), batch()
    loss = MixTrain(mixing=0.0).loss(Trainee(model, x[:1]), x, y, moment())
    assert loss.item() == functional.cross_entropy(model(x), y).item()


def test_mixtrain_mixes_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def margins(self: BoundedNetwork, x: Tensor, y: Tensor, *_: Any, **__: Any) -> Tensor:
        drawn.append(len(y))
        return torch.zeros(len(y), 4)

    monkeypatch.setattr(BoundedNetwork, "lower_margins", margins)
    model, (x, y) = networks.make("mlp"), batch()
    trainee, now = Trainee(model, x[:1]), moment()
    for _ in range(200):
        MixTrain(k=5, mixing=0.8).loss(trainee, x, y, now)
    assert 140 <= len(drawn) <= 180
    assert set(drawn) == {5}


def test_mixtrain_refuses_a_k_larger_than_the_batch(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"expected train.options.mixtrain.k at most the batch of 10, got 11; lower it"
    ):
        fit(tmp_path, MixTrain(k=11))


@pytest.mark.parametrize(
    "method",
    [
        Natural(),
        FGSMRS(),
        PGDTraining(steps=3),
        TRADES(steps=3),
        FastIBP(),
        CrownIBP(beta_end=0.5),
        Dual(),
        SABR(steps=3),
        TAPS(steps=3),
        STAPS(steps=3, attack_steps=2),
        MTLIBP(steps=2),
        MixTrain(k=5),
    ],
)
def test_shares_of_a_batch_have_the_mean_loss_of_the_whole(method: TrainingMethod) -> None:
    model, (x, y) = networks.make("mlp"), batch()

    def loss(share: Share) -> float:
        here = replace(moment(), share=share)
        return method.loss(Trainee(model, x[:1]), share.take(x), share.take(y), here).item()

    assert statistics.mean(loss(Share(part, 3)) for part in range(3)) == pytest.approx(loss(Share()), rel=1e-5)


def test_mixtrain_follows_the_schedule_it_is_told() -> None:
    ramp = EpsRamp(0.1, 0.0, 2.0)
    published = MixTrain()
    given = [published.weight(ramp, time, []) for time in (0.0, 6.9, 7.0, 12.5)]
    assert given == pytest.approx([0.1, 0.1, 0.25, 0.625])
    assert MixTrain(schedule="adaptive", initial_weight=0.7).weight(ramp, 0.0, []) == 0.7


@pytest.mark.parametrize("method", FAST, ids=repr)
@pytest.mark.parametrize("kind", ["conv", "residual", "batch_norm"])
def test_the_gradient_reaches_every_parameter(method: TrainingMethod, kind: str) -> None:
    if kind == "residual" and isinstance(method, TAPS | STAPS):
        pytest.skip("its ReLUs are no modules; refused by name")
    model, (x, y) = networks.make(kind).train(), batch()
    method.loss(Trainee(model, x[:1]), x, y, moment()).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("method", [*FAST, MixTrain(mixing=1.0), MixTrain(mixing=0.0)], ids=repr)
def test_running_statistics_move_once_a_step_by_the_clean_batch(method: TrainingMethod) -> None:
    model, (x, y) = networks.make("batch_norm").train(), batch()
    now = moment(eps=0.0) if method.validation_bound is None else moment()  # an adversarial batch has its own
    expected = copy.deepcopy(model)
    expected(x)
    method.loss(Trainee(model, x[:1]), x, y, now)
    for place in (1, 5):
        torch.testing.assert_close(model[place].running_mean, expected[place].running_mean)
        torch.testing.assert_close(model[place].running_var, expected[place].running_var)


@pytest.mark.parametrize("method", [IBP(), MixTrain(k=3, mixing=1.0)], ids=repr)
def test_a_network_with_batch_norm_trains(method: TrainingMethod, tmp_path: Path) -> None:
    _, history = fit(tmp_path, method, model=networks.make("batch_norm"), epochs=8, eps=0.02, ramp_end=0.5)
    assert history[-1]["val_clean"] > 0.9
    assert history[-1]["val_vra"] > 0.5


@pytest.mark.parametrize("method", FAST, ids=repr)
def test_eps_zero_is_an_ordinary_phase(method: TrainingMethod, tmp_path: Path) -> None:
    _, history = fit(tmp_path, method, ramp_start=1.0, ramp_end=1.0, epochs=3)
    assert [one["eps"] for one in history] == [0.0, 0.0, 0.05]
    assert history[1]["loss"] < history[0]["loss"]
    if method.validation_bound is not None:
        assert history[1]["val_vra"] == pytest.approx(history[1]["val_clean"])


def test_without_a_ramp_the_first_step_has_the_whole_ball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy_on_pgd(monkeypatch)
    fit(tmp_path, PGDTraining(steps=1), ramp_end=0.0, epochs=1)
    assert [one[1].eps for one in seen] == [0.05] * 4


def spy_on_pgd(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PGD, LinfBall, Tensor, Tensor, bool]]:
    seen: list[tuple[PGD, LinfBall, Tensor, Tensor, bool]] = []
    original: Callable[..., AttackResult] = PGD.__call__

    def call(self: PGD, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, *rest: Any) -> AttackResult:
        before = [None if one.grad is None else one.grad.clone() for one in model.parameters()]
        result = original(self, model, x, y, ball, *rest)
        for parameter, old in zip(model.parameters(), before, strict=True):
            assert parameter.grad is old is None or torch.equal(parameter.grad, old), "the attack leaves no gradients"
        seen.append((self, ball, x, result.x_adv, model.training))
        return result

    monkeypatch.setattr(PGD, "__call__", call)
    return seen


def test_pgd_training_attacks_in_the_ball_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy_on_pgd(monkeypatch)
    fit(tmp_path, PGDTraining(steps=3), epochs=3)
    radii = [ball.eps for _, ball, *_ in seen]
    # eps grows by 1/8 of the target in each of four steps an epoch; the step at eps 0 is not attacked
    assert radii == pytest.approx([0.05 * min(step / 8, 1.0) for step in range(1, 12)])
    assert all(training for *_, training in seen), "the network is back in train mode"
    assert all(ball.contains(x_adv, x).all() for _, ball, x, x_adv, _ in seen)
    assert all(not torch.equal(x_adv, x) for _, _, x, x_adv, _ in seen)
    assert len({attack.seed for attack, *_ in seen}) == len(seen), "each batch has starts of its own"
    assert all(attack.steps == 3 and attack.rel_step_size == pytest.approx(2.5 / 3) for attack, *_ in seen)


def test_pgd_training_minimises_the_loss_at_the_attacked_points(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy_on_pgd(monkeypatch)
    model, (x, y) = networks.make("mlp").train(), batch()
    loss = PGDTraining(steps=5, rel_step_size=0.4).loss(Trainee(model, x[:1]), x, y, moment())
    attack, _, _, x_adv, _ = seen[0]
    assert attack.rel_step_size == 0.4
    torch.testing.assert_close(loss, functional.cross_entropy(model(x_adv), y))
    assert loss > functional.cross_entropy(model(x), y)


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("method", FAST, ids=repr)
def test_training_that_was_interrupted_goes_on_bit_by_bit(method: TrainingMethod, stop: int, tmp_path: Path) -> None:
    kind = "batch_norm" if isinstance(method, IBP | Natural) else "mlp"
    whole, history = fit(tmp_path / "whole", method, model=networks.make(kind))

    def record(so_far: list[EpochMetrics]) -> None:
        if len(so_far) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", method, networks.make(kind), record=record)
    torch.manual_seed(99)  # a new process draws from somewhere else
    fresh = networks.make(kind, seed=8)
    resumed, again = fit(tmp_path / "a", method, model=fresh)
    assert_same(resumed, whole)
    assert without_seconds(again) == without_seconds(history)


class StopAt(Silent):
    """A reporter that is interrupted in the middle of an epoch."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.started: list[tuple[str, int, int]] = []
        self.finished = 0

    def start(self, label: str, total: int, done: int = 0) -> None:
        self.started.append((label, total, done))

    def advance(self, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left == 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("method", FAST, ids=repr)
def test_training_that_was_interrupted_within_an_epoch_goes_on_at_the_last_step_saved(
    method: TrainingMethod, tmp_path: Path
) -> None:
    whole, history = fit(tmp_path / "whole", method)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", method, networks.make("mlp"), reporter=StopAt(step=7), checkpoint_every=1e-9)
    torch.manual_seed(99)
    going_on = StopAt(step=-1)
    resumed = networks.make("mlp", seed=8)
    again = run(tmp_path / "a", method, resumed, reporter=going_on, checkpoint_every=1e-9)
    assert going_on.started == [(f"train {method.name}", 12, 6)]
    assert going_on.finished == 1
    assert_same(resumed, whole)
    assert without_seconds(again) == without_seconds(history)


def test_what_was_not_saved_is_done_again(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole", Natural())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", Natural(), networks.make("mlp"), reporter=StopAt(step=7))
    going_on = StopAt(step=-1)
    resumed = networks.make("mlp")
    run(tmp_path / "a", Natural(), resumed, reporter=going_on)
    assert going_on.started == [("train natural", 12, 4)]
    assert_same(resumed, whole)


def test_dropout_is_resumed_too(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))

    start = weights(model())
    made = [model(), model()]
    for one in made:
        one.load_state_dict(start)
    torch.manual_seed(3)
    fit(tmp_path / "whole", Natural(), model=made[0])
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", Natural(), made[1], reporter=StopAt(9))
    resumed, _ = fit(tmp_path / "a", Natural(), model=model())
    assert_same(resumed, made[0])


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first, history = fit(tmp_path, Natural())
    again, same = fit(tmp_path, Natural(), model=networks.make("mlp", seed=3))
    assert_same(again, first)
    assert without_seconds(same) == without_seconds(history)
    assert not again.training


def test_record_is_given_every_finished_epoch(tmp_path: Path) -> None:
    seen: list[int] = []
    fit(tmp_path, Natural(), record=lambda history: seen.append(len(history)))
    assert seen == [1, 2, 3]


def test_the_state_holds_nothing_but_plain_values_and_tensors(tmp_path: Path) -> None:
    fit(tmp_path, Natural())
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert [one["epoch"] for one in state["history"]] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == [tmp_path / STATE_FILE]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_a_list(path: Path) -> None:
    torch.save([1, 2], path)


def of_another_network(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["model"] = networks.make("conv").state_dict()
    torch.save(state, path)


def without_history(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, "history": 3}, path)


@pytest.mark.parametrize("spoil", [truncated, empty, of_a_list, of_another_network, without_history])
def test_a_state_that_cannot_be_resumed_is_a_clear_error(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    fit(tmp_path, Natural(), epochs=1)
    spoil(tmp_path / STATE_FILE)
    with pytest.raises(RobustkitError, match=r"cannot resume from .*training\.pt .*delete it to train from the start"):
        fit(tmp_path, Natural())


@dataclass(frozen=True)
class Diverging:
    """Fails in the second epoch: its loss is NaN, or only the gradient of its loss."""

    name: ClassVar[str] = "diverging"
    gradient_only: bool = False

    @property
    def validation_bound(self) -> BoundMethod | None:
        return None

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        return 0.0

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        loss: Tensor = functional.cross_entropy(trainee.model(x), y)
        if moment.step < 5:
            return loss
        return loss + (0.0 * loss.detach() - loss + loss.detach()).sqrt() if self.gradient_only else loss * math.nan


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_loss_that_is_not_finite_names_its_epoch(gradient_only: bool, tmp_path: Path) -> None:
    model = networks.make("mlp")
    message = r"training fails in epoch 2: the loss is no longer finite; lower train.lr"
    with pytest.raises(RobustkitError, match=message):
        fit(tmp_path, Diverging(gradient_only), model=model)
    assert all(torch.isfinite(one).all() for one in model.parameters())
    assert len(torch.load(tmp_path / STATE_FILE, weights_only=True)["history"]) == 1


@pytest.mark.parametrize("method", FAST, ids=repr)
def test_weights_that_overflow_name_the_epoch_by_every_method(method: TrainingMethod, tmp_path: Path) -> None:
    with pytest.raises(RobustkitError, match=r"training fails in epoch 1: .*; lower train\.lr"):
        fit(tmp_path, method, lr=1e30, ramp_end=0.0, clip=0.0)


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected batch_size at most the 48 training samples, got 49"):
        fit(tmp_path, Natural(), batch_size=49)
    _, history = fit(tmp_path, Natural(), batch_size=48)
    assert len(history) == 3


def test_what_does_not_fill_a_batch_is_left_out(tmp_path: Path) -> None:
    sizes: list[int] = []
    model = networks.make("mlp")
    model.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])) if module.training else None)
    fit(tmp_path, Natural(), model=model, epochs=1)
    assert sizes == [10, 10, 10, 10]


def pooling() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4))


@pytest.mark.parametrize("val", [12, 0])
@pytest.mark.parametrize("method", [IBP(), MixTrain()], ids=repr)
def test_a_layer_without_bounds_is_refused_before_the_first_step(
    method: TrainingMethod, val: int, tmp_path: Path
) -> None:
    model = pooling()
    before = weights(model)
    with pytest.raises(UnsupportedLayerError, match="cannot bound MaxPool2d at '2'"):
        fit(tmp_path, method, model=model, data=dataset(val))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", [Natural(), PGDTraining(steps=1)], ids=repr)
def test_a_layer_without_bounds_trains_where_none_are_asked_for(method: TrainingMethod, tmp_path: Path) -> None:
    _, history = fit(tmp_path, method, model=pooling())
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("method", [Natural(), PGDTraining(steps=2), IBP(), MixTrain(k=2)], ids=repr)
def test_validation_does_not_disturb_training(method: TrainingMethod, tmp_path: Path) -> None:
    made = [
        fit(tmp_path / str(val_n), method, model=networks.make("batch_norm"), epochs=2, val_n=val_n)
        for val_n in (0, 3, 12)
    ]
    for model, _ in made[1:]:
        assert_same(model, made[0][0])


@pytest.mark.parametrize("method", FAST, ids=repr)
def test_an_empty_validation_split_gives_figures_that_are_nan(method: TrainingMethod, tmp_path: Path) -> None:
    _, history = fit(tmp_path, method, data=dataset(val=0), epochs=2)
    assert all(math.isnan(one["val_clean"]) and math.isnan(one["val_vra"]) for one in history)


def test_validation_figures_are_those_of_the_network(tmp_path: Path) -> None:
    model, history = fit(tmp_path, IBP(), val_n=7)
    val = dataset().val.take(7)
    with torch.no_grad():
        clean = (model(val.x).argmax(dim=1) == val.y).double().mean().item()
    margins = BoundedNetwork(model, val.x[:1]).lower_margins(val.x, val.y, LinfBall(0.05), BoundMethod.IBP).detach()
    others = margins.masked_fill(functional.one_hot(val.y, 4).bool(), torch.inf)
    assert history[-1]["val_clean"] == pytest.approx(clean)
    assert history[-1]["val_vra"] == pytest.approx((others > 0).all(dim=1).double().mean().item())


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    method = MixTrain(k=2)
    one, other, third = (
        fit(tmp_path / name, method, epochs=1, seed=seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert_same(one, other)
    assert not torch.equal(one.state_dict()["1.weight"], third.state_dict()["1.weight"])


def test_every_method_is_made_by_its_name() -> None:
    assert {name: make_method(name).name for name in METHODS} == {name: name for name in METHODS}
    assert make_method("mixtrain", {"k": 1, "bound": "ibp"}) == MixTrain(k=1, bound="ibp")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixtran", {}, "unknown training method 'mixtran'; did you mean mixtrain?"),
        ("ibp", {"kapa_end": 1}, "unknown option of train.options.ibp 'kapa_end'; did you mean kappa_end?"),
        ("natural", {"k": 1}, "unknown option of train.options.natural 'k'"),
        ("ibp", {"kappa_end": 1.5}, "expected kappa_end in [0, 1], got 1.5"),
        ("pgd", {"steps": 0}, "expected steps of at least 1, got 0"),
        ("pgd", {"rel_step_size": -1}, "expected rel_step_size of at least 0, got -1"),
        ("pgd", {"rel_step_size": math.nan}, "expected rel_step_size of at least 0, got nan"),
        ("fgsm-rs", {"rel_step_size": 0.0}, "expected rel_step_size above 0, got 0.0"),
        ("trades", {"beta": -1.0}, "expected beta of at least 0, got -1.0"),
        ("trades", {"steps": 0}, "expected steps of at least 1, got 0"),
        ("trades", {"rel_step_size": math.nan}, "expected rel_step_size of at least 0, got nan"),
        ("sabr", {"subselection": 0.0}, "expected subselection in (0, 1], got 0.0"),
        ("mtl-ibp", {"alpha": 1.2}, "expected alpha in [0, 1], got 1.2"),
        ("cc-ibp", {"attack_scale": 0.0}, "expected attack_scale above 0, got 0.0"),
        ("exp-ibp", {"steps": 0}, "expected steps of at least 1, got 0"),
        ("mixtrain", {"k": 0}, "expected k of at least 1, got 0"),
        ("mixtrain", {"mixing": 2}, "expected mixing in [0, 1], got 2"),
        ("mixtrain", {"bound": "crwn"}, "did you mean crown"),
        ("mixtrain", {"schedule": "adaptative"}, "did you mean adaptive?"),
        ("mixtrain", {"clean_floor": 90}, "expected clean_floor in [0, 1], got 90"),
        ("mixtrain", {"gain": -1}, "expected gain of at least 0"),
        ("mixtrain", {"min_weight": 2.0}, "expected 0 <= min_weight <= initial_weight <= max_weight, got 2.0, 0.5, 50"),
        ("mixtrain", {"initial_weight": -1.0}, "expected 0 <= min_weight <= initial_weight"),
    ],
)
def test_a_method_that_cannot_be_meant_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_method(name, options)
