from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from robustkit import workers
from robustkit.cli import cli
from robustkit.errors import RobustkitError, SoundnessError, UsageError
from robustkit.models import OnnxNetwork, export_onnx, read_onnx
from robustkit.progress import Silent
from robustkit.verifiers.certificate import Evidence, Leaf, Node, Tree
from robustkit.verifiers.checker import check_file
from robustkit.verifiers.claims import Box
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
)
from robustkit.vnncomp.instances import write_results
from robustkit.vnncomp.published import Tool, read_published, read_tools, table
from robustkit.vnncomp.recheck import save_certificates
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
    rows[0] = replace(rows[0], proof="checked")
    found = summarise(rows, read_published(published(folder, a="unsat", b="unsat")))
    assert (found.solved, found.verified, found.floating, found.falsified) == (3, 1, 1, 1)
    assert (found.timeouts, found.undecided, found.compared) == (0, 1, 1)
    check_published(found)
    wrong = summarise(rows, read_published(published(folder, a="sat", b="sat")))
    with pytest.raises(SoundnessError, match=r"1 results of 2026_tiny .* net safe \(unsat here, sat published\)"):
        check_published(wrong)
    assert table([wrong]).splitlines()[1].split() == ["2026_tiny", "4", "3", "1", "1", "1", "0", "1", "1", "1"]
    assert table([summarise(rows, None)]).splitlines()[1].split()[-2:] == ["-", "-"]
    (folder / "published_results.json").write_text('{"no": "list"}')
    with pytest.raises(RobustkitError, match="holds no published results"):
        read_published(folder / "published_results.json")
    assert read_published(folder / "none.json") is None


def small_wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


@pytest.mark.parametrize("few", [0, 10], ids=["neurons", "inputs"])
@pytest.mark.parametrize("form", ["or", "and"])
def test_proofs_are_checked_again(few: int, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "FEW_INPUTS", few)
    export_onnx(small_wide(), (2,), tmp_path / "n.onnx")
    wide = read_onnx(tmp_path / "n.onnx")
    side = torch.linspace(-1, 1, 101)
    with torch.no_grad():
        seen = wide.model(torch.cartesian_prod(side, side))
    most, least = float(seen[:, 0].max()) + 0.01, float(seen[:, 1].min()) - 0.01
    property_ = asked(f"(assert ({form} (<= Y_1 {least:.9f}) (>= Y_0 {most:.9f})))")
    decision = decide(wide, property_, 60, solve)
    assert (decision.verdict, decision.checked) == (Result.UNSAT, True), decision
    assert decision.recheck is not None
    (proved,) = decision.recheck.certificates
    assert isinstance(proved.claim, Box)
    assert sum(len(tree.leaf) for tree in proved.trees) > len(proved.trees), "the search had to split"
    (query,) = property_.queries
    assert np.array_equal(proved.claim.lb, query.lower)
    assert [one.rows.tolist() for one in proved.claim.disjuncts] == [one.rows.tolist() for one in query.unsafe]


def test_any_row_may_refute_a_disjunct(small: OnnxNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "FEW_INPUTS", 0)
    tight = "(>= Y_0 1.999)"  # reachable, with the better bound of the two; the other row is never reached
    decision = decide(small, asked(f"(assert (and {tight} (>= Y_1 0.6)))"), 60, solve)
    assert (decision.verdict, decision.checked) == (Result.UNSAT, True)


def test_proofs_that_are_none_are_float(small: OnnxNetwork) -> None:
    leaf = Tree.build([Node()], [Leaf(0)])
    for proof, reason in (((), "gives no proof"), ((leaf,), "a tree for each of 2"), ((leaf, leaf), "is not proved")):
        either = asked("(assert (or (>= Y_0 2.1) (>= Y_1 0.6)))")
        decision = decide(small, either, 60, lambda *_, proof=proof: Answer(Result.UNSAT, proof=Evidence(proof)))
        assert (decision.verdict, decision.checked) == (Result.UNSAT, False)
        assert decision.recheck is not None
        assert reason in decision.recheck.reason
        assert decision.recheck.certificates == ()
    rounded = decide(replace(small, exact=False), asked(OPEN), 60, solve)
    assert (rounded.verdict, rounded.checked) == (Result.UNSAT, False)
    undecided = decide(small, asked(OPEN), 60, says(Result.UNKNOWN))
    assert (undecided.recheck, undecided.checked) == (None, False)


def test_a_check_that_ends_too_late_does_not_count(small: OnnxNetwork) -> None:
    def slow(model: nn.Module, query: Query, timeout: float) -> Answer:
        answer = solve(model, query, timeout)
        time.sleep(2.0)
        return answer

    decision = decide(small, asked(OPEN), 1.9, slow)
    assert (decision.verdict, decision.checked) == (Result.UNSAT, False)
    assert decision.recheck is not None
    assert "the time for it was over" in decision.recheck.reason
    assert decision.seconds >= 2.0


def test_all_boxes_are_checked(small: OnnxNetwork, tmp_path: Path) -> None:
    decision = decide(small, asked("(assert (or (>= X_0 0.5) (<= X_0 -0.5)))(assert (>= Y_1 0.6))"), 60, solve)
    assert decision.checked
    assert decision.recheck is not None
    save_certificates(tmp_path / "c.npz", decision.recheck.certificates)
    for name in ("c.npz", "c-2.npz"):
        assert check_file(tmp_path / name, small.model).proved
    with pytest.raises(UsageError, match=r"expected a certificate ending in \.npz"):
        save_certificates(tmp_path / "c.txt", decision.recheck.certificates)


def test_bounds_alone_are_checked_too(small: OnnxNetwork) -> None:
    decision = decide(small, asked(UNSAT), 60, baseline.solve)
    assert (decision.verdict, decision.checked) == (Result.UNSAT, True)


def test_what_became_of_proofs_is_kept(folder: Path) -> None:
    rows = [
        Row("2026_tiny", "n.onnx", "a.vnnlib", 0.1, "unsat", 1.0, "checked", 0.5),
        Row("2026_tiny", "n.onnx", "b.vnnlib", 0.1, "unsat", 1.0, "float", 0.25, "(float): too, late"),
        Row("2026_tiny", "n.onnx", "c.vnnlib", 0.1, "sat", 1.0),
    ]
    write_results(folder / "r.csv", rows)
    assert read_results(folder / "r.csv") == rows
    assert {line.count(",") for line in (folder / "r.csv").read_text().splitlines()} == {5}
    (folder / "r.proofs.csv").unlink()
    assert [row.proof for row in read_results(folder / "r.csv")] == ["float", "float", ""]
    (folder / "r.proofs.csv").write_text("n.onnx,a.vnnlib,surely,1,")
    with pytest.raises(RobustkitError, match="line 1: expected onnx,vnnlib,checked or float,seconds,note"):
        read_results(folder / "r.csv")


def test_published_tools_are_counted(folder: Path) -> None:
    path = folder / "published_results.json"
    entries = [
        ("safe", {"a": ["unsat", 3.0], "b": ["timeout", 9.0], "c": ["error", 0.0]}),
        ("open", {"a": ["sat", 2.0], "b": ["unsat", 1.0], "c": ["unsat", 7.0]}),
        ("other", {"a": ["sat", 99.0]}),
    ]
    path.write_text(json.dumps([{"onnx": "n.onnx", "vnnlib": f"{v}.vnnlib", "results": r} for v, r in entries]))
    rows = [Row("2026_tiny", "n.onnx", f"{name}.vnnlib.gz", 0.1, "unsat", 1.0) for name in ("safe", "open")]
    assert read_tools(path, rows) == [
        Tool("a", 2, 1, 1, 1, 3.0),
        Tool("b", 2, 1, 0, 0, 1.0),
        Tool("c", 2, 1, 0, 0, 7.0),
    ]
    assert read_tools(folder / "none.json", rows) == []
    lines = table([summarise(rows, None)], read_tools(path, rows)).splitlines()
    assert lines[4].split() == ["a", "2", "2", "1", "1", "1", "3"]


def test_the_command_line_decides_one_instance(folder: Path) -> None:
    run = CliRunner().invoke
    files = ["--onnx", str(folder / "onnx/net.onnx"), "--vnnlib"]
    done = run(cli, ["verify", *files, str(folder / "vnnlib/reachable.vnnlib")])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "sat"
    assert lines[1].startswith("((X_0 ")
    assert "in float64" in lines[-1]
    safe, proof = str(folder / "vnnlib/safe.vnnlib"), str(folder / "safe.npz")
    done = run(cli, ["verify", *files, safe, "--timeout", "50", "--certificate", proof])
    assert (done.exit_code, done.output.splitlines()[0]) == (0, "unsat")
    assert "the proof was checked again in float64: 2 leaves" in done.output
    done = run(cli, ["check", proof, *files[:2]])
    assert done.exit_code == 0
    assert done.output.startswith("PROVED none of 2 unsafe disjuncts over a box of 2 inputs")
    for wrong, code, message in (
        (
            [*files, str(folder / "vnnlib/safe.vnnlib"), "--timeout", "0"],
            2,
            "expected a timeout above 0 seconds, got 0",
        ),
        ([*files, str(folder / "vnnlib/safe.vnnlib"), "--seed", "0"], 2, "got onnx, vnnlib, seed"),
        ([*files, safe, "--certificate", "safe.txt"], 2, "expected --certificate ending in .npz, got safe.txt"),
        (files[:2], 2, "expected --onnx and --vnnlib together"),
        (["--certificate", "a.npz"], 2, "expected --onnx and --vnnlib together"),
        ([*files, str(folder / "none.vnnlib")], 1, "expected a file at"),
    ):
        done = run(cli, ["verify", *wrong])
        assert done.exit_code == code
        assert message in done.output


def test_the_command_line_runs_a_benchmark(folder: Path) -> None:
    command = ["vnncomp", str(folder / "instances.csv"), "--out", str(folder / "r.csv")]
    command += ["--certificates", str(folder / "proofs")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1].split() == ["2026_tiny", "3", "3", "2", "0", "1", "0", "0", "-", "-"]
    assert [row.result for row in read_results(folder / "r.csv")] == ["sat", "unsat", "unsat"]
    assert [row.proof for row in read_results(folder / "r.csv")] == ["", "checked", "checked"]
    network = read_onnx(folder / "onnx/net.onnx").model
    for name in ("safe", "open"):
        assert check_file(folder / f"proofs/net_{name}.npz", network).proved
    published(folder, a="sat", b="sat")
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 3
    lines = [line.split() for line in done.output.splitlines()]
    assert ["a", "1", "1", "0", "1", "0", "1"] in lines  # of one instance, which it falsified in a second
    assert "net safe (unsat here, sat published)" in done.output
    assert CliRunner().invoke(cli, [*command, "--timeout", "0"]).exit_code == 2
