"""What importing robustkit sets for the whole process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any

import pytest

from robustkit import _process


class Library:
    """A C library that counts how it is set up."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def mallopt(self, parameter: int, value: Any) -> int:
        self.calls.append(parameter)
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    made = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: made)
    return made


def test_freed_memory_is_kept(library: Library) -> None:
    _process.keep_freed_memory()
    assert sorted(library.calls) == [-3, -2, -1]


@pytest.mark.parametrize("setting", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"])
def test_a_users_own_allocator_settings_win(library: Library, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(setting, "2")
    _process.keep_freed_memory()
    assert not library.calls


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    _process.keep_freed_memory()


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_told_otherwise(before: str | None, after: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if before is not None:
        environment["OMP_WAIT_POLICY"] = before
    code = "import os, robustkit; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == after


def test_nothing_is_proved_in_tf32() -> None:
    import torch
    from torch import nn

    from robustkit.bounds import BoundedNetwork
    from robustkit.config import Config
    from robustkit.networks import set_up

    def coarse() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    for prepare in (
        lambda: set_up(Config()),
        lambda: BoundedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 1, 2, 2)),
    ):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        assert coarse() == (True, True)
        prepare()
        assert coarse() == (False, False)
