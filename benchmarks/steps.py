"""A training step as the training loop takes it, again and again from the same weights and with the same draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

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
from robustkit.training.parallel import ALONE

BATCH = 50
LEAST = 0.1
"""Seconds that a timing lasts at least: short steps are repeated for so long."""

MIDDLE = 1.0
"""The moment, in epochs: eps has come half of its way, so that what falls or grows with it counts."""


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
        loss = self.loop.backward(self.chosen.to(self.loop.device), Share(), MIDDLE, last=True)
        return [loss, *(one.grad.clone() for one in self.loop.model.parameters() if one.grad is not None)]


def costs(methods: Mapping[str, TrainingMethod], model: nn.Module, rounds: int, batch: int) -> dict[str, float]:
    """Time a step of several methods on the same network and samples.

    MixTrain draws whether a step has its robust term: its cost here is the mean over that draw, from a step that has it
    and a natural one, rather than that of a few draws.

    Args:
        methods: by the name of their row.
        model: the network, on its device.
        rounds: how often each is timed.
        batch: samples a step.

    Returns:
        Median seconds of a step by name, and under ``"natural"`` that of a natural one.
    """
    timed: dict[str, TrainingMethod] = {"natural": Natural(), **methods}
    seconds = side_by_side({name: _stepper(one, model, batch) for name, one in timed.items()}, rounds, least=LEAST)
    for name, one in timed.items():
        if isinstance(one, MixTrain):
            seconds[name] = one.mixing * seconds[name] + (1.0 - one.mixing) * seconds["natural"]
    return seconds


def _stepper(method: TrainingMethod, model: nn.Module, batch: int) -> Callable[[], None]:
    return Bench(replace(method, mixing=1.0) if isinstance(method, MixTrain) else method, model, batch).step
