"""What a MixTrain step costs as the samples bounded, the batch, the width and the depth grow."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import networks, steps
from benchmarks.steps import Subject
from robustkit.training import TrainingMethod
from robustkit.training.adversarial import PGDTraining
from robustkit.training.mixtrain import MixTrain

KS = (1, 2, 5, 10, 20, 50)
BATCHES = (25, 50, 100, 200)
WIDTHS = (8, 16, 32)
DEPTHS: tuple[tuple[str, int | None], ...] = (("mlp", None), ("mlp5", None), ("", 16), ("cnn5", 16), ("cnn7", 16))
"""Networks from shallow to deep, each with its width, or None for the published one; no name is the dataset's own."""

PGD = PGDTraining(steps=40)


def table(rounds: int) -> list[str]:
    """Change one thing at a time, on fresh weights; everything else stays at batch 50 and ``k = 1``."""
    data = networks.dataset()
    batches = {f"batch {one}": Subject(networks.fresh(), one) for one in BATCHES}
    widths = {f"width {one}": Subject(networks.fresh(width=one), steps.BATCH) for one in WIDTHS}
    depths = {_called(*one): Subject(networks.fresh(one[0] or None, one[1]), steps.BATCH) for one in DEPTHS}
    lines = [
        "| what changes | natural ms | PGD-40 ms | MixTrain ms | natural steps | of PGD-40 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *by_k(rounds),
        *(line for one in (batches, widths, depths) for line in by_subject(one, rounds)),
    ]
    setting = f"{data.model} on {data.name}, batch {steps.BATCH}, k=1, eps {data.eps:.3g}, fresh weights"
    return [f"One MixTrain step, {setting} but for what changes; what changes in one thing takes turns:", "", *lines]


def by_k(rounds: int) -> list[str]:
    """Give a row for each ``k``."""
    mixtrain: dict[str, TrainingMethod] = {f"k={k}": MixTrain(k=k) for k in KS}
    seconds = steps.costs({"PGD-40": PGD, **mixtrain}, networks.fresh(), rounds)
    return [_row(label, seconds, label) for label in mixtrain]


def by_subject(subjects: Mapping[str, Subject], rounds: int) -> list[str]:
    """Give a row for each network and batch, at ``k = 1``."""
    seconds = steps.costs_of_each({"PGD-40": PGD, "MixTrain": MixTrain(k=1)}, subjects, rounds)
    return [_row(label, one, "MixTrain") for label, one in seconds.items()]


def _called(name: str, width: int | None) -> str:
    name = name or networks.dataset().model
    return f"{name}, width {width}" if width else name


def _row(label: str, seconds: steps.Costs, mixtrain: str) -> str:
    natural, pgd, one = seconds["natural"], seconds["PGD-40"], seconds[mixtrain]
    return (
        f"| {label} | {1000 * natural:.1f} | {1000 * pgd:.1f} | {1000 * one:.1f} | {one / natural:.1f} "
        f"| {one / pgd:.2f} |"
    )
