"""Natural training: cross-entropy and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundMethod
from robustkit.training.method import Initialisation, Moment, Trainee
from robustkit.training.schedules import EpochMetrics, EpsRamp


@dataclass(frozen=True)
class Natural:
    """Minimise the cross-entropy of the clean samples.

    Source: the negative log-likelihood of any textbook; it is what robust training is compared with.
    """

    name: ClassVar[str] = "natural"
    formula: ClassVar[str] = "CE(f(x), y)"
    initialisation: ClassVar[Initialisation] = "default"

    @property
    def validation_bound(self) -> BoundMethod | None:
        """None: a naturally trained network verifies next to nothing."""
        return None

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give zero: there is no robust term."""
        return 0.0

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the cross-entropy of the batch."""
        logits: Tensor = trainee.model(x)
        return functional.cross_entropy(logits, y)
