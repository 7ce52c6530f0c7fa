"""Timing on machines that others use too: the candidates take turns, and the median of each counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def side_by_side(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time several functions in turn, so that a slow moment of the machine hits all of them.

    Args:
        candidates: what to time, by name; each is called once unmeasured first.
        rounds: how often each is timed.

    Returns:
        Median seconds of one call, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for work in candidates.values():
        work()
    for _ in range(rounds):
        for name, work in candidates.items():
            _wait()
            began = time.perf_counter()
            work()
            _wait()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(one) for name, one in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
