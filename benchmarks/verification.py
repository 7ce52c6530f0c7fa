"""Seconds per image and per certified image of each bound, on the same samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import networks
from benchmarks.timing import side_by_side
from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.margins import certified
from robustkit.threat import LinfBall

SAMPLES = 50


def table(rounds: int) -> list[str]:
    """Time each bound on a certifiably trained network."""
    data, (name, model) = networks.dataset(), networks.robust()
    split = data.test.take(SAMPLES).to(networks.device())
    network = BoundedNetwork(model, split.x[:1])
    ball = LinfBall(data.eps)

    def bound(method: BoundMethod) -> Callable[[], Tensor]:
        def work() -> Tensor:
            with torch.no_grad():
                return certified(network.lower_margins(split.x, split.y, ball, method), split.y)

        return work

    calls = {method.value: bound(method) for method in BoundMethod}
    proved = {name: int(call().sum()) for name, call in calls.items()}
    lines = ["| bound | ms an image | certified % | ms a certified image |", "| --- | ---: | ---: | ---: |"]
    for method, seconds in side_by_side(calls, rounds).items():
        each = f"{1000 * seconds / proved[method]:.1f}" if proved[method] else "-"
        share = 100 * proved[method] / len(split)
        lines.append(f"| {method} | {1000 * seconds / len(split):.1f} | {share:.0f} | {each} |")
    return [f"Bounds on {name}, {data.name}, {len(split)} samples, eps {ball.eps:.3g}:", "", *lines]
