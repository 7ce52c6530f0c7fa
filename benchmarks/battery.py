"""The standard AutoAttack, each part on what is left, against the library's parts called plainly on everything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks import networks
from benchmarks.timing import side_by_side
from robustkit.attacks import AutoAttack
from robustkit.attacks.torch_attacks import import_torchattacks
from robustkit.data import Split
from robustkit.margins import correct
from robustkit.threat import LinfBall

SAMPLES = 50
STEPS, QUERIES = 100, 5000
"""The standard's."""
ROUNDS = 2
"""At most: a round takes minutes."""


def table(rounds: int) -> list[str]:
    """Time both on a natural and on robust networks; equal accuracy left is what makes the ratio fair."""
    data = networks.dataset()
    subjects: list[tuple[str, nn.Module, float]] = [
        ("natural", networks.trained("natural", data.eps, 3), data.eps / 3),
        ("IBP", networks.trained("ibp", data.eps, 6), data.eps),
    ]
    published = networks.published()
    if published is not None:
        subjects.append(("MixTrain (authors')", published, 0.3))
    split = data.test.take(SAMPLES).to(networks.device())
    lines = [
        "| network | eps | own s | parts on everything s | speed-up | left by own % | left by the parts % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, model, eps in subjects:
        left: dict[str, float] = {}
        work = {"own": _own(model, split, eps, left), "parts": _parts(model.eval(), split, eps, data.classes, left)}
        seconds = side_by_side(work, min(rounds, ROUNDS))
        lines.append(
            f"| {name} | {eps:.3g} | {seconds['own']:.1f} | {seconds['parts']:.1f} "
            f"| {seconds['parts'] / seconds['own']:.2f} | {100 * left['own']:.1f} | {100 * left['parts']:.1f} |"
        )
    return [f"AutoAttack on {data.name}, {len(split)} samples at once, at most {ROUNDS} rounds:", "", *lines]


def _own(model: nn.Module, split: Split, eps: float, left: dict[str, float]) -> Callable[[], object]:
    def work() -> None:
        x_adv = AutoAttack(STEPS, QUERIES)(model, split.x, split.y, LinfBall(eps), split.index).x_adv
        with torch.no_grad():
            left["own"] = float(correct(model(x_adv), split.y).double().mean())

    return work


def _parts(model: nn.Module, split: Split, eps: float, classes: int, left: dict[str, float]) -> Callable[[], object]:
    library = import_torchattacks()
    parts = (
        library.APGD(model, eps=eps, steps=STEPS, loss="ce"),
        library.APGDT(model, eps=eps, steps=STEPS, n_classes=classes),
        library.FAB(model, eps=eps, steps=STEPS, multi_targeted=True, n_classes=classes),
        library.Square(model, eps=eps, n_queries=QUERIES),
    )

    def work() -> None:
        standing = torch.ones_like(split.y, dtype=torch.bool)
        for part in parts:
            with torch.no_grad():
                standing &= correct(model(part(split.x, split.y).detach()), split.y)
        left["parts"] = float(standing.double().mean())

    return work
