"""The least radius of each sample: exact on a linear model, to the tolerance."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robustkit import minimal
from robustkit.config import Config, EvaluationConfig
from robustkit.data import Dataset, Split
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation import evaluate
from robustkit.minimal import Minimal, brackets, minimal_radii
from robustkit.networks import Network
from robustkit.progress import Silent
from robustkit.results import Subject
from robustkit.runs import Run
from robustkit.threat import LinfBall

LEAST = [0.0, 0.03, 0.11, 0.2, 0.3]
"""Least radii of the samples below: half the margin ``x_0 - x_1``."""


def network(folder: Path) -> Network:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    x = torch.tensor([[0.5 + half, 0.5 - half] for half in LEAST])
    split = Split(x, torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x)))
    dataset = Dataset("pairs", 2, ("left", "right"), split, split, split, "mlp", 0.1, (0.0,), (1.0,))
    return Network(Run(folder), Config(), model.eval(), dataset, Subject("toy", "abc", "", math.nan, "pairs", 0))


def found(folder: Path, method: str, tolerance: float) -> Minimal:
    options = {name: {"steps": 80} for name in ("pgd", "cw")}  # enough to cross the ball from any start
    settings = EvaluationConfig((method,), (0.05, 0.15, 0.25), options=options)
    subject = network(folder)
    table = evaluate(subject, "attack", settings, Silent())
    (least,) = minimal_radii(subject, table, settings, tolerance, Silent())
    return least


@pytest.mark.parametrize("method", ["fgsm", "pgd", "cw"])
def test_it_is_exact_on_a_linear_model(tmp_path: Path, method: str) -> None:
    least = found(tmp_path, method, 0.002)
    stands, breaks = (least.radii[name].to_numpy() for name in ("stands", "breaks"))
    np.testing.assert_allclose(breaks[:4], LEAST[:4], atol=0.002)
    assert (stands <= np.array(LEAST) + 1e-6).all()
    assert (breaks[1:4] - stands[1:4] <= 0.002).all()
    assert (stands[0], breaks[0]) == (0.0, 0.0), "it is misclassified itself: a tie"
    assert stands[4] == 0.25 and math.isnan(breaks[4])
    pd.testing.assert_frame_equal(pd.read_csv(least.path), least.radii)
    assert least.plain()["broken"] == 4
    assert least.plain()["median"] == pytest.approx(0.11, abs=0.002)
    assert "4 of 5 samples broken" in least.describe()


def test_an_interrupted_bisection_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(tmp_path / "whole", "pgd", 0.002)
    radii = list[float]()
    work = minimal.attack_batches

    def counted(attack: Any, model: Any, split: Any, ball: LinfBall, *rest: Any) -> Any:
        radii.append(ball.eps)
        if len(radii) == 9:
            raise KeyboardInterrupt
        yield from work(attack, model, split, ball, *rest)

    monkeypatch.setattr(minimal, "attack_batches", counted)
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path / "part", "pgd", 0.002)
    again = found(tmp_path / "part", "pgd", 0.002)
    assert not set(radii[9:]) & set(radii[:6]), "two rounds were finished"
    np.testing.assert_allclose(again.radii, whole.radii, atol=0.002)
    done = len(radii)
    pd.testing.assert_frame_equal(found(tmp_path / "part", "pgd", 0.002).radii, again.radii)
    assert len(radii) == done, "what is narrow enough stays"
    again.path.write_text("index,stands\nx,y\n")
    with pytest.raises(RobustkitError, match=r"could not read them .*; delete it"):
        found(tmp_path / "part", "pgd", 0.002)


def test_brackets_are_read_off_the_rows() -> None:
    rows = [(7, 0.1, "unknown"), (7, 0.2, "falsified"), (7, 0.3, "falsified"), (8, 0.1, "falsified")]
    table = pd.DataFrame(rows, columns=["index", "eps", "verdict"]).assign(label=1)
    assert brackets(table).to_numpy().tolist() == [[7, 1, 0.1, 0.2], [8, 1, 0.0, 0.1]]


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_a_tolerance_of_nothing_is_refused(tmp_path: Path, tolerance: float) -> None:
    with pytest.raises(UsageError, match="a tolerance above 0"):
        found(tmp_path, "fgsm", tolerance)
