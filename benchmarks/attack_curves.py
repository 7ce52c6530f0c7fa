"""Accuracy left against gradient evaluations: the interval gradient beside PGD with restarts, on the same samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import click
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks import networks
from robustkit.attacks import PGD, Attack, IntervalGradient, TargetedPGD
from robustkit.data import Split
from robustkit.margins import correct
from robustkit.threat import LinfBall

BATCH = 250
RESTARTS = {"PGD": (1, 4, 8), "interval gradient": (1, 2)}
"""Of 160 and of 320 evaluations for a sample that stands, with either; PGD also of 40."""

PUBLISHED = {
    "MixTrain": ("mixtrain/mnist_small_mixtrain_0.3.pth", 0.3),
    "Wong & Kolter": ("wong/mnist_small_0_3.pth", 0.3),
    "Wong & Kolter, 0.1": ("wong/mnist_0_1.pth", 0.1),
    "SDP-FO adversarial": ("sdp/mnist_cnn_a_adv.model", 0.3),
    "natural": ("mixtrain/mnist_small_baseline.pth", 0.1),
}
"""Networks of the papers by what trained them: the file beside the data, and eps."""

ATTACKS: dict[str, Callable[[int], Attack]] = {
    "PGD": lambda restarts: PGD(restarts=restarts),
    "interval gradient": lambda restarts: IntervalGradient(restarts=restarts),
    "PGD, steps shrink": lambda restarts: PGD(restarts=restarts, rel_step_size=0.5, rel_last_step=0.02),
    "interval gradient, steps shrink": lambda restarts: IntervalGradient(
        restarts=restarts, rel_step_size=0.5, rel_last_step=0.02
    ),
    "targeted PGD": lambda restarts: TargetedPGD(steps=40, restarts=restarts, targets=4),
}
"""Every attack by its number of restarts, all of 40 steps."""


@dataclass(frozen=True)
class Point:
    """An attack on a network: what it cost and what it left.

    Attributes:
        network: what trained the network.
        attack: a key of ``ATTACKS``.
        restarts: of the attack.
        evaluations: gradients of the network taken, a sample; bounds are not among them.
        left: samples classified rightly at the worst point, in %.
        seconds: of the whole attack, bounds among them.
    """

    network: str
    attack: str
    restarts: int
    evaluations: float
    left: float
    seconds: float


@contextmanager
def gradient_evaluations(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Count the samples that a model predicts with a gradient to follow.

    Args:
        model: the model; what it computes stays as it is.

    Yields:
        A function that gives the count so far.
    """
    count = 0

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal count
        count += len(inputs[0]) if inputs[0].requires_grad else 0

    hook = model.register_forward_pre_hook(add)
    try:
        yield lambda: count
    finally:
        hook.remove()


def measure(network: str, model: nn.Module, split: Split, ball: LinfBall, attack: str, restarts: int) -> Point:
    """Attack the samples in batches, and predict the points anew."""
    one, standing, began = ATTACKS[attack](restarts), 0, time.perf_counter()
    with gradient_evaluations(model) as count:
        for first in range(0, len(split), BATCH):
            part = slice(first, first + BATCH)
            x_adv = one(model, split.x[part], split.y[part], ball, split.index[part]).x_adv
            with torch.no_grad():
                standing += int(correct(model(x_adv), split.y[part]).sum())
        evaluations = count() / len(split)
    seconds = time.perf_counter() - began
    return Point(network, attack, restarts, evaluations, 100 * standing / len(split), seconds)


def subjects() -> Iterator[tuple[str, nn.Module, float]]:
    """Give one network trained here by PGD-10, and the papers' networks that are found: name, model, eps."""
    eps = networks.dataset().eps
    for name, (file, radius) in PUBLISHED.items():
        model = networks.beside_the_data(file)
        if model is not None:
            yield name, model, radius
    yield "PGD, trained here", networks.trained("pgd", eps, 6, steps=10, rel_step_size=0.25).eval(), eps


def curves(samples: int, tell: Callable[[str], object]) -> list[Point]:
    """Measure every attack on every network, telling each row of the table as it is known."""
    split, points = networks.dataset().test.take(samples).to(networks.device()), []
    tell("| network | eps | attack | restarts | gradient evaluations a sample | left % | seconds |")
    tell("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for name, model, eps in subjects():
        for attack in ATTACKS:
            kind = "interval gradient" if "interval" in attack else "PGD"
            tries = RESTARTS[kind] if attack != "targeted PGD" else (1, 2)
            for restarts in tries:
                one = measure(name, model, split, LinfBall(eps), attack, restarts)
                points.append(one)
                tell(
                    f"| {name} | {eps:g} | {attack} | {restarts} | {one.evaluations:.0f} | {one.left:.1f} "
                    f"| {one.seconds:.1f} |"
                )
    return points


def draw(points: list[Point]) -> Figure:
    """Draw a panel for each network, a line for each attack."""
    panels = [(name, list(few)) for name, few in groupby(points, key=lambda one: one.network)]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * lines + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, few) in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, place)
        for attack, line in groupby(few, key=lambda one: one.attack):
            ends = [(one.evaluations, one.left) for one in line]
            marks = "--s" if "interval" in attack else "-o"
            axes.plot(*zip(*ends, strict=True), marks, markersize=4, linewidth=1.2, label=attack)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("gradient evaluations a sample", fontsize=8)
        axes.set_ylabel("accuracy left, %", fontsize=8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


@click.command()
@click.option("--samples", default=200, show_default=True, help="The first so many test samples.")
@click.option("--image", type=click.Path(path_type=Path), help="Where to draw the curves, a PNG.")
def main(samples: int, image: Path | None) -> None:
    """Print the table, and draw it where that is asked for."""
    points = curves(samples, click.echo)
    if image is not None:
        draw(points).savefig(image, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
