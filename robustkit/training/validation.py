"""What is measured after every epoch, and whether training has collapsed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.bounds import BoundMethod
from robustkit.data import Split
from robustkit.errors import RobustkitError
from robustkit.margins import certified, correct
from robustkit.threat import LinfBall
from robustkit.training.method import Trainee
from robustkit.training.schedules import EpochMetrics

BATCH = 250
PATIENCE, LEAST_STEPS, LEAST_SAMPLES = 3, 500, 20
"""Epochs in a row after which a network that predicts a single class is given up, but not before so many steps, and
only where so many validation samples say so."""


@dataclass(frozen=True)
class Validation:
    """Figures on the validation split; NaN where it is empty, or nothing was measured.

    Attributes:
        clean: clean accuracy, in [0, 1].
        vra: verified accuracy by the method's own bound, in [0, 1].
    """

    clean: float = math.nan
    vra: float = math.nan


@torch.no_grad()
def validate(trainee: Trainee, split: Split, ball: LinfBall, bound: BoundMethod | None) -> Validation:
    """Measure a network in eval mode.

    Args:
        trainee: the network.
        split: samples on its device.
        ball: the ball to verify in.
        bound: by which bound; None to verify nothing.

    Returns:
        The figures.

    Raises:
        UnsupportedLayerError: the bound cannot carry a layer of the network.
    """
    if not len(split):
        return Validation()
    logits = torch.cat([trainee.model(x) for x in torch.split(split.x, BATCH)])
    clean = correct(logits, split.y).double().mean().item()
    if bound is None:
        return Validation(clean)
    margins = [
        trainee.bounds.lower_margins(x, y, ball, bound, intervals_first=True)
        for x, y in zip(torch.split(split.x, BATCH), torch.split(split.y, BATCH), strict=True)
    ]
    return Validation(clean, certified(torch.cat(margins), split.y).double().mean().item())


@torch.no_grad()
def classes_predicted(model: nn.Module, split: Split) -> float:
    """Count the classes that a network in eval mode predicts for any sample; NaN where there is none."""
    if not len(split):
        return math.nan
    return float(len(torch.unique(torch.cat([model(x).argmax(dim=1) for x in torch.split(split.x, BATCH)]))))


def stop_if_collapsed(
    history: Sequence[EpochMetrics], model: nn.Module, split: Split, *, begun: float, steps_per_epoch: int
) -> None:
    """Give up a network that has predicted one class for every validation sample, some epochs in a row.

    Args:
        history: the finished epochs.
        model: in eval mode.
        split: validation samples.
        begun: epoch, fractional, from which on it counts: the learning rate is warm, and eps grows.
        steps_per_epoch: fewer steps than 500 in all are too few to tell.

    Raises:
        RobustkitError: it has collapsed; the message names the class and the dead layers.
    """
    early = len(history) - PATIENCE < begun or len(history) * steps_per_epoch < LEAST_STEPS
    telling = len(split) >= LEAST_SAMPLES and len(torch.unique(split.y)) > 1
    if early or not telling or any(one["val_classes"] != 1 for one in history[-PATIENCE:]):
        return
    with torch.no_grad():
        only = int(model(split.x[:1]).argmax())
    dead = dead_layers(model, split.x[:BATCH])
    layers = f"; no neuron is active in {', '.join(dead)}" if dead else ""
    raise RobustkitError(
        f"training has collapsed: class {only} is predicted for all {len(split)} validation samples since epoch "
        f"{len(history) - PATIENCE + 1}{layers}; lengthen the eps ramp (train.ramp_end), lower train.lr, or "
        "train for a smaller eps; train.stop_if_collapsed=false goes on"
    )


@torch.no_grad()
def dead_layers(model: nn.Module, x: Tensor) -> list[str]:
    """Name the ReLU layers of which no neuron is active on any sample; only ``nn.ReLU`` modules are seen."""
    active: dict[str, bool] = {}

    def watch(name: str) -> object:
        def look(_module: nn.Module, _given: object, out: Tensor) -> None:
            active[name] = active.get(name, False) or bool((out > 0).any())

        return look

    hooks = [
        one.register_forward_hook(watch(name))  # type: ignore[arg-type]
        for name, one in model.named_modules()
        if isinstance(one, nn.ReLU)
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, lives in active.items() if not lives]
