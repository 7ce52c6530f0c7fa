"""Adversarial training that weighs robustness against accuracy: TRADES."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.attacks.base import evaluating
from robustkit.attacks.pgd import pgd_steps
from robustkit.bounds import BoundMethod
from robustkit.errors import UsageError
from robustkit.training.method import Initialisation, Moment, Trainee
from robustkit.training.schedules import EpochMetrics, EpsRamp
from robustkit.training.weights import Weights, check_temperature, divergences, weighted

START_DEVIATION = 0.001
"""Standard deviation of the noise that the attack starts with: at the sample itself the divergence has no gradient."""


@dataclass(frozen=True)
class TRADES:
    """Minimise ``CE(f(x)) + beta * KL(f(x) || f(x'))``, where ``x'`` maximises that divergence over the ball.

    The attack runs in eval mode from ``x + 0.001 N(0, I)``; its ball follows the eps ramp. Deviation: the worst point
    seen is taken, not the last: a misclassified one before any other, among equals the one of greatest divergence.

    Attributes:
        beta: weight of the divergence.
        steps: gradient steps of the attack.
        rel_step_size: step as a fraction of eps; 2.5 eps over all steps where it is 0.
        weights: ``"none"``; ``"weat"`` weighs each sample by the energy of its clean logits, WEAT's natural form;
            ``"done"`` weighs it by the softmax of its loss, within a share where a batch is shared. While eps is zero
            training is natural.
        done_temperature: with ``"done"``, the greater, the more alike the weights, above 0.

    Source: Zhang et al. 2019, arXiv 1901.08573, Algorithm 1; for the weights see ``robustkit.training.weights``.
    """

    name: ClassVar[str] = "trades"
    formula: ClassVar[str] = "CE(f(x), y) + beta * KL(f(x) || f(x')), x' by PGD on the KL"
    initialisation: ClassVar[Initialisation] = "default"
    beta: float = 6.0
    steps: int = 10
    rel_step_size: float = 0.0
    weights: Weights = "none"
    done_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"expected steps of at least 1, got {self.steps}")
        if not self.beta >= 0:
            raise UsageError(f"expected beta of at least 0, got {self.beta}")
        if not self.rel_step_size >= 0:
            raise UsageError(f"expected rel_step_size of at least 0, got {self.rel_step_size}")
        check_temperature(self.done_temperature)

    @property
    def validation_bound(self) -> BoundMethod | None:
        """None: adversarial training leaves next to nothing for a cheap bound to prove."""
        return None

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give beta."""
        return self.beta

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the cross-entropy of the clean batch and the weighted divergence."""
        if moment.ball.eps == 0.0 or moment.weight == 0.0:
            return functional.cross_entropy(trainee.model(x), y)
        x_adv = self._attack(trainee, x, y, moment)
        clean, moved = trainee.model(x), trainee.model(x_adv)
        natural = functional.cross_entropy(clean, y, reduction="none")
        losses = natural + moment.weight * divergences(clean, moved)
        return weighted(losses, clean, self.weights, temperature=self.done_temperature)

    def _attack(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        ball, model = moment.ball, trainee.model
        noise = moment.normal(x)
        with evaluating(model):
            with torch.no_grad():
                target = functional.softmax(model(x), dim=1)

            def divergence(logits: Tensor, _: Tensor) -> Tensor:
                return functional.kl_div(functional.log_softmax(logits, dim=1), target, reduction="none").sum(dim=1)

            worst, _ = pgd_steps(
                model,
                ball.project(x + START_DEVIATION * noise, x),
                y,
                *ball.inner_box(x),
                steps=self.steps,
                step_size=(self.rel_step_size or 2.5 / self.steps) * ball.eps,
                loss=divergence,
                early_stop=False,
            )
        return worst.x_adv
