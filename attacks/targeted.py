"""Targeted gradient descent: towards each likely wrong class in turn, from good corners, by steps that shrink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustkit.attacks.base import (
    AttackResult,
    Task,
    Worst,
    check_counts,
    check_setting,
    checked_logits,
    evaluating,
)
from robustkit.attacks.pgd import pgd_steps
from robustkit.attacks.starts import start_points
from robustkit.margins import logit_margins, worst_margin
from robustkit.threat import LinfBall


def lead(logits: Tensor, aims: Tensor) -> Tensor:
    """Give how far the class aimed at is ahead of every other, shape ``(B,)``.

    While the sample stands its label is the greatest other class: then this is ``logit_aim - logit_y``.
    """
    return worst_margin(logit_margins(logits, aims), aims)


@dataclass(frozen=True)
class TargetedPGD:
    """Raise one wrong class at a time over the label, from random corners, by steps that shrink from eps on.

    PGD follows whichever wrong class is ahead, and may leave the one that could have won. Every restart aims at the
    wrong classes in turn, the most likely of the sample first, and each time only for samples that still stand. Every
    other restart begins at random points instead.

    Attributes:
        steps: gradient steps towards each class.
        restarts: random starts towards each class.
        targets: wrong classes aimed at, the most likely ones; all of them where there are fewer.
        rel_step_size: first step as a fraction of eps.
        rel_last_step: last step as a fraction of the first; the steps between shrink by an equal factor each.
        seed: of the random starts.
        corners: random corners of the ball that a start is the best of; 0 for random points of the ball instead.

    Source: the loss is that of Carlini & Wagner 2017, arXiv 1608.04644, Sec. V, f_6 on logits, for a fixed class and
    without its floor; the order of the classes, the corners and the shrinking of the steps are our own.
    """

    name: ClassVar[str] = "targeted-pgd"
    steps: int = 100
    restarts: int = 5
    targets: int = 9
    rel_step_size: float = 1.0
    rel_last_step: float = 0.01
    seed: int = 0
    corners: int = 10

    def __post_init__(self) -> None:
        check_counts(self, "steps", "restarts", "targets")
        check_setting(self.corners >= 0, "corners", "of at least 0", self.corners)
        check_setting(self.rel_step_size > 0, "rel_step_size", "above 0", self.rel_step_size)
        check_setting(0 < self.rel_last_step <= 1, "rel_last_step", "in (0, 1]", self.rel_last_step)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        with evaluating(model):
            task = Task.begin(model, x, y, ball, index)
            likely = task.logits.scatter(1, task.y.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
            count = min(self.targets, task.logits.shape[1] - 1)
            for draw in range(self.restarts * count):
                rows = task.worst.standing()
                if not len(rows):
                    break
                aims = likely[rows, draw % count]
                start = self._start(model, task, ball, rows, aims, draw, from_corner=draw // count % 2 == 0)
                task.worst.offer(rows, self._aim(model, task, ball, rows, aims, start))
            return task.worst.result()

    def _start(
        self,
        model: nn.Module,
        task: Task,
        ball: LinfBall,
        rows: Tensor,
        aims: Tensor,
        draw: int,
        *,
        from_corner: bool,
    ) -> Tensor:
        def behind(points: Tensor) -> Tensor:
            return -lead(checked_logits(model, points), aims)

        corners = self.corners if from_corner else 0
        return start_points(task, rows, ball, behind, seed=self.seed, restart=draw, corners=corners)

    def _aim(self, model: nn.Module, task: Task, ball: LinfBall, rows: Tensor, aims: Tensor, start: Tensor) -> Worst:
        worst, _ = pgd_steps(
            model,
            start,
            task.y[rows],
            task.lb[rows],
            task.ub[rows],
            steps=self.steps,
            step_size=self.rel_step_size * ball.eps,
            rel_last_step=self.rel_last_step,
            loss=lead,
            aims=aims,
        )
        return worst
