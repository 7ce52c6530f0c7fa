"""Attacks that torchattacks computes under a name of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustkit.attacks.base import AttackResult, check_counts, check_setting
from robustkit.attacks.torch_attacks import call, session
from robustkit.threat import LinfBall


@dataclass(frozen=True)
class TorchAttacksPGD:
    """PGD of the torchattacks library, to hold our own against.

    The library gives its last point unchecked: it is projected into the ball and predicted again, and the sample itself
    comes back where that is no worse. It runs every step for all samples.

    Attributes:
        steps: gradient steps.
        rel_step_size: step as a fraction of eps.
        random_start: start from a random point of the ball rather than from the sample.
        seed: of the random start.

    Source: Kim 2020, arXiv 2010.01950; Madry et al. 2018, arXiv 1706.06083.
    """

    name: ClassVar[str] = "torchattacks-pgd"
    steps: int = 40
    rel_step_size: float = 1 / 30
    random_start: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "steps")
        check_setting(self.rel_step_size > 0, "rel_step_size", "above 0", self.rel_step_size)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        settings = {
            "eps": ball.eps,
            "alpha": self.rel_step_size * ball.eps,
            "steps": self.steps,
            "random_start": self.random_start,
        }
        with session(model, x, y, ball, index, seed=self.seed) as attacked:
            attacked.run("PGD", call, settings)
            return attacked.result()


@dataclass(frozen=True)
class MIFGSM:
    """Signed steps along a running sum of gradients, each scaled to mean size 1: momentum carries over flat places.

    Attributes:
        steps: gradient steps.
        rel_step_size: step as a fraction of eps; eps/steps where it is not given, as published.
        decay: share of the sum that stays at each step, at least 0.
        seed: of nothing: it draws nothing.

    Source: Dong et al. 2018, arXiv 1710.06081, with its 10 steps and decay 1, as torchattacks computes it. Deviation:
    the last point is judged, and the sample itself comes back where that is no worse.
    """

    name: ClassVar[str] = "mi-fgsm"
    steps: int = 10
    rel_step_size: float | None = None
    decay: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "steps")
        given = self.rel_step_size is not None
        check_setting(not given or self._share > 0, "rel_step_size", "above 0", self.rel_step_size)
        check_setting(self.decay >= 0, "decay", "of at least 0", self.decay)

    @property
    def _share(self) -> float:
        return 1 / self.steps if self.rel_step_size is None else self.rel_step_size

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        settings = {"eps": ball.eps, "alpha": self._share * ball.eps, "steps": self.steps, "decay": self.decay}
        with session(model, x, y, ball, index, seed=self.seed) as attacked:
            attacked.run("MIFGSM", call, settings)
            return attacked.result()
