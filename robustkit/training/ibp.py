"""Training by interval bound propagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundMethod
from robustkit.errors import UsageError
from robustkit.margins import robust_loss
from robustkit.training.method import Initialisation, Moment, Trainee
from robustkit.training.schedules import EpochMetrics, EpsRamp


@dataclass(frozen=True)
class IBP:
    """Minimise ``kappa * CE + (1 - kappa) * robust loss``, the margins bounded by intervals.

    ``kappa`` falls from 1 as eps grows. The last layer is merged with the margin matrix.

    Attributes:
        kappa_end: kappa once eps has reached its target, in [0, 1].

    Source: Gowal et al. 2018, arXiv 1810.12715, Sec. 3.
    """

    name: ClassVar[str] = "ibp"
    formula: ClassVar[str] = "kappa * CE(f(x), y) + (1 - kappa) * CE(-margins), margins by intervals"
    initialisation: ClassVar[Initialisation] = "default"
    kappa_end: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.kappa_end <= 1.0:
            raise UsageError(f"expected kappa_end in [0, 1], got {self.kappa_end}")

    @property
    def validation_bound(self) -> BoundMethod | None:
        """Interval bounds, which it trains."""
        return BoundMethod.IBP

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give ``1 - kappa``."""
        return (1.0 - self.kappa_end) * ramp.progress(time)

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the mixture of the natural and the robust loss."""
        natural = functional.cross_entropy(trainee.bounds(x), y)
        if moment.weight == 0.0:
            return natural
        margins = trainee.bounds.lower_margins(x, y, moment.ball, BoundMethod.IBP)
        return (1.0 - moment.weight) * natural + moment.weight * robust_loss(margins, y)
