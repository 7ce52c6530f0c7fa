"""The margin matrix: what training minimises and verification reads.

Entry ``(b, j)`` of a margin matrix of shape ``(B, K)`` is a lower bound of ``logit_y - logit_j`` for sample ``b`` with
label ``y``; column ``y`` is zero. A sample is certified exactly when all its other entries are positive.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.errors import SoundnessError
from robustkit.verdict import Verdict


def margin_specification(y: Tensor, classes: int) -> Tensor:
    """Give the matrices ``C`` with ``C @ logits = logit_y - logit_j`` for every class ``j``.

    Args:
        y: labels, shape ``(B,)``, integers in ``[0, classes)``.
        classes: number of classes ``K``.

    Returns:
        Shape ``(B, K, K)``; row ``y`` is zero.

    Source: Wong & Kolter 2018, arXiv 1711.00851, Sec. 3.
    """
    identity = torch.eye(classes, device=y.device)
    return identity[y].unsqueeze(1) - identity.unsqueeze(0)


def logit_margins(logits: Tensor, y: Tensor) -> Tensor:
    """Give the exact margin matrix of known logits.

    Args:
        logits: shape ``(B, K)``.
        y: labels, shape ``(B,)``.

    Returns:
        Shape ``(B, K)``.
    """
    return logits.gather(1, y.unsqueeze(1)) - logits


def robust_loss(margins: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Give the cross-entropy of the worst-case logit differences, an upper bound of the loss over the ball.

    Args:
        margins: margin matrix, shape ``(B, K)``.
        y: labels, shape ``(B,)``.
        reduction: as in ``torch.nn.functional.cross_entropy``.

    Returns:
        The loss: a scalar, or shape ``(B,)`` with ``reduction="none"``.

    Source: Wong & Kolter 2018, arXiv 1711.00851, Theorem 2.
    """
    return functional.cross_entropy(-margins, y, reduction=reduction)


def worst_margin(margins: Tensor, y: Tensor) -> Tensor:
    """Give the least margin over the wrong classes.

    Args:
        margins: margin matrix, shape ``(B, K)``.
        y: labels, shape ``(B,)``.

    Returns:
        Shape ``(B,)``; NaN where any entry of the row is NaN.
    """
    own = functional.one_hot(y, margins.shape[1]).bool()
    others = margins.masked_fill(own, torch.inf)
    return torch.where(margins.isnan().any(dim=1), torch.nan, others.min(dim=1).values)


def certified(margins: Tensor, y: Tensor) -> Tensor:
    """Say which samples are certified: every wrong class strictly behind. A tie and a NaN are not.

    Args:
        margins: margin matrix, shape ``(B, K)``.
        y: labels, shape ``(B,)``.

    Returns:
        Booleans, shape ``(B,)``.
    """
    return worst_margin(margins, y) > 0


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """Say which samples are classified rightly and without a tie.

    Args:
        logits: shape ``(B, K)``.
        y: labels, shape ``(B,)``.

    Returns:
        Booleans, shape ``(B,)``.
    """
    return certified(logit_margins(logits, y), y)


def fold(clean: bool, falsified: bool, verified: bool, checked: bool) -> Verdict:
    """Fold what is known of one sample into its verdict.

    Args:
        clean: the sample itself is classified rightly.
        falsified: a replayed point of the ball is classified wrongly.
        verified: every margin over the ball has a positive lower bound, as computed in floating point.
        checked: the proof checker confirms it.

    Returns:
        The verdict.

    Raises:
        SoundnessError: a wrongly classified point of the ball exists and the ball is verified, of either kind.
    """
    if (verified or checked) and (falsified or not clean):
        raise SoundnessError(
            "a sample is verified although a point of its ball is classified wrongly: "
            "either the bound or the replay is unsound, and no result of this run may be used"
        )
    if not clean:
        return Verdict.MISCLASSIFIED
    if falsified:
        return Verdict.FALSIFIED
    if checked:
        return Verdict.VERIFIED
    return Verdict.VERIFIED_FLOAT if verified else Verdict.UNKNOWN
