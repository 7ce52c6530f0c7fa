"""Adversarial training by a single step from a random start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.attacks.base import evaluating
from robustkit.bounds import BoundMethod
from robustkit.errors import UsageError
from robustkit.training.method import Initialisation, Moment, Trainee
from robustkit.training.schedules import EpochMetrics, EpsRamp


@dataclass(frozen=True)
class FGSMRS:
    """Minimise the cross-entropy one gradient step away from a uniform point of the ball, in eval mode.

    Two passes a step instead of PGD's many. It can overfit to the single step ("catastrophic overfitting"): accuracy
    against PGD then falls to zero within an epoch; compare with ``robustkit attack``.

    Attributes:
        rel_step_size: step as a fraction of eps; above 1, for the start lies anywhere in the ball.

    Source: Wong, Rice & Kolter 2020, arXiv 2001.03994, Sec. 4.1.
    """

    name: ClassVar[str] = "fgsm-rs"
    formula: ClassVar[str] = "CE(f(x'), y), x' one step of rel_step_size * eps from a uniform point of the ball"
    initialisation: ClassVar[Initialisation] = "default"
    rel_step_size: float = 1.25

    def __post_init__(self) -> None:
        if not self.rel_step_size > 0:
            raise UsageError(f"expected rel_step_size above 0, got {self.rel_step_size}")

    @property
    def validation_bound(self) -> BoundMethod | None:
        """None: adversarial training leaves next to nothing for a cheap bound to prove."""
        return None

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give one: the adversarial loss is all there is."""
        return 1.0

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the cross-entropy of the adversarial batch."""
        if moment.ball.eps > 0.0:
            x = self._step(trainee, x, y, moment)
        logits: Tensor = trainee.model(x)
        return functional.cross_entropy(logits, y)

    def _step(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        ball = moment.ball
        noise = moment.uniform(x)
        with evaluating(trainee.model):
            start = ball.project(x + (2.0 * noise - 1.0) * ball.eps, x).requires_grad_()
            loss = functional.cross_entropy(trainee.model(start), y)
            gradient = torch.autograd.grad(loss, start)[0]
            return ball.project(start.detach() + self.rel_step_size * ball.eps * gradient.sign(), x)
