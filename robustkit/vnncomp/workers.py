"""Processes that decide one instance after another; one that hangs or dies costs its own instance only."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from robustkit.errors import RobustkitError, SoundnessError
from robustkit.models import read_onnx
from robustkit.vnncomp.decision import Decision, Result, Solve, decide
from robustkit.vnncomp.instances import ERROR, Instance
from robustkit.vnncomp.recheck import save_certificates
from robustkit.vnnlib import load_property

GRACE = 10.0
"""Seconds beyond the limit after which a worker is ended."""
LOADING = 300.0
"""Seconds that starting a worker and reading an instance may take before its time begins."""
READY = "ready"


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


def work_off(tasks: Sequence[Task], solve: Solve, jobs: int, threads: int) -> Iterator[tuple[Instance, Done]]:
    """Decide instances in several processes.

    Args:
        tasks: in the order they are begun.
        solve: a function that a new process can import.
        jobs: how many processes.
        threads: of each.

    Yields:
        Each instance with what was found, as they finish.

    Raises:
        SoundnessError: a proof is contradicted; the others are ended.
    """
    waiting = list(reversed(tasks))
    workers = [_Worker(solve, threads) for _ in range(min(jobs, len(tasks)))]
    try:
        while waiting or any(one.instance for one in workers):
            for one in workers:
                if waiting and one.instance is None:
                    one.begin(waiting.pop())
            connection.wait([one.pipe for one in workers if one.instance], timeout=0.5)
            for one in workers:
                done = one.poll()
                if done is not None:
                    yield done
    finally:
        for one in workers:
            one.end()


@dataclass
class _Worker:
    solve: Solve
    threads: int
    instance: Instance | None = None
    ends: float = 0.0
    process: SpawnProcess | None = None
    pipe: Connection[Any, Any] = field(init=False)

    def begin(self, task: Task) -> None:
        """Hand over an instance, to a new process where there is none."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.solve, self.threads), daemon=True)
            self.process.start()
            theirs.close()
        self.instance, self.ends = task.instance, time.monotonic() + LOADING
        with contextlib.suppress(OSError):  # it has died meanwhile; the poll says so
            self.pipe.send(task)

    def poll(self) -> tuple[Instance, Done] | None:
        """Give what the process has found, or what has become of it."""
        instance = self.instance
        if instance is None:
            return None
        try:
            if not self.pipe.poll():
                if time.monotonic() < self.ends:
                    return None
                self.end()
                return instance, Done(Result.TIMEOUT, run_time=instance.timeout, note="it had to be ended")
            found = self.pipe.recv()
        except (EOFError, OSError):
            code = self.end()
            return instance, Done(ERROR, note=f"its process died with exit code {code}")
        if found == READY:
            self.ends = time.monotonic() + instance.timeout + GRACE
            return None
        self.instance = None
        if isinstance(found, SoundnessError):
            raise SoundnessError(f"{instance.name}: {found}")
        return instance, found

    def end(self) -> int | None:
        """End the process, and give its exit code."""
        self.instance = None
        if self.process is None:
            return None
        self.pipe.close()
        self.process.join(0.2)
        self.process.kill()
        self.process.join()
        code, self.process = self.process.exitcode, None
        return code


def _serve(pipe: Connection[Any, Any], solve: Solve, threads: int) -> None:
    """Decide what comes through a pipe until it closes."""
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            pipe.send(_decided(pipe.recv(), solve, pipe))


def _decided(task: Task, solve: Solve, pipe: Connection[Any, Any]) -> Done | SoundnessError:
    instance = task.instance
    began = time.perf_counter()
    ready = began
    try:
        asked = load_property(instance.file(instance.vnnlib))
        box = (asked.queries[0].lower, asked.queries[0].upper)
        network = read_onnx(instance.file(instance.onnx), box)
        pipe.send(READY)
        ready = time.perf_counter()
        decision = decide(network, asked, instance.timeout, solve)
        seconds = time.perf_counter() - ready
        if decision.recheck and task.certificate:
            save_certificates(task.certificate, decision.recheck.certificates)
    except SoundnessError as error:
        return error
    except RobustkitError as error:
        return Done(Result.UNKNOWN, ready - began, time.perf_counter() - ready, str(error))
    except Exception as error:  # one instance must not cost the others
        return Done(ERROR, ready - began, time.perf_counter() - ready, f"{type(error).__name__}: {error}")
    return _done(decision, ready - began, seconds, instance.timeout)


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
