"""How eps, the learning rate and the weight of the robust term change over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict


class EpochMetrics(TypedDict):
    """What is known of one finished epoch; a figure that was not measured is NaN."""

    epoch: int
    eps: float
    weight: float
    lr: float
    loss: float
    val_clean: float
    val_vra: float
    val_classes: float
    seconds: float


SMOOTH_SHARE, SMOOTH_POWER = 0.25, 4
"""The smooth ramp: the share of it that grows as a power, and the power."""


@dataclass(frozen=True)
class EpsRamp:
    """Growth of eps, and how far training has come in it.

    Attributes:
        target: the radius to end at, in pixel units.
        start: epoch at which it leaves zero; fractional.
        end: epoch at which it reaches the target; fractional.
        shape: ``"linear"``; or ``"smooth"``: for the first quarter as the fourth power of time, then linear, without a
            bend between.

    Source: Shi et al. 2021, arXiv 2103.17268, for the smooth shape.
    """

    target: float
    start: float
    end: float
    shape: Literal["linear", "smooth"] = "linear"

    def progress(self, time: float) -> float:
        """Give the share of the target reached at an epoch, in [0, 1]; ``time`` counts epochs and may be fractional."""
        if time >= self.end:
            return 1.0
        if time <= self.start:
            return 0.0
        passed = (time - self.start) / (self.end - self.start)
        return passed if self.shape == "linear" else _smooth(passed)

    def eps(self, time: float) -> float:
        """Give the radius at an epoch."""
        return self.target * self.progress(time)


def _smooth(passed: float) -> float:
    bend, power = SMOOTH_SHARE, SMOOTH_POWER
    slope = power * bend ** (power - 1)
    scale = 1.0 / (bend**power + slope * (1.0 - bend))
    return scale * (passed**power if passed < bend else bend**power + slope * (passed - bend))


LrSchedule = Literal["cosine", "constant", "milestones", "accelat"]


@dataclass(frozen=True)
class LearningRate:
    """The learning rate at every moment of training.

    Attributes:
        peak: the rate that schedules start from.
        schedule: ``"cosine"`` to zero at the end; ``"constant"``; ``"milestones"``: times ``factor`` at each;
            ``"accelat"``: see ``accelat``.
        epochs: length of training.
        warmup: epochs over which it grows linearly from zero; fractional.
        milestones: epochs; fractional.
        factor: at each milestone.
    """

    peak: float
    schedule: LrSchedule
    epochs: int
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.2

    def at(self, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give the rate at an epoch, fractional, after the finished ones of ``history``."""
        rate = self.peak * min(1.0, time / self.warmup) if self.warmup else self.peak
        if self.schedule == "cosine":
            return rate * 0.5 * (1.0 + math.cos(math.pi * time / self.epochs))
        if self.schedule == "milestones":
            return rate * math.prod(self.factor for one in self.milestones if time >= one)
        return accelat(rate, history) if self.schedule == "accelat" else rate


ACCELAT_WINDOW, ACCELAT_RISE, ACCELAT_WAIT, ACCELAT_FACTOR, ACCELAT_FLOOR = 5, 0.005, 5, 0.8, 1e-6


def accelat(rate: float, history: Sequence[EpochMetrics]) -> float:
    """Cut the rate whenever validation accuracy has stopped rising: AccelAT's rule.

    The mean of the last five accuracies is followed; where it rises by less than 0.005 from one epoch to the next, and
    five epochs have passed since the last cut, the rate becomes 0.8 of itself, but not less than 1e-6.

    Args:
        rate: to begin with.
        history: the finished epochs.

    Returns:
        The rate of the next epoch.
    """
    accuracies = [one["val_clean"] for one in history]
    means = [
        sum(window) / len(window)
        for end in range(1, len(accuracies) + 1)
        if (window := accuracies[max(0, end - ACCELAT_WINDOW) : end])
    ]
    last_cut = 0
    for epoch in range(1, len(means)):
        if means[epoch] - means[epoch - 1] < ACCELAT_RISE and epoch - last_cut >= ACCELAT_WAIT:
            rate, last_cut = max(ACCELAT_FLOOR, rate * ACCELAT_FACTOR), epoch
    return rate


def published_weight(epoch: int, ramp_end: float) -> float:
    """Give MixTrain's weight of the robust loss: 0.1 while eps grows, then times 2.5 every five epochs, at most 50.

    Source: the public loop by a co-author of arXiv 1811.02625 (hydra, ``trainer/mixtrain.py``).
    """
    exponent = max(epoch - math.ceil(ramp_end), 0) // 5
    return min(50.0, 0.1 * 2.5 ** min(exponent, 10))


def adaptive_weight(
    history: Sequence[EpochMetrics], *, initial: float, floor: float, gain: float, low: float, high: float
) -> float:
    """Balance accuracy against verified accuracy by what each still has to gain (our own design).

    At clean accuracy ``a`` and verified accuracy ``v`` on the validation split, verification can gain at most ``a - v``
    and accuracy at most ``1 - a``. The weight grows by ``exp(gain * ((a - v) - (1 - a)))`` after each epoch, and is
    halved instead whenever ``a`` is below the floor, so that the robust term never starves clean accuracy.

    Args:
        history: the finished epochs, the weight of each among their metrics.
        initial: weight of the first epoch.
        floor: least clean validation accuracy, in [0, 1].
        gain: how fast the weight follows.
        low: least weight.
        high: greatest weight.

    Returns:
        The weight of the next epoch.
    """
    if not history:
        return initial
    last = history[-1]
    clean, verified = last["val_clean"], last["val_vra"]
    if math.isnan(clean) or math.isnan(verified):
        return last["weight"]
    factor = 0.5 if clean < floor else math.exp(gain * ((clean - verified) - (1.0 - clean)))
    return min(high, max(low, last["weight"] * factor))
