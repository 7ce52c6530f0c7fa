"""What branch and bound costs as a dense network grows: its root, hidden bounds and all, and a branch."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from benchmarks import networks
from benchmarks.branches import LEAST, Start, branch_by_branch
from benchmarks.timing import side_by_side
from robustkit.bounds.branches import Branches
from robustkit.threat import LinfBall

DEPTHS, WIDTHS = (2, 4, 6, 8), (64, 128, 256, 512)
WIDTH, DEPTH = 128, 3
"""Of the networks whose depth grows, and of those whose width does."""
BATCH = 64
SPREAD = 0.42
"""Of the ball, eps times the root of the number of inputs: about half of the neurons of fresh weights are unstable."""


def table(rounds: int) -> list[str]:
    """Let the depth grow, then the width, on fresh weights and one test image."""
    data = networks.dataset()
    depths = {f"depth {one}, width {WIDTH}": networks.dense(one, WIDTH) for one in DEPTHS}
    widths = {f"depth {DEPTH}, width {one}": networks.dense(DEPTH, one) for one in WIDTHS}
    lines = ["| network | unstable | root s | ms a branch |", "| --- | ---: | ---: | ---: |"]
    lines += [line for group in (depths, widths) for line in _rows(group, max(1, rounds // 2))]
    setting = f"{data.name}, eps {ball().eps:.3g}, fresh weights, branches {BATCH} together"
    return [f"Branch and bound of dense networks, {setting}; what grows in one thing takes turns:", "", *lines]


def ball() -> LinfBall:
    """Give a ball in which fresh weights of the dataset's size can still be bounded."""
    return LinfBall(SPREAD / math.sqrt(math.prod(networks.dataset().input_shape)))


def _rows(group: dict[str, nn.Module], rounds: int) -> list[str]:
    x = networks.dataset().test.x[:1].to(networks.device())

    def root(model: nn.Module) -> Callable[[], Branches]:
        return lambda: Start.at(model, x, ball()).root()

    starts = {label: Start.at(model, x, ball()) for label, model in group.items()}
    lots = {label: branch_by_branch(start, BATCH) for label, start in starts.items()}
    roots = side_by_side({label: root(model) for label, model in group.items()}, rounds)
    branch = side_by_side(lots, rounds, least=LEAST)
    return [
        f"| {label} | {start.network.count} | {roots[label]:.2f} | {1000 * branch[label] / BATCH:.2f} |"
        for label, start in starts.items()
    ]
