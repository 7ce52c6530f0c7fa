"""Several attacks in turn, each on what those before it have left standing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from robustkit.attacks.base import Attack, AttackResult, Task, Worst, evaluating, judged
from robustkit.errors import UsageError
from robustkit.threat import LinfBall

JOIN = "+"
"""What stands between the names of a battery's attacks."""


@dataclass(frozen=True)
class Battery:
    """Attacks of one's own choice in turn, each on what is left; a sample counts as broken if any of them breaks it.

    Attributes:
        attacks: in the order they run in.
    """

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        if not self.attacks:
            raise UsageError("expected at least one attack in a battery, got none; name them as pgd+square")

    @property
    def name(self) -> str:
        """The names of its attacks, in their order."""
        return JOIN.join(one.name for one in self.attacks)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        return in_turn(self.attacks, model, x, y, ball, index)


def in_turn(
    attacks: Sequence[Attack], model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None
) -> AttackResult:
    """Run attacks one after the other, each on the samples that stand; see ``Attack.__call__`` for all but the first.

    Args:
        attacks: in the order they run in.
        model: maps ``(B, ...)`` to logits ``(B, K)``.
        x: inputs, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        ball: the ball around each input.
        index: positions in the test set, shape ``(B,)``.

    Returns:
        The worst point any of them has seen, predicted anew, and which of them broke each sample.
    """
    with evaluating(model):
        task = Task.begin(model, x, y, ball, index)
        found_by = [""] * len(task.y)
        for attack in attacks:
            rows = task.worst.standing()
            if not len(rows):
                break
            task.worst.offer(rows, _run(attack, model, task, ball, rows))
            for row in rows[task.worst.margin[rows] <= 0].tolist():
                found_by[row] = attack.name
    return AttackResult(task.worst.x_adv, task.worst.margin, tuple(found_by))


def _run(attack: Attack, model: nn.Module, task: Task, ball: LinfBall, rows: Tensor) -> Worst:
    x, y = task.x[rows], task.y[rows]
    return judged(model, attack(model, x, y, ball, task.index[rows.cpu()]).x_adv, x, y, ball)
