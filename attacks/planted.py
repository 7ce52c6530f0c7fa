"""A planted adversarial example: a problem so plain that an attack which fails there is broken itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.attacks.base import Attack, checked_logits, evaluating, least_margin
from robustkit.threat import LinfBall

DEPTH = 0.3
"""How far towards the planted corner the decision boundary lies: 40 steps of eps/30 get a third of the way to it even
from the opposite corner."""


CLASSES = 5
"""Enough for every loss: the targeted ratio of logits needs four."""
BEHIND = -3.0
"""Logits of the classes that win nowhere."""


@dataclass(frozen=True)
class Planted:
    """A linear network, a grey sample, and the corner of its ball that is known to be an adversarial example.

    Attributes:
        model: ``CLASSES`` classes; class 0 wins at the sample, class 1 at the corner, the others nowhere.
        x: the sample, shape ``(1, ...)``.
        x_adv: the corner.
        ball: the ball.
    """

    model: nn.Module
    x: Tensor
    x_adv: Tensor
    ball: LinfBall

    def tried(self, attack: Attack) -> tuple[bool, float, str]:
        """Say whether an attack finds a misclassified point: passed, the margin it reached relative to the planted
        one, what was expected."""
        y = torch.zeros(1, dtype=torch.int64, device=self.x.device)
        found = attack(self.model, self.x, y, self.ball).x_adv
        with evaluating(self.model), torch.no_grad():
            reached, known = (float(least_margin(checked_logits(self.model, one), y)) for one in (found, self.x_adv))
        inside = bool(self.ball.contains(found, self.x).all())
        return inside and reached < 0, reached / -known, f"below 0 by {attack.name}, where -1 is planted"


def plant(example: Tensor, eps: float, seed: int = 0) -> Planted:
    """Plant an adversarial example.

    The margin of class 0 is ``DEPTH * eps * ||w||_1 - w (x - 1/2)``, with weights of random signs and magnitudes in
    [0.5, 1.5] over the number of pixels: it is least, and below 0, at the corner ``1/2 + eps sign(w)``.

    Args:
        example: an input, shape ``(1, ...)``.
        eps: radius above 0; a radius of more than 1/2 counts as 1/2.
        seed: of the weights.

    Returns:
        The problem, on the device of the example.
    """
    ball, shape = LinfBall(min(eps, 0.5)), example.shape
    size = math.prod(shape[1:])
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.rand(size, generator=generator) + 0.5) * (2.0 * (torch.rand(size, generator=generator) < 0.5) - 1.0)
    weight = weight / size / ball.eps
    layer = nn.Linear(size, CLASSES)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0] = -weight
        layer.bias.fill_(BEHIND)
        layer.bias[0] = weight.sum() / 2 + DEPTH * ball.eps * weight.abs().sum()
        layer.bias[1] = 0.0
    x = torch.full(shape, 0.5, device=example.device)
    x_adv = ball.project(x + ball.eps * weight.sign().reshape(shape).to(x.device), x)
    return Planted(nn.Sequential(nn.Flatten(), layer).to(x.device).eval(), x, x_adv, ball)
