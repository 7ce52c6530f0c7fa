"""Bounds of a mixture of two networks, from bounds of the robust one alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustkit.bounds.method import BoundMethod
from robustkit.bounds.network import BoundedNetwork
from robustkit.errors import RobustkitError
from robustkit.models.mixture import Mixture
from robustkit.threat import LinfBall

ROUNDING = 1e-5
"""What is taken off every margin: more than float32 can lose in the logarithm of a mixture of probabilities."""


class BoundedMixture:
    """A mixture prepared for bound propagation: its robust network is bounded, of the natural one nothing is asked.

    Args:
        model: the mixture, on its device.
        example: one input, shape ``(1, ...)``.

    Raises:
        UnsupportedLayerError: a layer of the robust network cannot be bounded soundly; the layer is named.
    """

    def __init__(self, model: Mixture, example: Tensor) -> None:
        self.model: nn.Module = model
        self._mixture = model
        self._robust = BoundedNetwork(model.robust, example)

    @property
    def classes(self) -> int:
        """Number of classes ``K``."""
        return self._robust.classes

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the logits of inputs ``(B, ...)``, shape ``(B, K)``; differentiable."""
        logits: Tensor = self.model(x)
        return logits

    def lower_margins(
        self, x: Tensor, y: Tensor, ball: LinfBall, method: BoundMethod, *, intervals_first: bool = False
    ) -> Tensor:
        """Bound the margins of the mixture over the ball around each sample from below.

        Its logits are logarithms of probabilities: a margin is ``log(P_y / P_j)``, positive exactly where ``P_y``
        exceeds ``P_j``. See ``BoundedNetwork.lower_margins`` for the arguments, what is raised, and the shape.
        """
        margins = self._robust.lower_margins(x, y, ball, method, intervals_first=intervals_first)
        weight = float(self._mixture.weight)
        if not 0.0 < weight <= 1.0:
            raise RobustkitError(f"expected the weight of the robust network in (0, 1], got {weight}; mix again")
        return mixed_margins(margins, y, weight)

    def input_coefficients(self, lb: Tensor, ub: Tensor, specification: Tensor) -> tuple[Tensor, Tensor]:
        """Give those of the robust network: a direction for an attack on the mixture, and no bound of the mixture.

        See ``BoundedNetwork.input_coefficients``. The interval gradient of a mixture is our own extension: where the
        weight is above 1/2 the mixture is broken only where the robust network loses most of its margin.
        """
        return self._robust.input_coefficients(lb, ub, specification)


def mixed_margins(margins: Tensor, y: Tensor, weight: float) -> Tensor:
    """Turn lower bounds of the margins of the robust network into lower bounds of the mixture's.

    Args:
        margins: margin matrix of the robust network, shape ``(B, K)``; minus infinity where nothing is known.
        y: labels, shape ``(B,)``.
        weight: of the robust network, in (0, 1].

    Returns:
        Lower bounds of ``log(P_y / P_j)``, shape ``(B, K)``, column ``y`` zero, minus infinity where nothing is known.

    Source: adaptive smoothing certifies a probability margin of the robust network above ``(1 - a) / a``
    (docs/methods.md); that this follows from margins of logits in the form below is our own derivation.
    """
    # With margins M_j of the robust network at a point and t_j = exp(-M_j), its probabilities are p_y = 1 / (1 + S) and
    # p_j = t_j / (1 + S), S the sum of t_i over i != y. The natural network is least helpful with g_y = 0 and g_j = 1:
    #     P_y / P_j >= a p_y / ((1 - a) + a p_j) = a / ((1 - a) (1 + S) + a t_j),
    # which falls in every t_i. A lower bound m_i of M_i gives t_i <= exp(-m_i), whatever its sign, so that putting m in
    # for M bounds the ratio from below at every point of the ball. The ratio exceeds 1 exactly where
    # (1 - exp(-m_j)) / (1 + S) > (1 - a) / a: never for a <= 1/2, and for a = 1 its logarithm is m_j.
    own = torch.nn.functional.one_hot(y, margins.shape[1]).bool()
    exponents = -margins.double().masked_fill(own, 0.0)
    share = torch.tensor(weight, dtype=torch.float64, device=margins.device)
    whole = torch.logsumexp(exponents, dim=1, keepdim=True)  # log(1 + S): column y gives the 1
    worst = torch.logaddexp(torch.log1p(-share) + whole, torch.log(share) + exponents)
    lower = torch.where(exponents.isposinf() | whole.isposinf(), -torch.inf, torch.log(share) - worst - ROUNDING)
    return lower.masked_fill(own, 0.0).to(margins.dtype)
