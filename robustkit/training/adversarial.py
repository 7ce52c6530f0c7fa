"""Adversarial training: the loss at the worst point that PGD finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.attacks import PGD
from robustkit.bounds import BoundMethod
from robustkit.errors import UsageError
from robustkit.threat import LinfBall
from robustkit.training.method import Initialisation, Moment, Trainee
from robustkit.training.schedules import EpochMetrics, EpsRamp
from robustkit.training.weights import Weights, check_temperature, divergences, weighted


@dataclass(frozen=True)
class PGDTraining:
    """Minimise the cross-entropy at the point of highest loss that PGD finds around each sample.

    The ball of the attack grows with the eps ramp: from scratch, a small network at a large radius can collapse to one
    class. Every sample is attacked for all steps from a random start, in eval mode. While eps is zero training is
    natural, whatever the weights.

    Attributes:
        steps: gradient steps of the attack.
        rel_step_size: step as a fraction of eps; 2.5 eps over all steps where it is 0.
        weights: ``"none"``; ``"weat"`` weighs each sample by the energy of its clean logits and minimises
            ``mean(w CE(f(x'), y)) + weat_kl mean(w KL(f(x) || f(x')))``, WEAT's adversarial form; ``"done"`` weighs it
            by the softmax of its loss, within a share where a batch is shared.
        weat_kl: weight of the divergence with ``"weat"``, at least 0.
        done_temperature: with ``"done"``, the greater, the more alike the weights, above 0.

    Source: Madry et al. 2018, arXiv 1706.06083, Sec. 2.1; for the weights see ``robustkit.training.weights``.
    """

    name: ClassVar[str] = "pgd"
    formula: ClassVar[str] = "CE(f(x'), y), x' by PGD over the ball"
    initialisation: ClassVar[Initialisation] = "default"
    steps: int = 40
    rel_step_size: float = 0.0
    weights: Weights = "none"
    weat_kl: float = 7.0
    done_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"expected steps of at least 1, got {self.steps}")
        if not self.rel_step_size >= 0:
            raise UsageError(f"expected rel_step_size of at least 0, got {self.rel_step_size}")
        if not self.weat_kl >= 0:
            raise UsageError(f"expected weat_kl of at least 0, got {self.weat_kl}")
        check_temperature(self.done_temperature)

    @property
    def validation_bound(self) -> BoundMethod | None:
        """None: adversarial training leaves next to nothing for a cheap bound to prove."""
        return None

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give one: the adversarial loss is all there is."""
        return 1.0

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the cross-entropy of the adversarial batch, weighted as asked."""
        if moment.ball.eps == 0.0:
            return functional.cross_entropy(trainee.model(x), y)
        rel_step_size = self.rel_step_size or 2.5 / self.steps
        x_adv = attacked(trainee.model, x, y, moment.ball, moment, steps=self.steps, rel_step_size=rel_step_size)
        if self.weights == "weat":
            return self._by_energy(trainee.model(x), trainee.model(x_adv), y)
        moved: Tensor = trainee.model(x_adv)
        losses = functional.cross_entropy(moved, y, reduction="none")
        return weighted(losses, moved, self.weights, temperature=self.done_temperature)

    def _by_energy(self, clean: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        losses = functional.cross_entropy(moved, y, reduction="none") + self.weat_kl * divergences(clean, moved)
        return weighted(losses, clean, self.weights, temperature=self.done_temperature)


def attacked(
    model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, moment: Moment, *, steps: int, rel_step_size: float
) -> Tensor:
    """Give the point of highest loss that PGD finds around each sample, from a start drawn at this moment.

    Args:
        model: in any mode; attacked in eval mode.
        x: inputs, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        ball: the ball around each.
        moment: source of the draw.
        steps: gradient steps.
        rel_step_size: step as a fraction of the ball's eps.

    Returns:
        Points of the shape of ``x``, in the ball, detached.
    """
    seed = int(torch.randint(2**31, (), generator=moment.generator))
    attack = PGD(steps=steps, rel_step_size=rel_step_size, early_stop=False, seed=seed)
    return attack(model, x, y, ball, moment.places(x)).x_adv
