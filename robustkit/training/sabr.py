"""Interval training on a small box around an attacked point: SABR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundMethod
from robustkit.errors import UsageError
from robustkit.margins import robust_loss
from robustkit.threat import LinfBall
from robustkit.training.adversarial import attacked
from robustkit.training.method import Moment, Trainee
from robustkit.training.regularisers import Start, bounded_margins, check_regularisation, penalty_at_zero
from robustkit.training.schedules import EpochMetrics, EpsRamp


@dataclass(frozen=True)
class SABR:
    """Minimise the robust loss by intervals over a box of ``subselection * eps`` near the point that PGD finds.

    The point is first moved so that its box lies within the ball. Most of the ball is in no box: the loss is no bound,
    and only evaluation says what was gained. While eps grows, the regularisers of ``fast-ibp`` are added, those of the
    small box; over a share of a batch they are those of the share. Deviation: the attack's step size is constant.

    Attributes:
        subselection: the box's radius as a fraction of eps, in (0, 1]; 0.4 for MNIST at 0.1, 0.6 at 0.3, 0.1 for
            CIFAR-10 at 2/255, 0.7 at 8/255.
        steps: gradient steps of the attack.
        rel_step_size: step as a fraction of eps.
        regularisation: weight of the regularisers at the start; it falls to zero as eps reaches its target.
        initialisation: how the weights are drawn: ``"ibp"`` as for ``fast-ibp``, or ``"default"``.

    Source: Mueller et al. 2023, arXiv 2210.04871, Sec. 3.
    """

    name: ClassVar[str] = "sabr"
    formula: ClassVar[str] = "CE(-margins) by intervals over a box of subselection * eps around x' by PGD"
    subselection: float = 0.4
    steps: int = 8
    rel_step_size: float = 0.5
    regularisation: float = 0.5
    initialisation: Start = "ibp"

    def __post_init__(self) -> None:
        if not 0.0 < self.subselection <= 1.0:
            raise UsageError(f"expected subselection in (0, 1], got {self.subselection}")
        if self.steps < 1:
            raise UsageError(f"expected steps of at least 1, got {self.steps}")
        if not self.rel_step_size > 0:
            raise UsageError(f"expected rel_step_size above 0, got {self.rel_step_size}")
        check_regularisation(self.regularisation)

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
            return natural + penalty_at_zero(trainee, x, y, moment, regularisation=self.regularisation)
        box = small_boxes(
            trainee, x, y, moment, subselection=self.subselection, steps=self.steps, rel_step_size=self.rel_step_size
        )
        margins, penalty = bounded_margins(trainee, box, y, moment, regularisation=self.regularisation)
        return robust_loss(margins, y) + penalty


def small_boxes(
    trainee: Trainee, x: Tensor, y: Tensor, moment: Moment, *, subselection: float, steps: int, rel_step_size: float
) -> tuple[Tensor, Tensor]:
    """Give a small box around the point that PGD finds, moved so that it lies within the ball.

    Args:
        trainee: the network.
        x: inputs, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        moment: holds the ball, and the source of the attack's draw.
        subselection: the box's radius as a fraction of eps, in (0, 1].
        steps: gradient steps of the attack.
        rel_step_size: step as a fraction of eps.

    Returns:
        The corners, each of the shape of ``x``.

    Source: Mueller et al. 2023, arXiv 2210.04871, Sec. 3.
    """
    ball = moment.ball
    x_adv = attacked(trainee.model, x, y, ball, moment, steps=steps, rel_step_size=rel_step_size)
    radius = subselection * ball.eps
    inner, small = (LinfBall(one, ball.lower, ball.upper) for one in (ball.eps - radius, radius))
    return small.box(inner.project(x_adv, x))
