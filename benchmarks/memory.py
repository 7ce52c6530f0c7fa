"""Peak memory of a call: on a GPU what torch counts, else what a process of its own grows by."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

Peak = Callable[..., float]
"""From a function that makes the work, and its arguments, to the MiB that the work takes at most beside what stood."""


@contextmanager
def meter() -> Iterator[Peak]:
    """Lend a function that measures; where it is no GPU's memory, in a process that hands back what it frees.

    What makes the work, and its arguments, must pickle. The work is made and done once unmeasured first, then made anew
    and done twice, so that what it keeps between calls counts too.
    """
    if torch.cuda.is_available():
        yield _on_gpu
        return
    before = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc: larger tensors go back to the system when they are freed
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            child.submit(os.getpid).result()  # it starts with the first task
            yield lambda make, *given: child.submit(_in_process, make, *given).result()
    finally:
        if before is None:
            del os.environ["MALLOC_MMAP_THRESHOLD_"]
        else:
            os.environ["MALLOC_MMAP_THRESHOLD_"] = before


def _on_gpu(make: Callable[..., Callable[[], object]], *given: object) -> float:
    work = _made_anew(make, *given)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _in_process(make: Callable[..., Callable[[], object]], *given: object) -> float:
    """Measure in this process, from the pages that Linux counts; not a number on another system."""
    work = _made_anew(make, *given)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
        before = _resident("VmRSS")
        work()
        work()
        return _resident("VmHWM") - before
    except OSError:
        return float("nan")


def _made_anew(make: Callable[..., Callable[[], object]], *given: object) -> Callable[[], object]:
    """Do the work once, so that libraries have loaded what they need, and make it again."""
    make(*given)()
    gc.collect()
    return make(*given)


def _resident(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
