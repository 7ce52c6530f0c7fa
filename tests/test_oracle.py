"""The oracle of the other tests, held against minima known by hand, enumeration, sampling and descent."""

import copy
import itertools

import numpy as np
import pytest
import torch
from families import CLASSES, FAMILIES, member, points, radius_of, shape_of
from oracle import TOLERANCE, margin, minimum
from torch import Tensor, nn

from robustkit.models import Normalize
from robustkit.models.named import Residual

ONE, ZERO = torch.ones(1, 1), torch.zeros(1)


def dense(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer


def constant(layer: nn.Conv2d, weight: float, bias: float = 0.0) -> nn.Conv2d:
    nn.init.constant_(layer.weight, weight)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer


def least(model: nn.Module, low: Tensor, high: Tensor) -> float:
    return minimum(model, ONE, ZERO, low, high).value


def test_minima_known_by_hand() -> None:
    low, high = torch.tensor([-1.0]), torch.tensor([2.0])
    assert least(dense([[-3.0]], [1.0]), low, high) == -5.0
    hat = nn.Sequential(dense([[1.0], [1.0], [1.0]], [1.0, 0.0, -1.0]), nn.ReLU(), dense([[-1.0, 2.0, -1.0]], [0.5]))
    assert least(hat, low, high) == pytest.approx(-0.5, abs=1e-6)  # 1/2 minus a hat of height 1 at 0
    lifted = dense([[1.0], [-1.0]], [0.0, 0.0])
    absolute = nn.Sequential(lifted, nn.LeakyReLU(0.25), dense([[1.0, 1.0]], [0.0]))
    assert least(absolute, low, high) == pytest.approx(0.0, abs=1e-6)  # 3/4 |x|
    assert least(absolute, torch.tensor([0.5]), high) == pytest.approx(0.375, abs=1e-6)
    off = nn.Sequential(dense([[1.0]], [-3.0]), nn.LeakyReLU(0.5))
    assert least(off, low, high) == pytest.approx(-2.0, abs=1e-6)


def test_minima_of_images_known_by_hand() -> None:
    low, high = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    pooled = nn.Sequential(Normalize([0.5], [0.25]), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), dense([[-1.0]], [0.0]))
    assert least(pooled, low, high) == pytest.approx(-2.0, abs=1e-6)
    norm = nn.BatchNorm2d(1, eps=0.0)
    norm.running_mean, norm.running_var = torch.tensor([1.0]), torch.tensor([4.0])
    norm.weight.data, norm.bias.data = torch.tensor([-2.0]), torch.tensor([0.5])
    summed = nn.Sequential(constant(nn.Conv2d(1, 1, 2), 1.0), norm, nn.Flatten()).eval()
    assert least(summed, low, high) == pytest.approx(-2.5, abs=1e-6)  # 1/2 - (4 - 1)
    block = Residual(1, 1, down=False)
    constant(block.long[0], 1.0, -3.0)
    constant(block.long[2], 0.0)
    block.long[2].weight.data[0, 0, 1, 1] = -2.0
    constant(block.short, 1.0, 1.0)
    corner = nn.Sequential(block, nn.Flatten(), dense([[1.0, 0.0, 0.0, 0.0]], [0.0]))
    assert least(corner, low, high) == pytest.approx(0.0, abs=1e-6)  # relu(x + 1 - 2 relu(sum - 3)) at 1 is 0
    assert least(corner, low, 0.8 * high) == pytest.approx(1.0, abs=1e-6)  # at 0


def test_the_least_greatest_row() -> None:
    model, low, high = dense([[1.0], [-1.0]], [0.0, 0.0]), torch.tensor([-1.0]), torch.tensor([1.0])
    found = minimum(model, torch.eye(2), torch.tensor([0.0, 0.5]), low, high)
    assert found.value == pytest.approx(0.25, abs=1e-6)
    assert found.x == pytest.approx(np.array([0.25]), abs=1e-6)


def enumerated(model: nn.Sequential, row: Tensor, lb: Tensor, ub: Tensor) -> float:
    """Search a fine grid, then descend from its best points: an upper bound that is close for so few pieces."""
    axes = [torch.linspace(float(a), float(b), 41, dtype=torch.float64) for a, b in zip(lb, ub, strict=True)]
    exact, grid = copy.deepcopy(model).double(), torch.cartesian_prod(*axes)
    with torch.no_grad():
        best = grid[(exact(grid) @ row.double()).topk(64, largest=False).indices]
        step = (ub - lb).double() / 40
        moves = torch.tensor(list(itertools.product([-1.0, -0.3, 0.0, 0.3, 1.0], repeat=len(lb))), dtype=torch.float64)
        for _ in range(90):
            tried = (best[:, None] + moves * step).clamp(lb.double(), ub.double())
            values = exact(tried.flatten(0, 1)).view(*tried.shape[:2], -1) @ row.double()
            best = tried[torch.arange(len(best)), values.argmin(1)]
            step = step * 0.85
        return float((exact(best) @ row.double()).min())


@pytest.mark.parametrize("family", ["dense", "leaky_relu"])
@pytest.mark.parametrize("seed", range(3))
def test_a_fine_grid_and_descent_from_it_agree(family: str, seed: int) -> None:
    model, row = member(family, seed), torch.tensor([1.0, -1.0, 0.0])
    lb, ub = torch.zeros(3), torch.ones(3)
    found = minimum(model, row[None], ZERO, lb, ub)
    assert found.unstable >= 3
    assert found.value == pytest.approx(enumerated(model, row, lb, ub), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_point_lies_below_and_the_minimiser_attains_it(family: str) -> None:
    unstable, radius = 0, radius_of(family)
    for seed in range(3):
        model, x = member(family, seed), points(family, 1, seed)[0]
        lb, ub = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
        label = int(model(x[None]).argmax())
        found = margin(model, label, lb, ub)
        unstable += found.unstable
        assert (torch.from_numpy(found.x) >= lb).all() and (torch.from_numpy(found.x) <= ub).all()
        exact = copy.deepcopy(model).double()

        def worst(z: Tensor, exact: nn.Module = exact, label: int = label) -> Tensor:
            y = exact(z)
            others = torch.arange(CLASSES) != label
            return (y[:, label : label + 1] - y[:, others]).amin(dim=1)

        at = worst(torch.from_numpy(found.x)[None])
        assert at.item() == pytest.approx(found.value, abs=1e-9)
        draw = torch.Generator().manual_seed(seed)
        share = torch.rand(256, *shape_of(family), generator=draw, dtype=torch.float64)
        share[:128] = share[:128].round()
        z = lb + share * (ub - lb)
        for step in range(40):
            z.requires_grad_(True)
            values = worst(z)
            assert values.min() >= found.value - TOLERANCE
            (slope,) = torch.autograd.grad(values.sum(), z)
            z = (z - 0.25 * (1 - step / 40) * (ub - lb) * slope.sign()).detach()
            z = torch.minimum(torch.maximum(z, lb.double()), ub.double())
        assert values.min() <= found.value + 0.2, "the descent comes near"
    assert unstable >= 6
