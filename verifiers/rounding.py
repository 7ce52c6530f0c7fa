"""What float64 arithmetic may get wrong, and by how much at most.

All numbers are float64, rounded to nearest, with ``u = 2^-53``. A sum of n products, added in any order, with fused
operations or without, is off by at most ``gamma_n * sum |a_i b_i|``, ``gamma_n = n u / (1 - n u)``, plus 2^-1075 for
each product that underflows (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Sec. 3.1). Wherever such
a radius is computed, it is twice what is needed: the other half pays for the rounding of the radius itself, which is
a few ``gamma_n`` of it, far below one half.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = 2.0**-53
UNDERFLOW = 2.0**-600
"""At least what underflow may take away in one step: up to 2^60 products of 2^-1075 each, times ``LARGEST``."""

LARGEST = 2.0**300
"""Magnitude of values beyond which nothing is proved."""


def gamma(terms: int) -> float:
    """Give twice Higham's ``gamma_n``, and more, for sums of ``terms`` products and eight operations around them."""
    return 2.0 * (terms + 8) * UNIT


def down(bound: Tensor) -> Tensor:
    """Give the next smaller number: pays for one rounding of a lower bound."""
    return torch.nextafter(bound, torch.full_like(bound, -torch.inf))


def up(bound: Tensor) -> Tensor:
    """Give the next greater number: pays for one rounding of an upper bound."""
    return torch.nextafter(bound, torch.full_like(bound, torch.inf))
