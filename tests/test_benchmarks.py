"""The benchmarks run, on a tiny setting, and print the tables that they promise."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks import (
    attack_curves,
    attacks,
    battery,
    branches,
    engine,
    growth,
    memory,
    networks,
    passes,
    scaling,
    steps,
    timing,
    training,
)
from benchmarks.__main__ import main
from robustkit.bounds import BoundMethod
from robustkit.data import load_dataset
from robustkit.errors import RobustkitError
from robustkit.threat import LinfBall
from robustkit.training import METHODS, TrainingMethod
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
    monkeypatch.setattr(engine, "LEAST", 0.0)
    monkeypatch.setattr(branches, "LEAST", 0.0)
    monkeypatch.setattr(growth, "LEAST", 0.0)


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
    seconds = {("one", "natural"): 1.0, ("one", "mix"): 6.0, ("other", "natural"): 2.0, ("other", "mix"): 7.0}
    monkeypatch.setattr(steps, "side_by_side", lambda work, rounds, least: {name: seconds[name] for name in work})
    subjects = {name: steps.Subject(networks.fresh(), 5) for name in ("one", "other")}
    found = steps.costs_of_each({"mix": MixTrain(k=1, mixing=0.8)}, subjects, 1)
    assert found["one"] == {"natural": 1.0, "mix": pytest.approx(0.8 * 6.0 + 0.2 * 1.0)}
    assert found["other"] == {"natural": 2.0, "mix": pytest.approx(0.8 * 7.0 + 0.2 * 2.0)}


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


def buffer(mib: int) -> Callable[[], object]:
    """Make work that fills so much memory, twice over but never both at once."""
    return partial(fill_twice, mib)


def fill_twice(mib: int) -> None:
    for _ in range(2):
        assert len(torch.ones(mib * 2**18)) > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux or a GPU")
def test_peak_memory_is_what_the_work_holds_at_once() -> None:
    with memory.meter() as peak:
        assert peak(buffer, 64) == pytest.approx(64.0, abs=4.0)
        assert peak(buffer, 16) == pytest.approx(16.0, abs=4.0)  # the greater one before it is forgotten


@pytest.mark.parametrize("method", passes.METHODS.values(), ids=repr)
def test_own_passes_and_the_engine_compute_the_same_step(method: TrainingMethod) -> None:
    own, engine = (passes.bench(method, networks.fresh(), one) for one in (False, True))
    assert own.loop.trainee.bounds._layers is not None and engine.loop.trainee.bounds._layers is None
    passes.check_equal(own.result(), engine.result(), method.name)


def test_steps_that_differ_are_not_compared() -> None:
    own = passes.bench(passes.Symbolic(2), networks.fresh(), False).result()
    other = passes.bench(passes.Symbolic(3), networks.fresh(), False).result()
    with pytest.raises(RobustkitError, match="expected equal losses of symbolic by own passes and by the engine, got"):
        passes.check_equal(own, other, "symbolic")
    with pytest.raises(RobustkitError, match="expected equal gradients of parameter 1 "):
        passes.check_equal([own[0], own[1], own[2] * 1.01], own[:3], "symbolic")
    with pytest.raises(RobustkitError, match="got nan apart"):
        passes.check_equal([own[0] * math.nan], own[:1], "symbolic")


def test_a_network_without_own_passes_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sigmoid(), nn.Linear(10, 10))
    with pytest.raises(RobustkitError, match="expected a network that own passes carry"):
        passes.bench(IBP(), model, True)


def test_both_passes_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "meter", lambda: nullcontext(lambda *given: 3.0 if given[-1] else 2.0))
    result = CliRunner().invoke(main, ["passes", "--rounds", "1"], catch_exceptions=False)
    rows = cells(result.output.splitlines())[2:]
    assert [row[:2] for row in rows] == [[name, one] for name in ("fresh", "no training") for one in passes.METHODS]
    assert all(row[5:] == ["2", "3", "1.5"] for row in rows)


def test_mixtrain_s_cost_has_a_row_for_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in {"KS": (1, 3), "BATCHES": (5,), "WIDTHS": (2,), "DEPTHS": (("mlp", 7), ("cnn7", 2))}.items():
        monkeypatch.setattr(scaling, name, few)
    found = cells(scaling.table(1))[2:]
    assert [one[0] for one in found] == ["k=1", "k=3", "batch 5", "width 2", "mlp, width 7", "cnn7, width 2"]
    assert all(float(one) > 0 for line in found for one in line[1:])


def test_networks_that_are_timed_have_the_same_weights_each_time() -> None:
    for one, again in zip(networks.fresh().parameters(), networks.fresh().parameters(), strict=True):
        torch.testing.assert_close(one, again, rtol=0.0, atol=0.0)


def test_bounds_stand_beside_the_engine_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SAMPLES", 3)
    monkeypatch.setattr(networks, "robust", lambda: ("no training", networks.dense(2, 12)))
    result = CliRunner().invoke(main, ["engine", "--rounds", "1"], catch_exceptions=False)
    rows = cells(result.output.splitlines())
    crown, alpha = rows[2:6], rows[8:]
    assert [(row[0], row[2]) for row in crown] == list(itertools.product(("no training", "residual"), ("1", "3")))
    assert all(float(one) > 0 for row in crown for one in row[3:])
    ways = ("auto-LiRPA", "robustkit", "root of branch and bound")
    assert [tuple(row[:2]) for row in alpha] == list(itertools.product(("no training", "residual"), ways))
    assert all(row[3] == "1.00" or row[4] == engine.BROKEN for row in alpha[::3])
    assert all(float(row[2]) > 0 and math.isfinite(float(row[4])) for row in alpha if row[1] != "auto-LiRPA")


def test_an_engine_that_breaks_off_is_said_to_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> torch.Tensor:
        raise AssertionError

    monkeypatch.setattr(engine, "direct", lambda *given: breaks)
    model = networks.dense(2, 12)
    rows = engine._alpha(model, engine.Images.of(model, 0.1).take(1), 1)
    assert rows[0] == "auto-LiRPA | - | - | breaks off"
    assert [row.split(" | ")[2] for row in rows[1:]] == ["nan", "nan"]


def test_the_root_of_the_benchmark_gives_margins_that_no_point_breaks() -> None:
    model = networks.residual()
    images = engine.Images.of(model, 0.02).take(2)
    crown, root = engine.through(model, images, BoundMethod.CROWN)(), engine.root(model, images)()
    lb, ub = images.ball.box(images.x)
    corners = torch.where(torch.rand(200, *lb.shape, generator=torch.Generator().manual_seed(0)) < 0.5, lb, ub)
    logits = model(corners.flatten(0, 1)).view(200, 2, -1)
    others = logits.scatter(2, images.y.view(1, 2, 1).expand(200, 2, 1), -torch.inf).amax(2)
    least = (logits.gather(2, images.y.view(1, 2, 1).expand(200, 2, 1)).squeeze(2) - others).amin(0)
    assert bool((root <= least + 1e-4).all())
    assert bool((root >= crown - 1e-4).all())


def test_bounds_that_differ_are_not_compared() -> None:
    with pytest.raises(RobustkitError, match="expected equal CROWN margins of net through robustkit and by auto-LiRPA"):
        engine.check_equal(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.01]), "net")
    engine.check_equal(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.001]), "net")


def start(eps: float) -> branches.Start:
    return branches.Start.at(networks.dense(2, 12), networks.dataset().test.x[:1], LinfBall(eps))


def test_branches_of_a_lot_are_parts_of_one_box_and_all_are_open() -> None:
    lot = start(0.1).lot(8)
    assert len(lot) == len({tuple(one) for one in lot.sign.tolist()}) == 8
    for one, other in itertools.combinations(lot.sign, 2):
        assert bool((one * other == -1).any())  # they lie on different sides of a neuron
    assert bool((lot.lower < 0).all())


def test_a_ball_without_unstable_neurons_has_no_branches() -> None:
    with pytest.raises(RobustkitError, match="expected neurons enough to split into 4 branches, got 0 unstable"):
        start(0.0).lot(4)


def test_branches_per_second_have_a_row_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "BATCHES", (1, 8))
    monkeypatch.setattr(branches, "meter", lambda: nullcontext(lambda make, model, size: 2.0 * size))
    rows = cells(CliRunner().invoke(main, ["branches", "--rounds", "1"], catch_exceptions=False).output.splitlines())
    assert [(row[0], row[3]) for row in rows[2:]] == [("1", "2"), ("8", "16")]
    assert all(float(one) > 0 for row in rows[2:] for one in row[1:3])


def test_branch_and_bound_s_cost_has_a_row_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in {"DEPTHS": (1, 3), "WIDTHS": (12, 20), "WIDTH": 16, "DEPTH": 2, "BATCH": 4}.items():
        monkeypatch.setattr(growth, name, few)
    rows = cells(growth.table(1))[2:]
    names = ["depth 1, width 16", "depth 3, width 16", "depth 2, width 12", "depth 2, width 20"]
    assert [row[0] for row in rows] == names
    assert int(rows[0][1]) < int(rows[1][1]) and int(rows[2][1]) < int(rows[3][1])
    assert all(float(row[3]) > 0 for row in rows)


def test_the_interval_gradient_at_once_is_that_of_one_sample_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "BOXES", 4)
    rows = cells(attacks.interval_steps(1))[2:]
    assert [row[0] for row in rows] == ["0.033", "0.100", "0.300"]
    assert all(float(row[4]) > 95.0 for row in rows)
    assert all(float(one) > 0 for row in rows for one in row[1:4])


def test_the_battery_beside_its_parts_has_a_row_for_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in {"SAMPLES": 6, "STEPS": 3, "QUERIES": 5}.items():
        monkeypatch.setattr(battery, name, few)
    monkeypatch.setattr(networks, "trained", lambda *_: networks.fresh())
    rows = cells(battery.table(1))[2:]
    assert [row[0] for row in rows][:2] == ["natural", "IBP"]
    assert all(float(row[4]) > 0 and 0 <= float(row[5]) <= 100 and 0 <= float(row[6]) <= 100 for row in rows)


def test_the_memory_of_an_attack_has_a_row_for_each_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "COUNTS", (5, 20))
    monkeypatch.setattr(attacks, "BATCH", 5)
    monkeypatch.setattr(attacks, "meter", lambda: nullcontext(lambda make, count: make(count)() or float(count)))
    assert cells(attacks.memory())[2:] == [["5", "5.0"], ["20", "20.0"]]


def test_gradient_evaluations_are_counted_a_sample_and_step() -> None:
    model, x = networks.fresh(), torch.rand(3, 1, 8, 8)
    with attack_curves.gradient_evaluations(model) as count:
        model(x)
        assert count() == 0
        model(x.requires_grad_())
        model(x[:2])
        assert count() == 5
    model(x)
    assert count() == 5


def test_curves_fall_and_are_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attack_curves, "subjects", lambda: iter([("fresh", networks.fresh(), 0.1)]))
    monkeypatch.setattr(attack_curves, "RESTARTS", {"PGD": (1, 2), "interval gradient": (1,)})
    given = ["--samples", "12", "--image", str(tmp_path / "curves.png")]
    result = CliRunner().invoke(attack_curves.main, given, catch_exceptions=False)
    rows = cells(result.output.splitlines())[2:]
    assert [row[2] for row in rows if row[3] == "1"] == list(attack_curves.ATTACKS)
    for one, more in itertools.pairwise(row for row in rows if row[2] == "PGD"):
        assert float(more[4]) >= float(one[4])
        assert float(more[5]) <= float(one[5])
    assert (tmp_path / "curves.png").read_bytes()[1:4] == b"PNG"


def test_the_network_trained_here_is_always_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(networks, "beside_the_data", lambda file: networks.fresh() if "wong" in file else None)
    monkeypatch.setattr(networks, "trained", lambda *one, **more: asked.append((one, more)) or nn.Flatten())
    names = [name for name, _, _ in attack_curves.subjects()]
    assert names == ["Wong & Kolter", "Wong & Kolter, 0.1", "PGD, trained here"]
    assert asked == [(("pgd", networks.dataset().eps, 6), {"steps": 10, "rel_step_size": 0.25})]


def test_published_files_lie_beside_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = networks.fresh().state_dict()
    next(iter(weights.values())).add_(1.0)
    (tmp_path / "models").mkdir()
    torch.save(weights, tmp_path / "models" / "one.pth")
    monkeypatch.setenv("ROBUSTKIT_DATA", str(tmp_path / "data"))
    networks.beside_the_data.cache_clear()
    assert networks.beside_the_data("one.pth") is None  # they belong to MNIST
    networks.beside_the_data.cache_clear()
    mnist = dataclasses.replace(networks.dataset(), name="mnist")
    monkeypatch.setattr(networks, "dataset", lambda: mnist)
    found = networks.beside_the_data("one.pth")
    networks.beside_the_data.cache_clear()
    assert found is not None
    assert all(torch.equal(one, weights[name]) for name, one in found.state_dict().items())
