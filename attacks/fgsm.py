"""The fast gradient sign method: one step of the size of the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustkit.attacks.base import AttackResult
from robustkit.attacks.pgd import PGD
from robustkit.threat import LinfBall


@dataclass(frozen=True)
class FGSM:
    """One signed gradient step of eps: cheap, weak, and a warning of gradient masking where it beats PGD.

    Attributes:
        random_start: start from a random point of the ball rather than from the sample.
        seed: of the random start.

    Source: Goodfellow et al. 2015, arXiv 1412.6572, Sec. 4; with ``random_start`` Wong et al. 2020, arXiv 2001.03994,
    whose step is 1.25 eps where this one stays at eps.
    """

    name: ClassVar[str] = "fgsm"
    random_start: bool = False
    seed: int = 0

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        one_step = PGD(steps=1, rel_step_size=1.0, random_start=self.random_start, seed=self.seed)
        return one_step(model, x, y, ball, index)
