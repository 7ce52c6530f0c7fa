"""What keeps intervals tight and ReLUs alive while eps grows: the regularisers of fast certified training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from robustkit.errors import UsageError
from robustkit.margins import margin_specification
from robustkit.threat import LinfBall
from robustkit.training.method import Moment, Trainee

Layers = Sequence[tuple[Tensor, Tensor]]
"""Lower and upper bounds of the input of every ReLU, in network order."""

Start = Literal["ibp", "default"]
"""How the weights are drawn before training, as the option of a method."""

TOLERANCE = 0.5
LEAST_EPS = 1e-6
_TINY = 1e-12


def bounded_margins(
    trainee: Trainee,
    box: tuple[Tensor, Tensor],
    y: Tensor,
    moment: Moment,
    *,
    regularisation: float,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, Tensor]:
    """Give the margins over a box by intervals, and the weighted regularisers of the same interval pass.

    Args:
        trainee: the network.
        box: corners of the box that is trained on, each of the shape of the inputs.
        y: labels, shape ``(B,)``.
        moment: where training stands; the weight falls to zero as eps reaches its target.
        regularisation: weight of the regularisers at the start, at least 0.
        tolerance: see ``tightness``.

    Returns:
        The margin matrix, shape ``(B, K)``, and ``regularisation * (1 - progress) * (tightness + relu_balance)``.
        Over a share of a batch the regularisers are those of the share.

    Source: Shi et al. 2021, arXiv 2103.17268.
    """
    margins, layers = trainee.bounds.interval_pass(*box, margin_specification(y, trainee.bounds.classes))
    return margins, warm_up(box, layers, moment, regularisation=regularisation, tolerance=tolerance)


def warm_up(
    box: tuple[Tensor, Tensor],
    layers: Layers,
    moment: Moment,
    *,
    regularisation: float,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Give the weighted regularisers of an interval pass, a scalar: zero once eps has reached its target.

    See ``bounded_margins``.
    """
    weight = regularisation * (1.0 - moment.progress)
    if weight == 0.0 or not layers:
        return box[0].new_zeros(())
    return weight * (tightness(box, layers, tolerance) + relu_balance(layers, tolerance))


def penalty_at_zero(
    trainee: Trainee, x: Tensor, y: Tensor, moment: Moment, *, regularisation: float, tolerance: float = TOLERANCE
) -> Tensor:
    """Give the weighted regularisers while eps is still zero: those of a ball of 1e-6; see ``bounded_margins``."""
    if regularisation == 0.0 or moment.progress >= 1.0:
        return x.new_zeros(())
    box = LinfBall(LEAST_EPS, moment.ball.lower, moment.ball.upper).box(x)
    return bounded_margins(trainee, box, y, moment, regularisation=regularisation, tolerance=tolerance)[1]


def tightness(box: tuple[Tensor, Tensor], layers: Layers, tolerance: float) -> Tensor:
    """Punish layers whose intervals are wide compared with the input's.

    With ``D`` the mean width of the box (0) and of the input of each of ``m`` ReLUs, this is
    ``1 / (tolerance * m) * sum relu(tolerance - D_0 / D_i)``.

    Args:
        box: corners of the input box.
        layers: bounds of the input of every ReLU; at least one.
        tolerance: ratio from which on nothing is punished, above 0.

    Returns:
        A scalar in ``[0, 1]``.

    Source: Shi et al. 2021, arXiv 2103.17268.
    """
    at_input = (box[1] - box[0]).mean()
    terms = [torch.relu(tolerance - at_input / (upper - lower).mean().clamp(min=_TINY)) for lower, upper in layers]
    return _over_layers(terms, tolerance)


def relu_balance(layers: Layers, tolerance: float) -> Tensor:
    """Punish layers whose ReLUs are nearly all active, or nearly all dead.

    With ``c`` the centres of the intervals, ``a`` is the sum of the centres of active neurons over minus that of dead
    ones, and ``b`` the same ratio of their squared distances from the mean centre. Of ``m`` layers this is
    ``1 / (tolerance * m) * sum (relu(tolerance - min(a, 1/a)) + relu(tolerance - min(b, 1/b)))``. A layer where ``a``
    or ``b`` is infinite or NaN (no dead neuron, for example) counts as zero.

    Args:
        layers: bounds of the input of every ReLU; at least one.
        tolerance: ratio from which on nothing is punished, above 0.

    Returns:
        A scalar in ``[0, 2]``.

    Source: Shi et al. 2021, arXiv 2103.17268.
    """
    return _over_layers([_imbalance(lower, upper, tolerance) for lower, upper in layers], tolerance)


def check_regularisation(regularisation: float) -> None:
    """Refuse a weight that cannot be meant.

    Raises:
        UsageError: it is negative or NaN.
    """
    if not regularisation >= 0:
        raise UsageError(f"expected regularisation of at least 0, got {regularisation}")


def _imbalance(lower: Tensor, upper: Tensor, tolerance: float) -> Tensor:
    centre = (lower + upper) / 2
    active, dead = lower > 0, upper < 0
    spread = (centre - centre.mean()) ** 2
    pairs = [((centre * active).sum(), -(centre * dead).sum()), ((spread * active).sum(), (spread * dead).sum())]
    defined = torch.stack([torch.isfinite(over) & (under > 0) for over, under in pairs]).all()
    terms = [torch.relu(tolerance - _lesser_ratio(over, under)) for over, under in pairs]
    return torch.where(defined, terms[0] + terms[1], 0.0)


def _lesser_ratio(one: Tensor, other: Tensor) -> Tensor:
    """Give ``min(a, 1/a)`` of ``a = one / other``, both at least 0, with gradients that stay finite."""
    return torch.minimum(one, other) / torch.maximum(one, other).clamp(min=_TINY)


def _over_layers(terms: Sequence[Tensor], tolerance: float) -> Tensor:
    total = torch.stack([torch.where(torch.isfinite(one), one, 0.0) for one in terms]).sum()
    return total / (tolerance * len(terms))
