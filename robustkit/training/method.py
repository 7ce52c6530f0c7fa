"""What a training method is: a loss for a batch at a moment of training, and a weight for its robust term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol

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


Initialisation = Literal["default", "ibp"]
"""How weights are drawn: by torch's layers themselves, or small enough that intervals do not explode with depth."""


@dataclass(frozen=True)
class Share:
    """The samples of a batch that are worked on together here: every ``of``-th, from number ``part`` on.

    Processes share a batch, and so do the parts of one that is worked on bit by bit; the mean of their losses is the
    loss of the batch.
    """

    part: int = 0
    of: int = 1

    def take(self, whole: Tensor) -> Tensor:
        """Give the rows of this share."""
        return whole[self.part :: self.of]


@dataclass(frozen=True)
class Moment:
    """Where training stands when a batch comes.

    Attributes:
        ball: the ball at this step, its radius still growing.
        weight: of the robust term.
        generator: source of every draw, on the CPU; its state is saved with the checkpoint.
        step: steps taken since the start of training.
        progress: share of the target that eps has reached, in [0, 1].
        share: the part of the batch that the method is given; draws are made for the whole batch, so that they do not
            depend on who works on what.
    """

    ball: LinfBall
    weight: float
    generator: torch.Generator
    step: int
    progress: float = 1.0
    share: Share = Share()

    def uniform(self, like: Tensor) -> Tensor:
        """Draw one number in [0, 1) for every entry of the samples given, of the shape and device of ``like``."""
        whole = torch.rand((len(like) * self.share.of, *like.shape[1:]), generator=self.generator)
        return self.share.take(whole).to(like)

    def normal(self, like: Tensor) -> Tensor:
        """Draw one standard normal number for every entry of the samples given."""
        whole = torch.randn((len(like) * self.share.of, *like.shape[1:]), generator=self.generator)
        return self.share.take(whole).to(like)

    def places(self, like: Tensor) -> Tensor:
        """Give the positions in the whole batch of the samples given, shape ``(B,)``, on the CPU."""
        return self.share.take(torch.arange(len(like) * self.share.of))


class TrainingMethod(Protocol):
    """A frozen dataclass of hyper-parameters; all state of training lies in the loop and its history."""

    name: ClassVar[str]
    formula: ClassVar[str]
    """What is minimised, in one line of plain text."""

    @property
    def initialisation(self) -> Initialisation:
        """How the weights are drawn before training."""

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
