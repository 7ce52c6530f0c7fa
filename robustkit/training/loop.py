"""The one training loop, for every method; it can be killed at any moment and goes on where it stopped."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustkit.attacks.base import derived_seed
from robustkit.config import TrainConfig
from robustkit.data import Dataset, Split
from robustkit.errors import RobustkitError, UnsupportedLayerError, UsageError
from robustkit.files import replacing
from robustkit.progress import Reporter, working
from robustkit.threat import LinfBall
from robustkit.training.augmentation import augmented
from robustkit.training.averaging import Average
from robustkit.training.method import Moment, Share, Trainee, TrainingMethod
from robustkit.training.schedules import EpochMetrics, EpsRamp, LearningRate
from robustkit.training.statistics import has_batch_norm, make_precise
from robustkit.training.validation import Validation, classes_predicted, stop_if_collapsed, validate
from robustkit.world import ALONE, World

STATE_FILE = "training.pt"
LOOK_EVERY = 20
"""Steps between looks at whether the loss is still finite, on a GPU: each look waits for the device."""

History = list[EpochMetrics]


def train(
    model: nn.Module,
    dataset: Dataset,
    method: TrainingMethod,
    plan: TrainConfig,
    *,
    seed: int,
    folder: Path,
    reporter: Reporter,
    record: Callable[[History], None] = lambda history: None,
    world: World = ALONE,
) -> History:
    """Train a network, or go on training it from the state in ``folder``.

    Args:
        model: on its device; trained in place and left in eval mode.
        dataset: its training split is used up, its validation split measures each epoch.
        method: what is minimised.
        plan: for how long, and how fast; its eps is given.
        seed: of the order of samples and every draw.
        folder: where the state is kept, at least every ``plan.checkpoint_every`` seconds.
        reporter: told of every step.
        record: given the history after every epoch.
        world: the processes that train together; only the first one writes.

    Returns:
        The metrics of every epoch, those of earlier sittings included.

    Raises:
        RobustkitError: the loss is no longer finite, training has collapsed, a GPU's memory is too small, or the saved
            state cannot be read or written.
        UnsupportedLayerError: the method bounds the network and cannot carry a layer; raised before the first epoch.
        UsageError: a batch that the training set, the processes or its parts do not fit.
    """
    device = next(model.parameters()).device
    splits = dataset.train.to(device), dataset.val.to(device)
    _check_batch(model, len(splits[0]), plan, world)
    _check_validation(len(splits[1]), method, plan)
    loop = _Loop(model, method, plan, *splits, seed=seed, world=world)
    loop.restore(folder / STATE_FILE)
    done = len(loop.history) * loop.steps_per_epoch + loop.here.step
    with working(reporter, f"train {method.name}", plan.epochs * loop.steps_per_epoch, done):
        while len(loop.history) < plan.epochs:
            loop.epoch(folder / STATE_FILE, reporter)
            record(loop.history)
            loop.stop_if_collapsed()
    loop.finish()
    return loop.history


def _check_validation(samples: int, method: TrainingMethod, plan: TrainConfig) -> None:
    """Refuse a plan that goes by figures that nothing measures."""
    for option, needed in (
        ('train.select="best"', plan.select == "best" and method.validation_bound is not None),
        ('train.lr_schedule="accelat"', plan.lr_schedule == "accelat"),
    ):
        if needed and not samples:
            raise UsageError(f"expected validation samples for {option}, got none; raise data.val_n")


def _check_batch(model: nn.Module, samples: int, plan: TrainConfig, world: World) -> None:
    if samples < plan.batch_size:
        raise UsageError(
            f"expected batch_size at most the {samples} training samples, got {plan.batch_size}; "
            "set a smaller train.batch_size"
        )
    parts = world.size * plan.accumulate
    if plan.batch_size % parts:
        raise UsageError(
            f"expected train.batch_size that {world.size} processes times {plan.accumulate} parts divide, got "
            f"{plan.batch_size}; take a multiple of {parts}"
        )
    if plan.batch_size // parts < 2 and has_batch_norm(model):
        raise UsageError(
            f"expected at least 2 samples in each part of a batch for batch norm, got {plan.batch_size // parts}; "
            "raise train.batch_size"
        )


class _Loss(nn.Module):
    """The loss as a module that holds the network: what is wrapped to train by several processes.

    Bounds are computed inside its forward, with the network's own parameters, so that their gradients are averaged too.
    """

    def __init__(self, method: TrainingMethod, trainee: Trainee, l1: float) -> None:
        super().__init__()
        self.model, self.method, self.trainee, self.l1 = trainee.model, method, trainee, l1

    def forward(self, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        loss = self.method.loss(self.trainee, x, y, moment)
        if self.l1:
            loss = loss + self.l1 * sum(one.abs().sum() for one in self.model.parameters() if one.ndim > 1)
        return loss


@dataclass
class _Here:
    """Where the current epoch stands: the steps taken, the losses added up, the seconds spent."""

    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0


@dataclass
class _Best:
    """The best weights so far, and their verified accuracy on the validation samples."""

    vra: float = -math.inf
    state: dict[str, Tensor] = field(default_factory=dict)


class _Loop:
    """One sitting: the optimiser, the source of draws and the data, between two checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        method: TrainingMethod,
        plan: TrainConfig,
        data: Split,
        val: Split,
        *,
        seed: int,
        world: World,
    ) -> None:
        self.model, self.method, self.plan, self.data, self.val = model, method, plan, data, val
        self.seed, self.world = seed, world
        self.device = data.x.device
        self.steps_per_epoch = len(data) // plan.batch_size
        self.ramp = EpsRamp(
            plan.eps or 0.0, plan.ramp_start * plan.epochs, plan.ramp_end * plan.epochs, plan.ramp_shape
        )
        self.rate = LearningRate(
            plan.lr,
            plan.lr_schedule,
            plan.epochs,
            plan.warmup * plan.epochs,
            tuple(one * plan.epochs for one in plan.milestones),
            plan.lr_factor,
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = _optimizer(model, plan)
        self.history: History = []
        self.here, self.best = _Here(), _Best()
        self.trainee = Trainee(model, data.x[:1])
        self.average = Average.of(model, plan.averaging, decay=plan.ema_decay, start=plan.swa_start * plan.epochs)
        self.judged = self.trainee if self.average is None else Trainee(self.average.model, data.x[:1])
        model.eval()
        if method.validation_bound is not None:  # an unsupported layer shows here, not after an hour
            validate(self.trainee, data.take(1), LinfBall(0.0), method.validation_bound)
        self.objective = world.shared(_Loss(method, self.trainee, plan.l1))
        self.broken = torch.zeros((), device=self.device)

    def epoch(self, path: Path, reporter: Reporter) -> None:
        """Take one pass over the training set, or what is left of one, and measure what came of it."""
        epoch, saved, began = len(self.history), time.monotonic(), time.perf_counter() - self.here.seconds
        self.model.train()
        order = self.order(epoch)
        total = torch.full((), self.here.loss, device=self.device)
        for step in range(self.here.step, self.steps_per_epoch):
            now = epoch + step / self.steps_per_epoch
            total += self.step(order[step * self.plan.batch_size :][: self.plan.batch_size], now, epoch)
            ball = LinfBall(self.ramp.eps(now))
            reporter.advance(note=f"epoch {epoch + 1}/{self.plan.epochs} eps {ball.eps:.3g}")
            if time.monotonic() - saved > self.plan.checkpoint_every and step + 1 < self.steps_per_epoch:
                self.here = _Here(step + 1, total.item(), time.perf_counter() - began)
                self.save(path)
                saved = time.monotonic()
        self.look(epoch)
        self.history.append(self.measured(epoch, total.item(), time.perf_counter() - began))
        self.here = _Here()
        self.keep_if_best()
        self.save(path)

    def step(self, chosen: Tensor, now: float, epoch: int) -> Tensor:
        """Take one step and give its loss, detached; a loss that is not finite leaves the weights as they were."""
        plan, parts = self.plan, self.plan.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate.at(now, self.history)
        own = Share(self.world.rank, self.world.size)
        mine = own.take(chosen).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        x, y = augmented(self.data.x[mine], plan.augment, self.generator, own), self.data.y[mine]
        try:
            with self.whole_batch(x):
                state = self.generator.get_state()
                for part in range(parts):
                    self.generator.set_state(state)  # every part makes the draws of the whole batch
                    share = Share(own.part + part * own.of, parts * own.of)
                    total += self.backward(x[part::parts], y[part::parts], share, now, last=part == parts - 1)
        except torch.OutOfMemoryError as error:
            raise self.too_large(x, y, now) from error
        except (UnsupportedLayerError, UsageError):
            raise
        except RobustkitError as error:
            raise self.failed(epoch, str(error)) from error
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), plan.clip or math.inf)
        finite = torch.isfinite(self.world.total(total.clone()) + norm)  # of all processes: they stop together
        self.broken = torch.maximum(self.broken, (~finite).to(total))
        vars(self.optimizer)["found_inf"] = self.broken  # the optimiser leaves the weights alone from then on
        self.optimizer.step()
        if self.average is not None:
            self.average.follow(self.model, now)
        if self.device.type == "cpu" or round(now * self.steps_per_epoch) % LOOK_EVERY == 0:
            self.look(epoch)
        return total

    def backward(self, x: Tensor, y: Tensor, share: Share, now: float, *, last: bool) -> Tensor:
        """Add the gradient of one part of the batch, and give its part of the loss."""
        moment = Moment(
            ball=LinfBall(self.ramp.eps(now)),
            weight=self.method.weight(self.ramp, now, self.history),
            generator=self.generator,
            step=round(now * self.steps_per_epoch),
            progress=self.ramp.progress(now),
            share=share,
        )
        half = self.plan.precision == "bfloat16"
        with self.synchronised(last):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                loss: Tensor = self.objective(x, y, moment) / self.plan.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Average gradients over the processes only once a batch."""
        if isinstance(self.objective, DistributedDataParallel) and not last:
            return self.objective.no_sync()
        return nullcontext()

    def whole_batch(self, x: Tensor) -> AbstractContextManager[None]:
        """Let batch norm see the whole batch where bounds are computed of it part by part."""
        alone, bounded = self.world.size == 1, self.method.validation_bound is not None
        if self.plan.accumulate == 1 or not (alone and bounded and has_batch_norm(self.model)):
            return nullcontext()
        return self.trainee.bounds.whole_batch(x)

    def look(self, epoch: int) -> None:
        """Stop where the loss or its gradient has not been finite.

        Raises:
            RobustkitError: it has not; the weights are those before.
        """
        if bool(self.broken):
            raise self.failed(epoch, "the loss is no longer finite")

    def failed(self, epoch: int, reason: str) -> RobustkitError:
        """Say what to do about a step that failed."""
        return RobustkitError(
            f"training fails in epoch {epoch + 1}: {reason}; lower train.lr or train.clip, or lengthen the eps "
            "ramp (train.ramp_end)"
        )

    def too_large(self, x: Tensor, y: Tensor, now: float) -> RobustkitError:
        """Find out how much of the batch the memory holds, and say so."""
        size, parts = self.plan.batch_size, self.plan.accumulate
        while parts < size:
            parts = next(
                one for one in range(parts + 1, size + 1) if size % (one * self.world.size) == 0 or one == size
            )
            try:
                self.optimizer.zero_grad(set_to_none=True)
                self.backward(x[::parts], y[::parts], Share(0, parts * self.world.size), now, last=False)
            except torch.OutOfMemoryError:
                continue
            return RobustkitError(
                f"the memory of {self.device} does not hold a batch of {size // self.plan.accumulate}; it holds "
                f"{size // parts}: set train.accumulate={parts} for the same training in parts, or a smaller "
                "train.batch_size"
            )
        return RobustkitError(f"the memory of {self.device} does not hold a single sample; take a smaller model")

    def measured(self, epoch: int, loss: float, seconds: float) -> EpochMetrics:
        """Measure a finished epoch."""
        self.model.eval()
        self.world.average(self.model.buffers())
        ball = LinfBall(self.ramp.eps(epoch + 1))
        bound = self.method.validation_bound
        found, classes = self.world.from_first(
            lambda: (validate(self.judged, self.val, ball, bound), classes_predicted(self.model, self.val))
        )
        return self.metrics(epoch, loss, seconds, found, classes)

    def metrics(self, epoch: int, loss: float, seconds: float, found: Validation, classes: float) -> EpochMetrics:
        """Put the figures of an epoch together."""
        last = epoch + (self.steps_per_epoch - 1) / self.steps_per_epoch
        losses = self.world.total(torch.tensor(loss, dtype=torch.float64, device=self.device)).item() / self.world.size
        return EpochMetrics(
            epoch=epoch + 1,
            eps=self.ramp.eps(epoch + 1),
            weight=self.method.weight(self.ramp, last, self.history),
            lr=float(self.optimizer.param_groups[0]["lr"]),
            loss=losses / self.steps_per_epoch,
            val_clean=found.clean,
            val_vra=found.vra,
            val_classes=classes,
            seconds=seconds,
        )

    def keep_if_best(self) -> None:
        """Keep these weights if they verify most; before eps has reached its target nothing counts."""
        last = self.history[-1]
        if (
            self.plan.select == "best"
            and self.ramp.progress(len(self.history)) == 1.0
            and last["val_vra"] > self.best.vra
        ):
            state = self.judged.model.state_dict()
            self.best = _Best(last["val_vra"], {name: one.detach().clone() for name, one in state.items()})

    def finish(self) -> None:
        """Give the network the weights that were selected or averaged, and exact statistics if asked for."""
        if self.judged.model is not self.model:
            self.model.load_state_dict(self.judged.model.state_dict())
        if self.best.state:
            self.model.load_state_dict(self.best.state)
        if self.plan.precise_bn and has_batch_norm(self.model):
            make_precise(self.model, self.first_batches(self.plan.precise_bn))
        self.model.eval()

    def first_batches(self, count: int) -> Iterator[Tensor]:
        """Give some training batches in the order of the first epoch."""
        for chosen in torch.split(self.order(0), self.plan.batch_size)[:count]:
            yield self.data.x[chosen.to(self.device)]

    def order(self, epoch: int) -> Tensor:
        """Give the order of the samples in an epoch."""
        draw = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        return torch.randperm(len(self.data), generator=draw)

    def stop_if_collapsed(self) -> None:
        """Give up a network that predicts one class, once it has had time to learn and eps has begun to grow."""
        begun = max(self.plan.warmup, self.plan.ramp_start) * self.plan.epochs
        if self.plan.stop_if_collapsed:
            stop_if_collapsed(self.history, self.model, self.val, begun=begun, steps_per_epoch=self.steps_per_epoch)

    def save(self, path: Path) -> None:
        """Write everything that the rest of training depends on, whole or not at all."""
        self.look(len(self.history))
        if not self.world.first:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state() if self.average is not None else None,
            "best": vars(self.best),
            "here": vars(self.here),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "history": self.history,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with replacing(path, "wb") as file:
            file.write(buffer.getbuffer())

    def restore(self, path: Path) -> None:
        """Take up the state of an earlier sitting, if there is one.

        Raises:
            RobustkitError: it cannot be read, or is of another training.
        """
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.restore(state["average"])
            self.best, self.here = _Best(**state["best"]), _Here(**state["here"])
            self.generator.set_state(state["generator"])
            torch.set_rng_state(state["torch"])
            if len(state["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["cuda"])
            self.history = state["history"]
            if [one["epoch"] for one in self.history] != list(range(1, len(self.history) + 1)):
                raise ValueError("epochs are missing")
        except Exception as error:
            raise RobustkitError(
                f"cannot resume from {path} ({type(error).__name__}); delete it to train from the start"
            ) from error


def _optimizer(model: nn.Module, plan: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimiser; the fused ones can be told on the device to leave out a step."""
    if plan.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), plan.lr, momentum=0.9, weight_decay=plan.weight_decay, fused=True)
    return torch.optim.Adam(model.parameters(), plan.lr, weight_decay=plan.weight_decay, fused=True)
