"""The published figures, on the published weights and all test samples: minutes, so marked slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkit.cli import cli

pytestmark = pytest.mark.slow

MIXTRAIN, WONG = "mixtrain/mnist_small_mixtrain_0.3.pth", "wong/mnist_small_0_3.pth"


@pytest.mark.parametrize(
    ("weights", "n", "clean", "vra"),
    [(MIXTRAIN, 1000, None, 0.6010), (MIXTRAIN, 10_000, 0.9367, 0.6415), (WONG, 10_000, 0.8523, 0.5688)],
)
def test_symbolic_bounds_certify_what_was_published(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, n: int, clean: float | None, vra: float
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["verify", "--model", "mnist_small", "--checkpoint", str(shared / "models" / weights), "--eps", "0.3"]
    command += ["--dataset", "mnist", "--data-root", str(shared / "data"), "--method", "symbolic", "--n", str(n)]
    done = CliRunner().invoke(cli, [*command, "--json"], catch_exceptions=False)
    figures = json.loads(done.stdout)
    assert figures["n"] == n
    assert figures["vra"] == pytest.approx(vra, abs=0.001)
    if clean is not None:
        assert figures["clean"] == pytest.approx(clean, abs=0.0001)
