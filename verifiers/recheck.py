"""What bounds prove in floating point, held against the proof checker: only what it confirms is ``VERIFIED``."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.errors import RobustkitError, UnsupportedLayerError
from robustkit.threat import LinfBall
from robustkit.verifiers.base import Outcome
from robustkit.verifiers.checker import check_balls
from robustkit.verifiers.claims import Ball
from robustkit.verifiers.exact_network import ExactNetwork, Semantics
from robustkit.verifiers.network_reader import read_network

log = logging.getLogger(__name__)

UNCHECKED = "not checked again: recheck is off"
"""Why a sample is verified in floating point only where nobody wanted more."""


@dataclass(frozen=True)
class Recheck:
    """The proof checker, prepared for a model once.

    Attributes:
        network: as the checker reads it; None where it cannot, or is not to.
        reason: why there is none.
    """

    network: ExactNetwork | None
    reason: str = ""

    @classmethod
    def prepare(
        cls, model: nn.Module, example: Tensor, *, wanted: bool, semantics: Semantics = Semantics.REAL
    ) -> Recheck:
        """Read the network; where that fails, say so once, and check nothing.

        Args:
            model: in eval mode.
            example: one input, shape ``(1, ...)``.
            wanted: check at all.
            semantics: which outputs of the network are to be proved right.
        """
        if not wanted:
            return cls(None, UNCHECKED)
        try:
            return cls(read_network(model, example.shape[1:], semantics))
        except UnsupportedLayerError as error:
            log.warning("every proof will count as verified (float): %s", error)
            return cls(None, f"not checked again: {error}")

    def __call__(self, outcome: Outcome, x: Tensor, y: Tensor, ball: LinfBall) -> None:
        """Check every sample that bounds prove, and note which of them hold.

        Args:
            outcome: of the whole batch; filled in.
            x: inputs, shape ``(B, ...)``.
            y: labels, shape ``(B,)``.
            ball: the ball around each input.

        Raises:
            SoundnessError: more is proved than a known point of the ball allows.
        """
        rows = (outcome.verified & ~outcome.checked).nonzero().flatten()
        if not len(rows):
            return
        began = time.perf_counter()
        margins, reason = self._margins(x[rows], y[rows], ball)
        outcome.confirm(rows, margins.to(outcome.least))
        outcome.seconds[rows.cpu()] += (time.perf_counter() - began) / len(rows)
        for row, margin, checked in zip(rows.tolist(), margins.tolist(), outcome.checked[rows].tolist(), strict=True):
            if not checked:
                outcome.settled_by[row] += " (float)"
                outcome.reason[row] = reason or f"the float64 checker proves a margin of {margin:.4g} only"

    def _margins(self, x: Tensor, y: Tensor, ball: LinfBall) -> tuple[Tensor, str]:
        """Give what is proved of each margin, and why nothing was tried."""
        reason = self.reason
        if self.network is not None:
            pairs = zip(x.cpu().numpy(), y.tolist(), strict=True)
            try:
                claims = [Ball(one, ball.eps, label, ball.lower, ball.upper) for one, label in pairs]
                return check_balls(self.network, claims), ""
            except RobustkitError as error:
                reason = f"not checked again: {error}"
        return torch.full((len(y),), -torch.inf, dtype=torch.float64), reason
