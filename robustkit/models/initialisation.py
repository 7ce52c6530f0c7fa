"""Weights to begin interval training with: intervals neither explode nor vanish with depth."""

from __future__ import annotations

import math

import torch
from torch import nn

from robustkit.models.named import Residual


@torch.no_grad()
def initialise_for_intervals(model: nn.Module) -> None:
    """Draw the weights of all convolutions and fully connected layers but the last anew, from torch's global state.

    Each is normal with mean 0 and deviation ``sqrt(2 pi) / fan_in``: an interval then keeps its width in expectation
    from one ReLU's input to the next, however wide the layers. Biases, batch norm and the last layer stay as torch drew
    them; the order in which the model registers its layers tells which is the last.

    Where two paths are added their widths add up. Here the two convolutions that feed the sum of a ``Residual`` block
    are halved, weights and biases. Deviation: the authors halve the layer that follows the sum; as a ReLU is positively
    homogeneous that is the same, up to the bias. Sums in a user's own model are not seen.

    Args:
        model: changed in place; on any device.

    Source: Shi et al. 2021, arXiv 2103.17268.
    """
    layers = [one for one in model.modules() if isinstance(one, nn.modules.conv._ConvNd | nn.Linear)]
    for layer in layers[:-1]:
        layer.weight.normal_(0.0, math.sqrt(2.0 * math.pi) / layer.weight[0].numel())
    for block in (one for one in model.modules() if isinstance(one, Residual)):
        for feeding in (block.long[-1], block.short):
            for parameter in feeding.parameters():
                parameter.mul_(0.5)
