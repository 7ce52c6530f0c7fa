"""What a MixTrain step costs as the samples bounded, the batch, the width and the depth grow."""

from __future__ import annotations

from benchmarks import networks, steps
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
    lines = [
        "| what changes | natural ms | PGD-40 ms | MixTrain ms | natural steps | of PGD-40 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *by_k(rounds),
        *(row(rounds, f"batch {batch}", batch=batch) for batch in BATCHES),
        *(row(rounds, f"width {width}", width=width) for width in WIDTHS),
        *(row(rounds, _called(name or data.model, width), name, width) for name, width in DEPTHS),
    ]
    setting = f"{data.model} on {data.name}, batch {steps.BATCH}, k=1, eps {data.eps:.3g}, fresh weights"
    return [f"One MixTrain step, {setting} but for what changes:", "", *lines]


def by_k(rounds: int) -> list[str]:
    """Give a row for each ``k``, all timed in turn."""
    mixtrain: dict[str, TrainingMethod] = {f"k={k}": MixTrain(k=k) for k in KS}
    seconds = steps.costs({"PGD-40": PGD, **mixtrain}, networks.fresh(), rounds, steps.BATCH)
    return [_row(label, seconds, label) for label in mixtrain]


def row(rounds: int, label: str, name: str = "", width: int | None = None, batch: int | None = None) -> str:
    """Give the row of one network and batch at ``k = 1``.

    Args:
        rounds: how often each is timed.
        label: what is said of it.
        name: of the network; empty for the dataset's own.
        width: of the network; None for the published one.
        batch: samples a step; None for the usual.
    """
    model, batch = networks.fresh(name or None, width), batch or steps.BATCH
    seconds = steps.costs({"PGD-40": PGD, "MixTrain": MixTrain(k=1)}, model, rounds, batch)
    return _row(label, seconds, "MixTrain")


def _called(name: str, width: int | None) -> str:
    return f"{name}, width {width}" if width else name


def _row(label: str, seconds: dict[str, float], mixtrain: str) -> str:
    natural, pgd, one = seconds["natural"], seconds["PGD-40"], seconds[mixtrain]
    return (
        f"| {label} | {1000 * natural:.1f} | {1000 * pgd:.1f} | {1000 * one:.1f} | {one / natural:.1f} "
        f"| {one / pgd:.2f} |"
    )
