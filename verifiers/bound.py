"""A single bound method as a verifier: sound, incomplete, one pass."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustkit.bounds import Bounded, BoundMethod, bounded, intersect
from robustkit.margins import worst_margin
from robustkit.threat import LinfBall
from robustkit.verifiers.base import Outcome, Prepared
from robustkit.verifiers.exact_network import Semantics
from robustkit.verifiers.preconditions import check_mode, checking
from robustkit.verifiers.recheck import Recheck


@dataclass(frozen=True)
class BoundVerifier:
    """Verify what one bound method proves, and leave the rest unknown.

    What it proves is checked again in float64 with all rounding accounted for, and counts as ``verified (float)`` where
    that fails.

    Attributes:
        bound: the bound method.
        recheck: check every proof; else all of them are ``verified (float)``.
        semantics: which outputs of the network a checked proof is about, ``real`` or ``float32``.
    """

    bound: BoundMethod = field(default=BoundMethod.CROWN)
    recheck: bool = True
    semantics: Semantics = Semantics.REAL

    @property
    def name(self) -> str:
        """The bound's own name."""
        return self.bound.value

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Prepare for a model once; see ``Verifier``."""
        check_mode(model)
        network = bounded(model, example)
        recheck = Recheck.prepare(model, example, wanted=self.recheck, semantics=self.semantics)

        def screen(x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None) -> Outcome:
            outcome = Outcome.begin(model, x, y)
            apply_bound(outcome, network, self.bound, x, y, ball)
            recheck(outcome, x, y, ball)
            outcome.verdicts()
            return outcome

        return Prepared(checking(model, screen))


def apply_bound(outcome: Outcome, network: Bounded, bound: BoundMethod, x: Tensor, y: Tensor, ball: LinfBall) -> None:
    """Bound the samples that nothing has settled yet, and note what that and the bounds before prove together.

    Args:
        outcome: of the whole batch; filled in.
        network: the model prepared for bounds.
        bound: the bound method.
        x: inputs, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        ball: the ball around each input.

    Raises:
        SoundnessError: more is proved than a known point of the ball allows.
        UnsupportedLayerError: the bound cannot carry a layer; the outcome is left as it was.
    """
    rows = outcome.left()
    if not len(rows):
        return
    began = time.perf_counter()
    with torch.no_grad():
        margins = intersect(outcome.margins[rows], network.lower_margins(x[rows], y[rows], ball, bound).detach())
    outcome.margins[rows] = margins
    outcome.prove(rows, worst_margin(margins, y[rows]))
    sure = outcome.verified[rows].tolist()
    outcome.seconds[rows.cpu()] += (time.perf_counter() - began) / len(rows)
    for row, settled in zip(rows.tolist(), sure, strict=True):
        if settled:
            outcome.settled_by[row], outcome.reason[row] = bound.value, ""
        else:
            outcome.give_up(row, f"{bound.value} proves no margin above 0")
