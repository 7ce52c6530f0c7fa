"""The one training loop, for every method; it can be killed at any moment and goes on where it stopped."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from robustkit.data import Dataset, Split
from robustkit.errors import RobustkitError, UnsupportedLayerError, UsageError
from robustkit.files import replacing
from robustkit.margins import certified, correct
from robustkit.progress import Reporter, working
from robustkit.threat import LinfBall
from robustkit.training.method import Moment, Trainee, TrainingMethod
from robustkit.training.schedules import EpochMetrics, EpsRamp

STATE_FILE = "training.pt"


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know beside the method.

    Attributes:
        epochs: passes over the training set.
        batch_size: samples per step.
        lr: learning rate of Adam.
        lr_schedule: ``"cosine"`` to zero over all epochs, or ``"constant"``.
        weight_decay: L2 penalty.
        clip: L2 norm that gradients are clipped to; 0 for none.
        ramp: how eps grows, in epochs.
        val_n: validation samples used after each epoch.
        seed: of the order of samples and every draw.
    """

    epochs: int
    batch_size: int
    lr: float
    lr_schedule: Literal["cosine", "constant"]
    weight_decay: float
    clip: float
    ramp: EpsRamp
    val_n: int
    seed: int


def train(
    model: nn.Module,
    dataset: Dataset,
    method: TrainingMethod,
    plan: Plan,
    *,
    folder: Path,
    reporter: Reporter,
    record: Callable[[list[EpochMetrics]], None] = lambda history: None,
) -> list[EpochMetrics]:
    """Train a network, or go on training it from the state in ``folder``.

    Args:
        model: on its device; trained in place and left in eval mode.
        dataset: its training split is used up, its validation split measures each epoch.
        method: what is minimised.
        plan: for how long, and how fast.
        folder: where the state is kept after every epoch; a finished epoch is never lost.
        reporter: told of every step.
        record: given the history after every epoch.

    Returns:
        The metrics of every epoch, those of earlier sittings included.

    Raises:
        RobustkitError: the loss is no longer finite, or the saved state cannot be read or written.
        UnsupportedLayerError: the method bounds the network and cannot carry a layer; raised before the first epoch.
    """
    device = next(model.parameters()).device
    splits = dataset.train.to(device), dataset.val.take(plan.val_n).to(device)
    if len(splits[0].y) < plan.batch_size:
        raise UsageError(
            f"expected batch_size at most the {len(splits[0].y)} training samples, got {plan.batch_size}; "
            "set a smaller train.batch_size"
        )
    loop = _Loop(model, method, plan, *splits)
    history = loop.restore(folder / STATE_FILE)
    steps = loop.steps_per_epoch
    with working(reporter, f"train {method.name}", plan.epochs * steps, len(history) * steps):
        for epoch in range(len(history), plan.epochs):
            history.append(loop.epoch(epoch, history, reporter))
            loop.save(folder / STATE_FILE, history)
            record(history)
    model.eval()
    return history


class _Loop:
    """One sitting: the optimiser, the source of draws and the data, between two checkpoints."""

    def __init__(self, model: nn.Module, method: TrainingMethod, plan: Plan, data: Split, val: Split) -> None:
        self.model, self.method, self.plan, self.data, self.val = model, method, plan, data, val
        self.trainee = Trainee(model, data.x[:1])
        self.steps_per_epoch = len(data.y) // plan.batch_size
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
        total = plan.epochs * self.steps_per_epoch
        cosine = plan.lr_schedule == "cosine"
        self.schedule = LambdaLR(
            self.optimizer, lambda step: 0.5 * (1.0 + math.cos(math.pi * step / total)) if cosine else 1.0
        )
        model.eval()
        if method.validation_bound is not None:  # an unsupported layer shows here, not after an hour
            self.verified_fraction(LinfBall(0.0), data.take(1))

    def epoch(self, epoch: int, history: list[EpochMetrics], reporter: Reporter) -> EpochMetrics:
        """Take one pass over the training set and measure what came of it."""
        plan, began = self.plan, time.perf_counter()
        self.model.train()
        order = torch.randperm(len(self.data.y), generator=self.generator).to(self.data.y.device)
        total = torch.zeros((), device=self.data.x.device)
        weight = 0.0
        for step in range(self.steps_per_epoch):
            now = epoch + step / self.steps_per_epoch
            weight = self.method.weight(plan.ramp, now, history)
            ball = LinfBall(plan.ramp.eps(now))
            moment = Moment(ball, weight, self.generator, epoch * self.steps_per_epoch + step)
            chosen = order[step * plan.batch_size : (step + 1) * plan.batch_size]
            try:
                total += self.step(self.data.x[chosen], self.data.y[chosen], moment)
            except (UnsupportedLayerError, UsageError):
                raise
            except (FloatingPointError, RobustkitError) as error:
                raise RobustkitError(
                    f"training fails in epoch {epoch + 1}: {error}; lower train.lr or train.clip, or lengthen the eps "
                    "ramp (train.ramp_end)"
                ) from error
            reporter.advance(note=f"epoch {epoch + 1}/{plan.epochs} eps {ball.eps:.3g}")
        loss = total.item() / self.steps_per_epoch
        seconds = time.perf_counter() - began
        self.model.eval()
        ball = LinfBall(plan.ramp.eps(epoch + 1))
        return EpochMetrics(
            epoch=epoch + 1,
            eps=ball.eps,
            weight=weight,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            loss=loss,
            val_clean=self.clean_fraction(),
            val_vra=self.verified_fraction(ball, self.val),
            seconds=seconds,
        )

    def step(self, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Take one step and give its loss, detached.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; the weights are left as they were.
        """
        loss = self.method.loss(self.trainee, x, y, moment)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip or math.inf)
        if not bool(torch.isfinite(loss.detach() + norm)):  # weights that are NaN would fail elsewhere, by another name
            raise FloatingPointError(
                f"the loss is no longer finite (loss {loss.item():.4g}, norm of its gradient {norm.item():.4g})"
            )
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    @torch.no_grad()
    def clean_fraction(self) -> float:
        """Give the clean accuracy on the validation split; NaN where that is empty."""
        if not len(self.val):
            return math.nan
        return correct(self.model(self.val.x), self.val.y).double().mean().item()

    @torch.no_grad()
    def verified_fraction(self, ball: LinfBall, split: Split) -> float:
        """Give the verified accuracy on a split by the method's own bound; NaN where there is none, or no sample."""
        bound = self.method.validation_bound
        if bound is None or not len(split):
            return math.nan
        parts = zip(torch.split(split.x, 50), torch.split(split.y, 50), strict=True)
        margins = [self.trainee.bounds.lower_margins(x, y, ball, bound, intervals_first=True) for x, y in parts]
        return certified(torch.cat(margins), split.y).double().mean().item()

    def save(self, path: Path, history: list[EpochMetrics]) -> None:
        """Write everything that the rest of training depends on, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.last_epoch,
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "history": history,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with replacing(path, "wb") as file:
            file.write(buffer.getbuffer())

    def restore(self, path: Path) -> list[EpochMetrics]:
        """Take up the state of an earlier sitting, if there is one, and give its history."""
        if not path.exists():
            return []
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.last_epoch = state["schedule"]
            self.generator.set_state(state["generator"])
            torch.set_rng_state(state["torch"])
            if len(state["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["cuda"])
            history: list[EpochMetrics] = state["history"]
            if [one["epoch"] for one in history] != list(range(1, len(history) + 1)):
                raise ValueError("epochs are missing")
        except Exception as error:
            raise RobustkitError(
                f"cannot resume from {path} ({type(error).__name__}); delete it to train from the start"
            ) from error
        return history
