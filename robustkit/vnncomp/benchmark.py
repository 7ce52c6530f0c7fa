"""A whole benchmark of the competition: every instance decided, in several processes, resumable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from robustkit.errors import RobustkitError, UsageError
from robustkit.files import replacing
from robustkit.progress import Reporter, working
from robustkit.vnncomp.complete import solve as complete
from robustkit.vnncomp.deciding import Decider, Task, done_of
from robustkit.vnncomp.decision import Solve
from robustkit.vnncomp.instances import ERROR, Instance, Row, read_results, write_results
from robustkit.workers import work_off

COUNTEREXAMPLES = "counterexamples"


def run_benchmark(
    instances: Sequence[Instance],
    out: Path,
    reporter: Reporter,
    *,
    solve: Solve = complete,
    jobs: int = 1,
    certificates: Path | None = None,
) -> list[Row]:
    """Decide the instances that have no result yet, and write each result down as it comes.

    Args:
        instances: of one benchmark.
        out: the table of results; those it holds are kept, but for errors, which are tried again. Counterexamples go
            into a folder beside it, and what became of the proofs into a table beside it.
        reporter: told of the progress.
        solve: the verifier; a function that a new process can import.
        jobs: how many instances are worked on at a time, each in a process of its own.
        certificates: folder for the proofs that the checker has accepted; None to keep none.

    Returns:
        All results, in the order of the instances.

    Raises:
        UsageError: fewer jobs than one.
        RobustkitError: the table holds results of other instances, or cannot be read or written.
        SoundnessError: a proof is contradicted by a point of its box.
    """
    if jobs < 1:
        raise UsageError(f"expected one job or more, got {jobs}; give at least 1")
    rows = {(row.onnx, row.vnnlib): row for row in read_results(out)}
    known = {(one.folder.name, one.onnx, one.vnnlib) for one in instances}
    strange = next((row for row in rows.values() if (row.benchmark, row.onnx, row.vnnlib) not in known), None)
    if strange:
        got = f"{strange.benchmark} {strange.onnx} {strange.vnnlib}"
        raise RobustkitError(f"expected results of these instances in {out}, got one of {got}; choose another --out")
    left = [one for one in instances if _unfinished(rows.get((one.onnx, one.vnnlib)))]
    names = _names(instances)
    label = f"deciding {instances[0].folder.name}" if instances else "deciding nothing"
    with working(reporter, label, len(instances), len(instances) - len(left)):
        tasks = [Task(one, certificates and certificates / f"{names[one.onnx, one.vnnlib]}.npz") for one in left]
        for task, found in work_off(tasks, Decider(solve), jobs=jobs, limit=lambda task: task.instance.timeout):
            one, done = task.instance, done_of(task, found)
            if done.counterexample:
                with replacing(out.parent / COUNTEREXAMPLES / f"{names[one.onnx, one.vnnlib]}.counterexample") as file:
                    file.write(done.counterexample)
            key = (one.onnx, one.vnnlib)
            rows[key] = Row(
                one.folder.name,
                *key,
                done.prepare_time,
                str(done.result),
                done.run_time,
                done.proof,
                done.check_time,
                done.note if done.proof else "",
            )
            write_results(out, _ordered(instances, rows))
            reporter.advance(1, f"{one.name}: {done.result}")
            if done.note:
                reporter.say(f"{one.name}: {done.result}{' ' if done.proof else ': '}{done.note}")
    return _ordered(instances, rows)


def _unfinished(row: Row | None) -> bool:
    return row is None or row.result == ERROR


def _ordered(instances: Sequence[Instance], rows: dict[tuple[str, str], Row]) -> list[Row]:
    return [rows[one.onnx, one.vnnlib] for one in instances if (one.onnx, one.vnnlib) in rows]


def _names(instances: Sequence[Instance]) -> dict[tuple[str, str], str]:
    """Name the file of each counterexample or proof after network and property; those that share both get a number."""
    names, taken = {}, Counter[str]()
    for one in instances:
        stem = one.name.replace(" ", "_")
        taken[stem] += 1
        number = f"-{taken[stem]}" if taken[stem] > 1 else ""
        names[one.onnx, one.vnnlib] = f"{stem}{number}"
    return names
