"""Networks made by name, and any ``nn.Module`` of the user's by ``package.module:factory``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from robustkit.errors import RobustkitError, UsageError, unknown_name
from robustkit.models.library import PREFIX, from_torchvision
from robustkit.models.modes import in_eval_mode
from robustkit.models.named import ARCHITECTURES, Architecture, Shape


class Normalize(nn.Module):
    """Subtract a mean and divide by a deviation per channel; the first layer of a model, never a step on the data.

    Args:
        mean: one per channel.
        std: one per channel, above 0.

    Raises:
        UsageError: not one of each per channel, or a deviation that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(one > 0 for one in std):
            raise UsageError(f"expected a mean and a std above 0 per channel, got {tuple(mean)} and {tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images of shape ``(B, C, H, W)``."""
        return (x - self.mean) / self.std


def makes_its_weights(name: str) -> bool:
    """Say whether a name is that of a user's own factory, which may give a network with its weights."""
    return ":" in name and not name.startswith("torchvision:")


def make_model(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a network with fresh weights from torch's global random state.

    Args:
        name: a name in ``ARCHITECTURES``; ``torchvision:`` and the name of one of its classification networks; or
            ``package.module:factory``: a function of no arguments that gives an
            ``nn.Module`` (or such a module itself), importable from here or from the working directory.
        input_shape: ``(C, H, W)`` of an image.
        classes: number of classes.
        mean: mean per channel of a ``Normalize`` layer in front; None for 0. A user's own factory brings its own.
        std: deviation per channel; None for 1. No layer is put in front where neither does anything.
        width: channels of the first convolution, or neurons of a hidden layer; None for the published width. Refused
            for a user's own factory.

    Returns:
        An ``nn.Sequential``, or what the user's factory gave.

    Raises:
        UsageError: an unknown name, an input shape or width the architecture does not take, or no such factory.
        RobustkitError: the factory fails, or its model does not give one logit per class.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise UsageError(f"expected an input shape (C, H, W), got {tuple(input_shape)}; add the channel dimension")
    if width is not None and (width < 1 or ":" in name):
        raise UsageError(f"expected width of at least 1, for a named architecture only, got {width} for {name}")
    channels, *sides = input_shape
    if name.startswith(PREFIX):
        whole = nn.Sequential(*_front(channels, mean, std), from_torchvision(name, channels, classes))
        check_output(whole, input_shape, classes)
        return whole
    if ":" in name:
        model = _from_factory(name)
        check_output(model, input_shape, classes)
        return model
    if name not in ARCHITECTURES:
        error = unknown_name("model", name, ARCHITECTURES)
        raise UsageError(f"{error}; your own is named package.module:factory, one of torchvision's torchvision:NAME")
    chosen = ARCHITECTURES[name]
    shape = (channels, sides[0], sides[1])
    _check_input(name, chosen, shape)
    return nn.Sequential(*_front(channels, mean, std), *chosen.build(shape, classes, width or chosen.width))


def _front(channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> list[nn.Module]:
    """Give the ``Normalize`` layer that goes in front, or none where it would do nothing."""
    mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
    if len(mean) != channels:
        raise UsageError(f"expected a mean and a std for each of {channels} channels, got {len(mean)}")
    identity = all(one == 0 for one in mean) and all(one == 1 for one in std)
    return [] if identity else [Normalize(mean, std)]


def check_output(model: nn.Module, input_shape: Sequence[int], classes: int) -> None:
    """Make sure a model maps one image to one logit per class; its mode and the random state stay as they are.

    Args:
        model: any module.
        input_shape: ``(C, H, W)`` of an image.
        classes: number of classes.

    Raises:
        RobustkitError: it fails on such an image, or gives anything but a tensor of shape ``(1, classes)``.
    """
    try:
        output = _probe(model, input_shape)
    except Exception as error:
        raise RobustkitError(
            f"expected a model for images of shape {tuple(input_shape)}, got {_one_line(error)} on one of them; "
            "check that the model suits the data"
        ) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (1, classes):
        raise RobustkitError(
            f"expected logits of shape (1, {classes}) from the model on one image, got {shape}; "
            "its last layer must give one value per class"
        )


def count_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(one.numel() for one in model.parameters())


def count_relus(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Count the ReLU neurons that one image passes; only ``nn.ReLU`` modules are seen.

    Args:
        model: any module.
        input_shape: ``(C, H, W)`` of an image.

    Returns:
        The number of neurons.
    """
    counts: list[int] = []
    hooks = [
        one.register_forward_hook(lambda _module, _inputs, output: counts.append(output.numel()))
        for one in model.modules()
        if isinstance(one, nn.ReLU)
    ]
    try:
        _probe(model, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def _check_input(name: str, chosen: Architecture, shape: Shape) -> None:
    if chosen.input_shape is not None and shape != chosen.input_shape:
        raise UsageError(
            f"expected images of shape {chosen.input_shape} for {name}, got {shape}; cnn_small and mlp take any shape"
        )
    if min(shape[1:]) < chosen.least:
        raise UsageError(f"expected images of at least {chosen.least} pixels a side for {name}, got {shape}; use mlp")


def _probe(model: nn.Module, input_shape: Sequence[int]) -> object:
    """Run one black image through a model in eval mode, leaving no trace."""
    like = next((one for one in model.parameters() if one.is_floating_point()), torch.zeros(()))
    x = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    devices = [like.device] if like.is_cuda else []
    with in_eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices):
        output: object = model(x)
        return output


def _from_factory(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    with _working_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise UsageError(
                f"cannot import {module_name!r} for the model {name!r}: {_one_line(error)}; "
                "name it as package.module:factory, importable from the working directory"
            ) from error
        if not hasattr(module, attribute):
            raise unknown_name(f"factory in {module_name}", attribute, (one for one in vars(module) if one[0] != "_"))
        factory = getattr(module, attribute)
        model = factory if isinstance(factory, nn.Module) else _call(factory, name)
    if not isinstance(model, nn.Module):
        raise RobustkitError(f"expected an nn.Module from {name}, got {type(model).__name__}; return the network")
    return model


def _call(factory: object, name: str) -> object:
    if not callable(factory):
        return factory
    try:
        return factory()
    except Exception as error:
        raise RobustkitError(f"expected {name}() to give a network, got {_one_line(error)}") from error


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
