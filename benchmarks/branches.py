"""Branches per second of branch and bound, and its peak memory, against the branches bounded together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.memory import meter
from benchmarks.timing import side_by_side
from robustkit.bounds.branches import Branches
from robustkit.bounds.graph import trace
from robustkit.bounds.split_network import SplitNetwork
from robustkit.errors import RobustkitError
from robustkit.margins import margin_specification
from robustkit.threat import LinfBall
from robustkit.verifiers.branch_and_bound import TIGHTEN
from robustkit.verifiers.search import ROOT_STEPS, STEPS, choose

BATCHES = (1, 16, 64, 256, 1024)
LEAST = 0.1
"""Seconds that a timing lasts at least."""
HELD = 100.0
"""Taken off every margin: no branch is proved, so every step is taken and every batch costs the same each time."""


@dataclass(frozen=True)
class Start:
    """One image, ready for branch and bound.

    Attributes:
        network: over its ball, hidden bounds optimised.
        rows: margins of what the network says of it, shape ``(K - 1, K)``.
    """

    network: SplitNetwork
    rows: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, model: nn.Module, x: Tensor, ball: LinfBall) -> Start:
        """Prepare for an image of shape ``(1, ...)``."""
        network = SplitNetwork(trace(model, x), *ball.box(x), tighten=TIGHTEN)
        logits = model(x)
        rows = margin_specification(logits.argmax(1), logits.shape[1])[0]
        return cls(network, rows[rows.any(dim=1)])

    @torch.no_grad()
    def root(self) -> Branches:
        """Bound the ball itself, a branch for each margin."""
        whole = self.network.whole(self.rows, self.rows.new_full((len(self.rows),), -HELD))
        return self.network.bounded(whole, iterations=ROOT_STEPS)

    @torch.no_grad()
    def lot(self, size: int) -> Branches:
        """Split the ball for its least margin into so many branches, always at what looks loosest.

        Raises:
            RobustkitError: there are too few unstable neurons for that.
        """
        if size > 2**self.network.count:
            raise RobustkitError(
                f"expected neurons enough to split into {size} branches, got {self.network.count} unstable ones; "
                "take a larger ball"
            )
        whole = self.network.whole(self.rows, self.rows.new_full((len(self.rows),), -HELD))
        branches = self.network.bounded(whole, iterations=0)
        branches = branches[branches.lower.argsort()[:1]]
        while len(branches) < size:
            loosest = torch.where(branches.sign == 0, branches.looseness, -1.0).argmax(1)
            branches = self.network.bounded(branches.split(loosest), iterations=0)
        return branches[:size]


def table(rounds: int) -> list[str]:
    """Measure on the first test image of a certifiably trained network."""
    data, (name, model) = networks.dataset(), networks.robust()
    work = {size: worker(model, size) for size in BATCHES}
    seconds = side_by_side(work, rounds, least=LEAST)
    lines = ["| branches together | a second | ms a branch | MiB |", "| ---: | ---: | ---: | ---: |"]
    with meter() as peak:
        for size in BATCHES:
            one = seconds[size]
            lines.append(f"| {size} | {size / one:.0f} | {1000 * one / size:.2f} | {peak(worker, model, size):.0f} |")
    setting = f"{name}, {data.name}, eps {data.eps:.3g}, {STEPS} gradient steps and a choice of where to split"
    return [f"Branch and bound, {setting}; MiB are the peak beside the network:", "", *lines]


def worker(model: nn.Module, size: int) -> Callable[[], Tensor]:
    """Make the work that a search has with a batch of branches: bound them, and choose where each is split next."""
    x = networks.dataset().test.x[:1].to(networks.device())
    start = Start.at(model, x, LinfBall(networks.dataset().eps))
    return branch_by_branch(start, size)


def branch_by_branch(start: Start, size: int) -> Callable[[], Tensor]:
    """Bound a lot of branches as the search does, and choose where to split each of them next."""
    lot = start.lot(size)

    @torch.no_grad()
    def work() -> Tensor:
        return choose(start.network, start.network.bounded(lot, iterations=STEPS))

    return work
