"""A training step as the training loop takes it, again and again from the same weights and with the same draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.timing import side_by_side
from robustkit.config import TrainConfig
from robustkit.training import TrainingMethod
from robustkit.training.loop import _Loop
from robustkit.training.method import Share
from robustkit.training.mixtrain import MixTrain
from robustkit.training.natural import Natural
from robustkit.world import ALONE

BATCH = 50
LEAST = 0.1
"""Seconds that a timing lasts at least: short steps are repeated for so long."""

MIDDLE = 1.0
"""The moment, in epochs: eps has come half of its way, so that what falls or grows with it counts."""


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        model: on its device.
        batch: samples a step.
    """

    model: nn.Module
    batch: int


class Bench:
    """A training loop that stands still: its learning rate is too small to move a weight.

    Args:
        method: what is minimised.
        model: on its device; copied.
        batch: samples a step.
    """

    def __init__(self, method: TrainingMethod, model: nn.Module, batch: int) -> None:
        data = networks.dataset()
        # Half of twice the radius: the ball is the dataset's, and progress one half.
        plan = TrainConfig(eps=2 * data.eps, epochs=2, ramp_end=1.0, batch_size=batch, lr=1e-12, lr_schedule="constant")
        split = data.train.take(batch).to(networks.device())
        self.loop = _Loop(copy.deepcopy(model), method, plan, split, split.take(1), seed=0, world=ALONE)
        self.loop.model.train()
        self.chosen = torch.arange(batch)

    def step(self) -> None:
        """Take one step: loss, backward, clipping and fused Adam."""
        self.loop.generator.manual_seed(0)
        self.loop.step(self.chosen, MIDDLE, 0)

    def result(self) -> list[Tensor]:
        """Give the loss of the step and the gradient of every parameter."""
        self.loop.generator.manual_seed(0)
        self.loop.optimizer.zero_grad(set_to_none=True)
        loss = self.loop.backward(self.loop.data.x, self.loop.data.y, Share(), MIDDLE, last=True)
        return [loss, *(one.grad.clone() for one in self.loop.model.parameters() if one.grad is not None)]


Costs = dict[str, float]
"""Median seconds of a step by the name of its method, and under ``"natural"`` those of a natural step."""


def costs(methods: Mapping[str, TrainingMethod], model: nn.Module, rounds: int) -> Costs:
    """Time a step of several methods on one network, its usual batch; see ``costs_of_each``."""
    return costs_of_each(methods, {"": Subject(model, BATCH)}, rounds)[""]


def costs_of_each(
    methods: Mapping[str, TrainingMethod], subjects: Mapping[str, Subject], rounds: int
) -> dict[str, Costs]:
    """Time a step of several methods on several networks, all in turn.

    MixTrain draws whether a step has its robust term: its cost here is the mean over that draw, from a step that has it
    and a natural one, rather than that of a few draws.

    Args:
        methods: by the name of their row.
        subjects: what they train, by name.
        rounds: how often each is timed.

    Returns:
        The costs by the name of the subject.
    """
    timed: dict[str, TrainingMethod] = {"natural": Natural(), **methods}
    work = {(name, row): _stepper(method, one) for name, one in subjects.items() for row, method in timed.items()}
    seconds = side_by_side(work, rounds, least=LEAST)
    return {name: {row: _mean(row, method, name, seconds) for row, method in timed.items()} for name in subjects}


def _stepper(method: TrainingMethod, subject: Subject) -> Callable[[], None]:
    always = replace(method, mixing=1.0) if isinstance(method, MixTrain) else method
    return Bench(always, subject.model, subject.batch).step


def _mean(row: str, method: TrainingMethod, subject: str, seconds: Mapping[tuple[str, str], float]) -> float:
    mixing = method.mixing if isinstance(method, MixTrain) else 1.0
    return mixing * seconds[subject, row] + (1.0 - mixing) * seconds[subject, "natural"]
