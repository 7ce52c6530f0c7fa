"""Small random networks, one for each kind of layer that bounds claim to carry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """One block whose skip is a convolution, as in the papers' ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.skip = nn.Conv2d(2, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.second(torch.relu(self.first(x)))
        return torch.relu(inner + self.skip(x))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))


def conv() -> nn.Sequential:
    head = [nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU()]
    return nn.Sequential(*head, nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def batch_norm() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )


def residual() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), Residual(), nn.Flatten(), nn.Linear(27, 4))


def average_pool() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4))


def _dense(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 10), activation, nn.Linear(10, 8), activation, nn.Linear(8, 4))


def leaky_relu() -> nn.Sequential:
    return _dense(nn.LeakyReLU(0.1))


def sigmoid() -> nn.Sequential:
    return _dense(nn.Sigmoid())


def tanh() -> nn.Sequential:
    return _dense(nn.Tanh())


KINDS: dict[str, Callable[[], nn.Sequential]] = {
    one.__name__: one for one in (mlp, conv, batch_norm, residual, average_pool, leaky_relu, sigmoid, tanh)
}
CLASSES = 4


def make(kind: str, seed: int = 0) -> nn.Sequential:
    """Make one with random weights, and with running statistics that are not trivial; in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[kind]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
            model.train()
            model(torch.rand(32, 1, 6, 6))
    return model.eval()


def inputs(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
