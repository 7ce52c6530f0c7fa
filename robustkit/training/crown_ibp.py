"""Training by linear bounds over interval bounds: CROWN-IBP, with the loss itself bounded instead of every margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.errors import UsageError
from robustkit.margins import margin_specification, robust_loss
from robustkit.training.method import Initialisation, Moment, Trainee
from robustkit.training.schedules import EpochMetrics, EpsRamp

_LEAST = 1e-30


@dataclass(frozen=True)
class CrownIBP:
    """Minimise ``kappa * CE + (1 - kappa) * robust loss``, bounded by CROWN-IBP at first and by intervals in the end.

    As eps grows, ``beta`` falls from 1 to ``beta_end`` and ``kappa`` from 1 to ``kappa_end``.

    Attributes:
        kappa_end: kappa once eps has reached its target, in [0, 1].
        beta_end: share of the linear bounds once eps has reached its target, in [0, 1].
        loss_fusion: bound the cross-entropy itself with one row of linear bounds a sample, and mix the losses by beta;
            else bound every margin and mix the margins, as first published, K times as dear.

    Source: Zhang et al. 2020, arXiv 1906.06316; loss fusion: Xu et al. 2020, arXiv 2002.12920, Sec. 3.3.
    """

    name: ClassVar[str] = "crown-ibp"
    formula: ClassVar[str] = (
        "kappa * CE(f(x), y) + (1 - kappa) * (beta * loss by CROWN-IBP + (1 - beta) * loss by intervals)"
    )
    initialisation: ClassVar[Initialisation] = "default"
    kappa_end: float = 0.5
    beta_end: float = 0.0
    loss_fusion: bool = True

    def __post_init__(self) -> None:
        for name in ("kappa_end", "beta_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"expected {name} in [0, 1], got {getattr(self, name)}")

    @property
    def validation_bound(self) -> BoundMethod | None:
        """The bound that it ends with: intervals where ``beta_end`` is 0, else CROWN-IBP."""
        return BoundMethod.IBP if self.beta_end == 0.0 else BoundMethod.CROWN_IBP

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give ``1 - kappa``."""
        return (1.0 - self.kappa_end) * ramp.progress(time)

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the mixture of the natural and the robust loss."""
        natural = functional.cross_entropy(trainee.bounds(x), y)  # sets the statistics that batch norm bounds with
        if moment.weight == 0.0:
            return natural
        beta = 1.0 - (1.0 - self.beta_end) * moment.progress
        robust = self._robust(trainee.bounds, moment.ball.box(x), y, beta)
        return (1.0 - moment.weight) * natural + moment.weight * robust

    def _robust(self, bounds: BoundedNetwork, box: tuple[Tensor, Tensor], y: Tensor, beta: float) -> Tensor:
        specification = margin_specification(y, bounds.classes)
        fused = self.loss_fusion and beta > 0.0
        lower, upper = bounds.output_bounds(*box, specification, BoundMethod.IBP, upper=fused)
        if beta == 0.0:
            return robust_loss(lower, y)
        if fused:
            return beta * fused_loss(bounds, box, y, (lower, upper)).mean() + (1.0 - beta) * robust_loss(lower, y)
        linear, _ = bounds.output_bounds(*box, specification, BoundMethod.CROWN_IBP, upper=False)
        return robust_loss(beta * linear + (1.0 - beta) * lower, y)


def fused_loss(bounds: BoundedNetwork, box: tuple[Tensor, Tensor], y: Tensor, margins: tuple[Tensor, Tensor]) -> Tensor:
    """Bound the cross-entropy over a box from above by CROWN-IBP, with one row of linear bounds a sample.

    Write ``v_j = f_j - f_y``; the loss is ``log sum_j exp(v_j)``. As exp is convex, ``exp(v_j) <= a_j v_j + b_j``
    between the interval bounds of ``v_j``, and ``sum_j a_j v_j`` is one linear function of the logits, bounded from
    above by CROWN-IBP. The greatest exponential is factored out.

    Args:
        bounds: the network.
        box: corners of the box, each ``(B, ...)``.
        y: labels, shape ``(B,)``.
        margins: lower and upper bounds of ``f_y - f_j`` by intervals, each ``(B, K)``.

    Returns:
        Upper bounds of the loss of each sample, shape ``(B,)``; differentiable, the chords as well. In float32 they
        are as exact as exp allows: none is below the least loss that the intervals leave.

    Source: Xu et al. 2020, arXiv 2002.12920, Sec. 3.3. Deviation: the chords are made here, not by a node of the graph.
    """
    low, high = -margins[1], -margins[0]
    greatest = high.detach().amax(dim=1, keepdim=True)
    top = torch.exp(high - greatest)
    slopes = top * _chord(high - low)
    own = functional.one_hot(y, bounds.classes)
    row = own * slopes.sum(dim=1, keepdim=True) - slopes  # bounds from below what the chords want from above
    lower, _ = bounds.output_bounds(*box, row.unsqueeze(1), BoundMethod.CROWN_IBP, upper=False)
    total = (top - slopes * high).sum(dim=1) - lower.squeeze(1)
    least = torch.exp(low - greatest).sum(dim=1).clamp(min=_LEAST)
    return greatest.squeeze(1) + torch.maximum(total, least).log()


def _chord(width: Tensor) -> Tensor:
    """Give ``(1 - exp(-w)) / w``, the chord's slope relative to its upper end; at zero width, the tangent's."""
    wide = width > 1e-4
    safe = torch.where(wide, width, 1.0)
    return torch.where(wide, -torch.expm1(-safe) / safe, 1.0 - width / 2)
