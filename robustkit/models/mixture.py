"""Adaptive smoothing: the probabilities of a natural and a robust network, mixed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustkit.errors import UsageError


class Mixture(nn.Module):
    """Give ``log((1 - a) softmax(g(x)) + a softmax(h(x)))`` as logits, for a natural network g and a robust one h.

    The logarithms of mixed probabilities are logits: their softmax is the mixture itself, and their greatest entry its
    prediction. The weight is a buffer: it is saved with the weights of both networks, and mixtures of another weight
    have another fingerprint.

    Args:
        natural: g, which gives logits of shape ``(B, K)``.
        robust: h, which gives logits of the same shape.
        weight: a, in (0, 1]; nothing can be certified for 1/2 or less.

    Raises:
        UsageError: a weight outside (0, 1].

    Source: adaptive smoothing, docs/methods.md; of its forms only the one with a constant weight.
    """

    weight: Tensor

    def __init__(self, natural: nn.Module, robust: nn.Module, weight: float) -> None:
        super().__init__()
        if not 0.0 < weight <= 1.0 or math.isnan(weight):
            raise UsageError(f"expected the weight of the robust network in (0, 1], got {weight}")
        self.natural, self.robust = natural, robust
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logarithms of the mixed probabilities of inputs ``(B, ...)``, shape ``(B, K)``."""
        natural, robust = (torch.log_softmax(one(x), dim=1) for one in (self.natural, self.robust))
        natural = torch.where(natural.isnan(), -torch.inf, natural)  # logits that overflow have no opinion
        shares = torch.stack([torch.log1p(-self.weight), torch.log(self.weight)]).to(robust)
        return torch.logaddexp(shares[0] + natural, shares[1] + robust)
