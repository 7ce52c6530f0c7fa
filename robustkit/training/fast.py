"""Interval training with a short warm-up: careful weights at the start, and regularisers while eps grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundMethod
from robustkit.errors import UsageError
from robustkit.margins import robust_loss
from robustkit.training.method import Moment, Trainee
from robustkit.training.regularisers import TOLERANCE, Start, bounded_margins, check_regularisation, penalty_at_zero
from robustkit.training.schedules import EpochMetrics, EpsRamp


@dataclass(frozen=True)
class FastIBP:
    """Minimise the robust loss by intervals; while eps grows, keep intervals tight and ReLUs balanced.

    The published recipe also wants batch norm before every ReLU, as in ``cnn7_bn``. Over a share of a batch the
    regularisers are those of the share.

    Attributes:
        regularisation: weight of the regularisers at the start, lambda_0; it falls to zero as eps reaches its target.
        tolerance: ratio from which on the regularisers punish nothing, tau, in (0, 1].
        initialisation: how the weights are drawn: ``"ibp"``, so that intervals keep their width from layer to layer, or
            ``"default"``.

    Source: Shi et al. 2021, arXiv 2103.17268.
    """

    name: ClassVar[str] = "fast-ibp"
    formula: ClassVar[str] = "CE(-margins) by intervals + regularisation * (1 - eps/target) * (L_tight + L_relu)"
    regularisation: float = 0.5
    tolerance: float = TOLERANCE
    initialisation: Start = "ibp"

    def __post_init__(self) -> None:
        check_regularisation(self.regularisation)
        if not 0.0 < self.tolerance <= 1.0:
            raise UsageError(f"expected tolerance in (0, 1], got {self.tolerance}")

    @property
    def validation_bound(self) -> BoundMethod | None:
        """Interval bounds, which it trains."""
        return BoundMethod.IBP

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give one: the robust loss is all there is."""
        return 1.0

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the robust loss, or the natural loss while eps is zero, and the regularisers."""
        natural = functional.cross_entropy(trainee.bounds(x), y)  # sets the statistics that batch norm bounds with
        weights = {"regularisation": self.regularisation, "tolerance": self.tolerance}
        if moment.ball.eps == 0.0:
            return natural + penalty_at_zero(trainee, x, y, moment, **weights)
        margins, penalty = bounded_margins(trainee, moment.ball.box(x), y, moment, **weights)
        return robust_loss(margins, y) + penalty
