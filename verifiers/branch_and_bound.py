"""The dear stage of verification: one sample at a time, split until it is proved, broken, or time is up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustkit.attacks.replay import Look, Replay
from robustkit.bounds.graph import Graph
from robustkit.bounds.split_network import SplitNetwork
from robustkit.margins import margin_specification
from robustkit.threat import LinfBall
from robustkit.verifiers.base import Outcome, Tell
from robustkit.verifiers.certificate import Certificate
from robustkit.verifiers.certificate_file import save_certificate
from robustkit.verifiers.checker import check
from robustkit.verifiers.claims import Ball
from robustkit.verifiers.exact_network import ExactNetwork, Semantics
from robustkit.verifiers.execution_error import executed
from robustkit.verifiers.recheck import UNCHECKED
from robustkit.verifiers.search import Found, Limits, search
from robustkit.verifiers.search_proof import hidden_slopes
from robustkit.verifiers.sound_bounds import enclose

NAME, ROOT_NAME = "branch-and-bound", "alpha-crown"
"""What settles a sample: with splits, and without any."""
TIGHTEN = 20
"""Gradient steps on the lines of hidden bounds."""
ROOT_SHARE = 0.3
"""Share of the time after which no hidden bound is optimised any more."""


@dataclass(frozen=True)
class BranchAndBound:
    """Search the ball of one sample; every proof is checked again.

    The search runs in float32 and is not trusted: what it finds is written as a certificate, and a checker of its own
    recomputes that in float64 with a rigorous bound of all rounding.

    Attributes:
        graph: the network.
        replay: the model, and what counterexamples must pass.
        timeout: seconds for each sample.
        batch: branches bounded together.
        memory: GB that the branches of a sample may take.
        recheck: check every proof.
        certificates: folder to keep proofs in; empty to keep none.
        semantics: which outputs of the network a checked proof is about.
        exact: the network as the checker reads it; None where it cannot. Where executions in float32 are to be proved
            right, the search aims at margins that leave room for their error.
    """

    graph: Graph
    replay: Replay
    timeout: float
    batch: int
    memory: float
    recheck: bool
    certificates: str
    semantics: Semantics = Semantics.REAL
    exact: ExactNetwork | None = None

    def __call__(self, outcome: Outcome, x: Tensor, y: Tensor, ball: LinfBall, number: int, tell: Tell) -> None:
        """Go on with a sample that bounds have left open.

        Args:
            outcome: of this sample alone; filled in.
            x: the input, shape ``(1, ...)``.
            y: its label, shape ``(1,)``.
            ball: the ball around it.
            number: position in the test set.
            tell: is told how far the search has come.

        Raises:
            SoundnessError: more is proved than a known point of the ball allows.
        """
        began = time.monotonic()
        look = Look(self.replay, x, y, ball)
        found, network = self._search(look, tell)
        outcome.tie[0] = outcome.tie[0] or look.tie
        here = torch.zeros(1, dtype=torch.int64, device=x.device)
        if found.x is not None:
            outcome.falsified[here], outcome.x_adv[here] = True, found.x
            outcome.settled_by[0], outcome.reason[0] = NAME, ""
        elif found.reason:
            if not bool(outcome.verified[0]):  # in floating point, by a bound
                outcome.give_up(0, f"{found.reason}; {found.proof.nodes:,} branches, bound {found.lower:.4g}")
        else:
            outcome.prove(here, torch.tensor([found.lower], device=x.device))
            outcome.settled_by[0] = NAME if found.proof.nodes > found.proof.roots else ROOT_NAME
            self._check(outcome, self._certificate(found, network, look), number, ball.eps)
        outcome.seconds[0] += time.monotonic() - began

    @torch.no_grad()
    def _search(self, look: Look, tell: Tell) -> tuple[Found, SplitNetwork]:
        began, y = time.monotonic(), look.y
        limits = Limits(began + self.timeout, self.batch, 1e9 * self.memory)
        tighten_until = began + ROOT_SHARE * self.timeout
        network = SplitNetwork(self.graph, *look.ball.box(look.x), tighten=TIGHTEN, until=tighten_until)
        specification = margin_specification(y, self.graph.shapes[-1][0])[0]
        rows = specification[torch.arange(len(specification), device=y.device) != y]
        return search(network, rows, self._offsets(rows, look), look, limits, tell=tell), network

    def _offsets(self, rows: Tensor, look: Look) -> Tensor:
        """Give what proofs of rows must leave room for, as offsets of at most 0; 0 where there is no such number."""
        offsets = rows.new_zeros(len(rows))
        if self.exact is None or self.semantics == Semantics.REAL:
            return offsets
        lb, ub = (end.flatten(1).double().cpu() for end in look.ball.box(look.x))
        region = enclose(self.exact, lb, ub)
        room = executed(self.exact, region, rows.double().cpu().unsqueeze(0), offsets.double().cpu().unsqueeze(0))[0]
        return room.where(room.isfinite(), 0.0).to(offsets)

    def _certificate(self, found: Found, network: SplitNetwork, look: Look) -> Certificate:
        claim = Ball(look.x[0].cpu().numpy(), look.ball.eps, int(look.y), look.ball.lower, look.ball.upper)
        return Certificate.build(self.replay.model, claim, found.proof.trees(network), hidden_slopes(network))

    def _check(self, outcome: Outcome, certificate: Certificate, number: int, eps: float) -> None:
        """Keep a proof, and say whether the checker confirms it."""
        if self.certificates:
            save_certificate(Path(self.certificates) / f"sample-{number}-eps{eps:.4g}.npz", certificate)
        checked = check(certificate, self.replay.model, semantics=self.semantics) if self.recheck else None
        outcome.checked[0] = checked is not None and checked.proved
        outcome.reason[0] = ""
        if checked is None or not checked.proved:
            outcome.settled_by[0] += " (float)"
            outcome.reason[0] = checked.reason if checked else UNCHECKED
