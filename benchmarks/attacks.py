"""Own PGD-40 against torchattacks' PGD-40 on the same samples, with the robust accuracy that each leaves.

And a step of the interval gradient for all samples at once against one sample after the other; and the memory that more
samples take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.memory import meter
from benchmarks.timing import side_by_side
from robustkit.attacks import Attack, attack_batches, make_attack
from robustkit.attacks.interval_gradient import interval_gradient
from robustkit.bounds import BoundedNetwork
from robustkit.bounds.chain import Statistics, chain_of
from robustkit.bounds.symbolic import Backward
from robustkit.data import Split
from robustkit.errors import RobustkitError
from robustkit.margins import correct, margin_specification
from robustkit.results import Subject
from robustkit.threat import LinfBall

SAMPLES = 500
BOXES = 50
BATCH = 250
COUNTS = (250, 1000, 4000)
"""Samples whose attack's memory is measured."""
WIDENINGS = (1 / 30, 1 / 10, 3 / 10)
"""Half-widths of the boxes that are timed, as fractions of eps: the attack's first three."""


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
    pgd = [f"PGD-40 on {data.name}, {len(split)} samples in batches of {BATCH}:", "", *lines]
    return [*pgd, "", *interval_steps(rounds), "", *memory()]


def memory() -> list[str]:
    """Measure the memory that an attack of more and more samples takes, in batches of one size."""
    lines = ["| samples | MiB at most |", "| ---: | ---: |"]
    with meter() as peak:
        lines += [f"| {count:,} | {peak(_batches, count):.1f} |" for count in COUNTS]
    return [f"PGD-10 of random images on a fresh {networks.dataset().model}, in batches of {BATCH}:", "", *lines]


def _batches(count: int) -> Callable[[], object]:
    """Attack samples as an evaluation does, row by row of the results; nothing is kept."""
    data, device = networks.dataset(), networks.device()
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((count, *data.input_shape), generator=draw).to(device)
    y = torch.randint(data.classes, (count,), generator=draw).to(device)
    split, model = Split(x, y, torch.arange(count)), networks.fresh()
    subject = Subject("fresh", "", "", float("nan"), data.name, 0)

    def work() -> None:
        for _ in attack_batches(make_attack("pgd", {"steps": 10}), model, split, LinfBall(data.eps), subject, BATCH):
            pass

    return work


def interval_steps(rounds: int) -> list[str]:
    """Time an interval gradient of many samples at once against the authors' scheme: one by one, every neuron bounded.

    The scheme runs on our own bounds, theirs of the same slopes; the signs of both gradients are compared first.
    """
    data, (name, model) = networks.dataset(), networks.robust()
    split = data.test.take(BOXES).to(networks.device())
    network, layers = BoundedNetwork(model, split.x[:1]), chain_of(model, split.x[:1])
    if layers is None:
        raise RobustkitError(f"expected a plain stack of layers to time boxes on, got {type(model).__name__}")
    specification = -margin_specification(split.y, data.classes)
    lines = [
        "| half-width / eps | at once, ms a box | one by one, ms a box | faster by | signs alike % |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for share in WIDENINGS:
        lb, ub = LinfBall(share * data.eps).box(split.x)
        work = {
            "at once": partial(_at_once, network, lb, ub, split.y, data.classes),
            "one by one": partial(_one_by_one, layers, lb, ub, specification, split.y),
        }
        alike = (work["at once"]().sign() == work["one by one"]().sign()).double().mean().item()
        own, peer = (1000 * seconds / len(split) for seconds in side_by_side(work, rounds).values())
        lines.append(f"| {share:.3f} | {own:.2f} | {peer:.2f} | {peer / own:.1f} | {100 * alike:.1f} |")
    return [f"Interval gradients on {name}, {len(split)} samples, eps {data.eps:.3g}:", "", *lines]


def _at_once(network: BoundedNetwork, lb: Tensor, ub: Tensor, y: Tensor, classes: int) -> Tensor:
    return interval_gradient(network, lb, ub, y, classes)[0]


@torch.no_grad()
def _one_by_one(layers: Sequence[nn.Module], lb: Tensor, ub: Tensor, specification: Tensor, y: Tensor) -> Tensor:
    found = []
    for at, label in enumerate(y.tolist()):
        low, high = lb[at : at + 1], ub[at : at + 1]
        backward = Backward(layers, ((high + low) * 0.5, (high - low) * 0.5), Statistics(), unstable_only=False)
        rows = backward.to_input(specification[at : at + 1])
        upper = backward.concretised(rows)[1][0]
        upper[label] = -torch.inf
        found.append(rows.coefficients[0, upper.argmax()])
    return torch.stack(found)


def _call(attack: Attack, model: nn.Module, split: Split, ball: LinfBall) -> Callable[[], float]:
    def work() -> float:
        standing = []
        for first in range(0, len(split), BATCH):
            part = slice(first, first + BATCH)
            x, y, index = split.x[part], split.y[part], split.index[part]
            x_adv = attack(model, x, y, ball, index).x_adv
            with torch.no_grad():
                standing.append(correct(model(x_adv), y))
        return torch.cat(standing).double().mean().item()

    return work
