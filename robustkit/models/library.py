"""The classification networks of torchvision, by name, without their weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from robustkit.errors import UsageError, unknown_name

PREFIX = "torchvision:"
"""What the name of a network begins with to mean one of torchvision's."""

WITH_BRANCHES = ("googlenet", "inception_v3")
"""Networks that would give more than their logits in train mode; they are made without their auxiliary classifiers."""


def from_torchvision(name: str, channels: int, classes: int) -> nn.Module:
    """Make a network of torchvision with fresh weights from torch's global random state.

    Its first convolution takes the channels of the images; where these are not three it is drawn anew, by torch's own
    default.

    Args:
        name: such as ``torchvision:resnet18``.
        channels: of an image.
        classes: number of classes.

    Returns:
        The network, which expects normalised images.

    Raises:
        UsageError: torchvision has no classification network of that name, or none that takes this many channels.
    """
    from torchvision import models

    own = name.removeprefix(PREFIX)
    known = models.list_models(module=models)
    if own not in known:
        raise unknown_name("torchvision model", own, known)
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if own in WITH_BRANCHES else {}
    model: nn.Module = models.get_model(own, weights=None, num_classes=classes, **options)
    if channels != 3:
        _adapt(model, name, channels)
    return model


def _adapt(model: nn.Module, name: str, channels: int) -> None:
    """Let the first convolution take images of another number of channels."""
    place, first = next((one for one in model.named_modules() if isinstance(one[1], nn.Conv2d)), ("", None))
    if not isinstance(first, nn.Conv2d) or first.in_channels != 3 or first.groups != 1:
        raise UsageError(f"expected images of 3 channels for {name}, got {channels}; choose another model")
    like: dict[str, Any] = {one: getattr(first, one) for one in ("kernel_size", "stride", "padding", "dilation")}
    parent, _, own = place.rpartition(".")
    adapted = nn.Conv2d(channels, first.out_channels, bias=first.bias is not None, **like)
    setattr(model.get_submodule(parent), own, adapted)
