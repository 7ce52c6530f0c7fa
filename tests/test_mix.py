"""`robustkit mix`: two trained runs become one, which every other command takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from robustkit.cli import cli
from robustkit.models import Mixture, load_checkpoint
from robustkit.runs import Run

TINY = ["--set", "train.epochs=10", "--set", "data.train_n=500", "--model", "mlp", "--eps", "0.02"]
PARTS = ["--natural", "runs/natural", "--robust", "runs/robust"]


def robustkit(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a natural and a robust run."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, method in (("natural", "natural"), ("robust", "ibp")):
            done = robustkit("train", *TINY, "--method", method, "--out", f"runs/{name}", "--set", "train.lr=0.01")
            assert done.exit_code == 0, done.output
    yield folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_whole_way_from_two_runs_to_a_report(work: Path) -> None:
    made = robustkit("mix", *PARTS, "--weight", "0.95", "--out", "runs/mixed")
    assert made.exit_code == 0, made.output
    assert "0.05 of runs/natural and 0.95 of runs/robust on digits" in made.stdout
    model, card = load_checkpoint(work / "runs" / "mixed")
    assert isinstance(model, Mixture) and card.weight == 0.95
    assert [one.method for one in card.parts] == ["natural", "ibp"]

    figures = json.loads(robustkit("evaluate", "--n", "60", "--json").stdout)
    assert figures["run"] == "runs/mixed" and figures["eps"] == 0.02  # the latest run, at the radius of its robust part
    assert figures["vra"] == 0.0, "the proof checker reads no mixtures"
    assert 0 <= figures["vra_float"] <= figures["era"] + 1e-9 <= figures["clean"] + 2e-9
    robust = json.loads(robustkit("verify", "--run", "runs/robust", "--n", "60", "--json").stdout)
    assert 0 < figures["vra_float"] <= robust["vra"] + robust["vra_float"]

    reported = robustkit("report", "runs/mixed", "runs/robust", "--out", "report")
    assert reported.exit_code == 0, reported.output
    rows = pd.read_csv("report/comparison.csv")
    assert set(rows["training"]) == {"mixed", "IBP"} and set(rows["model"]) == {"mlp"}  # side by side in one table
    for figure, value in (("certified", 0.0), ("certified (float)", figures["vra_float"])):
        assert rows[rows["figure"] == figure].set_index("training")["value"]["mixed"] == pytest.approx(value)


def test_a_weight_of_one_is_the_robust_network_and_a_half_certifies_nothing(work: Path) -> None:
    found = {}
    for weight in ("1", "0.5"):
        assert robustkit("mix", *PARTS, "--weight", weight).exit_code == 0
        found[weight] = json.loads(robustkit("verify", "--method", "crown", "--n", "60", "--json").stdout)
    robust = robustkit("verify", "--run", "runs/robust", "--method", "crown", "--n", "60", "--json")
    assert found["1"]["vra_float"] == pytest.approx(json.loads(robust.stdout)["vra"])
    assert found["1"]["vra_float"] > 0 == found["0.5"]["vra_float"]
    assert len(list((work / "runs").glob("digits-mixture-a*"))) == 2


def test_typed_again_it_opens_what_stands_and_another_is_refused(work: Path) -> None:
    for _ in range(2):
        assert robustkit("mix", *PARTS, "--weight", "0.9", "--out", "runs/mixed").exit_code == 0
    other = robustkit("mix", *PARTS, "--weight", "0.8", "--out", "runs/mixed")
    assert other.exit_code == 2 and "runs/mixed holds another network" in other.stderr
    part = robustkit("mix", *PARTS, "--out", "runs/robust")
    assert part.exit_code == 2 and "runs/robust holds another network" in part.stderr


@pytest.mark.parametrize("weight", ["0", "1.2", "-0.5", "nan"])
def test_a_weight_that_is_no_share_is_refused(work: Path, weight: str) -> None:
    result = robustkit("mix", *PARTS, "--weight", weight)
    assert result.exit_code == 2 and "in (0, 1]" in result.stderr
    assert not list((work / "runs").glob("*mixture*"))


def test_what_cannot_be_mixed_is_refused(work: Path) -> None:
    assert robustkit("mix", *PARTS, "--out", "runs/mixed").exit_code == 0
    twice = robustkit("mix", "--natural", "runs/natural", "--robust", "runs/mixed")
    assert twice.exit_code == 2 and "got the mixture runs/mixed" in twice.stderr
    nowhere = robustkit("mix", "--natural", "runs/nowhere", "--robust", "runs/robust")
    assert nowhere.exit_code == 1 and "runs/nowhere" in nowhere.stderr
    x, y = np.random.default_rng(0).random((60, 9, 9)).astype("float32"), np.arange(60) % 10
    np.savez("other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    train = ["train", *TINY, "--method", "natural", "--batch-size", "10", "--dataset", "other.npz"]
    assert robustkit(*train, "--out", "runs/other").exit_code == 0
    for natural, robust in (("other", "robust"), ("natural", "other")):
        other = robustkit("mix", "--natural", f"runs/{natural}", "--robust", f"runs/{robust}")
        assert other.exit_code == 2 and "(1, 9, 9)" in other.stderr and "(1, 8, 8)" in other.stderr


def test_a_damaged_card_of_a_mixture_is_named(work: Path) -> None:
    robustkit("mix", *PARTS, "--out", "runs/mixed")
    path = Run(Path("runs/mixed")).path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "parts": []}))
    result = robustkit("attack", "--run", "runs/mixed", "--n", "5")
    assert result.exit_code == 1
    assert "expected two parts and a weight on the card of a mixture, got 0 and 0.8" in result.stderr
