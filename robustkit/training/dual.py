"""Provable training by the dual bound of the linear relaxation, on every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundMethod
from robustkit.margins import robust_loss
from robustkit.training.method import Initialisation, Moment, Trainee
from robustkit.training.schedules import EpochMetrics, EpsRamp


@dataclass(frozen=True)
class Dual:
    """Minimise the robust loss by Wong & Kolter's dual bound, computed as symbolic bounds with parallel lines.

    The same number as their dual network, and as dear: a backward pass for every class and every unstable neuron of
    every sample. Deviation: intervals say first which neurons are stable, which is sound and a few percent looser.

    Source: Wong & Kolter 2018, arXiv 1711.00851, Sec. 3 and Theorem 2.
    """

    name: ClassVar[str] = "dual"
    formula: ClassVar[str] = "CE(-margins), margins by symbolic bounds of the whole batch"
    initialisation: ClassVar[Initialisation] = "default"

    @property
    def validation_bound(self) -> BoundMethod | None:
        """Symbolic bounds, which it trains."""
        return BoundMethod.SYMBOLIC

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give one: the robust loss is all there is."""
        return 1.0

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the robust loss, or the natural loss while eps is zero."""
        natural = functional.cross_entropy(trainee.bounds(x), y)  # sets the statistics that batch norm bounds with
        if moment.ball.eps == 0.0:
            return natural
        margins = trainee.bounds.lower_margins(x, y, moment.ball, BoundMethod.SYMBOLIC, intervals_first=True)
        return robust_loss(margins, y)
