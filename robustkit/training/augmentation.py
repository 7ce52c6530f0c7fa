"""Random crops and flips, drawn for the whole batch and made on its device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.training.method import Share

Augmentation = Literal["none", "crop", "crop-flip"]


def augmented(x: Tensor, kind: Augmentation, generator: torch.Generator, share: Share) -> Tensor:
    """Shift each image by up to an eighth of its side, zeros coming in, and flip every other one if asked.

    Args:
        x: images, shape ``(B, C, H, W)``.
        kind: ``"crop"``, or ``"crop-flip"`` to mirror half of them left to right as well.
        generator: source of the draws, on the CPU.
        share: the part of the batch that ``x`` is.

    Returns:
        Images of the same shape.
    """
    if kind == "none":
        return x
    height, width = x.shape[2:]
    most = torch.tensor([height // 8, width // 8])
    batch = len(x) * share.of
    shifts = share.take((torch.rand((batch, 2), generator=generator) * (2 * most + 1)).long()).to(x.device)
    flips = share.take(torch.rand(batch, generator=generator) < 0.5).to(x.device)
    padded = functional.pad(x, (width // 8, width // 8, height // 8, height // 8))
    rows = shifts[:, :1] + torch.arange(height, device=x.device)
    columns = shifts[:, 1:] + torch.arange(width, device=x.device)
    if kind == "crop-flip":
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
