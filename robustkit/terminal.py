"""Progress on the terminal: a bar on stderr where someone watches, nothing where the output is piped."""

from __future__ import annotations

import shutil
import sys
import time

import click

REDRAW_EVERY = 0.2


class Terminal:
    """The reporter of the command line."""

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()
        self._label, self._note, self._total, self._done, self._first = "", "", 0, 0, 0
        self._began = self._drawn = 0.0

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Begin a bar."""
        self._label, self._note, self._total, self._done, self._first = label, "", total, done, done
        self._began, self._drawn = time.monotonic(), 0.0
        self._draw()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Move the bar."""
        self._done += units
        self._note = note
        self._draw()

    def finish(self) -> None:
        """Remove the bar, and leave one line of what was done where there was something to do."""
        if self._watched:
            click.echo("\r\033[K", err=True, nl=False)
        if self._done > self._first:
            seconds = time.monotonic() - self._began
            share = "" if self._done >= self._total else f" ({self._done} of {self._total})"
            self.say(f"{self._label}: {seconds:.1f} s{share}")

    def say(self, text: str) -> None:
        """Write a line that stays."""
        if self._watched:
            click.echo(f"\r\033[K{text}", err=True)

    def _draw(self) -> None:
        now = time.monotonic()
        if not self._watched or now - self._drawn < REDRAW_EVERY:
            return
        self._drawn = now
        share = self._done / self._total if self._total else 1.0
        fresh = self._done - self._first
        left = (now - self._began) / fresh * (self._total - self._done) if fresh else 0.0
        bar = "#" * round(24 * share)
        line = f"{self._label} [{bar:<24}] {share:4.0%} {_clock(left)} {self._note}"
        click.echo(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", err=True, nl=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
