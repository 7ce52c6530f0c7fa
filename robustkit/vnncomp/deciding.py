"""Instances decided wherever there is a process for them, and what is written down of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robustkit.errors import RobustkitError, SoundnessError
from robustkit.models import read_onnx
from robustkit.vnncomp.decision import Decision, Result, Solve, decide
from robustkit.vnncomp.instances import ERROR, Instance
from robustkit.vnncomp.recheck import save_certificates
from robustkit.vnnlib import load_property
from robustkit.workers import Lost


@dataclass(frozen=True)
class Done:
    """What a worker found.

    Attributes:
        result: a verdict of the competition, or ``error``.
        prepare_time: seconds that reading took.
        run_time: seconds that the verdict took.
        note: why nothing is decided, or why an ``unsat`` is proved in float32 only.
        counterexample: for ``sat``, in the competition's format.
        proof: of ``unsat``, ``checked`` or ``float``.
        check_time: seconds that checking the proof took.
    """

    result: str
    prepare_time: float = 0.0
    run_time: float = 0.0
    note: str = ""
    counterexample: str = ""
    proof: str = ""
    check_time: float = 0.0


@dataclass(frozen=True)
class Task:
    """An instance, and where the certificates of its proof go.

    Attributes:
        instance: the instance.
        certificate: a file ending in ``.npz``; of several boxes the others get a number. None to keep none.
    """

    instance: Instance
    certificate: Path | None = None


@dataclass(frozen=True)
class Decider:
    """Decides an instance, wherever it runs.

    Attributes:
        solve: a function that a new process can import.
    """

    solve: Solve

    def __call__(self, task: Task, begin: Callable[[], None], tell: Callable[[str], None]) -> Done:
        """Decide an instance; its time begins when its files are read.

        Raises:
            SoundnessError: a proof is contradicted by a point of its box.
        """
        instance = task.instance
        began = time.perf_counter()
        ready = began
        try:
            asked = load_property(instance.file(instance.vnnlib))
            box = (asked.queries[0].lower, asked.queries[0].upper)
            network = read_onnx(instance.file(instance.onnx), box)
            begin()
            ready = time.perf_counter()
            decision = decide(network, asked, instance.timeout, self.solve)
            seconds = time.perf_counter() - ready
            if decision.recheck and task.certificate:
                save_certificates(task.certificate, decision.recheck.certificates)
        except SoundnessError as error:
            raise SoundnessError(f"{instance.name}: {error}") from error
        except RobustkitError as error:
            return Done(Result.UNKNOWN, ready - began, time.perf_counter() - ready, str(error))
        return _done(decision, ready - began, seconds, instance.timeout)


def done_of(task: Task, found: Done | Lost) -> Done:
    """Give what was found of an instance, also where its process was lost."""
    if isinstance(found, Done):
        return found
    if found.late:
        return Done(Result.TIMEOUT, run_time=task.instance.timeout, note=found.reason)
    return Done(ERROR, note=found.reason)


def _done(decision: Decision, prepared: float, seconds: float, timeout: float) -> Done:
    """Write a decision down; a check that ran past the limit has not counted, and neither does its overrun."""
    found = decision.recheck
    if (decision.seconds if found else seconds) > timeout:
        return Done(Result.TIMEOUT, prepared, seconds, f"{decision.verdict} came too late")
    if found:
        proof, note = ("checked", "") if decision.checked else ("float", f"(float): {found.reason}")
        return Done(decision.verdict, prepared, min(seconds, timeout), note, proof=proof, check_time=found.seconds)
    text = decision.counterexample.text() if decision.counterexample else ""
    return Done(decision.verdict, prepared, seconds, decision.reason, text)
