"""Training: one loop, and one file for each method it can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from robustkit.config import build
from robustkit.errors import UsageError, unknown_name
from robustkit.training.adversarial import PGDTraining
from robustkit.training.crown_ibp import CrownIBP
from robustkit.training.dual import Dual
from robustkit.training.expressive import CCIBP, MTLIBP, ExpIBP
from robustkit.training.fast import FastIBP
from robustkit.training.fgsm import FGSMRS
from robustkit.training.ibp import IBP
from robustkit.training.loop import STATE_FILE, train
from robustkit.training.method import Moment, Trainee, TrainingMethod
from robustkit.training.mixtrain import MixTrain
from robustkit.training.natural import Natural
from robustkit.training.sabr import SABR
from robustkit.training.schedules import EpochMetrics, EpsRamp
from robustkit.training.taps import STAPS, TAPS
from robustkit.training.trades import TRADES

__all__ = [
    "METHODS",
    "STATE_FILE",
    "EpochMetrics",
    "EpsRamp",
    "Moment",
    "Trainee",
    "TrainingMethod",
    "make_method",
    "train",
]

METHODS: dict[str, type[TrainingMethod]] = {
    one.name: one
    for one in (
        Natural,
        FGSMRS,
        PGDTraining,
        TRADES,
        IBP,
        FastIBP,
        CrownIBP,
        Dual,
        SABR,
        TAPS,
        STAPS,
        MTLIBP,
        CCIBP,
        ExpIBP,
        MixTrain,
    )
}
"""Every training method by name."""


def make_method(name: str, options: Mapping[str, Any] | None = None) -> TrainingMethod:
    """Make a training method by name.

    Args:
        name: one of ``METHODS``.
        options: its hyper-parameters.

    Returns:
        The method.

    Raises:
        UsageError: an unknown name or option; the nearest are offered, and the methods that have such an option.
    """
    if name not in METHODS:
        raise unknown_name("training method", name, METHODS)
    for option in options or {}:
        owners = [other for other, kind in METHODS.items() if option in _option_names(kind)]
        if owners and name not in owners:
            raise UsageError(
                f"unknown option of train.options.{name} {option!r}: it is an option of {', '.join(owners)}; "
                f"see `robustkit methods {name}` for those of {name}"
            )
    return build(METHODS[name], options or {}, f"train.options.{name}")


def _option_names(kind: type[TrainingMethod]) -> list[str]:
    return [one.name for one in fields(cast(Any, kind)) if one.init]
