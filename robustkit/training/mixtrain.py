"""MixTrain: sound bounds on a few samples of each batch, mixed with natural training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundMethod
from robustkit.errors import UsageError
from robustkit.margins import robust_loss
from robustkit.training.method import Initialisation, Moment, Trainee
from robustkit.training.schedules import EpochMetrics, EpsRamp, adaptive_weight, published_weight


@dataclass(frozen=True)
class MixTrain:
    """Stochastic robust approximation with dynamic mixed training.

    Each step is natural on the whole batch; with probability ``mixing`` it adds ``weight`` times the robust loss of
    ``k`` samples drawn from the batch with replacement. How the paper itself drives the weight was not found: the
    published schedule is that of a co-author's public loop, the adaptive controller is our own design.

    Attributes:
        k: samples of each batch that are bounded; 5 for small networks, 1 for large ones.
        mixing: probability that a step has a robust term, in [0, 1].
        bound: how the samples are bounded: ``"symbolic"`` as published, or ``"ibp"``, ``"crown-ibp"``, ``"crown"``.
        schedule: ``"published"`` or ``"adaptive"``.
        initial_weight: adaptive: weight of the first epoch.
        clean_floor: adaptive: validation accuracy below which the weight is halved, in [0, 1].
        gain: adaptive: how fast the weight follows.
        min_weight: adaptive: least weight.
        max_weight: adaptive: greatest weight.

    Source: Wang et al. 2018, arXiv 1811.02625, Sec. 4; step and schedule as in the public loop by a co-author.
    """

    name: ClassVar[str] = "mixtrain"
    formula: ClassVar[str] = "CE(f(x), y) + weight * CE(-margins) of k samples, margins by symbolic bounds"
    initialisation: ClassVar[Initialisation] = "default"
    k: int = 5
    mixing: float = 0.8
    bound: Literal["symbolic", "ibp", "crown-ibp", "crown"] = "symbolic"
    schedule: Literal["published", "adaptive"] = "published"
    initial_weight: float = 0.5
    clean_floor: float = 0.9
    gain: float = 0.5
    min_weight: float = 0.1
    max_weight: float = 50.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"expected k of at least 1, got {self.k}")
        if not 0.0 <= self.mixing <= 1.0:
            raise UsageError(f"expected mixing in [0, 1], got {self.mixing}")
        if not 0.0 <= self.clean_floor <= 1.0:
            raise UsageError(f"expected clean_floor in [0, 1], got {self.clean_floor}")
        if not self.gain >= 0.0:
            raise UsageError(f"expected gain of at least 0, got {self.gain}")
        if not 0.0 <= self.min_weight <= self.initial_weight <= self.max_weight:
            raise UsageError(
                "expected 0 <= min_weight <= initial_weight <= max_weight, "
                f"got {self.min_weight}, {self.initial_weight}, {self.max_weight}"
            )

    @property
    def validation_bound(self) -> BoundMethod | None:
        """The bound it trains."""
        return BoundMethod(self.bound)

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give the weight of the epoch that ``time`` lies in."""
        if self.schedule == "published":
            return published_weight(int(time), ramp.end)
        return adaptive_weight(
            history,
            initial=self.initial_weight,
            floor=self.clean_floor,
            gain=self.gain,
            low=self.min_weight,
            high=self.max_weight,
        )

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the natural loss of the batch, and most of the time the robust loss of a few samples with it.

        Raises:
            UsageError: ``k`` is larger than the batch.
        """
        batch, share = len(y) * moment.share.of, moment.share
        if self.k > batch:
            raise UsageError(
                f"expected train.options.mixtrain.k at most the batch of {batch}, got {self.k}; "
                "lower it or raise train.batch_size"
            )
        if torch.rand((), generator=moment.generator).item() >= self.mixing:
            logits: Tensor = trainee.model(x)
            return functional.cross_entropy(logits, y)
        drawn = torch.randint(batch, (self.k,), generator=moment.generator)
        few = (drawn[drawn % share.of == share.part] // share.of).to(y.device)
        natural = functional.cross_entropy(trainee.bounds(x), y)  # batch norm bounds with this batch's statistics
        if not len(few):
            return natural
        bound = BoundMethod(self.bound)
        margins = trainee.bounds.lower_margins(x[few], y[few], moment.ball, bound, intervals_first=True)
        robust = robust_loss(margins, y[few]) * (len(few) * share.of / self.k)
        return natural + moment.weight * robust
