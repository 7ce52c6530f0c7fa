"""Lines that hold an activation between its bounds, for any rounding of their slopes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.verifiers.exact_network import Activation
from robustkit.verifiers.rounding import UNDERFLOW


@dataclass(frozen=True)
class Relaxation:
    """Lines that hold an activation over ``[l, u]``: ``low * z <= f(z) <= high * z + offset``; each ``(B, n)``."""

    low: Tensor
    high: Tensor
    offset: Tensor


def relax(activation: Activation, lb: Tensor, ub: Tensor, low: Tensor) -> Relaxation:
    """Choose the lines of an activation.

    Any slope is exact, for the offset is computed from the slope that is used. Below, ``low * z <= f(z)`` for all z and
    ``low`` in [slope, 1]. Above, ``f(z) - high * z`` is convex, so its maximum lies at an end: there it is
    ``(high - slope) * -z`` for ``z <= 0`` and ``(1 - high) * z`` for ``z >= 0``, products of two numbers of at least 0.

    Args:
        activation: ReLU or leaky ReLU.
        lb: least inputs, shape ``(B, n)``.
        ub: greatest inputs.
        low: wanted slopes of the lower lines, used where the activation is unstable; moved into [slope, 1].

    Returns:
        The lines.
    """
    slope = activation.slope
    ends = [torch.where(z > 0, z, slope * z) for z in (lb, ub)]
    secant = ((ends[1] - ends[0]) / (ub - lb)).nan_to_num(nan=1.0, posinf=1.0, neginf=1.0).clamp(slope, 1.0)
    high, low = (one.where(lb < 0, torch.ones_like(one)) for one in (secant, low.clamp(slope, 1.0)))
    high, low = (one.where(ub > 0, torch.full_like(one, slope)) for one in (high, low))
    gaps = [torch.where(z > 0, (1.0 - high) * z, (high - slope) * -z) for z in (lb, ub)]
    offset = torch.maximum(*gaps)
    # two roundings, each below 2^-52 of the result unless it underflows; exact where there is nothing to round
    offset = offset.where((lb >= 0) | (ub <= 0), offset * (1 + 2.0**-50) + UNDERFLOW)
    return Relaxation(low, high, offset)


def adaptive(activation: Activation, lb: Tensor, ub: Tensor) -> Relaxation:
    """Relax with the lower line that leaves the smaller area: slope 1 where ``u > -l``, else the least."""
    return relax(activation, lb, ub, (ub > -lb).double())


def parallel(activation: Activation, lb: Tensor, ub: Tensor) -> Relaxation:
    """Relax with lower lines parallel to the upper ones."""
    return relax(activation, lb, ub, relax(activation, lb, ub, torch.zeros_like(lb)).high)
