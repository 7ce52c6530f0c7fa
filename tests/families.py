"""Tiny random networks that an exact oracle can minimise, one family for each kind of layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustkit.models import Normalize
from robustkit.models.named import Residual

CLASSES = 3


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def conv() -> nn.Sequential:
    head = [Normalize([0.3], [0.7]), nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.ReLU()]
    return nn.Sequential(*head, nn.Flatten(), nn.Linear(3, CLASSES))


def residual() -> nn.Sequential:
    blocks = [Residual(1, 2, down=True), nn.Flatten(), nn.Linear(8, 4), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Linear(4, CLASSES))


def batch_norm() -> nn.Sequential:
    head = [nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*head, nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, CLASSES))


def leaky_relu() -> nn.Sequential:
    layers = [nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 6), nn.LeakyReLU(0.05), nn.Linear(6, CLASSES)]
    return nn.Sequential(*layers)


def average_pool() -> nn.Sequential:
    head = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*head, nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, CLASSES))


FAMILIES: dict[str, Callable[[], nn.Sequential]] = {
    one.__name__: one for one in (dense, conv, residual, batch_norm, leaky_relu, average_pool)
}


def shape_of(family: str) -> tuple[int, ...]:
    return (3,) if family in ("dense", "leaky_relu") else (1, 4, 4)


def radius_of(family: str) -> float:
    """A radius at which some neurons of most members are unstable, and few enough to enumerate."""
    return 0.35 if family in ("dense", "leaky_relu") else 0.15


def member(family: str, seed: int) -> nn.Sequential:
    """One with random weights, twice the usual size, and running statistics that are not trivial; in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[family]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    layer.weight.uniform_(-1.5, 1.5)
                    layer.bias.uniform_(-0.5, 0.5)
            model.train()
            for _ in range(5):
                model(torch.rand(16, *shape_of(family)))
    return model.eval()


def points(family: str, count: int, seed: int) -> Tensor:
    return torch.rand(count, *shape_of(family), generator=torch.Generator().manual_seed(seed))
