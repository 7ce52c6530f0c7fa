"""Where an attack starts from: random points of the ball, and its corners."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.attacks.base import Task, derived_seed
from robustkit.threat import LinfBall

BLOCKS = (4, 7, 14, None)
"""Along each side of an image, how many blocks of a random corner share their sign, in turn; None for every pixel."""


def random_start(
    x: Tensor,
    ball: LinfBall,
    index: Tensor,
    *,
    seed: int,
    restart: int,
    box: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Draw ``x + U(-eps, eps)``, cut to the ball: one point a sample, whatever batch the sample stands in.

    Args:
        x: inputs, shape ``(B, ...)``.
        ball: the ball around each input.
        index: positions in the test set, shape ``(B,)``.
        seed: of the attack.
        restart: number of the restart.
        box: ``ball.inner_box(x)``, where it is known already: it takes longer than the draw.

    Returns:
        Points of the shape and type of ``x``, in the ball.

    Source: Madry et al. 2018, arXiv 1706.06083, Sec. 5.
    """
    generator = torch.Generator()
    draws = [
        torch.rand(x.shape[1:], generator=generator.manual_seed(derived_seed(seed, one, restart)), dtype=x.dtype)
        for one in index.tolist()
    ]
    lb, ub = ball.inner_box(x) if box is None else box
    return torch.minimum(torch.maximum(x + (2 * torch.stack(draws).to(x.device) - 1) * ball.eps, lb), ub)


def start_points(
    task: Task,
    rows: Tensor,
    ball: LinfBall,
    score: Callable[[Tensor], Tensor],
    *,
    seed: int,
    restart: int,
    corners: int,
) -> Tensor:
    """Give where samples start from: each from the best of some random corners of its ball, or from a random point.

    Args:
        task: all samples of the attack.
        rows: which of them start, positions of shape ``(R,)``.
        ball: the ball around each.
        score: see ``corner_start``.
        seed: of the attack.
        restart: number of the restart.
        corners: how many are drawn; 0 for a random point.

    Returns:
        Points of shape ``(R, ...)``, in the ball.
    """
    x, box, index = task.x[rows], (task.lb[rows], task.ub[rows]), task.index[rows.cpu()]
    if not corners:
        return random_start(x, ball, index, seed=seed, restart=restart, box=box)
    return corner_start(x, box, index, score, seed=seed, restart=restart, corners=corners)


@torch.no_grad()
def corner_start(
    x: Tensor,
    box: tuple[Tensor, Tensor],
    index: Tensor,
    score: Callable[[Tensor], Tensor],
    *,
    seed: int,
    restart: int,
    corners: int,
) -> Tensor:
    """Draw corners of the ball, and give of each sample the one that scores least.

    Of an image neighbouring pixels often go to the same side: in blocks of some sizes in turn. A network with bounds
    that were trained to be tight is nearly linear, and often worse at some random corner than where gradients lead
    from inside.

    Args:
        x: inputs, shape ``(B, ...)``.
        box: ``ball.inner_box(x)``.
        index: positions in the test set, shape ``(B,)``.
        score: points ``(B, ...)`` to one number a sample, ``(B,)``: what the attack wants low.
        seed: of the attack.
        restart: number of the restart.
        corners: how many are drawn, at least 1.

    Returns:
        Points of the shape and type of ``x``, in the ball.

    Source: our own; blocks and stripes of one sign are where random search starts as well (Andriushchenko et al. 2020,
    arXiv 1912.00049, Sec. 3.2).
    """
    blocks = [BLOCKS[one % len(BLOCKS)] for one in range(corners)]
    shapes = [_blocked(x.shape[1:], one) for one in blocks]
    sizes = [shape.numel() for shape in shapes]
    generator = torch.Generator()
    drawn = torch.stack(
        [
            torch.rand(sum(sizes), generator=generator.manual_seed(derived_seed(seed, one, restart, corners)))
            for one in index.tolist()
        ]
    )
    best, least = x, x.new_full((len(x),), torch.inf, dtype=torch.float64)
    for shape, signs in zip(shapes, torch.split(drawn < 0.5, sizes, dim=1), strict=True):
        up = signs.reshape(len(x), *shape).to(x)
        up = up if shape == x.shape[1:] else functional.interpolate(up, size=x.shape[2:], mode="nearest")
        corner = torch.where(up > 0, box[1], box[0])
        found = score(corner).double()
        better = found < least
        best = torch.where(better.reshape(-1, *[1] * (x.ndim - 1)), corner, best)
        least = torch.where(better, found, least)
    return best


def _blocked(shape: torch.Size, blocks: int | None) -> torch.Size:
    """Give the shape of the signs that are drawn for a sample: fewer than pixels where it is an image in blocks."""
    if len(shape) != 3 or blocks is None:
        return shape
    return torch.Size([shape[0], *(min(blocks, side) for side in shape[1:])])
