"""The same figures on a GPU as on the CPU; marked gpu, and skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from robustkit.cli import cli

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def robustkit(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("method", ["ibp", "mixtrain", "pgd"])
def test_a_network_trained_on_a_gpu_is_judged_alike_on_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    robustkit("train", "--method", method, "--eps", "0.05", "--epochs", "3", "--device", "cuda", "--out", "run")

    def figures(command: str, method: str, device: str) -> dict[str, Any]:
        text = robustkit(command, "--run", "run", "--method", method, "--device", device, "--n", "100", "--json")
        found: dict[str, Any] = json.loads(text)
        for file in Path("run/results").glob("*.csv"):  # or the other device's rows would be taken up
            file.unlink()
        return found

    for command, one, key in (("attack", "pgd", "era"), ("verify", "crown", "vra"), ("verify", "symbolic", "vra")):
        here, there = figures(command, one, "cpu"), figures(command, one, "cuda")
        assert here["clean"] == pytest.approx(there["clean"], abs=0.011)
        assert here[key] == pytest.approx(there[key], abs=0.021)
