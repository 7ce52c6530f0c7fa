import math
from typing import Any

import pytest

from robustkit.training.schedules import EpochMetrics, EpsRamp, adaptive_weight, published_weight


def epoch(weight: float, clean: float, verified: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=1, eps=0.1, weight=weight, lr=1e-3, loss=1.0, val_clean=clean, val_vra=verified, seconds=1.0
    )


def weigh(*history: EpochMetrics, **changed: float) -> float:
    settings: dict[str, Any] = {"initial": 0.5, "floor": 0.9, "gain": 0.5, "low": 0.1, "high": 50.0, **changed}
    return adaptive_weight(history, **settings)


@pytest.mark.parametrize(
    ("time", "progress"), [(0.0, 0.0), (1.0, 0.0), (2.0, 0.25), (3.0, 0.5), (4.9, 0.975), (5.0, 1.0), (9.0, 1.0)]
)
def test_eps_grows_linearly_between_start_and_end(time: float, progress: float) -> None:
    ramp = EpsRamp(target=0.4, start=1.0, end=5.0)
    assert ramp.progress(time) == pytest.approx(progress)
    assert ramp.eps(time) == pytest.approx(0.4 * progress)


@pytest.mark.parametrize("at", [0.0, 0.5, 2.0])
def test_a_ramp_of_no_length_is_a_jump(at: float) -> None:
    ramp = EpsRamp(target=0.3, start=at, end=at)
    assert ramp.eps(at) == ramp.eps(at + 1) == 0.3
    if at:
        assert ramp.eps(0.0) == ramp.eps(at - 0.25) == 0.0


def test_eps_ends_at_the_target_exactly() -> None:
    assert EpsRamp(8 / 255, 0.0, 0.3 * 7).eps(0.3 * 7) == 8 / 255
    assert EpsRamp(0.0, 0.0, 3.0).eps(2.0) == 0.0


@pytest.mark.parametrize("end", [0, 10, 15])
def test_the_published_weight_is_the_formula_of_the_public_loop(end: int) -> None:
    for time in range(120):
        assert published_weight(time, end) == pytest.approx(min(50.0, 0.1 * 2.5 ** (max(time - end, 0) // 5)))
    assert published_weight(10**6, end) == 50.0


def test_the_published_weight_in_numbers() -> None:
    weights = [published_weight(time, 10) for time in (0, 10, 14, 15, 20, 25, 44, 45)]
    assert weights == pytest.approx([0.1, 0.1, 0.1, 0.25, 0.625, 1.5625, 0.1 * 2.5**6, 50.0])
    assert published_weight(20, 10) == published_weight(20, 9.2), "a ramp that ends within an epoch ends after it"


def test_the_adaptive_weight_in_numbers() -> None:
    assert weigh() == 0.5
    # a = 0.95, v = 0.55: verification can gain 0.4, accuracy 0.05
    assert weigh(epoch(2.0, 0.95, 0.55)) == pytest.approx(2.0 * math.exp(0.5 * (0.4 - 0.05)))
    # a = 0.92, v = 0.90: verification can gain 0.02, accuracy 0.08
    assert weigh(epoch(2.0, 0.92, 0.90)) == pytest.approx(2.0 * math.exp(0.5 * (0.02 - 0.08)))
    assert weigh(epoch(2.0, 0.95, 0.55), gain=0.0) == 2.0


def test_below_the_floor_the_weight_is_halved() -> None:
    assert weigh(epoch(2.0, 0.89, 0.0)) == 1.0
    assert weigh(epoch(2.0, 0.90, 0.0)) > 2.0, "the floor itself is not below it"


def test_the_weight_stays_within_its_limits() -> None:
    assert weigh(epoch(0.15, 0.2, 0.1)) == 0.1
    assert weigh(epoch(49.0, 1.0, 0.0)) == 50.0


@pytest.mark.parametrize(("clean", "verified"), [(math.nan, 0.5), (0.5, math.nan), (math.nan, math.nan)])
def test_what_was_not_measured_moves_nothing(clean: float, verified: float) -> None:
    assert weigh(epoch(3.0, clean, verified)) == 3.0


def test_the_weight_is_a_pure_function_of_the_last_epoch() -> None:
    first, last = epoch(9.0, 0.1, 0.0), epoch(2.0, 0.95, 0.55)
    before = dict(last)
    assert weigh(first, last) == weigh(last) == weigh(first, last)
    assert last == before
