"""What the loop does beside the method: parts of a batch, averages, selection, collapse, memory, several processes."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import networks
import pytest
import safetensors.torch
import torch
from test_training import FAST, assert_same, batch, dataset, fit, moment, split, weights
from torch import Tensor, nn
from torch.nn import functional

from robustkit.config import TrainConfig
from robustkit.errors import RobustkitError, UsageError
from robustkit.training import STATE_FILE, Moment, Trainee, TrainingMethod
from robustkit.training.adversarial import PGDTraining
from robustkit.training.augmentation import augmented
from robustkit.training.averaging import Average
from robustkit.training.ibp import IBP
from robustkit.training.method import Share
from robustkit.training.mixtrain import MixTrain
from robustkit.training.natural import Natural
from robustkit.training.sabr import SABR
from robustkit.training.schedules import EpochMetrics, LearningRate, accelat
from robustkit.training.statistics import make_precise
from robustkit.training.validation import dead_layers, stop_if_collapsed


def metrics(**known: float) -> EpochMetrics:
    return {**dict.fromkeys(EpochMetrics.__annotations__, math.nan), **known}  # type: ignore[typeddict-item, return-value]


@pytest.mark.parametrize("method", [Natural(), PGDTraining(steps=2), IBP(), MixTrain(k=3)], ids=repr)
def test_a_batch_in_parts_trains_as_the_whole(method: TrainingMethod, tmp_path: Path) -> None:
    whole, one = fit(tmp_path / "whole", method)
    parts, other = fit(tmp_path / "parts", method, accumulate=5)
    assert [each["loss"] for each in one] == pytest.approx([each["loss"] for each in other], rel=1e-3)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=2e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize("method", [IBP(), SABR(steps=2, regularisation=0.0), MixTrain(k=4, mixing=1.0)], ids=repr)
def test_batch_norm_sees_the_whole_batch_where_bounds_are_computed_in_parts(method: TrainingMethod) -> None:
    one, other = networks.make("batch_norm").train(), networks.make("batch_norm").train()
    x, y = batch()
    expected = method.loss(Trainee(one, x[:1]), x, y, moment())
    expected.backward()
    trainee, losses = Trainee(other, x[:1]), []
    with trainee.bounds.whole_batch(x):
        for part in range(3):
            loss = method.loss(trainee, x[part::3], y[part::3], replace(moment(), share=Share(part, 3))) / 3
            loss.backward()
            losses.append(loss.item())
    assert sum(losses) == pytest.approx(expected.item(), rel=1e-4)
    for (name, mine), whole in zip(other.named_parameters(), one.parameters(), strict=True):
        assert mine.grad is not None and whole.grad is not None
        torch.testing.assert_close(mine.grad, whole.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, value), running in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, running, msg=name)


def test_a_network_with_batch_norm_trains_in_parts_as_in_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 8, "eps": 0.02, "ramp_end": 0.5, "augment": "crop"}
    _, whole = fit(tmp_path / "whole", IBP(), model=networks.make("batch_norm"), **options)
    _, parts = fit(tmp_path / "parts", IBP(), model=networks.make("batch_norm"), accumulate=5, **options)
    assert [one["loss"] for one in parts] == pytest.approx([one["loss"] for one in whole], rel=2e-2)
    for method in (Natural(), PGDTraining(steps=2)):
        _, history = fit(
            tmp_path / method.name, method, model=networks.make("batch_norm"), accumulate=2, batch_size=16, epochs=12
        )
        assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_a_batch_that_parts_do_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 processes times 3 parts divide, got 10; take a multiple of 3"):
        fit(tmp_path, Natural(), accumulate=3)


def test_a_plan_that_nothing_measures_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'expected validation samples for train.select="best", got none'):
        fit(tmp_path, IBP(), select="best", val_n=0)
    with pytest.raises(UsageError, match=r'expected validation samples for train.lr_schedule="accelat"'):
        fit(tmp_path, Natural(), lr_schedule="accelat", val_n=0)


def test_batch_norm_needs_two_samples_in_every_part(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected at least 2 samples in each part of a batch for batch norm, got 1"):
        fit(tmp_path, Natural(), model=networks.make("batch_norm"), accumulate=10)


def test_precise_statistics_are_those_of_the_batches() -> None:
    model = networks.make("batch_norm")
    batches = [networks.inputs(8, seed) for seed in range(4)]
    make_precise(model, batches)
    assert not model.training
    with torch.no_grad():
        seen = torch.stack([model[0](one).mean((0, 2, 3)) for one in batches]).mean(0)
    torch.testing.assert_close(model[1].running_mean, seen)


def test_precise_statistics_come_last(tmp_path: Path) -> None:
    running, _ = fit(tmp_path / "a", Natural(), model=networks.make("batch_norm"))
    precise, _ = fit(tmp_path / "b", Natural(), model=networks.make("batch_norm"), precise_bn=3)
    assert torch.equal(running.state_dict()["0.weight"], precise.state_dict()["0.weight"])
    assert not torch.equal(running.state_dict()["1.running_mean"], precise.state_dict()["1.running_mean"])


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_averages_by_hand() -> None:
    model = linear(1.0)
    ema = Average.of(model, "ema", decay=0.5, start=9.0)
    swa = Average.of(model, "swa", decay=0.5, start=1.0)
    assert ema is not None and swa is not None and Average.of(model, "none", decay=0.5, start=0.0) is None
    for time_, value in enumerate([2.0, 4.0, 8.0]):
        nn.init.constant_(model.weight, value)
        ema.follow(model, time_)
        swa.follow(model, time_)
    assert ema.model.weight.item() == pytest.approx(0.5 * (0.5 * 2.0 + 0.5 * 4.0) + 0.5 * 8.0)  # type: ignore[operator, union-attr]
    assert swa.model.weight.item() == pytest.approx((4.0 + 8.0) / 2)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("kind", ["mlp", "batch_norm"])
@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_averaged_weights_are_judged_kept_and_resumed(averaging: str, kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"averaging": averaging, "swa_start": 0.3, "ema_decay": 0.8}
    plain, _ = fit(tmp_path / "plain", IBP(), model=networks.make(kind))
    whole, history = fit(tmp_path / "whole", IBP(), model=networks.make(kind), **options)
    assert not torch.equal(next(plain.parameters()), next(whole.parameters()))
    val = dataset().val.take(8)
    with torch.no_grad():
        assert history[-1]["val_clean"] == (whole(val.x).argmax(1) == val.y).double().mean().item()

    def stop(so_far: list[EpochMetrics]) -> None:
        if len(so_far) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "a", IBP(), model=networks.make(kind), record=stop, **options)
    resumed, _ = fit(tmp_path / "a", IBP(), model=networks.make(kind, seed=8), **options)
    assert_same(resumed, whole)


def test_the_best_weights_are_selected_only_once_eps_has_reached_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustkit.training import loop

    figures = iter([0.99, 0.5, 0.7, 0.6])
    states: list[dict[str, Tensor]] = []
    original = loop.validate

    def validate(trainee: Trainee, split: Any, ball: Any, bound: Any) -> Any:
        found = original(trainee, split, ball, bound)
        if len(split) == 1:  # the look before the first epoch
            return found
        states.append(weights(trainee.model))
        return replace(found, vra=next(figures))

    monkeypatch.setattr(loop, "validate", validate)
    model, _ = fit(tmp_path, IBP(), epochs=4, ramp_end=0.5, select="best")
    chosen = [all(torch.equal(state[name], value) for name, value in model.state_dict().items()) for state in states]
    assert chosen == [False, False, True, False]


def test_selection_keeps_the_last_weights_where_nothing_is_verified(tmp_path: Path) -> None:
    last, _ = fit(tmp_path / "a", Natural())
    best, _ = fit(tmp_path / "b", Natural(), select="best")
    assert_same(best, last)


def constant() -> nn.Sequential:
    """Predicts class 2 whatever comes, its ReLU dead."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.fill_(-1.0)
        model[3].bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    return model


def test_a_collapsed_network_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkit.training.validation.LEAST_STEPS", 16)
    monkeypatch.setattr("robustkit.training.validation.LEAST_SAMPLES", 8)
    options: dict[str, Any] = {"epochs": 9, "lr": 1e-12, "weight_decay": 0.0, "averaging": "ema"}
    message = (
        r"training has collapsed: class 2 is predicted for all 8 validation samples since epoch 2; no neuron is active "
        r"in 2; lengthen the eps ramp .* train.stop_if_collapsed=false goes on"
    )
    with pytest.raises(RobustkitError, match=message):
        fit(tmp_path, Natural(), model=constant(), **options)
    assert len(torch.load(tmp_path / STATE_FILE, weights_only=True)["history"]) == 4
    _, history = fit(tmp_path, Natural(), model=constant(), stop_if_collapsed=False, **options)
    assert len(history) == 9


def test_collapse_at_the_end_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkit.training.validation.LEAST_STEPS", 1)
    monkeypatch.setattr("robustkit.training.validation.LEAST_SAMPLES", 8)
    with pytest.raises(RobustkitError, match="training has collapsed"):
        fit(tmp_path, Natural(), model=constant(), epochs=3, lr=1e-12, weight_decay=0.0)


def test_collapse_needs_time_several_epochs_and_one_class_among_several() -> None:
    model, val = constant(), split(40, 9)
    assert dead_layers(model, val.x) == ["2"]
    assert dead_layers(networks.make("mlp"), val.x) == []
    ones = [metrics(val_classes=1.0)] * 4
    for history, samples, begun, steps in [
        (ones[:2], val, 0.0, 900),
        ([*ones, metrics(val_classes=2.0)], val, 0.0, 900),
        ([metrics()] * 4, val, 0.0, 900),
        (ones, split(1, 9), 0.0, 900),
        (ones, split(19, 9), 0.0, 900),
        (ones, val, 1.5, 900),
        (ones, val, 0.0, 100),
    ]:
        stop_if_collapsed(history, model, samples, begun=begun, steps_per_epoch=steps)
    with pytest.raises(RobustkitError, match="class 2 is predicted for all 40"):
        stop_if_collapsed(ones, model, val, begun=1.0, steps_per_epoch=125)


@dataclass(frozen=True)
class Hungry(Natural):
    """Needs memory for every sample."""

    name: ClassVar[str] = "hungry"
    holds: int = 3

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        if len(x) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(trainee, x, y, moment)


def test_too_little_memory_names_the_batch_that_would_fit(tmp_path: Path) -> None:
    message = r"the memory of cpu does not hold a batch of 10; it holds 2: set train.accumulate=5 for the same training"
    with pytest.raises(RobustkitError, match=message):
        fit(tmp_path, Hungry())
    with pytest.raises(RobustkitError, match="does not hold a single sample"):
        fit(tmp_path, Hungry(holds=0))
    _, history = fit(tmp_path, Hungry(), accumulate=5)
    assert len(history) == 3


def test_augmentation_shifts_and_mirrors() -> None:
    x = torch.arange(16 * 16, dtype=torch.float32).view(1, 1, 16, 16).expand(64, 1, 16, 16) + 1.0
    moved = augmented(x, "crop", torch.Generator().manual_seed(0), Share())
    shifts = set()
    for one in moved[:, 0]:
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(one, functional.pad(x[0, 0], (2, 2, 2, 2))[2 + down : 18 + down, 2 + right : 18 + right])
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 15
    both = augmented(x, "crop-flip", torch.Generator().manual_seed(0), Share())
    mirrored = [torch.equal(one, other.flip(2)) for one, other in zip(both, moved, strict=True)]
    same = [torch.equal(one, other) for one, other in zip(both, moved, strict=True)]
    assert 16 < sum(mirrored) < 48 and sum(mirrored) + sum(same) == 64
    assert augmented(x, "none", torch.Generator(), Share()) is x
    part = augmented(x[1::2], "crop-flip", torch.Generator().manual_seed(0), Share(1, 2))
    assert torch.equal(part, both[1::2])


def test_l1_pulls_weights_but_not_biases_to_zero(tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "a", Natural())
    sparse, _ = fit(tmp_path / "b", Natural(), l1=0.1)
    for name, value in plain.state_dict().items():
        assert name.endswith("bias") or sparse.state_dict()[name].abs().sum() < 0.5 * value.abs().sum()


@pytest.mark.parametrize("changes", [{"optimizer": "sgd", "lr": 0.3}, {"precision": "bfloat16"}, {"augment": "crop"}])
@pytest.mark.parametrize("method", [Natural(), IBP(), MixTrain(k=2), PGDTraining(steps=2)], ids=repr)
def test_every_way_of_training_learns(method: TrainingMethod, changes: dict[str, Any], tmp_path: Path) -> None:
    _, history = fit(tmp_path, method, epochs=8, **changes)
    assert history[-1]["val_clean"] > 0.8


def test_learning_rates_by_hand() -> None:
    def rates(schedule: Any, times: list[float], **options: Any) -> list[float]:
        return [LearningRate(0.1, schedule, 10, **options).at(one, []) for one in times]

    assert rates("constant", [0, 5, 10]) == pytest.approx([0.1, 0.1, 0.1])
    assert rates("cosine", [0, 5, 10]) == pytest.approx([0.1, 0.05, 0.0])
    assert rates("milestones", [0, 4.9, 5, 8], milestones=(5.0, 8.0)) == pytest.approx([0.1, 0.1, 0.02, 0.004])
    assert rates("constant", [0, 1, 2, 3], warmup=2.0) == pytest.approx([0.0, 0.05, 0.1, 0.1])


def test_accelat_cuts_where_the_mean_accuracy_has_stopped_rising() -> None:
    rising = [metrics(val_clean=0.1 * epoch) for epoch in range(9)]
    assert accelat(1.0, rising) == 1.0
    flat = [metrics(val_clean=0.5)] * 20
    # means are flat from the second epoch on; cuts at epochs 5, 10 and 15, counted from 0
    assert [accelat(1.0, flat[:count]) for count in (5, 6, 10, 11, 16, 20)] == pytest.approx(
        [1.0, 0.8, 0.8, 0.64, 0.512, 0.512]
    )
    assert accelat(1.1e-6, flat) == 1e-6


def test_the_learning_rate_of_every_step_is_that_of_its_schedule(tmp_path: Path) -> None:
    _, constant_ = fit(tmp_path / "a", Natural(), lr_schedule="constant", lr=0.01)
    assert [one["lr"] for one in constant_] == [0.01] * 3
    _, steps = fit(tmp_path / "b", Natural(), lr_schedule="milestones", milestones=(0.5,), lr=0.01)
    assert [one["lr"] for one in steps] == pytest.approx([0.01, 0.002, 0.002])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": (50.0, 60.0), "lr_schedule": "milestones"}, r"got 50; epoch 50 of 60 is 0.833"),
        ({"ramp_end": 70.0}, r"expected train.ramp_end as a share of all epochs, in \[0, 1\], got 70$"),
        ({"warmup": -0.1}, r"expected train.warmup as a share"),
        ({"ramp_start": 0.5}, r"expected train.ramp_start at most train.ramp_end = 0.25, got 0.5"),
        ({"milestones": (0.5,)}, r'together with train.lr_schedule = "milestones"'),
        ({"lr_schedule": "milestones"}, r"expected train.milestones together"),
        ({"accumulate": 0}, r"expected train.accumulate at least 1, got 0"),
        ({"ema_decay": 1.0}, r"expected train.ema_decay in \(0, 1\), got 1.0"),
        ({"l1": -1.0}, r"expected train.l1 at least 0"),
        ({"checkpoint_every": 0.0}, r"expected train.checkpoint_every above 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**options)


def start_training(out: Path, *settings: str) -> subprocess.Popen[bytes]:
    options = [part for one in settings for part in ("--set", one)]
    command = [sys.executable, "-m", "robustkit", "train", "--epochs", "2", "--out", str(out), *options]
    return subprocess.Popen(command, cwd=out.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_training_that_is_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    settings = ("train.checkpoint_every=0.2", "data.train_n=600", "train.options.mixtrain.k=2")
    whole = start_training(tmp_path / "whole", *settings)
    killed = start_training(tmp_path / "killed", *settings)
    state = tmp_path / "killed" / STATE_FILE
    until = time.monotonic() + 120
    while not state.exists() and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert torch.load(state, weights_only=True)["here"]["step"] < 12, "a state that is whole, and not at the end"
    assert whole.communicate()[1] is not None and whole.returncode == 0
    again = start_training(tmp_path / "killed", *settings)
    again.communicate()
    assert again.returncode == 0
    one, other = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import networks
from test_loop import PARALLEL
from test_training import fit
from robustkit.world import World

world = World.join(torch.device("cpu"))
for name, (method, kind) in PARALLEL.items():
    model, history = fit(Path(sys.argv[2]) / f"{name}-{world.rank}", method, model=networks.make(kind), world=world)
    torch.save([model.state_dict(), history], Path(sys.argv[2]) / f"{name}-{world.rank}.pt")
"""
PARALLEL: dict[str, tuple[TrainingMethod, str]] = {
    **{f"{place}-{method.name}": (method, "mlp") for place, method in enumerate(FAST)},
    "natural": (Natural(), "mlp"),
    "pgd": (PGDTraining(steps=2), "conv"),
    "ibp": (IBP(), "conv"),
    "mixtrain": (MixTrain(k=3, schedule="adaptive", clean_floor=0.5), "mlp"),
    "batch-norm": (IBP(), "batch_norm"),
}


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(script), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (method, kind) in PARALLEL.items():
        alone, history = fit(tmp_path / f"{name}-alone", method, model=networks.make(kind))
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
        # Statistics of batch norm are constants for the gradient where a batch is shared; the regularisers, and the
        # weights of DONE, are those of each share.
        apart = bool(getattr(method, "regularisation", 0.0)) or getattr(method, "weights", "") == "done"
        loose = name == "batch-norm" or apart
        for key, value in alone.state_dict().items():
            assert torch.equal(first[0][key], second[0][key]), (name, key)
            if not loose:
                torch.testing.assert_close(first[0][key], value, rtol=2e-2, atol=2e-3, msg=f"{name} {key}")
        losses = [[one["loss"] for one in each] for each in (history, first[1], second[1])]
        assert losses[1] == losses[2]
        for there, here in list(zip(losses[1], losses[0], strict=True))[: 1 if loose else None]:
            assert there == pytest.approx(here, rel=0.2 if loose else 1e-3), name
        assert not list((tmp_path / f"{name}-1").glob("*")), "only the first process writes"


def test_the_command_trains_by_two_processes(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "robustkit"]
    options = ["--method", "ibp", "--epochs", "2", "--out", "run", "--set", "data.train_n=200"]
    done = subprocess.run(
        [sys.executable, *launcher, "train", *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ibp on digits at eps 0.1: 2 epochs") == 1
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / STATE_FILE).exists()
