"""A search without gradients: what it finds and gradients do not is a sign that these are hidden."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustkit.attacks.base import checked_logits, least_margin
from robustkit.threat import LinfBall

LARGEST = 0.5
"""Share of the pixels in the first blocks; it halves five times on the way to the last."""


@torch.no_grad()
def random_search(
    model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, *, queries: int, anew: bool = False, seed: int = 0
) -> Tensor:
    """Move blocks of pixels to random corners of the ball, and keep what lowers the margin.

    Call it within ``evaluating``. Our own design after the idea of Andriushchenko et al. 2020, arXiv 1912.00049: blocks
    in the same place for all samples, few of them, no stripes to begin with. Heuristic, and weak on purpose.

    Args:
        model: in eval mode.
        x: inputs, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        ball: the ball around each input.
        queries: predictions of each sample.
        anew: draw a whole new corner each time.
        seed: of the draws.

    Returns:
        The least margin seen of each sample, shape ``(B,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    lb, ub = ball.inner_box(x)
    points = torch.where(_signs(x.shape, generator).to(x.device), ub, lb)
    margin = least_margin(checked_logits(model, points), y)
    for query in range(1, queries):
        side = 1.0 if anew else math.sqrt(LARGEST * 0.5 ** (5 * query // queries))
        changed = _block(points, lb, ub, side, generator)
        found = least_margin(checked_logits(model, changed), y)
        better = found < margin
        points[better], margin[better] = changed[better], found[better]
    return margin


def _block(points: Tensor, lb: Tensor, ub: Tensor, side: float, generator: torch.Generator) -> Tensor:
    """Move one block of pixels, ``side`` of the last two dimensions long, to a corner of each sample's own."""
    changed = points.clone()
    place: list[slice] = [slice(None)] * points.ndim
    for axis in range(max(1, points.ndim - 2), points.ndim):
        size = points.shape[axis]
        length = max(1, round(side * size))
        first = int(torch.randint(size - length + 1, (1,), generator=generator))
        place[axis] = slice(first, first + length)
    where = tuple(place)
    whole = points[where].shape
    alike = (*whole[:2], *[1] * (len(whole) - 2)) if side < 1.0 else whole  # one sign a channel, or one a pixel
    changed[where] = torch.where(_signs(alike, generator).to(points.device), ub[where], lb[where])
    return changed


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) < 0.5
