"""No execution in float32 is further off than is allowed for, in any order; and the allowance has nothing to spare."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from networks import inputs, make
from proofs import KINDS, network_of, root_only, shape_of, tiny
from torch import Tensor, nn

from robustkit.errors import UnsupportedLayerError
from robustkit.models import Normalize
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import BoundVerifier, Cascade, Complete, execution_error
from robustkit.verifiers.branch_and_bound import NAME
from robustkit.verifiers.checker import check, check_balls
from robustkit.verifiers.claims import Ball
from robustkit.verifiers.exact_network import Dense, ExactNetwork, Semantics
from robustkit.verifiers.execution_error import TINY, UNIT, execution_errors, expect_float32, gamma
from robustkit.verifiers.network_reader import read_network
from robustkit.verifiers.recheck import Recheck
from robustkit.verifiers.sound_bounds import enclose, intervals

FLOAT32 = Semantics.FLOAT32


def errors_at(network: ExactNetwork, x: Tensor) -> list[Tensor]:
    """What is allowed for at points ``(B, ...)``, each a box of its own."""
    wide = x.flatten(1).double()
    return execution_errors(network, intervals(network, wide, wide))


def apart(model: nn.Module, x: Tensor) -> Tensor:
    """How far the outputs in float32 are from those in float64, shape ``(B, K)``."""
    with torch.no_grad():
        return (model(x).double() - copy.deepcopy(model).double()(x.double())).abs()


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def test_the_allowance_is_that_counted_by_hand() -> None:
    model = nn.Sequential(linear([[2.0, -1.0]], [0.5]), nn.LeakyReLU(0.25), linear([[3.0]], [-1.0])).eval()
    first, second, third = errors_at(read_network(model, (2,), FLOAT32), torch.tensor([[-1.0, 1.0]]))[1:]
    u = UNIT  # z = -2.5, of terms 2, 1 and 0.5; leaky -0.625; then 3 * that, - 1
    assert first.item() == pytest.approx(3 * u * 3.5, rel=1e-5)
    assert second.item() == pytest.approx(first.item() + 2 * u * 0.25 * 2.5, rel=1e-5)
    assert third.item() == pytest.approx(3 * second.item() + 2 * u * (3 * 0.625 + 1), rel=1e-5)
    assert gamma(2**23) == np.inf and gamma(100) > 100 * u


@pytest.mark.parametrize("kind", [*KINDS, "odd"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_no_output_in_float32_is_further_off(kind: str, scale: float) -> None:
    for seed in range(3):
        model = network_of(kind, seed)
        with torch.no_grad():
            for one in model.parameters():
                one.mul_(scale)
        x = torch.rand(64, *shape_of(kind), generator=torch.Generator().manual_seed(seed))
        network = read_network(model, shape_of(kind), FLOAT32)
        at_points, low, high = errors_at(network, x)[-1], x.flatten(1).amin(0), x.flatten(1).amax(0)
        over_all = execution_errors(network, enclose(network, low[None].double(), high[None].double()))[-1]
        off = apart(model, x)
        assert (off <= at_points).all() and (at_points <= over_all).all()
        alone = torch.cat([apart(model, one[None]) for one in x[:16]])  # other kernels, other orders
        assert (alone <= at_points[:16]).all()
        with torch.no_grad():
            share = 1e-5 * model(x).abs().max()
        assert at_points.max() <= 2e5 * off.max() + share, "the allowance is of use"


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_sums_in_any_order_stay_within_it(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    model, x = make("mlp"), inputs(32)
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(torch.where(torch.rand(one.shape, generator=draw) < 0.1, scale, 1.0))
    allowed, exact = (
        errors_at(read_network(model, (1, 6, 6), FLOAT32), x)[-1],
        copy.deepcopy(model).double()(x.double()),
    )
    for _ in range(20):
        other, pixels = copy.deepcopy(model), torch.randperm(36, generator=draw)
        hidden = [torch.randperm(size, generator=draw) for size in (12, 10)]
        with torch.no_grad():
            for layer, ins, outs in zip((1, 3, 5), (pixels, *hidden), (*hidden, torch.arange(4)), strict=True):
                other[layer].weight.copy_(model[layer].weight[outs][:, ins])
                other[layer].bias.copy_(model[layer].bias[outs])
            found = other(x.flatten(1)[:, pixels])
        assert ((found.double() - exact).abs() <= allowed).all()


def fused(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    return np.float32(float(a) * float(b) + float(c))  # the product is exact; the sum may be rounded twice, see below


def rounded(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    return np.float32(np.float32(a * b) + c)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", [fused, rounded])
@pytest.mark.parametrize("direction", [1, -1])
def test_executions_term_by_term_stay_within_it_in_exact_arithmetic(
    seed: int, step: Callable[..., np.float32], direction: int
) -> None:
    model, rng = tiny(seed), np.random.default_rng(seed)
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(torch.tensor(10.0 ** rng.uniform(-3, 3, one.shape)))
    x = rng.normal(size=(8, 2)).astype(np.float32)
    allowed = errors_at(read_network(model, (2,), FLOAT32), torch.tensor(x))[-1]
    for row, given in zip(allowed.tolist(), x, strict=True):
        short, exact = list(given), [Fraction(float(one)) for one in given]
        for layer in model:
            if isinstance(layer, nn.ReLU):
                short, exact = [max(one, np.float32(0)) for one in short], [max(one, Fraction(0)) for one in exact]
                continue
            weight, bias = (one.detach().numpy() for one in (layer.weight, layer.bias))
            sums = []
            for w, total in zip(weight, bias, strict=True):  # the bias first
                for a, b in [*zip(w, short, strict=True)][::direction]:
                    total = step(a, b, total)
                sums.append(total)
            rows = zip(weight.tolist(), bias.tolist(), strict=True)
            exact = [sum((Fraction(a) * b for a, b in zip(w, exact, strict=True)), Fraction(c)) for w, c in rows]
            short = sums
        # fused() in float64 rounds twice, which is off by at most 2^-53 more
        assert all(abs(Fraction(float(a)) - b) <= Fraction(c) for a, b, c in zip(short, exact, row, strict=True))


TERMS = 255
SMALL = 2.0**-24
"""Added to 1 in float32 it is lost, whole: no sum can lose more of a term."""


def summed(numbers: list[float]) -> float:
    """A sum in float32 from the left."""
    total = np.float32(0)
    for one in numbers:
        total = np.float32(total + np.float32(one))
    return float(total)


def test_a_sum_that_loses_all_it_can_is_within_it_and_within_no_less() -> None:
    lost = 1.0 + TERMS * SMALL - summed([1.0] + [SMALL] * TERMS)
    assert lost == TERMS * SMALL
    ones = linear([[1.0] * (TERMS + 1)])
    x = torch.tensor([[1.0] + [SMALL] * TERMS])
    of_inputs = errors_at(read_network(nn.Sequential(ones), (TERMS + 1,), FLOAT32), x)[-1].item()
    pool = nn.Sequential(nn.AvgPool2d(16), nn.Flatten()).eval()
    of_windows = errors_at(read_network(pool, (1, 16, 16), FLOAT32), x.view(1, 1, 16, 16))[-1].item()
    with_bias = nn.Sequential(linear([[SMALL] * TERMS], [1.0]))
    network = read_network(with_bias, (TERMS,), FLOAT32)
    of_bias = errors_at(network, torch.ones(1, TERMS))[-1].item()
    for found, least in ((of_inputs, lost), (of_windows, lost / 256), (of_bias, lost)):
        assert least <= found <= 1.1 * least, "nothing is to spare, so half of the roundings would not do"
    operation = network.steps[0].operation
    assert isinstance(operation, Dense)
    blind = replace(network.steps[0], operation=replace(operation, bias_size=torch.zeros(1, dtype=torch.float64)))
    without = ExactNetwork([blind], network.shapes, FLOAT32)
    assert errors_at(without, torch.ones(1, TERMS))[-1].item() < lost, "the bias meets every addition"


def test_what_is_lost_goes_on_through_the_network() -> None:
    lost = TERMS * SMALL
    model = nn.Sequential(linear([[1.0] * (TERMS + 1)]), nn.ReLU(), linear([[1000.0]])).eval()
    network, x = read_network(model, (TERMS + 1,), FLOAT32), torch.tensor([[1.0] + [SMALL] * TERMS])
    found = errors_at(network, x)
    assert 1000 * lost <= found[-1].item() <= 1.1 * 1000 * lost
    alone = execution_error._error(network.steps[-1], [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())])
    assert alone.item() < 0.1 * 1000 * lost, "the last layer's own error does not cover it"


def test_a_neuron_that_is_off_may_be_on_in_float32() -> None:
    first = linear([[1.0] + [-SMALL / 2] * TERMS])  # 1 - 255 * 2^-25, and 1 where it is summed from the left
    model = nn.Sequential(first, linear([[1.0]], [2.0**-18 - 1.0]), nn.ReLU()).eval()
    network, x = read_network(model, (TERMS + 1,), FLOAT32), torch.ones(1, TERMS + 1)
    of_code = max(0.0, summed([summed(first.weight[0].tolist()), 2.0**-18 - 1.0]))
    region = intervals(network, x.double(), x.double())
    assert of_code == 2.0**-18 and region.upper[-1].item() == 0.0
    (error,) = errors_at(network, x)[-1].flatten().tolist()
    assert of_code <= error
    model[1].bias.data.fill_(-1.0 - 2.0**-8)
    (error,) = errors_at(read_network(model, (TERMS + 1,), FLOAT32), x)[-1].flatten().tolist()
    assert error == 0.0, "what is off in float32 too has no error"


def test_a_product_and_a_sum_are_two_roundings() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.random((2, 2000), dtype=np.float32)
    b = np.float32(2.0**-26) * rng.random(2000, dtype=np.float32)
    exact = w.astype(float) * x + b
    off, share = np.abs((w * x + b).astype(float) - exact), gamma(2) * (w.astype(float) * x + b)
    network = read_network(nn.Sequential(linear([[float(w[0])]], [float(b[0])])), (1,), FLOAT32)
    allowed = errors_at(network, torch.tensor([[x[0]]]))[-1].item()
    assert share[0] <= allowed <= 1.001 * share[0]
    assert (off <= share).all() and (off > share / 2).any()


def test_a_sum_of_two_values_is_rounded() -> None:
    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) + x

    x = torch.tensor([[1.0 + 2.0**-23]])
    network = read_network(Adds().eval(), (1,), FLOAT32)
    (found,) = errors_at(network, x)[-1].tolist()[0]
    assert found == pytest.approx(2 * UNIT, rel=1e-5), "two values of 1, each half a unit"


class Paths(nn.Module):
    """The sum of a path that loses ``TERMS * SMALL`` and one that is 0."""

    def __init__(self, *, lossy_first: bool) -> None:
        super().__init__()
        self.lossy, self.nothing = linear([[1.0] * (TERMS + 1)]), linear([[0.0] * (TERMS + 1)])
        self.lossy_first = lossy_first

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.lossy(x), self.nothing(x)
        return one + other if self.lossy_first else other + one  # type: ignore[no-any-return]


@pytest.mark.parametrize("lossy_first", [True, False])
def test_a_sum_of_two_values_is_as_far_off_as_both(lossy_first: bool) -> None:
    network = read_network(Paths(lossy_first=lossy_first).eval(), (TERMS + 1,), FLOAT32)
    x = torch.tensor([[1.0] + [SMALL] * TERMS])
    assert TERMS * SMALL <= errors_at(network, x)[-1].item() <= 1.1 * TERMS * SMALL


def test_products_that_underflow_are_paid_for() -> None:
    model = nn.Sequential(linear([[2.0**-100]]), linear([[2.0**60]])).eval()
    x = torch.tensor([[2.0**-50]])
    off, allowed = apart(model, x).item(), errors_at(read_network(model, (1,), FLOAT32), x)[-1].item()
    assert off == 2.0**-90, "the product 2^-150 is halfway, and rounds to 0"
    assert off <= allowed
    assert off > gamma(2) * 2 * 2.0**-90, "no share of it would do"
    assert allowed <= 2 * TINY * 2.0**60


@pytest.mark.parametrize("seed", range(20))
def test_batch_norm_however_it_is_arranged_stays_within_it(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm1d(64).eval()
    for one in (norm.weight.data, norm.bias.data, norm.running_mean):
        one.copy_(torch.randn(64, generator=draw) * 10.0 ** (seed % 7 - 3))
    norm.running_var.copy_(torch.rand(64, generator=draw) * 10.0 ** (seed % 5 - 3))
    x = torch.cat([torch.randn(20, 64, generator=draw), norm.running_mean.repeat(4, 1), torch.zeros(1, 64)])
    model = nn.Sequential(norm)
    allowed, exact = errors_at(read_network(model, (64,), FLOAT32), x)[-1], copy.deepcopy(model).double()(x.double())
    g, b, m, v = (one.detach() for one in (norm.weight, norm.bias, norm.running_mean, norm.running_var))
    root = (v + norm.eps).rsqrt()
    ways = [
        model(x),
        (x - m) / (v + norm.eps).sqrt() * g + b,
        (x - m) * (g * root) + b,
        x * (g * root) + (b - m * (g * root)),
    ]
    for way in ways:
        assert ((way.detach().double() - exact).abs() <= allowed).all()
    without = [TINY + gamma(20) * (g / (v + norm.eps).sqrt() * one).abs().double() for one in x]
    last = (ways[3].detach().double() - exact).abs()[-1]
    assert (last > without[-1]).any(), "the mean counts where x is 0"


def test_normalising_stays_within_it() -> None:
    model, x = nn.Sequential(Normalize([0.4914, 0.1], [0.2471, 1e-3])).eval(), torch.rand(50, 2, 5, 5)
    off, allowed = apart(model, x).flatten(1), errors_at(read_network(model, (2, 5, 5), FLOAT32), x)[-1]
    assert (off <= allowed).all() and (off > 0).any()


@pytest.mark.parametrize("slope", [0.1, 0.01, 1 / 3])
def test_a_leaky_slope_is_rounded_as_well(slope: float) -> None:
    model, x = nn.Sequential(nn.LeakyReLU(slope)).eval(), -torch.rand(2000, 1)
    off, allowed = apart(model, x), errors_at(read_network(model, (1,), FLOAT32), x)[-1]
    assert (off <= allowed).all()
    assert (off > allowed / 2).any(), "one rounding would not do"


def swallowing(w: float) -> nn.Sequential:
    """``relu(x + w) - w`` against 0: class 0 for every x > 0, and a tie in float32, where x is lost."""
    return nn.Sequential(linear([[1.0]], [w]), nn.ReLU(), linear([[1.0], [0.0]], [-w, 0.0])).eval()


def test_what_float32_gets_wrong_is_proved_in_real_arithmetic_alone() -> None:
    model, claim = swallowing(1e8), Ball(np.array([0.5], dtype=np.float32), 0.25, 0)
    with torch.no_grad():
        assert model(torch.tensor([[0.5]])).tolist() == [[0.0, 0.0]]
    proof = root_only(model, claim, 1)
    assert check(proof, model).margin == pytest.approx(0.25, abs=1e-6)
    refused = check(proof, model, semantics=FLOAT32)
    assert not refused.proved
    assert "is not above 0" in refused.reason
    (real,), (short,) = (check_balls(read_network(model, (1,), one), [claim]).tolist() for one in Semantics)
    assert real > 0 > short
    small = swallowing(1.0)
    assert check(root_only(small, claim, 1), small, semantics=FLOAT32).margin == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_margins_of_executions_are_below_the_real_ones_and_hold_at_points(kind: str) -> None:
    model, x = network_of(kind), inputs(6)
    with torch.no_grad():
        labels = model(x).argmax(dim=1)
    claims = [Ball(one, 0.01, label) for one, label in zip(x.numpy(), labels.tolist(), strict=True)]
    real, short = (check_balls(read_network(model, shape_of(kind), one), claims) for one in Semantics)
    assert (short < real).all() and (real - short < 1e-3).all()
    for own, claim, margin in zip(x, claims, short.tolist(), strict=True):
        leaf = check(root_only(model, claim, 3), model, semantics=FLOAT32)
        with torch.no_grad():
            points = (own + 0.01 * (2 * torch.rand(200, *own.shape) - 1).sign()).clamp(0, 1)
            logits = model(points).double()
        seen = logits[:, claim.label] - logits.masked_fill(torch.eye(4)[claim.label].bool(), -torch.inf).amax(1)
        assert margin <= seen.min() and not leaf.margin > seen.min()


def test_verifiers_prove_what_they_are_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("mlp"), inputs(4)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    found, kinds = {}, (BoundVerifier, Cascade)
    for unit, semantics in itertools.product((UNIT, 0.1), Semantics):
        monkeypatch.setattr(execution_error, "UNIT", unit)
        for one in kinds:
            found[unit, semantics, one] = set(
                one(semantics=semantics).prepare(model, x)(x, y, LinfBall(1e-4)).verdicts()
            )
    expected = {key: {Verdict.VERIFIED} for key in found}
    expected |= {(0.1, FLOAT32, one): {Verdict.VERIFIED_FLOAT} for one in kinds}
    assert found == expected
    double = copy.deepcopy(model).double()
    prepared = Recheck.prepare(double, x, wanted=True, semantics=FLOAT32)
    assert prepared.network is None and "expected float32 numbers" in prepared.reason


def test_a_search_leaves_room_for_the_error_of_executions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_error, "UNIT", 2.0**-16)  # errors that count
    model, x = make("mlp"), inputs(8)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    settled: list[str] = []
    verify = Complete(timeout=10.0, semantics=FLOAT32).prepare(model, x[:1])
    for eps in (0.02, 0.04, 0.06):
        settled += verify(x, y, LinfBall(eps)).settled_by
    assert settled.count(NAME) >= 2
    assert f"{NAME} (float)" not in settled, "no search stops at a margin that the checker finds too small"


def unfit() -> dict[str, nn.Module]:
    great, narrow = linear([[1.0]], [2.0**61]), nn.BatchNorm1d(1, eps=1e-40)
    assert narrow.running_var is not None
    narrow.running_var.zero_()
    return {"weight": nn.Linear(1, 1).double(), "bias": great, "variances": narrow, "0.weight": nn.Linear(1, 1).half()}


@pytest.mark.parametrize("name", unfit())
def test_networks_that_are_not_for_float32_are_refused(name: str) -> None:
    model = nn.Sequential(unfit()[name]).eval()
    with pytest.raises(UnsupportedLayerError, match=f"{name}.*prove it in real arithmetic"):
        expect_float32(model)
    with pytest.raises(UnsupportedLayerError, match="prove it in real arithmetic"):
        read_network(model, (1,), FLOAT32)


def test_values_too_great_for_float32_prove_nothing() -> None:
    model = nn.Sequential(*itertools.chain(*[(linear([[2.0**50]]), nn.ReLU()) for _ in range(2)])).eval()
    x = torch.ones(1, 1)
    assert errors_at(read_network(model, (1,), FLOAT32), x)[-1].item() == np.inf
    for power, known in ((20.0, True), (32.0, False)):
        less = nn.Sequential(linear([[2.0**power]]), linear([[2.0**power]])).eval()
        assert np.isfinite(errors_at(read_network(less, (1,), FLOAT32), x)[-1].item()) == known


def test_code_that_computes_in_shorter_numbers_is_caught_by_running_it() -> None:
    genuine = nn.Linear.forward
    model = make("mlp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            nn.Linear, "forward", lambda self, x: genuine(self, x.bfloat16().to(x) if x.dtype == torch.float32 else x)
        )
        read_network(model, (1, 6, 6))
        with pytest.raises(UnsupportedLayerError, match="something else than was read"):
            read_network(model, (1, 6, 6), FLOAT32)
