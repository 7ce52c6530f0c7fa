"""What several test files need: the folder of real data and published models, and a network of a few neurons."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: each with one thread, in the processes it starts too
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for the benchmarks, which are not installed


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with ``data/`` and ``models/``, or skip."""
    data = os.environ.get("ROBUSTKIT_DATA")
    checkout = Path(__file__).resolve().parent.parent
    places = [os.environ.get("ROBUSTKIT_SHARED"), Path(data).parent if data else None, checkout.parent / "shared"]
    for place in places:
        if place and (Path(place) / "models").is_dir() and (Path(place) / "data").is_dir():
            return Path(place)
    pytest.skip("needs real data and published models: set ROBUSTKIT_SHARED to the folder with data/ and models/")


@pytest.fixture
def small_cnn() -> nn.Sequential:
    """A convolutional network for images of shape (1, 4, 4) and three classes, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 3)]
        return nn.Sequential(*layers).eval()
