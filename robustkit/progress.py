"""How long work tells where it stands; only the command line decides what is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Reporter(Protocol):
    """What long work calls as it goes."""

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Begin a piece of work of ``total`` units, ``done`` of which an earlier run has finished."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count units as done, with a short note on how it goes."""

    def finish(self) -> None:
        """End the piece of work, whether it was finished or broken off."""

    def say(self, text: str) -> None:
        """Tell one line that should stay."""


class Silent:
    """A reporter that shows nothing."""

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Show nothing."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""


@contextmanager
def working(reporter: Reporter, label: str, total: int, done: int = 0) -> Iterator[Reporter]:
    """Report one piece of work, and end it also where it breaks off."""
    reporter.start(label, total, done)
    try:
        yield reporter
    finally:
        reporter.finish()
