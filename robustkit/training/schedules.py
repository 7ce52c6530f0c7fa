"""How eps grows over training, and how the weight of the robust term does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict


class EpochMetrics(TypedDict):
    """What is known of one finished epoch; a fraction that was not measured is NaN."""

    epoch: int
    eps: float
    weight: float
    lr: float
    loss: float
    val_clean: float
    val_vra: float
    seconds: float


@dataclass(frozen=True)
class EpsRamp:
    """Linear growth of eps, and how far training has come in it.

    Attributes:
        target: the radius to end at, in pixel units.
        start: epoch at which it leaves zero; fractional.
        end: epoch at which it reaches the target; fractional.
    """

    target: float
    start: float
    end: float

    def progress(self, time: float) -> float:
        """Give the share of the target reached at an epoch, in [0, 1]; ``time`` counts epochs and may be fractional."""
        if time >= self.end:
            return 1.0
        if time <= self.start:
            return 0.0
        return (time - self.start) / (self.end - self.start)

    def eps(self, time: float) -> float:
        """Give the radius at an epoch."""
        return self.target * self.progress(time)


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
