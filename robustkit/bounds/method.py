"""The bound methods by name, and what can be done with several of them."""

from __future__ import annotations

from enum import StrEnum
from functools import reduce

import torch
from torch import Tensor


class BoundMethod(StrEnum):
    """How bounds are propagated, from the cheapest to the dearest; all are sound in real arithmetic."""

    IBP = "ibp"
    """Intervals, layer by layer. Source: Gowal et al. 2018, arXiv 1810.12715."""

    CROWN_IBP = "crown-ibp"
    """Intervals for the hidden layers, linear bounds for the margins. Source: Zhang et al. 2020, arXiv 1906.06316."""

    SYMBOLIC = "symbolic"
    """Linear bounds with parallel lines at every unstable ReLU: MixTrain's symbolic intervals, Fast-Lin, and Wong &
    Kolter's dual. Source: Wang et al. 2018, arXiv 1811.02625; Weng et al. 2018, arXiv 1804.09699."""

    CROWN = "crown"
    """Linear bounds with the better of the lower lines 0 and z. Source: Zhang et al. 2018, arXiv 1811.00866."""

    ALPHA_CROWN = "alpha-crown"
    """CROWN with the lower lines optimised by gradient. Source: Xu et al. 2021, arXiv 2011.13824."""


def intersect(*margins: Tensor) -> Tensor:
    """Give the greatest of several sound lower bounds, entry by entry; an entry that is NaN counts as no bound.

    Args:
        margins: lower bounds of equal shape.

    Returns:
        Lower bounds of the same shape, at least as tight as each; minus infinity where there is none.
    """
    known = [torch.where(one.isnan(), -torch.inf, one) for one in margins]
    return reduce(torch.maximum, known)
