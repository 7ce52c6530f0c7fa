"""Own PGD-40 against torchattacks' PGD-40 on the same samples, with the robust accuracy that each leaves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks import networks
from benchmarks.timing import side_by_side
from robustkit.attacks import Attack, make_attack
from robustkit.data import Split
from robustkit.margins import correct
from robustkit.threat import LinfBall

SAMPLES = 500


def table(rounds: int) -> list[str]:
    """Time both on a natural and on robust networks; equal accuracy left is what makes the ratio fair."""
    data = networks.dataset()
    subjects: list[tuple[str, nn.Module, float]] = [
        ("natural", networks.trained("natural", data.eps, 3), data.eps),
        ("natural, eps / 3", networks.trained("natural", data.eps, 3), data.eps / 3),
        ("IBP", networks.trained("ibp", data.eps, 6), data.eps),
    ]
    published = networks.published()
    if published is not None:
        subjects.append(("MixTrain (authors')", published, 0.3))
    lines = [
        "| network | eps | own s | torchattacks s | speed-up | left by own % | left by torchattacks % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    split = data.test.take(SAMPLES).to(networks.device())
    for name, model, eps in subjects:
        attacks = {one: make_attack(one) for one in ("pgd", "torchattacks-pgd")}
        work = {one: _call(attack, model, split, LinfBall(eps)) for one, attack in attacks.items()}
        left = {one: f"{100 * call():.1f}" for one, call in work.items()}
        seconds = side_by_side(work, rounds)
        own, peer = seconds["pgd"], seconds["torchattacks-pgd"]
        lines.append(
            f"| {name} | {eps:.3g} | {own:.2f} | {peer:.2f} | {peer / own:.2f} "
            f"| {left['pgd']} | {left['torchattacks-pgd']} |"
        )
    return [f"PGD-40 on {data.name}, {len(split)} samples in batches of 250:", "", *lines]


def _call(attack: Attack, model: nn.Module, split: Split, ball: LinfBall) -> Callable[[], float]:
    def work() -> float:
        standing = []
        for first in range(0, len(split), 250):
            part = slice(first, first + 250)
            x, y, index = split.x[part], split.y[part], split.index[part]
            x_adv = attack(model, x, y, ball, index).x_adv
            with torch.no_grad():
                standing.append(correct(model(x_adv), y))
        return torch.cat(standing).double().mean().item()

    return work
