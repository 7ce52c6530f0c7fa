from __future__ import annotations

import json
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from robustkit.cli import cli
from robustkit.errors import RobustkitError, SoundnessError, UsageError
from robustkit.models import OnnxNetwork, export_onnx, read_onnx
from robustkit.progress import Silent
from robustkit.vnncomp import (
    Answer,
    Result,
    Row,
    Solve,
    baseline,
    check_published,
    complete,
    decide,
    read_instances,
    read_results,
    replay,
    run_benchmark,
    solve,
    summarise,
    workers,
)
from robustkit.vnncomp.published import read_published, table
from robustkit.vnnlib import Property, Query, parse_property

HEAD = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"
BOX = HEAD + "(assert (and (>= X_0 -1) (<= X_0 1) (>= X_1 -1) (<= X_1 1)))"
SAT, UNSAT = "(assert (>= Y_0 1.9))", "(assert (or (>= Y_0 2.1) (and (<= Y_0 -0.1) (<= Y_1 5))))"
OPEN = "(assert (>= Y_1 0.6))"


def network() -> nn.Sequential:
    """Compute ``|x_0| + |x_1|`` and ``relu(x_0) - relu(x_0 - 1/2)``: at most 1/2, and 3/4 to the best linear bound."""
    first, last = nn.Linear(2, 5), nn.Linear(5, 2)
    with torch.no_grad():
        first.weight[:] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
        first.bias[:] = torch.tensor([0.0, 0.0, 0.0, 0.0, -0.5])
        last.weight[:] = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, -1.0]])
        last.bias.zero_()
    return nn.Sequential(first, nn.ReLU(), last)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A benchmark of three instances: one that is sat, one unsat, and one that the baseline cannot decide."""
    place = tmp_path / "2026_tiny"
    (place / "onnx").mkdir(parents=True)
    (place / "vnnlib").mkdir()
    export_onnx(network(), (2,), place / "onnx/net.onnx")
    for name, text in (("reachable", SAT), ("safe", UNSAT), ("open", OPEN)):
        (place / f"vnnlib/{name}.vnnlib").write_text(BOX + text)
    lines = [f"onnx/net.onnx,vnnlib/{name}.vnnlib,60" for name in ("reachable", "safe", "open")]
    (place / "instances.csv").write_text("\n".join(lines))
    return place


@pytest.fixture
def small(folder: Path) -> OnnxNetwork:
    return read_onnx(folder / "onnx/net.onnx")


def asked(text: str) -> Property:
    return parse_property(BOX + text)


def says(verdict: Result, x: Any = None) -> Any:
    return lambda model, query, timeout: Answer(verdict, None if x is None else np.array(x), "because")


def test_the_baseline_finds_and_refutes(small: OnnxNetwork) -> None:
    found = decide(small, asked(SAT), 60, solve)
    assert found.verdict is Result.SAT
    assert found.counterexample is not None
    assert np.abs(found.counterexample.x).sum() >= 1.9 - 1e-6
    assert found.counterexample.float64 == pytest.approx(1.9 - np.abs(found.counterexample.x).sum())
    assert decide(small, asked(UNSAT), 60, solve).verdict is Result.UNSAT


def test_every_disjunct_must_be_refuted(small: OnnxNetwork) -> None:
    either = asked("(assert (or (>= Y_0 2.1) (>= Y_1 0.6)))")
    assert decide(small, either, 60, solve).verdict is Result.UNSAT
    decision = decide(small, either, 60, baseline.solve)
    assert decision.verdict is Result.UNKNOWN
    assert "1 disjuncts not refuted" in decision.reason
    assert decide(small, asked("(assert (and (>= Y_0 2.1) (>= Y_1 0.6)))"), 60, solve).verdict is Result.UNSAT
    assert decide(small, asked(OPEN), 1e-9, solve).verdict is Result.TIMEOUT


def by_neurons(model: nn.Module, query: Query, timeout: float) -> Answer:
    """Complete search that splits ReLUs although inputs are few."""
    return complete.solve(model, query, timeout)


@pytest.mark.parametrize("solve", [baseline.solve, complete.solve, by_neurons], ids=["baseline", "inputs", "neurons"])
@pytest.mark.parametrize("seed", range(6))
def test_no_verdict_contradicts_dense_sampling(
    seed: int, solve: Solve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if solve is by_neurons:
        monkeypatch.setattr(complete, "FEW_INPUTS", 0)
    torch.manual_seed(seed)
    export_onnx(nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2)), (2,), tmp_path / "n.onnx")
    random = read_onnx(tmp_path / "n.onnx")
    side = torch.linspace(-1, 1, 201)
    with torch.no_grad():
        seen = random.model(torch.cartesian_prod(side, side))[:, 0]
    least, most = float(seen.min()), float(seen.max())
    for limit in (least - 0.01, least + 1e-4, (least + most) / 2):
        verdict = decide(random, asked(f"(assert (<= Y_0 {limit:.12f}))"), 60, solve).verdict
        assert verdict is not (Result.UNSAT if limit > least else Result.SAT)
        if solve is not baseline.solve and abs(limit - least) > 5e-3:
            assert verdict is (Result.SAT if limit > least else Result.UNSAT), "complete: it decides"


def test_several_boxes(small: OnnxNetwork) -> None:
    boxes = "(assert (or (>= X_0 0.5) (<= X_0 -0.5)))(assert (<= Y_1 0.4))"
    found = decide(small, asked(boxes), 60, solve)
    assert found.verdict is Result.SAT
    assert found.counterexample is not None
    assert found.counterexample.x[0] <= -0.5


@pytest.mark.parametrize("verdict", [Result.UNKNOWN, Result.TIMEOUT])
def test_what_the_solver_does_not_decide(verdict: Result, small: OnnxNetwork) -> None:
    decision = decide(small, asked(SAT), 60, says(verdict))
    assert (decision.verdict, decision.reason) == (verdict, "because")


def test_counterexamples_are_replayed(small: OnnxNetwork) -> None:
    good = decide(small, asked(SAT), 60, says(Result.SAT, [1.0, -1.0]))
    assert good.verdict is Result.SAT
    outside = decide(small, asked(SAT), 60, says(Result.SAT, [2.0, 0.5]))  # in the box it is (1, 0.5)
    assert outside.verdict is Result.UNKNOWN
    assert "does not replay: 0.4 from unsafe in float64, 0.4 by onnxruntime" in outside.reason
    assert decide(small, asked(SAT), 60, says(Result.SAT)).verdict is Result.UNKNOWN
    assert decide(small, asked(SAT), 60, says(Result.SAT, [np.nan, 0.0])).verdict is Result.UNKNOWN
    almost = decide(small, asked(SAT), 60, says(Result.SAT, [0.95, 0.94999]))  # within the tolerance is not enough
    assert almost.verdict is Result.UNKNOWN


def test_a_counterexample_lies_in_the_exact_box(small: OnnxNetwork) -> None:
    text = "(assert (and (>= X_0 0.1) (<= X_0 0.3) (>= X_1 0.7) (<= X_1 0.7)))(assert (>= Y_0 0))"
    (query,) = parse_property(HEAD + text).queries
    found = replay(small, query, np.array([0.1, 0.7])).x
    assert found[0] == float(np.float32(0.1))
    assert Fraction(found[0]) >= Fraction("0.1")
    assert found[1] in (query.lower[1], query.upper[1])  # 0.7 is no float64
    assert query.contains(found)


def test_a_wrong_proof_is_caught(small: OnnxNetwork) -> None:
    with pytest.raises(SoundnessError, match="unsat is claimed for a box that holds an unsafe point"):
        decide(small, asked("(assert (>= Y_0 1))"), 60, says(Result.UNSAT))


def test_what_does_not_belong_together(small: OnnxNetwork) -> None:
    text = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (and (<= 0 X_0) (<= X_0 1) (<= Y_0 0)))"
    other = parse_property(text)
    with pytest.raises(RobustkitError, match="2 inputs and 2 outputs for this network, got one of 1 and 1"):
        decide(small, other, 60, solve)
    with pytest.raises(UsageError, match="expected a timeout above 0 seconds, got 0"):
        decide(small, asked(SAT), 0, solve)


def test_a_benchmark_runs_resumes_and_survives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instances, out = read_instances(folder / "instances.csv"), folder / "out/results.csv"
    rows = run_benchmark(instances, out, Silent(), solve=by_name, jobs=2)
    assert [row.result for row in rows] == ["sat", "unsat", "error"]  # the last one kills its process
    assert read_results(out)[0].benchmark == "2026_tiny"
    written = (folder / "out/counterexamples/net_reachable.counterexample").read_text()
    assert written == "sat\n((X_0 1.0)\n (X_1 1.0)\n (Y_0 2.0)\n (Y_1 0.5))\n"
    times = [row.run_time for row in rows]
    again = run_benchmark(instances, out, Silent(), solve=hangs)  # errors only are tried again
    assert [row.result for row in again] == ["sat", "unsat", "unknown"]
    assert [row.run_time for row in again[:2]] == pytest.approx(times[:2], abs=1e-5)
    assert run_benchmark(instances, out, Silent(), solve=dies) == read_results(out)
    monkeypatch.setattr(workers, "GRACE", 0.1)
    out.write_text("".join(line for line in out.read_text().splitlines(True) if "open" not in line))
    short = read_instances(folder / "instances.csv", timeout=0.2)
    assert [row.result for row in run_benchmark(short, out, Silent(), solve=hangs_on)] == ["sat", "unsat", "timeout"]


def by_name(model: nn.Module, query: Query, timeout: float) -> Answer:
    if len(query.unsafe) == 2:
        return Answer(Result.UNSAT)
    if query.unsafe[0].rows[0, 1]:
        return dies(model, query, timeout)
    return Answer(Result.SAT, np.array([1.0, 1.0]))


def dies(model: nn.Module, query: Query, timeout: float) -> Answer:
    os._exit(9)


def hangs(model: nn.Module, query: Query, timeout: float) -> Answer:
    return Answer(Result.UNKNOWN, reason="gave up")


def hangs_on(model: nn.Module, query: Query, timeout: float) -> Answer:
    time.sleep(1000)
    return Answer(Result.UNKNOWN)


def lies(model: nn.Module, query: Query, timeout: float) -> Answer:
    return Answer(Result.UNSAT)


def test_a_wrong_proof_stops_a_benchmark(folder: Path) -> None:
    with pytest.raises(SoundnessError, match="net reachable: unsat is claimed"):
        run_benchmark(read_instances(folder / "instances.csv")[:1], folder / "results.csv", Silent(), solve=lies)
    assert not (folder / "results.csv").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("onnx/net.onnx,vnnlib/safe.vnnlib", r"line 1: expected onnx,vnnlib,seconds, got 2 cells"),
        ("\nonnx/net.onnx,vnnlib/safe.vnnlib,soon", r"line 2: expected seconds above 0, got 'soon'"),
        ("onnx/net.onnx,vnnlib/safe.vnnlib,0", r"line 1: expected seconds above 0, got '0'"),
        ("onnx/net.onnx,vnnlib/safe.vnnlib,nan", r"line 1: expected seconds above 0, got 'nan'"),
        ("onnx/none.onnx,vnnlib/safe.vnnlib,1", r"line 1: expected a file at .*none\.onnx"),
        ("onnx/net.onnx,vnnlib/safe.vnnlib,1\n" * 2, r"line 2: expected every instance once, got net safe again"),
        ("", "expected instances in"),
    ],
)
def test_malformed_instances(lines: str, message: str, folder: Path) -> None:
    (folder / "instances.csv").write_text(lines)
    with pytest.raises(RobustkitError, match=message):
        read_instances(folder / "instances.csv")


def test_tables_that_are_none(folder: Path) -> None:
    with pytest.raises(UsageError, match="expected a timeout above 0 seconds, got -1"):
        read_instances(folder / "instances.csv", timeout=-1)
    with pytest.raises(RobustkitError, match="expected a table at"):
        read_instances(folder / "none.csv")
    instances, out = read_instances(folder / "instances.csv"), folder / "results.csv"
    with pytest.raises(UsageError, match="expected one job or more, got 0"):
        run_benchmark(instances, out, Silent(), jobs=0)
    for line, message in (
        ("2026_tiny,onnx/net.onnx,vnnlib/safe.vnnlib,0,perhaps,1", "line 1: expected a result of sat, unsat"),
        ("2026_tiny,onnx/net.onnx", "line 1: expected 6 cells, got 2"),
        ("2026_tiny,onnx/net.onnx,vnnlib/other.vnnlib,0,sat,1", "got one of 2026_tiny onnx/net.onnx vnnlib/other"),
        ("2025_tiny,onnx/net.onnx,vnnlib/safe.vnnlib,0,sat,1", "got one of 2025_tiny"),
    ):
        out.write_text(line)
        with pytest.raises(RobustkitError, match=message):
            run_benchmark(instances, out, Silent())


def published(folder: Path, **tools: str) -> Path:
    results = {tool: [verdict, 1.0] for tool, verdict in tools.items()}
    path = folder / "published_results.json"
    path.write_text(json.dumps([{"onnx": "net.onnx", "vnnlib": "safe.vnnlib", "results": results}]))
    return path


@pytest.mark.parametrize(
    ("tools", "verdict"),
    [
        ({"a": "sat", "b": "sat", "c": "unsat"}, "sat"),
        ({"a": "unsat", "b": "unsat", "c": "timeout", "d": "error_exit_code_1"}, "unsat"),
        ({"a": "sat", "b": "sat", "c": "unsat", "d": "unsat"}, None),
        ({"a": "sat", "b": "timeout"}, None),
    ],
)
def test_the_majority_of_tools(tools: dict[str, str], verdict: str | None, folder: Path) -> None:
    found = read_published(published(folder, **tools))
    assert found is not None
    assert found.get(("net.onnx", "safe.vnnlib")) == verdict


def test_contradictions_are_named(folder: Path) -> None:
    rows = [Row("2026_tiny", "onnx/net.onnx", f"vnnlib/{name}.vnnlib", 0.1, "unsat", 1.0) for name in ("safe", "more")]
    rows += [Row("2026_tiny", "onnx/net.onnx", f"vnnlib/{name}.vnnlib", 0.1, name, 1.0) for name in ("error", "sat")]
    found = summarise(rows, read_published(published(folder, a="unsat", b="unsat")))
    assert (found.solved, found.verified, found.falsified, found.undecided, found.compared) == (3, 2, 1, 1, 1)
    check_published(found)
    wrong = summarise(rows, read_published(published(folder, a="sat", b="sat")))
    with pytest.raises(SoundnessError, match=r"1 results of 2026_tiny .* net safe \(unsat here, sat published\)"):
        check_published(wrong)
    assert table([wrong]).splitlines()[1].split() == ["2026_tiny", "4", "3", "2", "1", "1", "1", "1"]
    assert table([summarise(rows, None)]).splitlines()[1].split()[-2:] == ["-", "-"]
    (folder / "published_results.json").write_text('{"no": "list"}')
    with pytest.raises(RobustkitError, match="holds no published results"):
        read_published(folder / "published_results.json")
    assert read_published(folder / "none.json") is None


def test_the_command_line_decides_one_instance(folder: Path) -> None:
    run = CliRunner().invoke
    files = ["--onnx", str(folder / "onnx/net.onnx"), "--vnnlib"]
    done = run(cli, ["verify", *files, str(folder / "vnnlib/reachable.vnnlib")])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "sat"
    assert lines[1].startswith("((X_0 ")
    assert "in float64" in lines[-1]
    done = run(cli, ["verify", *files, str(folder / "vnnlib/safe.vnnlib"), "--timeout", "50"])
    assert (done.exit_code, done.output) == (0, "unsat\n")
    for wrong, code, message in (
        (
            [*files, str(folder / "vnnlib/safe.vnnlib"), "--timeout", "0"],
            2,
            "expected a timeout above 0 seconds, got 0",
        ),
        ([*files, str(folder / "vnnlib/safe.vnnlib"), "--seed", "0"], 2, "got onnx, vnnlib, seed"),
        (files[:2], 2, "expected --onnx and --vnnlib together"),
        (["--timeout", "3"], 2, "expected --onnx and --vnnlib together"),
        ([*files, str(folder / "none.vnnlib")], 1, "expected a file at"),
    ):
        done = run(cli, ["verify", *wrong])
        assert done.exit_code == code
        assert message in done.output


def test_the_command_line_runs_a_benchmark(folder: Path) -> None:
    command = ["vnncomp", str(folder / "instances.csv"), "--out", str(folder / "r.csv")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1].split() == ["2026_tiny", "3", "3", "2", "1", "0", "-", "-"]
    assert [row.result for row in read_results(folder / "r.csv")] == ["sat", "unsat", "unsat"]
    published(folder, a="sat", b="sat")
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 3
    assert "net safe (unsat here, sat published)" in done.output
    assert CliRunner().invoke(cli, [*command, "--timeout", "0"]).exit_code == 2
