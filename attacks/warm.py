"""A warm start: an attack that first goes on from the points it found in a smaller ball."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustkit.attacks.base import Attack, AttackResult, Task, Worst, evaluating
from robustkit.attacks.pgd import negative_margin, pgd_steps
from robustkit.threat import LinfBall

STEPS = 10
"""Steps from each warm start, of a tenth of the radius."""


@dataclass(frozen=True)
class Points:
    """The worst points that an attack found in one ball.

    Attributes:
        eps: radius of the ball.
        at: points by the position of their sample in the test set, each of the shape of a sample.
    """

    eps: float
    at: Mapping[int, Tensor] = field(default_factory=dict)


def warmed(attack: Attack, points: Points) -> Attack:
    """Let an attack go on from known points, where there are any and it takes steps: a single one stays one."""
    return Warm(attack, points) if points.at and points.eps > 0 and hasattr(attack, "steps") else attack


@dataclass(frozen=True, repr=False)
class Warm:
    """Go on from known points, then attack what still stands as usual: never weaker than the attack itself.

    A known point is moved outward, or inward, with the radius. Our own design; for attacks that are iterative anyway.

    Attributes:
        attack: the attack.
        points: where to go on from; samples without a point are only attacked as usual.
    """

    attack: Attack
    points: Points

    @property
    def name(self) -> str:
        """That of the attack."""
        return self.attack.name

    def __repr__(self) -> str:
        return repr(self.attack)  # names its results, which a warm start does not make another attack's

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        with evaluating(model):
            task = Task.begin(model, x, y, ball, index)
            standing = set(task.worst.standing().tolist())
            known = [row for row, one in enumerate(task.index.tolist()) if row in standing and one in self.points.at]
            if known:
                self._go_on(model, task, ball, torch.tensor(known, device=task.x.device))
            rows = task.worst.standing()
            if len(rows):
                found = self.attack(model, task.x[rows], task.y[rows], ball, task.index[rows.cpu()])
                task.worst.offer(rows, Worst(found.x_adv, found.margin.double(), found.margin.double()))
            return task.worst.result()

    def _go_on(self, model: nn.Module, task: Task, ball: LinfBall, rows: Tensor) -> None:
        x = task.x[rows]
        points = torch.stack([self.points.at[one] for one in task.index[rows.cpu()].tolist()]).to(x)
        start = ball.project(x + (points - x) * (ball.eps / self.points.eps), x)
        worst, _ = pgd_steps(
            model,
            start,
            task.y[rows],
            task.lb[rows],
            task.ub[rows],
            steps=STEPS,
            step_size=ball.eps / STEPS,
            loss=negative_margin,
        )
        task.worst.offer(rows, worst)
