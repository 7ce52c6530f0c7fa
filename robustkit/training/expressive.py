"""Convex combinations of a bound and an attack: MTL-IBP, CC-IBP and Exp-IBP."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
from robustkit.training.method import Moment, Trainee
from robustkit.training.regularisers import Start, bounded_margins, check_regularisation, penalty_at_zero
from robustkit.training.schedules import EpochMetrics, EpsRamp


@dataclass(frozen=True)
class _Expressive(ABC):
    """Between adversarial training (alpha 0) and interval bound propagation (alpha 1).

    The attack's ball follows the eps ramp; its points are judged with the batch-norm statistics of the clean batch, as
    the bounds are. While eps grows, the regularisers of ``fast-ibp`` are added, those of the ball; over a share of a
    batch they are those of the share.

    Attributes:
        alpha: share of the bound, in [0, 1]; the larger the radius, the larger.
        attack_scale: radius of the attack as a multiple of eps; 2.1 for CIFAR-10 at 2/255.
        steps: gradient steps of the attack.
        rel_step_size: step as a fraction of the attack's radius.
        regularisation: weight of the regularisers at the start; it falls to zero as eps reaches its target.
        initialisation: how the weights are drawn: ``"ibp"`` as for ``fast-ibp``, or ``"default"``.
    """

    alpha: float = 0.3
    attack_scale: float = 1.0
    steps: int = 8
    rel_step_size: float = 0.25
    regularisation: float = 0.5
    initialisation: Start = "ibp"

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"expected alpha in [0, 1], got {self.alpha}")
        if not self.attack_scale > 0:
            raise UsageError(f"expected attack_scale above 0, got {self.attack_scale}")
        if self.steps < 1:
            raise UsageError(f"expected steps of at least 1, got {self.steps}")
        if not self.rel_step_size > 0:
            raise UsageError(f"expected rel_step_size above 0, got {self.rel_step_size}")
        check_regularisation(self.regularisation)

    @property
    def validation_bound(self) -> BoundMethod | None:
        """Interval bounds, a part of what it trains; branch and bound proves far more at a small alpha."""
        return BoundMethod.IBP

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give alpha."""
        return self.alpha

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the combination, or the natural loss while eps is zero."""
        natural = functional.cross_entropy(trainee.bounds(x), y)  # sets the statistics that batch norm bounds with
        ball = moment.ball
        if ball.eps == 0.0:
            return natural + penalty_at_zero(trainee, x, y, moment, regularisation=self.regularisation)
        wide = LinfBall(min(1.0, self.attack_scale * ball.eps), ball.lower, ball.upper)
        x_adv = attacked(trainee.model, x, y, wide, moment, steps=self.steps, rel_step_size=self.rel_step_size)
        bounds = trainee.bounds
        seen, _ = bounds.output_bounds(
            x_adv, x_adv, margin_specification(y, bounds.classes), BoundMethod.IBP, upper=False
        )
        proved, penalty = bounded_margins(trainee, ball.box(x), y, moment, regularisation=self.regularisation)
        return self.combine(proved, seen, y, moment.weight) + penalty

    @abstractmethod
    def combine(self, proved: Tensor, seen: Tensor, y: Tensor, alpha: float) -> Tensor:
        """Combine the margins proved for the ball and those at the attacked points, each ``(B, K)``, into a loss."""


@dataclass(frozen=True)
class MTLIBP(_Expressive):
    """Minimise ``alpha * L_ibp + (1 - alpha) * L_adv``.

    Source: De Palma et al. 2024, arXiv 2305.13991, Sec. 4.2.
    """

    name: ClassVar[str] = "mtl-ibp"
    formula: ClassVar[str] = "alpha * CE(-margins) + (1 - alpha) * CE(f(x'), y)"

    def combine(self, proved: Tensor, seen: Tensor, y: Tensor, alpha: float) -> Tensor:
        """Add the losses."""
        return alpha * robust_loss(proved, y) + (1.0 - alpha) * robust_loss(seen, y)


@dataclass(frozen=True)
class CCIBP(_Expressive):
    """Minimise the loss of ``alpha * proved margins + (1 - alpha) * attacked margins``.

    Source: De Palma et al. 2024, arXiv 2305.13991, Sec. 4.1.
    """

    name: ClassVar[str] = "cc-ibp"
    formula: ClassVar[str] = "CE(-(alpha * margins + (1 - alpha) * margins at x'))"

    def combine(self, proved: Tensor, seen: Tensor, y: Tensor, alpha: float) -> Tensor:
        """Add the margins."""
        return robust_loss(alpha * proved + (1.0 - alpha) * seen, y)


@dataclass(frozen=True)
class ExpIBP(_Expressive):
    """Minimise ``L_ibp ** alpha * L_adv ** (1 - alpha)``.

    Source: De Palma et al. 2024, arXiv 2305.13991, Sec. 4.3.
    """

    name: ClassVar[str] = "exp-ibp"
    formula: ClassVar[str] = "CE(-margins)**alpha * CE(f(x'), y)**(1 - alpha)"

    def combine(self, proved: Tensor, seen: Tensor, y: Tensor, alpha: float) -> Tensor:
        """Multiply the powers of the losses."""
        total: Tensor = robust_loss(proved, y) ** alpha * robust_loss(seen, y) ** (1.0 - alpha)
        return total
