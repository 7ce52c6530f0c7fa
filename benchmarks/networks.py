"""The networks that are timed: MNIST where it is found, else the embedded digits; said in every table."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import nn

from robustkit.config import TrainConfig
from robustkit.data import Dataset, load_dataset
from robustkit.data.named import DATA_VARIABLE
from robustkit.errors import RobustkitError
from robustkit.models import load_weights, make_model
from robustkit.models.named import conv_net, residual_net
from robustkit.progress import Silent
from robustkit.training import make_method, train


@cache
def dataset() -> Dataset:
    try:
        return load_dataset("mnist")
    except RobustkitError:
        return load_dataset("digits")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fresh(name: str | None = None, width: int | None = None) -> nn.Module:
    """Make the dataset's own network, or a named one, with the same weights each time."""
    data = dataset()
    torch.manual_seed(0)
    return make_model(name or data.model, data.input_shape, data.classes, width=width).to(device())


def residual() -> nn.Module:
    """Make a small residual network for the dataset's images, with the same fresh weights each time."""
    data = dataset()
    torch.manual_seed(0)
    channels, height, width = data.input_shape
    layers = residual_net([(1, True), (2, True)], 50)((channels, height, width), data.classes, 4)
    return nn.Sequential(*layers).to(device()).eval()


def dense(depth: int, width: int) -> nn.Module:
    """Make a dense network with so many hidden layers, with the same fresh weights each time."""
    data = dataset()
    torch.manual_seed(0)
    channels, height, side = data.input_shape
    layers = conv_net([], [width] * depth)((channels, height, side), data.classes, width)
    return nn.Sequential(*layers).to(device()).eval()


@cache
def trained(method: str, eps: float, epochs: int, **options: float) -> nn.Module:
    """Train on at most 10,000 samples, by a method with options of its own."""
    data = dataset()
    model = fresh()
    few = Dataset(**{**vars(data), "train": data.train.take(10_000), "val": data.val.take(1)})
    plan = TrainConfig(eps=eps, epochs=epochs, weight_decay=0.0, ramp_end=0.6)
    with tempfile.TemporaryDirectory() as folder:
        train(model, few, make_method(method, options), plan, seed=0, folder=Path(folder), reporter=Silent())
    return model


@cache
def beside_the_data(file: str) -> nn.Module | None:
    """Give the MNIST_Small of a published file, a path under ``models`` where these lie beside the data."""
    given = os.environ.get(DATA_VARIABLE)
    beside = [Path(given).expanduser().parent] if given else []
    for root in (*beside, Path("../shared"), Path(__file__).parents[1] / "../shared"):
        path = root / "models" / file
        if dataset().name == "mnist" and path.exists():
            model = fresh()
            load_weights(model, path)
            return model.eval()
    return None


def published() -> nn.Module | None:
    """Give the MixTrain authors' MNIST_Small at eps 0.3, where it lies beside the data."""
    return beside_the_data("mixtrain/mnist_small_mixtrain_0.3.pth")


@cache
def robust() -> tuple[str, nn.Module]:
    """Give a certifiably trained network and what it is: the authors' where it is found, else one by IBP."""
    found, data = published(), dataset()
    if found is not None:
        return "the MixTrain authors' MNIST_Small", found
    return f"{data.model} trained by IBP", trained("ibp", data.eps, 6)
