"""Counterexamples are believed only after they were run again: in the model itself and in float64."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.attacks.base import device_of, evaluating
from robustkit.attacks.examples import Examples
from robustkit.attacks.pgd import negative_margin, pgd_steps
from robustkit.errors import RobustkitError
from robustkit.margins import logit_margins, worst_margin
from robustkit.threat import LinfBall

log = logging.getLogger(__name__)

DESCENTS, DESCENT_STEPS = 8, 10
"""Points that a search comes upon at a time from which the gradient is followed, and for how many steps."""


@dataclass(frozen=True)
class Replayed:
    """What points turn out to be.

    Attributes:
        inside: which lie in the ball, decided in float64, shape ``(B,)``.
        native: worst margin of each in the model itself, shape ``(B,)``.
        wide: worst margin of each in a float64 copy of it, shape ``(B,)``.
    """

    inside: Tensor
    native: Tensor
    wide: Tensor

    @property
    def broken(self) -> Tensor:
        """Which points of the ball have a wrong class strictly ahead in both, shape ``(B,)``."""
        return self.inside & (self.native < 0) & (self.wide < 0)

    @property
    def tied(self) -> Tensor:
        """Which are neither right in both nor broken: a class level with the own one, or ahead in only one of both."""
        return self.inside & ~self.broken & ~((self.native > 0) & (self.wide > 0))

    def tie(self, row: int) -> str:
        """Say what is known of a tied point."""
        return (
            f"a tie: a point of the ball has margin {float(self.native[row]):.4g} in the model and "
            f"{float(self.wide[row]):.4g} in float64, and only below 0 in both would be a counterexample"
        )


@dataclass(frozen=True)
class Replay:
    """A model and its float64 copy on the CPU.

    Attributes:
        model: in eval mode, on its device.
        wide: the copy.
    """

    model: nn.Module
    wide: nn.Module

    @classmethod
    def prepare(cls, model: nn.Module) -> Replay:
        """Copy a model once; its weights must not change afterwards."""
        return cls(model, copy.deepcopy(model).cpu().double().eval())

    @torch.no_grad()
    def __call__(self, points: Tensor, x: Tensor, y: Tensor, ball: LinfBall) -> Replayed:
        """Run points again.

        Args:
            points: shape ``(B, ...)``.
            x: the samples, of the same shape.
            y: labels, shape ``(B,)``.
            ball: the ball around each sample.

        Returns:
            What they are, on the device of ``x``.
        """
        native, wide = self.model(points), self.wide(points.detach().cpu().double()).to(x.device)
        margins = (worst_margin(logit_margins(logits, y), y) for logits in (native, wide))
        return Replayed(ball.contains(points, x), *margins)

    @torch.no_grad()
    def where_it_runs(self, points: Tensor, x: Tensor, y: Tensor, ball: LinfBall) -> Replayed:
        """Run points again, in the model alone where no float64 copy of it runs; the checker proves nothing of such.

        Arguments and result are those of a call.
        """
        try:
            return self(points, x, y, ball)
        except RuntimeError as error:  # of torch, where a forward casts to float32 by itself
            log.warning("points are judged in the model alone, for it does not run in float64: %s", error)
            native = worst_margin(logit_margins(self.model(points), y), y)
            return Replayed(ball.contains(points, x), native, native)


def replay_examples(model: nn.Module, examples: Examples, batch_size: int = 250) -> Replayed:
    """Run saved adversarial examples again, in the ball they were saved for.

    Args:
        model: in any mode, on its device.
        examples: as an attack or a verifier saved them.
        batch_size: examples predicted together.

    Returns:
        What they turn out to be, on the device of the model.

    Raises:
        RobustkitError: the examples do not fit the model.
    """
    device = device_of(model, torch.device("cpu"))
    replay, ball = Replay.prepare(model), LinfBall(examples.eps)
    arrays = (torch.from_numpy(one).to(device) for one in (examples.x_adv, examples.x, examples.y))
    batches = zip(*(torch.split(one, batch_size) for one in arrays), strict=True)
    try:
        with evaluating(model):
            seen = [replay.where_it_runs(x_adv, x, y, ball) for x_adv, x, y in batches if len(y)]
    except (RuntimeError, IndexError) as error:
        shape = tuple(examples.x.shape[1:])
        raise RobustkitError(
            f"expected examples that this network takes, got some of shape {shape} that do not fit ({error}); "
            "name the network they were found on by --run or --checkpoint"
        ) from error
    empty = torch.zeros(0, device=device)
    parts = [Replayed(empty.bool(), empty, empty.double()), *seen]
    return Replayed(*(torch.cat([getattr(one, name) for one in parts]) for name in ("inside", "native", "wide")))


def worth_a_descent(looks: int) -> bool:
    """Say whether to descend from what is shown for the n-th time: often at first, then seldom, for it takes time."""
    return looks & (looks - 1) == 0 or looks % 16 == 0


@dataclass
class Look:
    """What a search asks of the points it comes upon around one sample: is one a counterexample?

    Attributes:
        replay: runs them again.
        x: the sample, shape ``(1, ...)``.
        y: its label, shape ``(1,)``.
        ball: the ball around it.
        tie: what is known of a tied point among those seen; empty where there was none.
    """

    replay: Replay
    x: Tensor
    y: Tensor
    ball: LinfBall
    tie: str = ""
    _looks: int = 0

    def __call__(self, points: Tensor) -> Tensor | None:
        """Give a counterexample: the first of points ``(B, ...)``, moved into the ball, or one near the best of them.

        Points that minimise a bound over a part of the ball are good starts for gradient descent, now and then.
        """
        points = self.ball.project(points, self.x)
        margins = self._margins(points)
        found = self._believed(points[~(margins > 0)])
        self._looks += 1
        if found is not None or not len(points) or not worth_a_descent(self._looks):
            return found
        return self._believed(self._descended(points[margins.topk(min(DESCENTS, len(points)), largest=False).indices]))

    def _descended(self, points: Tensor) -> Tensor:
        """Follow the gradient of the margin from points, and give those that the model gets wrong."""
        y = self.y.expand(len(points))
        lb, ub = (end.expand_as(points) for end in self.ball.inner_box(self.x))
        with torch.enable_grad():
            worst, _ = pgd_steps(
                self.replay.model,
                points,
                y,
                lb,
                ub,
                steps=DESCENT_STEPS,
                step_size=self.ball.eps / 4,
                rel_last_step=0.05,
                loss=negative_margin,
            )
        return worst.x_adv[worst.margin <= 0]

    def _believed(self, suspects: Tensor) -> Tensor | None:
        """Give the first of points that breaks in both arithmetics, and keep in mind what is only a tie."""
        if not len(suspects):
            return None
        found = self.replay(suspects, self.x.expand_as(suspects), self.y.expand(len(suspects)), self.ball)
        if bool(found.broken.any()):
            return suspects[found.broken][:1]
        for row in found.tied.nonzero().flatten().tolist()[:1]:
            self.tie = self.tie or found.tie(row)
        return None

    @torch.no_grad()
    def _margins(self, points: Tensor) -> Tensor:
        """Give the worst margin of points in the model itself, shape ``(B,)``."""
        y = self.y.expand(len(points))
        return worst_margin(logit_margins(self.replay.model(points), y), y)
