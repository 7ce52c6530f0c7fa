"""What a report says of a run beside its results."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MISSING = "–"
"""What stands for a figure that was not measured or does not exist."""


class Shown(Protocol):
    """Adversarial examples to show: arrays of equal length, images of shape ``(n, C, H, W)`` with pixels in [0, 1]."""

    @property
    def x(self) -> NDArray[np.float32]:
        """The samples."""

    @property
    def x_adv(self) -> NDArray[np.float32]:
        """The points that break them."""

    @property
    def y(self) -> NDArray[np.int64]:
        """True classes."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Classes predicted at ``x_adv``."""

    @property
    def eps(self) -> float:
        """Radius of the ball."""


class ShownCheck(Protocol):
    """A check of attacks to show."""

    @property
    def name(self) -> str:
        """What was checked."""

    @property
    def passed(self) -> bool:
        """Whether the number is as expected."""

    @property
    def value(self) -> float:
        """The number."""

    @property
    def expected(self) -> str:
        """What was expected of it, in words."""


@dataclass(frozen=True)
class RunFacts:
    """One run, as a report needs it.

    Attributes:
        name: of the run, as in the results table.
        training: training method; empty for a network trained elsewhere.
        train_eps: radius it was trained for; NaN where unknown.
        dataset: its name.
        model: architecture.
        seed: of its training.
        train_seconds: time of all epochs, validation not counted; NaN where unknown.
        hardware: what it was computed on, in words.
        history: one row per epoch with the columns of the training metrics; empty where trained elsewhere.
        examples: adversarial examples of one attack, if any.
        recipe: the options it was trained with, by name, all but the seed; runs of one recipe are one row of a table.
        checks: what the checks of its attacks came to.
    """

    name: str
    training: str
    train_eps: float
    dataset: str
    model: str
    seed: int
    train_seconds: float
    hardware: str
    history: pd.DataFrame
    examples: Shown | None
    recipe: Mapping[str, str] = field(default_factory=dict)
    checks: Sequence[ShownCheck] = ()

    @property
    def label(self) -> str:
        """What the run is called in tables and plots: its method, or its own name where it was trained elsewhere."""
        return NAMES.get(self.training, self.training) or self.name


NAMES: dict[str, str] = {
    "natural": "Natural",
    "fgsm-rs": "FGSM-RS",
    "pgd": "PGD training",
    "trades": "TRADES",
    "ibp": "IBP",
    "fast-ibp": "Fast-IBP",
    "crown-ibp": "CROWN-IBP",
    "dual": "Dual",
    "sabr": "SABR",
    "taps": "TAPS",
    "staps": "STAPS",
    "mtl-ibp": "MTL-IBP",
    "cc-ibp": "CC-IBP",
    "exp-ibp": "Exp-IBP",
    "mixtrain": "MixTrain",
}
"""How training methods are written in print."""


def labels(runs: Sequence[RunFacts]) -> dict[str, str]:
    """Name what each run is called among others: its label, and where that would stand for several recipes, the options
    in which they differ.

    Args:
        runs: of one dataset and architecture.

    Returns:
        Name of the run to what it is called.
    """
    called = {}
    for run in runs:
        namesakes = [one for one in runs if (one.label, repr(one.train_eps)) == (run.label, repr(run.train_eps))]
        options = sorted({name for one in namesakes for name in one.recipe})
        differing = [name for name in options if len({one.recipe.get(name) for one in namesakes}) > 1]
        told = [f"{name}={run.recipe[name]}" for name in differing if name in run.recipe]
        called[run.name] = ", ".join([run.label, *told])
    return called


def recipes(runs: Sequence[RunFacts]) -> list[tuple[str, list[RunFacts]]]:
    """Group the runs that differ only by seed.

    Args:
        runs: of any datasets and architectures.

    Returns:
        What each group is called, and its runs by seed. Methods keep the order in which they first come, and the groups
        of one method rise by the options that tell them apart.
    """
    kinds: dict[tuple[str, str], list[RunFacts]] = {}
    for run in runs:
        kinds.setdefault((run.dataset, run.model), []).append(run)
    found = []
    for members in kinds.values():
        called, methods = labels(members), list(dict.fromkeys(run.label for run in members))
        groups: dict[tuple[str, str], list[RunFacts]] = {}
        for run in members:
            groups.setdefault((called[run.name], repr(run.train_eps)), []).append(run)
        ordered = sorted(groups.items(), key=lambda group: (methods.index(group[1][0].label), *map(_natural, group[0])))
        found += [(label, sorted(group, key=lambda run: run.seed)) for (label, _), group in ordered]
    return found


def _natural(text: str) -> list[tuple[float, str]]:
    """Sort numbers in a text by their value."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(float(part), "") if place % 2 else (-math.inf, part) for place, part in enumerate(parts)]


def eps_text(eps: float) -> str:
    """Write a radius as the field does: ``0.3``, or ``8/255`` for whole grey levels; NaN as a dash."""
    if math.isnan(eps):
        return MISSING
    levels = eps * 255
    if eps and abs(levels - round(levels)) < 1e-6 and abs(eps * 100 - round(eps * 100)) > 1e-9:
        return f"{round(levels)}/255"
    return f"{eps:.4g}"
