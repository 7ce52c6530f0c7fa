"""Projected gradient descent: the plain loop that other attacks reuse, and the two attacks that are nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.attacks.base import (
    AttackResult,
    Task,
    Worst,
    check_counts,
    check_setting,
    checked_logits,
    evaluating,
    least_margin,
    needs_gradient,
)
from robustkit.attacks.starts import random_start
from robustkit.margins import logit_margins, worst_margin
from robustkit.threat import LinfBall

Loss = Callable[[Tensor, Tensor], Tensor]
"""What an attack raises: logits ``(B, K)`` and labels ``(B,)`` to one number a sample, ``(B,)``."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Give the cross-entropy of each sample, shape ``(B,)``."""
    return functional.cross_entropy(logits, y, reduction="none")


def negative_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Give how far the best wrong class is ahead, shape ``(B,)``; it does not fade when logits are large.

    Source: Carlini & Wagner 2017, arXiv 1608.04644, Sec. V, f_6 on logits, without its floor.
    """
    return -worst_margin(logit_margins(logits, y), y)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": negative_margin}
"""Every loss an attack can be asked for by name."""


@dataclass(frozen=True)
class PGD:
    """Signed gradient steps from a random point of the ball, projected back into it.

    Restarts run only on samples that still stand. The default step of eps/30 is the published 0.01 at eps 0.3 with
    40 steps.

    Attributes:
        steps: gradient steps of each restart.
        rel_step_size: step as a fraction of eps; the first one where steps shrink.
        rel_last_step: last step as a fraction of the first, the steps between shrinking by an equal factor each; 1
            keeps them alike. From ``rel_step_size=0.5`` to a fiftieth of that usually finds more than equal steps.
        restarts: random starts.
        loss: ``"ce"``, cross-entropy, or ``"margin"``, which survives logits of any size.
        random_start: start from a random point rather than from the sample.
        early_stop: leave a sample as soon as a misclassified point is found, and keep the least margin seen. Without,
            samples that are misclassified from the start are attacked as well, every step is run for all, and the
            highest loss seen is kept (a misclassified point still beats any other): what adversarial training asks for.
        seed: of the random starts.

    Source: Madry et al. 2018, arXiv 1706.06083, Sec. 2.1 and 5. Deviation: the worst point seen is returned, not the
    last one.
    """

    name: ClassVar[str] = "pgd"
    steps: int = 40
    rel_step_size: float = 1 / 30
    restarts: int = 1
    loss: Literal["ce", "margin"] = "ce"
    random_start: bool = True
    early_stop: bool = True
    seed: int = 0
    rel_last_step: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "steps", "restarts")
        check_setting(self.rel_step_size > 0, "rel_step_size", "above 0", self.rel_step_size)
        check_setting(0 < self.rel_last_step <= 1, "rel_last_step", "in (0, 1]", self.rel_last_step)
        check_setting(self.loss in LOSSES, "loss", f"as one of {', '.join(LOSSES)}", self.loss)
        alike = self.restarts > 1 and not self.random_start
        check_setting(not alike, "restarts", "of 1 without random_start (all would be alike)", self.restarts)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        with evaluating(model):
            task = Task.begin(model, x, y, ball, index)
            if not self.early_stop:
                task.worst.score.copy_(-LOSSES[self.loss](task.logits, task.y))
            for restart in range(self.restarts):
                rows = task.worst.standing() if self.early_stop else torch.arange(len(task.y), device=task.y.device)
                if not len(rows):
                    break
                task.worst.offer(rows, self._restart(model, task, ball, rows, restart))
            return task.worst.result()

    def _restart(self, model: nn.Module, task: Task, ball: LinfBall, rows: Tensor, restart: int) -> Worst:
        start = task.x[rows]
        if self.random_start:
            box = task.lb[rows], task.ub[rows]
            start = random_start(start, ball, task.index[rows.cpu()], seed=self.seed, restart=restart, box=box)
        worst, _ = pgd_steps(
            model,
            start,
            task.y[rows],
            task.lb[rows],
            task.ub[rows],
            steps=self.steps,
            step_size=self.rel_step_size * ball.eps,
            loss=LOSSES[self.loss],
            rel_last_step=self.rel_last_step,
            early_stop=self.early_stop,
        )
        return worst


@dataclass(frozen=True)
class CW:
    """PGD on the margin loss, as in the tables of Madry's MNIST challenge under this name.

    Attributes:
        steps: gradient steps of each restart.
        rel_step_size: step as a fraction of eps.
        restarts: random starts.
        seed: of the random starts.

    Source: Madry et al. 2018, arXiv 1706.06083, Sec. 5 (their "CW"). Deviation: no confidence constant.
    """

    name: ClassVar[str] = "cw"
    steps: int = 40
    rel_step_size: float = 1 / 30
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        self._as_pgd()

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``."""
        return self._as_pgd()(model, x, y, ball, index)

    def _as_pgd(self) -> PGD:
        return PGD(self.steps, self.rel_step_size, self.restarts, loss="margin", seed=self.seed)


def pgd_steps(
    model: nn.Module,
    start: Tensor,
    y: Tensor,
    lb: Tensor,
    ub: Tensor,
    *,
    steps: int,
    step_size: float | Tensor,
    loss: Loss,
    aims: Tensor | None = None,
    rel_last_step: float = 1.0,
    early_stop: bool = True,
) -> tuple[Worst, Tensor]:
    """Take signed gradient steps in a box of each sample's own.

    Call it within ``evaluating``.

    Args:
        model: in eval mode.
        start: where to start, shape ``(B, ...)``, in the boxes.
        y: labels, shape ``(B,)``.
        lb: least point of each box, shape of ``start``.
        ub: greatest point of each box, shape of ``start``.
        steps: number of steps.
        step_size: of the first step, absolute, in pixel units: one for all or one a sample, shape ``(B,)``.
        loss: what to raise.
        aims: classes that the loss is of, in place of the labels, shape ``(B,)``.
        rel_last_step: last step as a fraction of the first; those between shrink by an equal factor each.
        early_stop: leave a sample as soon as a point is misclassified, and score by margin; else by minus the loss.

    Returns:
        The worst point seen of each sample, the start among them, and the last one, shape ``(B, ...)``.

    Raises:
        RobustkitError: the model gives no usable logits or no gradient.
    """
    last = start.detach().clone()
    unseen = last.new_full((len(last),), torch.inf, dtype=torch.float64)
    worst = Worst(last.clone(), unseen, unseen.clone())
    sizes = torch.as_tensor(step_size, dtype=last.dtype, device=last.device).expand(len(last))
    sizes = sizes.reshape(-1, *[1] * (last.ndim - 1))
    shrinking = rel_last_step ** (1 / max(1, steps - 1))
    rows, x, aims = torch.arange(len(last), device=last.device), last.clone(), y if aims is None else aims
    for step in range(steps + 1):
        seen, gradient = _look(model, x, y, aims, loss, by_margin=early_stop, ascend=step < steps)
        worst.offer(rows, seen)
        going = seen.margin > 0
        if early_stop and not going.all():  # only then is there anything to leave out
            last[rows] = seen.x_adv
            rows, x, y, aims, gradient = (one[going] for one in (rows, x, y, aims, gradient))
            lb, ub, sizes = lb[going], ub[going], sizes[going]
        if step == steps or not len(rows):
            break
        x = x.addcmul(sizes, gradient.sign_(), value=shrinking**step).clamp_(lb, ub)
    last[rows] = x
    return worst, last


def _look(
    model: nn.Module, x: Tensor, y: Tensor, aims: Tensor, loss: Loss, *, by_margin: bool, ascend: bool
) -> tuple[Worst, Tensor]:
    """Score points and, to go on from them, give the gradient of the loss there."""
    with torch.set_grad_enabled(ascend):
        x = x.detach().requires_grad_(ascend)
        logits = checked_logits(model, x)
        losses = loss(logits, aims)
        gradient = _gradient(losses, x) if ascend else torch.zeros_like(x)
    margin = least_margin(logits.detach(), y)
    score = margin if by_margin else -losses.detach().double()
    return Worst(x.detach(), margin, score), gradient


def _gradient(losses: Tensor, x: Tensor) -> Tensor:
    found = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
    if found is None:
        raise needs_gradient()
    return found.nan_to_num_(nan=0.0)
