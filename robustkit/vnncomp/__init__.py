"""The verification competition's instances and benchmarks: verdicts, counterexamples, and what others found."""

from __future__ import annotations

from robustkit.vnncomp.benchmark import run_benchmark
from robustkit.vnncomp.complete import solve
from robustkit.vnncomp.decision import Answer, Counterexample, Decision, Result, Solve, decide, replay
from robustkit.vnncomp.instances import Instance, Row, read_instances, read_results
from robustkit.vnncomp.published import Summary, check_published, summarise

__all__ = [
    "Answer",
    "Counterexample",
    "Decision",
    "Instance",
    "Result",
    "Row",
    "Solve",
    "Summary",
    "check_published",
    "decide",
    "read_instances",
    "read_results",
    "replay",
    "run_benchmark",
    "solve",
    "summarise",
]
