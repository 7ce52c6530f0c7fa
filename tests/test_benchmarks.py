"""The benchmarks run, on a tiny setting, and print the tables that they promise."""

import copy
import itertools
import math

import pytest
import torch

from benchmarks import networks, steps, timing, training
from robustkit.data import load_dataset
from robustkit.training import METHODS
from robustkit.training.ibp import IBP
from robustkit.training.mixtrain import MixTrain


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded dataset, small batches, one call a timing, and fresh weights for trained ones."""
    data = load_dataset("digits")
    monkeypatch.setattr(networks, "dataset", lambda: data)
    monkeypatch.setattr(networks, "robust", lambda: ("no training", networks.fresh()))
    monkeypatch.setattr(steps, "LEAST", 0.0)
    monkeypatch.setattr(steps, "BATCH", 20)


def cells(lines: list[str]) -> list[list[str]]:
    return [[one.strip() for one in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_short_calls_are_repeated_and_the_median_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lengths = [0.0], itertools.chain([9.0, 1.0], [2.0] * 4, [1.0] * 4, [7.0] * 4)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    seconds = timing.side_by_side({"work": lambda: clock.append(clock.pop() + next(lengths))}, 3, least=4.0)
    assert seconds == {"work": 2.0}  # one call to warm up, one of a second to see that four make up the time
    assert next(lengths, None) is None


def test_a_step_on_the_bench_leaves_the_weights_and_repeats_its_draws() -> None:
    bench = steps.Bench(MixTrain(k=3, mixing=0.5), networks.fresh(), 20)
    before, first = copy.deepcopy(bench.loop.model.state_dict()), bench.result()
    bench.step()
    for name, value in bench.loop.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0.0, atol=1e-10, msg=name)
    for one, again in zip(first, bench.result(), strict=True):
        torch.testing.assert_close(one, again, rtol=1e-4, atol=1e-6)


def test_the_ball_of_the_bench_is_the_dataset_s_half_way_through_the_ramp() -> None:
    ramp = steps.Bench(IBP(), networks.fresh(), 20).loop.ramp
    assert ramp.progress(steps.MIDDLE) == 0.5
    assert ramp.eps(steps.MIDDLE) == pytest.approx(networks.dataset().eps)


def test_mixtrain_costs_the_mean_over_its_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "side_by_side", lambda work, rounds, least: {"natural": 1.0, "mix": 6.0})
    found = steps.costs({"mix": MixTrain(mixing=0.8)}, networks.fresh(), 1, 20)
    assert found == {"natural": 1.0, "mix": pytest.approx(0.8 * 6.0 + 0.2 * 1.0)}


def test_every_method_has_its_row() -> None:
    rows = cells(training.table(1))
    assert {row[0] for row in rows} >= set(training.candidates())
    assert {type(one) for one in training.candidates().values()} == set(METHODS.values())
    natural = next(row for row in rows if row[0] == "natural")
    assert natural[2] == natural[5] == "1.0"
    assert all(float(one) > 0 and math.isfinite(float(one)) for one in natural[1:])


def test_claims_are_ratios_of_what_was_measured() -> None:
    seconds = {"natural": 1.0, "ibp": 3.0, "PGD-40": 30.0, "dual, full batch": 300.0}
    seconds |= {"MixTrain k=1": 10.0, "MixTrain k=5": 20.0}
    found = [row[2:] for row in cells(training.claims(seconds, {**seconds, "natural": 0.5}))[2:]]
    halved = [["3.0", "6.0"], ["10.0", "20.0"], ["20.0", "40.0"]]
    assert found == [["3.0", "3.0"], ["30.0", "30.0"], ["1.5", "1.5"], ["15.0", "15.0"], *halved]
