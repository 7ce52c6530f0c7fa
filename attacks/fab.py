"""The fast adaptive boundary attack: look for the nearest misclassified point rather than for the worst of a ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from robustkit.attacks.apgd import towards_each
from robustkit.attacks.base import AttackResult, check_counts
from robustkit.attacks.torch_attacks import session
from robustkit.threat import LinfBall


@dataclass(frozen=True)
class FAB:
    """Step to the linearised boundary with one wrong class after the other, and back towards the sample.

    The third part of the standard AutoAttack, its FAB-T. Each class is tried only on samples that still stand. What
    lies outside the ball is projected into it and judged there.

    Attributes:
        steps: steps of each restart.
        targets: wrong classes to try, those of the greatest logits first; where not given all, but at most 9.
        restarts: for each class; the first starts from the sample, the others from random points.
        seed: of the random starts.

    Source: Croce & Hein 2020, arXiv 1907.02044, in the targeted form of arXiv 2003.01690, as torchattacks computes it;
    100 steps and 9 classes is the standard. Deviation: points outside the ball are projected, not dropped.
    """

    name: ClassVar[str] = "fab"
    steps: int = 100
    targets: int | None = None
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "steps", "restarts", "targets")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``.

        Raises:
            UsageError: the model has fewer wrong classes than asked for.
        """
        with session(model, x, y, ball, index, seed=self.seed) as attacked:
            settings = {"eps": ball.eps, "steps": self.steps, "multi_targeted": True}
            return towards_each(attacked, "FAB", settings, self.targets, self.restarts, _points)


def _points(engine: Any, x: Tensor, y: Tensor, restart: int) -> Sequence[Tensor]:
    """Run it once towards the class that is set; give the nearest misclassified points."""
    return (engine.attack_single_run_targeted(x, y, use_rand_start=restart > 0),)
