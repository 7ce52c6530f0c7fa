from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proofs import KINDS, network_of, shape_of, tiny, values
from torch import Tensor, nn

from robustkit.verifiers.activation_lines import Relaxation, adaptive, parallel, relax
from robustkit.verifiers.exact_network import Activation, Dense, ExactNetwork
from robustkit.verifiers.network_reader import read_network
from robustkit.verifiers.sound_bounds import Region, enclose, intervals, lower_bound


@pytest.mark.parametrize("kind", [*KINDS, "odd"])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.01, 0.3])
@pytest.mark.parametrize("bound", [enclose, intervals])
def test_every_value_lies_within_its_bounds(
    kind: str, eps: float, bound: Callable[[ExactNetwork, Tensor, Tensor], Region]
) -> None:
    generator = torch.Generator().manual_seed(3)
    for seed in range(2):
        network = read_network(network_of(kind, seed), shape_of(kind))
        centre = torch.rand(2, network.size(0), dtype=torch.float64, generator=generator)
        region = bound(network, centre - eps, centre + eps)
        noise = 2 * torch.rand(200, *centre.shape, dtype=torch.float64, generator=generator) - 1
        noise[100:] = noise[100:].sign()
        points = torch.minimum(torch.maximum(centre + eps * noise, centre - eps), centre + eps)
        for value, found in enumerate(values(network, points.flatten(0, 1))):
            seen = found.view(200, 2, -1)
            # a sampled value is itself rounded
            slip = 1e-12 * (1 + seen.abs().amax())
            assert (region.lower[value] <= seen + slip).all(), f"lower bound of value {value}"
            assert (seen - slip <= region.upper[value]).all(), f"upper bound of value {value}"


reals = st.floats(-1e6, 1e6, allow_subnormal=True)


@settings(deadline=None)
@example((-1e-10, 1e6), 0.0, 0.5, 0.5)
@example((-1e6, 1e-10), 0.5, 0.5, 0.5)
@given(st.tuples(reals, reals), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(0, 1), st.floats(0, 1))
def test_lines_hold_an_activation_in_exact_arithmetic(
    ends: tuple[float, float], slope: float, low: float, share: float
) -> None:
    lb, ub = (torch.tensor([[one]], dtype=torch.float64) for one in (min(ends), max(ends)))
    activation = Activation(slope, 0)
    chosen = relax(activation, lb, ub, torch.tensor([[low]], dtype=torch.float64))
    exact_lb, exact_ub = Fraction(lb.item()), Fraction(ub.item())
    points = [exact_lb, exact_ub, exact_lb + (exact_ub - exact_lb) * Fraction(share)]
    for lines in (chosen, adaptive(activation, lb, ub), parallel(activation, lb, ub)):
        below, above, offset = (Fraction(one.item()) for one in (lines.low, lines.high, lines.offset))
        for z in [*points, *([Fraction(0)] if exact_lb <= 0 <= exact_ub else [])]:
            value = max(z, Fraction(slope) * z)
            assert below * z <= value <= above * z + offset


def exact(tensor: Tensor) -> list[Fraction]:
    return [Fraction(one) for one in tensor.flatten().tolist()]


def product_of(row: list[Fraction], x: list[Fraction]) -> Fraction:
    return sum((one * other for one, other in zip(row, x, strict=True)), Fraction(0))


def exact_bound(
    network: ExactNetwork, row: Tensor, lines: list[Relaxation], lb: Tensor, ub: Tensor, beta: list[Tensor]
) -> Fraction:
    """The backward pass of one row with given lines, without any rounding."""
    a, constant = exact(row), Fraction(0)
    for step in reversed(network.steps):
        operation = step.operation
        if isinstance(operation, Dense):
            constant += product_of(a, exact(operation.bias))
            a = [product_of(a, exact(column)) for column in operation.weight.T]
        elif isinstance(operation, Activation):
            line, multipliers = lines[operation.number], exact(beta[operation.number])
            constant += product_of([min(one, Fraction(0)) for one in a], exact(line.offset))
            slopes = zip(a, exact(line.low), exact(line.high), strict=True)
            a = [one * (low if one >= 0 else high) for one, low, high in slopes]
            a = [one - multiplier for one, multiplier in zip(a, multipliers, strict=True)]
    corners = zip(a, exact(lb), exact(ub), strict=True)
    return constant + sum((one * (low if one >= 0 else high) for one, low, high in corners), Fraction(0))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shift", [0.0, 1e8])
def test_the_bound_is_below_the_exact_one_and_close_to_it(seed: int, shift: float) -> None:
    model, rng = tiny(seed), np.random.default_rng(seed)
    with torch.no_grad():  # huge biases that cancel in the next layer
        model[0].bias += shift
        model[2].bias -= shift * model[2].weight.sum(dim=1)
    network = read_network(model, (2,))
    lb, ub = torch.tensor(rng.normal(size=(1, 2)) - 0.5), torch.tensor(rng.normal(size=(1, 2)) + 2.5)
    lb, ub = torch.minimum(lb, ub), torch.maximum(lb, ub)
    region = enclose(network, lb, ub)
    lines, beta = [], []
    for activation, value in network.activations():
        slopes = torch.tensor(rng.random((1, network.size(value))))
        lines.append(relax(activation, region.lower[value], region.upper[value], slopes))
        beta.append(torch.tensor(rng.normal(size=(1, network.size(value)))))
    for row in torch.tensor(rng.normal(size=(4, 2))):
        bound = lower_bound(network, len(network.steps), row.view(1, 1, 2), region, lines, beta).item()
        true = exact_bound(network, row, lines, lb, ub, beta)
        assert Fraction(bound) <= true
        assert true - Fraction(bound) <= Fraction(1e-12 * max(1.0, 4 * shift) * 100)


@pytest.mark.parametrize("seed", range(4))
def test_exact_outputs_at_corners_lie_above_the_bound(seed: int) -> None:
    """At corners of tiny boxes nothing but rounding decides."""
    model = tiny(seed)
    network = read_network(model, (2,))
    generator = torch.Generator().manual_seed(seed)
    for width in (0.0, 1e-15, 1e-9):
        lb = torch.randn(1, 2, dtype=torch.float64, generator=generator)
        ub = lb + width
        region = enclose(network, lb, ub)
        for corner in product(*zip(exact(lb), exact(ub), strict=True)):
            y = exact_output(network, list(corner))
            for value, low, high in zip(y, exact(region.lower[-1]), exact(region.upper[-1]), strict=True):
                assert low <= value <= high
                assert high - low <= Fraction(1e-12) + 1000 * Fraction(width)


def exact_output(network: ExactNetwork, x: list[Fraction]) -> list[Fraction]:
    for step in network.steps:
        operation = step.operation
        if isinstance(operation, Dense):
            rows = zip(exact(operation.bias), operation.weight, strict=True)
            x = [bias + product_of(exact(row), x) for bias, row in rows]
        else:
            x = [max(one, Fraction(0)) for one in x]
    return x


@pytest.mark.parametrize("seed", range(20))
def test_scales_that_are_no_float64_are_off_by_less_than_is_allowed_for(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm1d(3).eval()
    for one in (norm.weight.data, norm.bias.data, norm.running_mean):
        one.copy_(torch.randn(3, generator=generator) * 10.0 ** (seed % 7 - 3))
    norm.running_var.copy_(torch.rand(3, generator=generator))
    x = torch.randn(1, 3, dtype=torch.float64, generator=generator)
    region = enclose(read_network(nn.Sequential(norm), (3,)), x, x)
    with localcontext() as context:
        context.prec = 60
        for i in range(3):
            numbers = (norm.weight, norm.bias, norm.running_mean, norm.running_var, x[0])
            weight, bias, mean, variance, point = (Decimal(one.detach()[i].item()) for one in numbers)
            y = (point - mean) / (variance + Decimal(norm.eps)).sqrt() * weight + bias
            assert Decimal(region.lower[-1][0, i].item()) <= y <= Decimal(region.upper[-1][0, i].item())
            assert region.upper[-1][0, i] - region.lower[-1][0, i] <= 1e-13 * (1 + 1e6)


def test_sums_of_many_terms_are_not_overrated() -> None:
    """The radius of a network of usual size is far below any margin of interest."""
    network = read_network(network_of("conv"), (1, 6, 6))
    x = torch.full((1, 36), 0.5, dtype=torch.float64)
    region = enclose(network, x, x)
    assert (region.upper[-1] - region.lower[-1]).max() < 1e-10


def test_magnitudes_beyond_reason_prove_nothing() -> None:
    layer = nn.Linear(1, 1).double().eval()
    layer.weight.data.fill_(1e95)
    layer.bias.data.fill_(1.0)
    network = read_network(nn.Sequential(layer, nn.ReLU(), nn.Linear(1, 1)), (1,))
    lb = torch.ones(1, 1, dtype=torch.float64)
    region = enclose(network, lb, lb)
    rows = torch.ones(1, 1, 1, dtype=torch.float64)
    lines = [adaptive(one, region.lower[value], region.upper[value]) for one, value in network.activations()]
    assert not lower_bound(network, 3, rows, region, lines).item() > -torch.inf
    assert lower_bound(network, 1, rows, region, lines).item() > 0  # the input itself is small


@pytest.mark.parametrize("seed", range(10))
def test_long_sums_are_below_the_exact_ones(seed: int) -> None:
    """What the input alone adds, and what coefficients that cancel add, each where nothing else could cover it."""
    rng = np.random.default_rng(seed)
    layer = nn.Linear(30, 40).double()
    weight = rng.normal(size=(40, 30)) * 1e6
    weight[20:] = -weight[:20] + rng.normal(size=(20, 30)) * 1e-6  # the columns all but cancel under a row of ones
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(np.tile(rng.normal(size=20), 2))
    layer.bias.data[20:] *= -1
    network = read_network(layer.eval(), (30,))
    lb = torch.tensor(rng.normal(size=(1, 30)))
    ub = lb + torch.tensor(rng.random(30))
    region = enclose(network, lb, ub)
    ones = torch.ones(1, 1, 40, dtype=torch.float64)
    bound = Fraction(lower_bound(network, 1, ones, region, []).item())
    assert bound <= exact_bound(network, ones, [], lb, ub, [])
    row = torch.tensor(rng.normal(size=(1, 1, 30)))
    alone = lower_bound(network, 0, row, region, [])
    empty = ExactNetwork(shapes=[(30,)])
    true = exact_bound(empty, row, [], lb, ub, [])
    assert true - Fraction(1e-12) <= Fraction(alone.item()) <= true
