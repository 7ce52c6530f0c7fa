"""Checks against fooling oneself: signs that an attack fails because gradients are hidden, not because a network is
robust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustkit.attacks.base import (
    Attack,
    AttackResult,
    check_inputs,
    checked_logits,
    device_of,
    evaluating,
    least_margin,
    probabilities,
)
from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.pgd import PGD, cross_entropy, pgd_steps
from robustkit.attacks.planted import plant
from robustkit.attacks.random_search import random_search
from robustkit.attacks.replay import Replay
from robustkit.errors import UsageError
from robustkit.threat import LinfBall

FEW = 0.05
"""Share of samples that chance alone may move; always one sample."""
SATURATED = 0.5
"""Share of samples whose loss may round to nothing: confident networks reach some of that, scaled logits nearly all."""
UNSTEADY = 1e-5
"""Difference of two predictions, relative to the largest logit, that rounding in another order explains."""
CORNERS = 20
"""Random corners of the ball that every attack should be worse than."""


@dataclass(frozen=True)
class Check:
    """What one check came to.

    Attributes:
        name: of the check.
        passed: whether the number is as expected; else it is a warning, not an error.
        value: the number.
        expected: what was expected of it, in words.
    """

    name: str
    passed: bool
    value: float
    expected: str


def at_most(name: str, value: float, limit: float, what: str) -> Check:
    """Give the check that a number is at most some limit; a NaN does not pass."""
    return Check(name, value <= limit, value, f"at most {limit:.3g} {what}")


@dataclass(frozen=True)
class Subjects:
    """The samples that are checked: all of them are classified rightly.

    Attributes:
        model: in eval mode.
        x: inputs, shape ``(B, ...)``, on the device of the model.
        y: labels, shape ``(B,)``.
        ball: the ball around each.
        broken: which the attacks in question have broken, shape ``(B,)``.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    ball: LinfBall
    broken: Tensor

    @property
    def has_gradient(self) -> bool:
        """Whether the logits depend on the inputs by differentiable operations at all."""
        x = self.x[:1].clone().requires_grad_()
        logits = checked_logits(self.model, x)
        return logits.requires_grad and torch.autograd.grad(logits.sum(), x, allow_unused=True)[0] is not None

    def few(self, name: str, share: float, what: str) -> Check:
        """Check that a share of the samples is no more than chance explains."""
        return at_most(name, share, max(FEW, 1.0 / len(self.y)), what)

    def gain(self, name: str, margin: Tensor, what: str) -> Check:
        """Check that another attack, by its margins ``(B,)``, breaks no more than those in question did."""
        more = _share(margin <= 0) - _share(self.broken)
        return self.few(name, more, f"of the samples more broken by {what}")


def run_checks(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: LinfBall,
    broken: Tensor,
    attacks: Sequence[Attack] = (),
) -> list[Check]:
    """Look for signs that attacks were blind, on a few samples.

    Costs about seven runs of PGD-40 on the samples given. Heuristic: passing every check proves nothing.

    Args:
        model: in any mode, on its device.
        x: inputs, shape ``(B, ...)``, within the pixel range.
        y: labels, shape ``(B,)``.
        ball: the ball around each input; eps above 0.
        broken: which samples the attacks in question have broken, shape ``(B,)``; others may be told as not broken.
        attacks: those attacks, to be tried on a planted example.

    Returns:
        The checks in a fixed order; of the network none where no sample is classified rightly, and without those that
        need a gradient where it has none.

    Raises:
        UsageError: eps is 0, or the inputs are none that can be attacked.
        RobustkitError: the model gives no usable logits.
    """
    check_inputs(x, y, ball)
    if ball.eps <= 0:
        raise UsageError("expected eps above 0 to check attacks at, got 0; leave the checks out by --no-checks")
    device = device_of(model, x.device)
    x, y, broken = x.detach().to(device), y.to(device).long(), broken.to(device)
    with evaluating(model):
        with torch.no_grad():
            right = least_margin(checked_logits(model, x), y) > 0
        found = [plant(x[:1], ball.eps).tried(attack) for attack in attacks]
        planted = [Check("planted", *one) for one in found]
        if not bool(right.any()):
            return planted
        subjects = Subjects(model, x[right], y[right], ball, broken[right])
        looks = _looks(subjects)
        return [*looks, *(_trials(subjects) if subjects.has_gradient else _without_gradient(subjects)), *planted]


def _looks(subjects: Subjects) -> list[Check]:
    """Look at predictions and gradients alone."""
    model, y = subjects.model, subjects.y
    x = subjects.x.clone().requires_grad_()
    logits = checked_logits(model, x)
    losses = cross_entropy(logits, y)
    gradient = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
    blind = torch.ones_like(y, dtype=torch.bool) if gradient is None else (gradient == 0).flatten(1).all(dim=1)
    with torch.no_grad():
        apart = (checked_logits(model, x) - logits).abs().max() / (1.0 + logits.abs().max())
    return [
        subjects.few("zero-gradient", _share(blind), "of the samples with a gradient of exactly 0"),
        at_most("randomised", float(apart), UNSTEADY, "between two predictions of the same inputs, of the logits"),
        subjects.few("softmax", _share(probabilities(logits)), "of the samples with outputs that are probabilities"),
        at_most("saturated", _share(losses == 0), SATURATED, "of the samples with a loss of exactly 0"),
    ]


def _trials(subjects: Subjects) -> list[Check]:
    """Attack in other ways, and hold what breaks against the attacks in question."""
    model, x, y, ball = subjects.model, subjects.x, subjects.y, subjects.ball
    pgd, short = PGD(), PGD(steps=20, rel_step_size=1 / 15)
    best, last = _best_and_last(subjects, pgd)
    half, whole = (short(model, x, y, ball.shrunk(eps)).margin <= 0 for eps in (ball.eps / 2, 1.0))
    broken = best <= 0
    fall = max(_share(half) - _share(broken), _share(broken) - _share(whole))
    chance = 1.0 / checked_logits(model, x[:1]).shape[1]
    corners = random_search(model, x, y, ball, queries=CORNERS, anew=True)
    blocks = random_search(model, x, y, ball, queries=5 * CORNERS)
    least = PGD(loss="margin")(model, x, y, ball)
    return [
        subjects.gain("margin-loss", least.margin, "PGD on the margin loss"),
        subjects.gain("black-box", blocks, "a search without gradients"),
        subjects.gain("single-step", FGSM()(model, x, y, ball).margin, "a single step"),
        subjects.gain("more-steps", replace(pgd, steps=2 * pgd.steps)(model, x, y, ball).margin, "twice the steps"),
        subjects.few("random-corners", _share(corners < best), "of the samples worse at a random corner than by PGD"),
        subjects.few("last-iterate", _share(broken & (last > 0)), "of the samples broken by PGD, but not at its end"),
        subjects.few("monotone", fall, "of the samples broken at one radius and no more at a larger one"),
        at_most("large-eps", 1.0 - _share(whole), chance, "of the samples standing at eps 1, where chance is left"),
        subjects.few("ties", _ties(subjects, least), "of the samples standing on a tie or on rounding alone"),
    ]


def _without_gradient(subjects: Subjects) -> list[Check]:
    """Try what needs no gradient, where there is none."""
    blocks = random_search(subjects.model, subjects.x, subjects.y, subjects.ball, queries=5 * CORNERS)
    return [subjects.gain("black-box", blocks, "a search without gradients")]


def _best_and_last(subjects: Subjects, pgd: PGD) -> tuple[Tensor, Tensor]:
    """Run PGD to its end: the margin of the worst point seen, and of the last one."""
    x, y, ball = subjects.x, subjects.y, subjects.ball
    size = pgd.rel_step_size * ball.eps
    worst, last = pgd_steps(
        subjects.model,
        ball.sample(x, torch.Generator(x.device).manual_seed(0)),
        y,
        *ball.inner_box(x),
        steps=pgd.steps,
        step_size=size,
        loss=cross_entropy,
        early_stop=False,
    )
    with torch.no_grad():
        return worst.margin, least_margin(checked_logits(subjects.model, last), y)


def _ties(subjects: Subjects, found: AttackResult) -> float:
    """Give the share of samples whose worst point is level with a wrong class, or wrong in one arithmetic alone."""
    seen = Replay.prepare(subjects.model).where_it_runs(found.x_adv, subjects.x, subjects.y, subjects.ball)
    return _share(seen.tied)


def _share(which: Tensor) -> float:
    return float(which.double().mean())
