"""The interval attack: where the gradient at a point misleads, follow one that holds over a box around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from robustkit.attacks.base import (
    AttackResult,
    Task,
    check_counts,
    check_setting,
    checked_logits,
    evaluating,
    least_margin,
)
from robustkit.attacks.pgd import LOSSES, pgd_steps
from robustkit.attacks.pooled import PooledNetwork
from robustkit.attacks.starts import random_start, start_points
from robustkit.bounds import bounded
from robustkit.errors import UnsupportedLayerError
from robustkit.margins import margin_specification
from robustkit.threat import LinfBall

INNER_LOSSES = {"pgd": "ce", "cw": "margin"}
"""The loss of each inner attack."""


class Coefficients(Protocol):
    """What gives interval gradients: see ``BoundedNetwork.input_coefficients``."""

    def input_coefficients(self, lb: Tensor, ub: Tensor, specification: Tensor) -> tuple[Tensor, Tensor]:
        """Give linear functions near ``C @ logits`` over a box: coefficients ``(B, R, ...)``, greatest values."""


@dataclass(frozen=True)
class IntervalGradient:
    """Alternate an inner gradient attack with moves along the interval gradient.

    The interval gradient at a point is the input coefficients of the symbolic upper bound of ``f_d - f_y`` over a box
    around it; the box is widened by factors of 3, to half the ball at most, until the bound says that some class ``d``
    could win. The first restart starts from the sample, the others from random corners of the ball and random points in
    turn; restarts run only on samples that still stand.

    Attributes:
        inner: ``"pgd"`` (cross-entropy) or ``"cw"`` (margin loss).
        steps: gradient steps of each inner attack.
        rel_step_size: step of the inner attack as a fraction of eps; the first one where steps shrink.
        rel_last_step: last step of the inner attack as a fraction of the first; the authors' steps are all equal.
        restarts: starts; the authors ran 50, of which the first few find most.
        interval_iters: moves of each of the first two restarts; later ones make one.
        rel_widening: half-width of the smallest box as a fraction of eps, at most 1/2.
        move: ``"corner"`` jumps to the corner of the ball that the interval gradient points to, as the authors' code
            does; ``"small"`` goes as far as the box is wide.
        hopeless: what becomes of a point around which no class could win in the widest box. ``"redraw"`` attacks the
            sample from a random point, ``"stay"`` from the same point again, as the authors' code does.
        bound_batch: samples bounded at once, to limit memory.
        widths_at_once: boxes of a sample bounded at once. One wastes nothing: a box is bounded only where the narrower
            ones found no class; more keep a device busy that has room for them. The points are the same.
        seed: of the random starts.
        corners: random corners of the ball that a start is the best of; 0 for random points, as in the authors' code.

    Source: Wang et al. 2019, arXiv 1906.02282, with the constants of the authors' code at eps 0.3: step 0.01, widening
    0.01. Deviations: samples leave as soon as they are broken; a pixel with coefficient 0 stays where it is; hopeless
    points are drawn anew unless told to stay; max-pooling is frozen in the middle of a box; a mixture is attacked along
    the interval gradient of its robust network.
    """

    name: ClassVar[str] = "interval-gradient"
    inner: Literal["pgd", "cw"] = "pgd"
    steps: int = 40
    rel_step_size: float = 1 / 30
    restarts: int = 2
    interval_iters: int = 3
    rel_widening: float = 1 / 30
    move: Literal["corner", "small"] = "corner"
    bound_batch: int = 50
    seed: int = 0
    rel_last_step: float = 1.0
    hopeless: Literal["redraw", "stay"] = "redraw"
    widths_at_once: int = 1
    corners: int = 10

    def __post_init__(self) -> None:
        check_setting(self.inner in INNER_LOSSES, "inner", f"as one of {', '.join(INNER_LOSSES)}", self.inner)
        check_setting(self.move in ("corner", "small"), "move", "as one of corner, small", self.move)
        check_setting(self.hopeless in ("redraw", "stay"), "hopeless", "as one of redraw, stay", self.hopeless)
        check_setting(self.corners >= 0, "corners", "of at least 0", self.corners)
        check_setting(self.rel_step_size > 0, "rel_step_size", "above 0", self.rel_step_size)
        check_setting(0 < self.rel_last_step <= 1, "rel_last_step", "in (0, 1]", self.rel_last_step)
        check_setting(0 < self.rel_widening <= 0.5, "rel_widening", "in (0, 0.5]", self.rel_widening)
        check_counts(self, "steps", "restarts", "interval_iters", "bound_batch", "widths_at_once")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``.

        Raises:
            UnsupportedLayerError: a layer cannot be bounded soundly and is no max-pooling; the layer is named.
        """
        with evaluating(model):
            task = Task.begin(model, x, y, ball, index)
            if not len(task.worst.standing()):
                return task.worst.result()
            network = _prepared(model, task.x[:1])
            for restart in range(self.restarts):
                self._restart(model, network, task, ball, restart)
            return task.worst.result()

    def _restart(self, model: nn.Module, network: Coefficients, task: Task, ball: LinfBall, restart: int) -> None:
        rows, points = task.worst.standing(), task.x.clone()
        if restart > 0 and len(rows):
            points[rows] = self._start(model, task, ball, rows, restart)
        self._attack_from(points, model, task, ball)
        for move in range(self.interval_iters if restart < 2 else 1):
            self._move(points, network, task, ball, draw=-1 - restart * self.interval_iters - move)
            self._attack_from(points, model, task, ball)

    def _start(self, model: nn.Module, task: Task, ball: LinfBall, rows: Tensor, restart: int) -> Tensor:
        y = task.y[rows]

        def margin(points: Tensor) -> Tensor:
            return least_margin(checked_logits(model, points), y)

        corners = self.corners if restart % 2 else 0
        return start_points(task, rows, ball, margin, seed=self.seed, restart=restart, corners=corners)

    def _attack_from(self, points: Tensor, model: nn.Module, task: Task, ball: LinfBall) -> None:
        """Run the inner attack on what stands, leaving its last points in ``points``."""
        rows = task.worst.standing()
        if not len(rows):
            return
        worst, points[rows] = pgd_steps(
            model,
            points[rows],
            task.y[rows],
            task.lb[rows],
            task.ub[rows],
            steps=self.steps,
            step_size=self.rel_step_size * ball.eps,
            loss=LOSSES[INNER_LOSSES[self.inner]],
            rel_last_step=self.rel_last_step,
        )
        task.worst.offer(rows, worst)

    @torch.no_grad()
    def _move(self, points: Tensor, network: Coefficients, task: Task, ball: LinfBall, *, draw: int) -> None:
        """Move what stands along its interval gradient, back into the ball; where hopeless, by this draw."""
        for rows in torch.split(task.worst.standing(), self.bound_batch):
            if not len(rows):
                return
            gradient, radius = self._interval_gradient(network, points[rows], task.y[rows], task.logits.shape[1], ball)
            reach = 2 * ball.eps if self.move == "corner" else radius.reshape(-1, *[1] * (points.ndim - 1))
            moved = points[rows] + reach * gradient.sign()
            points[rows] = torch.minimum(torch.maximum(moved, task.lb[rows]), task.ub[rows])
            stuck = rows[radius == 0]
            if self.hopeless == "redraw" and len(stuck):
                index = task.index[stuck.cpu()]
                points[stuck] = random_start(task.x[stuck], ball, index, seed=self.seed, restart=draw)

    def _interval_gradient(
        self, network: Coefficients, points: Tensor, y: Tensor, classes: int, ball: LinfBall
    ) -> tuple[Tensor, Tensor]:
        """Widen until a class could win; the gradient stays 0 where none could in the widest box."""
        gradient, radius = torch.zeros_like(points), points.new_zeros(len(points))
        rows = torch.arange(len(points), device=points.device)
        for few in _batched(self._half_widths(ball), self.widths_at_once):
            boxes = [ball.shrunk(half_width).box(points[rows]) for half_width in few]
            lb, ub = (torch.cat(side) for side in zip(*boxes, strict=True))
            directions, upper = interval_gradient(network, lb, ub, y[rows].repeat(len(few)), classes)
            found, narrowest = (upper > 0).view(len(few), -1).max(dim=0)  # of equals the first
            chosen = (narrowest * len(rows) + torch.arange(len(rows), device=rows.device))[found]
            gradient[rows[found]] = directions[chosen]
            radius[rows[found]] = points.new_tensor(few)[narrowest[found]]
            rows = rows[~found]
            if not len(rows):
                break
        return gradient, radius

    def _half_widths(self, ball: LinfBall) -> Iterator[float]:
        """Give the half-widths of the boxes to try: factors 1, 3, 9, ... of the first, then half of eps."""
        share = self.rel_widening
        while share < 0.5:
            yield share * ball.eps
            share *= 3
        yield 0.5 * ball.eps


def interval_gradient(network: Coefficients, lb: Tensor, ub: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Give the interval gradient over each box, for the class with the greatest upper bound of ``f_d - f_y``.

    Args:
        network: the model prepared for bounds.
        lb: least point of each box, shape ``(B, ...)``.
        ub: greatest point of each box, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        classes: number of classes ``K``.

    Returns:
        The symbolic input coefficients of ``f_d - f_y``, shape ``(B, ...)``, and its upper bound, shape ``(B,)``.

    Raises:
        UnsupportedLayerError: a layer cannot be bounded soundly; the layer is named.

    Source: Wang et al. 2019, arXiv 1906.02282, Sec. 3; the choice of class as in the authors' code.
    """
    specification = -margin_specification(y, classes).to(lb.dtype)
    coefficients, upper = network.input_coefficients(lb, ub, specification)
    upper = upper.scatter(1, y.unsqueeze(1), -torch.inf)
    best, rival = upper.max(dim=1)
    return coefficients[torch.arange(len(y), device=y.device), rival], best


def _prepared(model: nn.Module, example: Tensor) -> Coefficients:
    """Prepare a network for bounds, or where only max-pooling stands in the way, for what leads on just as well."""
    try:
        return bounded(model, example)
    except UnsupportedLayerError as refused:
        try:
            return PooledNetwork(model, example)
        except UnsupportedLayerError:
            raise refused from None


def _batched(values: Iterable[float], size: int) -> Iterator[list[float]]:
    rest = iter(values)
    while few := list(islice(rest, size)):
        yield few
