"""Interval training on a small box around an attacked point: SABR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundMethod
from robustkit.errors import UsageError
from robustkit.margins import margin_specification, robust_loss
from robustkit.threat import LinfBall
from robustkit.training.adversarial import attacked
from robustkit.training.method import Initialisation, Moment, Trainee
from robustkit.training.schedules import EpochMetrics, EpsRamp


@dataclass(frozen=True)
class SABR:
    """Minimise the robust loss by intervals over a box of ``subselection * eps`` near the point that PGD finds.

    The point is first moved so that its box lies within the ball. Most of the ball is in no box: the loss is no bound,
    and only evaluation says what was gained. Deviation: the attack's step size is constant.

    Attributes:
        subselection: the box's radius as a fraction of eps, in (0, 1]; 0.4 for MNIST at 0.1, 0.6 at 0.3, 0.1 for
            CIFAR-10 at 2/255, 0.7 at 8/255.
        steps: gradient steps of the attack.
        rel_step_size: step as a fraction of eps.

    Source: Mueller et al. 2023, arXiv 2210.04871, Sec. 3.
    """

    name: ClassVar[str] = "sabr"
    formula: ClassVar[str] = "CE(-margins) by intervals over a box of subselection * eps around x' by PGD"
    initialisation: ClassVar[Initialisation] = "default"
    subselection: float = 0.4
    steps: int = 8
    rel_step_size: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.subselection <= 1.0:
            raise UsageError(f"expected subselection in (0, 1], got {self.subselection}")
        if self.steps < 1:
            raise UsageError(f"expected steps of at least 1, got {self.steps}")
        if not self.rel_step_size > 0:
            raise UsageError(f"expected rel_step_size above 0, got {self.rel_step_size}")

    @property
    def validation_bound(self) -> BoundMethod | None:
        """Interval bounds of the whole ball; tighter bounds prove more."""
        return BoundMethod.IBP

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give one: the loss over the small box is all there is."""
        return 1.0

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the robust loss over the small boxes, or the natural loss while eps is zero."""
        natural = functional.cross_entropy(trainee.bounds(x), y)  # sets the statistics that batch norm bounds with
        if moment.ball.eps == 0.0:
            return natural
        lb, ub = self.boxes(trainee, x, y, moment)
        specification = margin_specification(y, trainee.bounds.classes)
        margins, _ = trainee.bounds.output_bounds(lb, ub, specification, BoundMethod.IBP, upper=False)
        return robust_loss(margins, y)

    def boxes(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Give the corners of the small box of each sample, of the shape of ``x``."""
        ball = moment.ball
        x_adv = attacked(trainee.model, x, y, ball, moment, steps=self.steps, rel_step_size=self.rel_step_size)
        radius = self.subselection * ball.eps
        inner, small = (LinfBall(one, ball.lower, ball.upper) for one in (ball.eps - radius, radius))
        return small.box(inner.project(x_adv, x))
