"""AutoAttack: the standard battery of four attacks that leave nothing to choose."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustkit.attacks.apgd import APGDCE, APGDDLR, APGDT
from robustkit.attacks.base import Attack, AttackResult, Task, check_counts, evaluating
from robustkit.attacks.battery import in_turn
from robustkit.attacks.fab import FAB
from robustkit.attacks.square import Square
from robustkit.threat import LinfBall

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoAttack:
    """The standard AutoAttack: APGD-CE, targeted APGD-DLR, FAB-T and Square, each on what is left.

    The parts are those of torchattacks with the published steps and queries; its own class of this name runs a tenth of
    the steps. With 3 classes the targeted DLR loss is not defined and the untargeted one takes its place; with 2
    neither is, and APGD-CE, FAB-T and Square remain. A results table says which part broke a sample.

    Attributes:
        steps: of APGD-CE, APGD-T and FAB-T; 100 is the standard.
        n_queries: of Square; 5,000 is the standard.
        seed: of all draws.

    Source: Croce & Hein 2020, arXiv 2003.01690, version "standard" of the authors' code. Deviations: points of FAB-T
    outside the ball are projected, not dropped; draws depend on the seed and the sample, where the authors' seed is the
    clock.
    """

    name: ClassVar[str] = "autoattack"
    steps: int = 100
    n_queries: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "steps", "n_queries")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        with evaluating(model), torch.no_grad():
            classes = Task.begin(model, x[:1], y[:1], ball, None).logits.shape[1]
        return in_turn(self.parts(classes), model, x, y, ball, index)

    def parts(self, classes: int) -> tuple[Attack, ...]:
        """Give what it is made of for a model of so many classes, at least 2; the log says what fewer than 4 lack."""
        if classes < 4:
            _say_what_is_left_out(classes)
        second: dict[int, tuple[Attack, ...]] = {2: (), 3: (APGDDLR(self.steps, seed=self.seed),)}
        return (
            APGDCE(self.steps, seed=self.seed),
            *second.get(classes, (APGDT(self.steps, seed=self.seed),)),
            FAB(self.steps, seed=self.seed),
            Square(self.n_queries, seed=self.seed),
        )


@functools.cache
def _say_what_is_left_out(classes: int) -> None:
    """Warn once: a model of few classes is attacked by less than the standard."""
    instead = "the untargeted one takes its place" if classes == 3 else "APGD-CE, FAB-T and Square remain"
    log.warning("autoattack on %d classes: the targeted DLR loss needs 4, so %s", classes, instead)
