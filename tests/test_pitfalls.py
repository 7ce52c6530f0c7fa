"""What trainers of robust networks have got wrong before, and would not be noticed in a table: one test each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from test_training import batch, dataset, fit, moment, spy_on_pgd, weights
from torch import Tensor, nn

from robustkit.data import Split
from robustkit.errors import RobustkitError
from robustkit.margins import robust_loss
from robustkit.threat import LinfBall
from robustkit.training import Trainee, TrainingMethod
from robustkit.training.adversarial import PGDTraining
from robustkit.training.expressive import CCIBP, MTLIBP, ExpIBP
from robustkit.training.fgsm import FGSMRS
from robustkit.training.ibp import IBP
from robustkit.training.natural import Natural
from robustkit.training.sabr import SABR
from robustkit.training.taps import STAPS
from robustkit.training.trades import TRADES

BY_PGD: list[TrainingMethod] = [
    PGDTraining(steps=2),
    SABR(steps=2),
    STAPS(steps=2, attack_steps=2),
    MTLIBP(steps=2),
    CCIBP(steps=2),
    ExpIBP(steps=2),
]
ATTACKING: list[TrainingMethod] = [*BY_PGD, FGSMRS(), TRADES(steps=2)]


def called(method: TrainingMethod) -> str:
    return method.name


@pytest.mark.parametrize("method", BY_PGD, ids=called)
def test_pgd_starts_at_random(method: TrainingMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy_on_pgd(monkeypatch)
    model, (x, y) = networks.make("mlp").train(), batch()
    method.loss(Trainee(model, x[:1]), x, y, moment())
    assert seen and all(attack.random_start for attack, *_ in seen)


@pytest.mark.parametrize("method", ATTACKING, ids=called)
def test_attacks_see_the_network_in_eval_mode_and_leave_no_trace(method: TrainingMethod) -> None:
    model, (x, y) = networks.make("batch_norm").train(), batch()
    trainee = Trainee(model, x[:1])
    _ = trainee.bounds.classes
    modes: list[tuple[bool, bool]] = []
    norm = next(one for one in model.modules() if isinstance(one, nn.BatchNorm2d))
    original = norm.forward

    def forward(z: Tensor) -> Tensor:
        modes.append((norm.training, torch.is_grad_enabled()))
        return original(z)

    vars(norm)["forward"] = forward
    before = norm.num_batches_tracked.item() if norm.num_batches_tracked is not None else 0
    method.loss(trainee, x, y, moment())
    attacked = [training for training, _ in modes if not training]
    assert len(attacked) >= 1, "the attack's passes"
    assert norm.training
    assert all(one.grad is None for one in model.parameters())
    assert norm.num_batches_tracked is not None
    moved = norm.num_batches_tracked.item() - before
    assert moved == (2 if isinstance(method, TRADES) else 1), "clean and attacked batch in TRADES, one batch else"


def test_staps_regularises_the_small_box(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustkit.training import taps

    widths: list[float] = []
    original = taps.warm_up

    def spy(box: tuple[Tensor, Tensor], *rest: Any, **options: Any) -> Tensor:
        widths.append((box[1] - box[0]).max().item())
        return original(box, *rest, **options)

    monkeypatch.setattr(taps, "warm_up", spy)
    model, (x, y) = networks.make("mlp").train(), batch()
    STAPS(steps=2, attack_steps=2, subselection=0.25).loss(Trainee(model, x[:1]), x, y, replace(moment(), progress=0.5))
    assert widths == [pytest.approx(2 * 0.25 * 0.05, abs=1e-5)]


@pytest.mark.parametrize("method", [TRADES(steps=2), FGSMRS()], ids=called)
def test_the_attack_grows_with_eps(method: TrainingMethod) -> None:
    model, (x, y) = networks.make("mlp").train(), batch()
    far = []
    for eps in (0.01, 0.1):
        seen: list[Tensor] = []
        hook = model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].detach().clone()))
        method.loss(Trainee(model, x[:1]), x, y, moment(eps=eps))
        hook.remove()
        assert all(LinfBall(eps).contains(one, x).all() for one in seen)
        far.append(max((one - x).abs().max().item() for one in seen))
    assert far == pytest.approx([0.01, 0.1], abs=1e-4)


def test_training_never_reads_the_test_set(tmp_path: Path) -> None:
    data = dataset()
    spoilt = replace(data, test=Split(data.test.x * torch.nan, data.test.y, data.test.index))
    one, history = fit(tmp_path / "a", IBP(), data=data, select="best")
    other, same = fit(tmp_path / "b", IBP(), data=spoilt, select="best")
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
    assert [each["val_vra"] for each in history] == [each["val_vra"] for each in same]


def test_without_a_ramp_intervals_collapse_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkit.training.validation.LEAST_STEPS", 40)
    monkeypatch.setattr("robustkit.training.validation.LEAST_SAMPLES", 12)
    options: dict[str, Any] = {"eps": 0.3, "epochs": 30, "val_n": 12, "lr": 0.01}
    with pytest.raises(RobustkitError, match=r"training has collapsed: class \d is predicted for all 12"):
        fit(tmp_path / "a", IBP(kappa_end=0.0), model=networks.make("conv"), ramp_end=0.0, **options)
    _, history = fit(tmp_path / "b", Natural(), model=networks.make("conv"), ramp_end=0.0, **options)
    assert history[-1]["val_clean"] > 0.9, "a healthy one is not given up"


def test_the_robust_loss_bounds_the_loss_of_every_point_of_the_ball() -> None:
    model, (x, y) = networks.make("conv").train(), batch()
    trainee, ball = Trainee(model, x[:1]), LinfBall(0.05)
    from robustkit.bounds import BoundMethod

    for bound in (BoundMethod.IBP, BoundMethod.CROWN_IBP, BoundMethod.SYMBOLIC):
        loss = robust_loss(trainee.bounds.lower_margins(x, y, ball, bound), y, reduction="none")
        for seed in range(20):
            draw = torch.Generator().manual_seed(seed)
            point = ball.project(x + (2 * torch.rand(x.shape, generator=draw) - 1) * ball.eps, x)
            with torch.no_grad():
                assert (nn.functional.cross_entropy(model(point), y, reduction="none") <= loss + 1e-5).all()
