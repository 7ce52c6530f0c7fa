"""Timing on machines that others use too: the candidates take turns, and the median of each counts."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)


def side_by_side(
    candidates: Mapping[Name, Callable[[], object]], rounds: int, *, least: float = 0.0
) -> dict[Name, float]:
    """Time several functions in turn, so that a slow moment of the machine hits all of them.

    Args:
        candidates: what to time, by name; each is called unmeasured first.
        rounds: how often each is timed.
        least: seconds that each is called for at a time, at least; a single call where that takes longer.

    Returns:
        Median seconds of one call, by name.
    """
    times: dict[Name, list[float]] = {name: [] for name in candidates}
    calls = {}
    for name, work in candidates.items():
        work()
        calls[name] = max(1, math.ceil(least / _seconds(work, 1))) if least else 1
    for _ in range(rounds):
        for name, work in candidates.items():
            times[name].append(_seconds(work, calls[name]))
    return {name: statistics.median(one) for name, one in times.items()}


def _seconds(work: Callable[[], object], calls: int) -> float:
    """Give the mean seconds of some calls in a row."""
    _wait()
    began = time.perf_counter()
    for _ in range(calls):
        work()
    _wait()
    return (time.perf_counter() - began) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
