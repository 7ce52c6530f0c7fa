"""Auto-PGD: gradient steps that choose their own size; on cross-entropy and on the difference-of-logits ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from robustkit.attacks.base import AttackResult, check_counts
from robustkit.attacks.torch_attacks import Session, session
from robustkit.errors import UsageError
from robustkit.threat import LinfBall

MOST_TARGETS = 9
"""Wrong classes that the targeted attacks of the standard battery try."""


@dataclass(frozen=True)
class APGDCE:
    """Auto-PGD on cross-entropy, without a step size to choose.

    The first part of the standard AutoAttack. Restarts run only on samples that still stand.

    Attributes:
        steps: gradient steps of each restart.
        restarts: random starts.
        seed: of the random starts.

    Source: Croce & Hein 2020, arXiv 2003.01690, Sec. 3, as torchattacks computes it; 100 steps is the standard.
    Deviation: samples that stand come back with the point of highest loss, not unchanged.
    """

    name: ClassVar[str] = "apgd-ce"
    steps: int = 100
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "steps", "restarts")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        with session(model, x, y, ball, index, seed=self.seed) as attacked:
            return _apgd(attacked, "ce", self.steps, self.restarts)


@dataclass(frozen=True)
class APGDDLR:
    """Auto-PGD on the difference-of-logits ratio, which logits of any size do not mask.

    Attributes:
        steps: gradient steps of each restart.
        restarts: random starts.
        seed: of the random starts.

    Source: Croce & Hein 2020, arXiv 2003.01690, Sec. 4, as torchattacks computes it. Deviation: as for apgd-ce.
    """

    name: ClassVar[str] = "apgd-dlr"
    steps: int = 100
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "steps", "restarts")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``.

        Raises:
            UsageError: a model of fewer than 3 classes, for which the ratio is not defined.
        """
        with session(model, x, y, ball, index, seed=self.seed) as attacked:
            _check_classes("the DLR loss", 3, attacked.classes, "apgd-ce")
            return _apgd(attacked, "dlr", self.steps, self.restarts)


@dataclass(frozen=True)
class APGDT:
    """Auto-PGD on the targeted difference-of-logits ratio, towards one wrong class after the other.

    The second part of the standard AutoAttack. Each class is tried only on samples that still stand.

    Attributes:
        steps: gradient steps of each restart.
        targets: wrong classes to try, those of the greatest logits first; where not given all, but at most 9.
        restarts: random starts for each class.
        seed: of the random starts.

    Source: Croce & Hein 2020, arXiv 2003.01690, Sec. 4, as torchattacks computes it; 100 steps and 9 classes is the
    standard. Deviation: as for apgd-ce.
    """

    name: ClassVar[str] = "apgd-t"
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
            UsageError: a model of fewer than 4 classes, for which the ratio is not defined, or fewer than asked for.
        """
        with session(model, x, y, ball, index, seed=self.seed) as attacked:
            _check_classes("the targeted DLR loss", 4, attacked.classes, "apgd-dlr" if attacked.classes == 3 else "fab")
            settings = {"eps": ball.eps, "steps": self.steps}
            return towards_each(
                attacked, "APGDT", settings, self.targets, self.restarts, lambda engine, x, y, _: _points(engine, x, y)
            )


def towards_each(
    attacked: Session,
    name: str,
    settings: Mapping[str, Any],
    targets: int | None,
    restarts: int,
    search: Callable[[Any, Tensor, Tensor, int], Sequence[Tensor]],
) -> AttackResult:
    """Run a targeted attack of the library towards one wrong class after the other, each time on what stands.

    Args:
        attacked: what it is run for.
        name: of the library's class.
        settings: what the class is made with.
        targets: wrong classes to try, as ``target_count`` takes them.
        restarts: for each class.
        search: what to ask of the library's attack, images, labels and the number of the restart.

    Returns:
        What was found.

    Raises:
        UsageError: there are fewer wrong classes than asked for.
    """
    for target in range(target_count(targets, attacked.classes)):
        for restart in range(restarts):

            def ask(
                engine: Any, x: Tensor, y: Tensor, target: int = target, restart: int = restart
            ) -> Sequence[Tensor]:
                engine.target_class = target + 2  # counted from the greatest logit, the sample's own
                return search(engine, x, y, restart)

            attacked.run(name, ask, settings, draw=target * restarts + restart)
    return attacked.result()


def target_count(wanted: int | None, classes: int) -> int:
    """Give how many wrong classes to try.

    Args:
        wanted: as asked for.
        classes: number of classes of the model.

    Returns:
        What was asked for; otherwise all wrong classes, but at most 9.

    Raises:
        UsageError: there are fewer wrong classes than asked for.
    """
    if wanted is not None and wanted >= classes:
        raise UsageError(
            f"expected targets of at most {classes - 1} for a model of {classes} classes, got {wanted}; "
            "leave the option out to try all, but at most 9"
        )
    return min(classes - 1, MOST_TARGETS) if wanted is None else wanted


def _apgd(attacked: Session, loss: str, steps: int, restarts: int) -> AttackResult:
    settings = {"eps": attacked.ball.eps, "steps": steps, "loss": loss}
    for restart in range(restarts):
        attacked.run("APGD", _points, settings, draw=restart)
    return attacked.result()


def _points(engine: Any, x: Tensor, y: Tensor) -> Sequence[Tensor]:
    """Run it once; give the points of highest loss, and the last misclassified ones."""
    highest, _, _, misclassified = engine.attack_single_run(x, y)
    return highest, misclassified


def _check_classes(what: str, least: int, classes: int, instead: str) -> None:
    if classes < least:
        raise UsageError(
            f"expected a model of at least {least} classes for {what}, got {classes}; attack it by --method {instead}"
        )
