"""Branch and bound in several processes says what it says in one, and a process that dies costs one sample."""

import multiprocessing
import os
from dataclasses import dataclass, replace

import networks
import pandas as pd
import torch
from torch import Tensor, nn

from robustkit.bounds import BoundMethod
from robustkit.data import Split
from robustkit.results import Subject
from robustkit.threat import LinfBall
from robustkit.verifiers import Cascade, Complete, Outcome, Prepared, verify_batches
from robustkit.verifiers.base import Tell

SUBJECT = Subject("run", "code", "ibp", 0.1, "toy", 0)
BALL = LinfBall(0.05)


def network() -> nn.Sequential:
    model = networks.make("conv")
    with torch.no_grad():
        model[-1].bias -= model(networks.inputs(64)).mean(dim=0)
    return model


def samples(model: nn.Module) -> Split:
    x = networks.inputs(12)
    with torch.no_grad():
        return Split(x, model(x).argmax(dim=1), torch.arange(100, 112))


@dataclass(frozen=True)
class Dies(Complete):
    """Its process ends at the first sample it goes on with, once."""

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        prepared = super().prepare(model, example)

        def die(outcome: Outcome, x: Tensor, y: Tensor, ball: LinfBall, number: int, tell: Tell) -> None:
            if multiprocessing.parent_process() is not None and number == 100 + first_left(model):
                os._exit(9)
            assert prepared.finish is not None
            prepared.finish(outcome, x, y, ball, number, tell)

        return replace(prepared, finish=die)


def first_left(model: nn.Module) -> int:
    data = samples(model)
    screen = Cascade(bounds=(BoundMethod.IBP,)).prepare(model, data.x[:1]).screen
    outcome = screen(data.x, data.y, BALL, data.index)
    return int(outcome.left()[0])


def test_processes_say_what_one_says() -> None:
    model = network()
    verifier, data = Complete(bounds=(BoundMethod.IBP,)), samples(model)
    tables = [
        pd.concat([rows for rows, _ in verify_batches(verifier, model, data, BALL, SUBJECT, jobs=jobs)])
        for jobs in (1, 2)
    ]
    alone, together = (
        one.sort_values("index")[["index", "verdict", "proved_by"]].to_numpy().tolist() for one in tables
    )
    assert alone == together
    assert "branch-and-bound" in {by for *_, by in alone}


def test_a_sample_whose_process_dies_stays_unknown_and_the_others_are_finished() -> None:
    model = network()
    data = samples(model)
    parts = list(verify_batches(Dies(bounds=(BoundMethod.IBP,)), model, data, BALL, SUBJECT, jobs=2))
    rows = pd.concat([one[0] for one in parts])
    assert sorted(rows["index"]) == list(range(100, 112))
    lost = rows[rows["reason"].str.contains("its process died with exit code 9")]
    assert len(lost) == 1
    assert set(lost["verdict"]) == {"unknown"}
    assert "branch-and-bound" in set(rows["proved_by"])
