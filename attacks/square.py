"""The square attack: random search by predictions alone, so that a masked gradient does not stop it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from robustkit.attacks.base import AttackResult, check_counts, check_setting
from robustkit.attacks.torch_attacks import session
from robustkit.threat import LinfBall


@dataclass(frozen=True)
class Square:
    """Shift random squares of the image to a side of the ball, and keep what lowers the margin; needs no gradient.

    The last part of the standard AutoAttack. The squares of a step are the same for all samples, as in the library.
    Features in a row are taken as an image one pixel high. Restarts run only on samples that still stand.

    Attributes:
        n_queries: predictions of each restart, for a sample that stands.
        p_init: share of the pixels that the first squares cover, in (0, 1].
        restarts: random starts.
        seed: of all draws.

    Source: Andriushchenko et al. 2020, arXiv 1912.00049, as torchattacks computes it; 5,000 queries and the schedule
    not rescaled is the standard of arXiv 2003.01690.
    """

    name: ClassVar[str] = "square"
    n_queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "n_queries", "restarts")
        check_setting(0 < self.p_init <= 1, "p_init", "in (0, 1]", self.p_init)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        settings = {"eps": ball.eps, "n_queries": self.n_queries, "p_init": self.p_init, "resc_schedule": False}
        with session(model, x, y, ball, index, seed=self.seed) as attacked:
            for restart in range(self.restarts):
                attacked.run("Square", _points, settings, draw=restart)
            return attacked.result()


def _points(engine: Any, x: Tensor, y: Tensor) -> Sequence[Tensor]:
    """Run it once; give the points of least margin, broken or not."""
    engine.init_hyperparam(x)
    return (engine.attack_single_run(x, y)[1],)
