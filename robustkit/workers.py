"""Tasks worked off in several processes; one that hangs or dies costs its own task only."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Protocol, TypeVar

from robustkit.errors import RobustkitError

GRACE = 10.0
"""Seconds beyond the limit of a task after which its process is ended."""
LOADING = 300.0
"""Seconds that starting a process and preparing a task may take before its time begins."""

Task = TypeVar("Task")
Found = TypeVar("Found")
A = TypeVar("A", contravariant=True)
B = TypeVar("B", covariant=True)


class Work(Protocol[A, B]):
    """What is done with a task; it is sent to every process once, so it must be possible to pickle it."""

    def __call__(self, task: A, begin: Callable[[], None], tell: Callable[[str], None], /) -> B:
        """Work off a task.

        Args:
            task: the task.
            begin: is called once the task is prepared and its time begins.
            tell: is told how far the work has come.

        Raises:
            RobustkitError: ends all the work; any other exception costs this task only.
        """


@dataclass(frozen=True)
class Lost:
    """A task that was not finished.

    Attributes:
        reason: why.
        late: whether its process had to be ended for want of time.
    """

    reason: str
    late: bool = False


def work_off(
    tasks: Sequence[Task],
    work: Work[Task, Found],
    *,
    jobs: int,
    limit: Callable[[Task], float],
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Task, Found | Lost]]:
    """Work tasks off in several processes, the threads of the machine shared among them.

    Args:
        tasks: in the order they are begun.
        work: what is done with each.
        jobs: how many processes, at least 1.
        limit: seconds of each task.
        tell: is told how far the work on a task has come.

    Yields:
        Each task with what was found, as they finish.

    Raises:
        RobustkitError: one that the work has raised; all other work is ended.
    """
    waiting = list(reversed(tasks))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    workers: list[_Worker[Task, Found]] = [_Worker(work, threads, limit, tell) for _ in range(min(jobs, len(tasks)))]
    try:
        while waiting or any(one.busy for one in workers):
            for one in workers:
                if waiting and not one.busy:
                    one.begin(waiting.pop())
            connection.wait([one.pipe for one in workers if one.busy], timeout=0.5)
            for one in workers:
                done = one.poll()
                if done is not None:
                    yield done
    finally:
        for one in workers:
            one.end()


@dataclass
class _Worker(Generic[Task, Found]):
    work: Work[Task, Found]
    threads: int
    limit: Callable[[Task], float]
    tell: Callable[[str], None]
    tasks: list[Task] = field(default_factory=list)
    ends: float = 0.0
    process: SpawnProcess | None = None
    pipe: Connection[Any, Any] = field(init=False)

    @property
    def busy(self) -> bool:
        """Whether it has a task."""
        return bool(self.tasks)

    def begin(self, task: Task) -> None:
        """Hand over a task, to a new process where there is none."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.threads), daemon=True)
            self.process.start()
            theirs.close()
            self._send(self.work)
        self.tasks, self.ends = [task], time.monotonic() + LOADING
        self._send(task)

    def poll(self) -> tuple[Task, Found | Lost] | None:
        """Give what the process has found, or what has become of it."""
        if not self.tasks:
            return None
        task = self.tasks[0]
        try:
            if not self.pipe.poll():
                if time.monotonic() < self.ends:
                    return None
                self.end()
                return task, Lost("it had to be ended", late=True)
            kind, content = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            code = self.end()
            return task, Lost(f"its process died with exit code {code}")
        if kind == "begun":
            self.ends = time.monotonic() + self.limit(task) + GRACE
        elif kind == "told":
            self.tell(content)
        elif kind == "raised":
            raise content
        else:
            self.tasks = []
            return task, content
        return None

    def end(self) -> int | None:
        """End the process, and give its exit code."""
        self.tasks = []
        if self.process is None:
            return None
        self.pipe.close()
        self.process.join(0.2)
        self.process.kill()
        self.process.join()
        code, self.process = self.process.exitcode, None
        return code

    def _send(self, content: object) -> None:
        try:
            packed = pickle.dumps(content)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise RobustkitError(
                f"expected work that other processes can be given, got {error}; use --jobs 1"
            ) from None
        with contextlib.suppress(OSError):  # it has died meanwhile; the poll says so
            self.pipe.send_bytes(packed)


def _serve(pipe: Connection[Any, Any], threads: int) -> None:
    """Work off what comes through a pipe until it closes; bytes, so that no memory is shared with what may die."""
    import torch

    torch.set_num_threads(threads)

    def send(kind: str, content: object = None) -> None:
        pipe.send_bytes(pickle.dumps((kind, content)))

    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        work = pickle.loads(pipe.recv_bytes())
        while True:
            task = pickle.loads(pipe.recv_bytes())
            try:
                send("found", work(task, lambda: send("begun"), lambda text: send("told", text)))
            except RobustkitError as error:
                send("raised", error)
            except (EOFError, OSError):
                raise
            except Exception as error:  # one task must not cost the others
                send("found", Lost(f"{type(error).__name__}: {error}"))
