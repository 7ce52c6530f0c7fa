"""What a training method is: a loss for a batch at a moment of training, and a weight for its robust term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.threat import LinfBall
from robustkit.training.schedules import EpochMetrics, EpsRamp


class Trainee:
    """The network in training, and its bounds once a method asks for them."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        self._example = example

    @cached_property
    def bounds(self) -> BoundedNetwork:
        """The same network prepared for bound propagation; it shares the parameters."""
        return BoundedNetwork(self.model, self._example)


@dataclass(frozen=True)
class Moment:
    """Where training stands when a batch comes.

    Attributes:
        ball: the ball at this step, its radius still growing.
        weight: of the robust term.
        generator: source of every draw, on the CPU; its state is saved with the checkpoint.
        step: steps taken since the start of training.
    """

    ball: LinfBall
    weight: float
    generator: torch.Generator
    step: int


class TrainingMethod(Protocol):
    """A frozen dataclass of hyper-parameters; all state of training lies in the loop and its history."""

    name: ClassVar[str]

    @property
    def validation_bound(self) -> BoundMethod | None:
        """The bound that measures verified accuracy after each epoch; none where that would be zero throughout."""

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give the weight of the robust term.

        Args:
            ramp: how eps grows.
            time: epochs since the start, fractional.
            history: metrics of the finished epochs.
        """

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the loss to minimise.

        Args:
            trainee: the network, in train mode.
            x: inputs, shape ``(B, C, H, W)``, in the pixel range.
            y: labels, shape ``(B,)``.
            moment: where training stands.

        Returns:
            A scalar.
        """
