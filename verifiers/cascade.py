"""Attack first, then the cheapest bound, each dearer one only on what is left."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustkit.attacks import ATTACKS, Attack, make_attack
from robustkit.bounds import BoundMethod, bounded
from robustkit.errors import UnsupportedLayerError, UsageError, unknown_name
from robustkit.margins import correct, logit_margins, worst_margin
from robustkit.threat import LinfBall
from robustkit.verifiers.base import Outcome, Verify
from robustkit.verifiers.bound import apply_bound
from robustkit.verifiers.preconditions import check_batch, check_mode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cascade:
    """Falsify what an attack breaks, then prove what is left with ever dearer bounds.

    Each bound is intersected with those before it, margin by margin: together they can prove what none does alone.
    Each sample records the stage that settled it. Sound and incomplete. A bound that cannot carry a layer of the
    network is left out, and the reason is kept with every sample that stays unknown.

    Attributes:
        attack: name of the attack that goes first.
        bounds: the bound methods, in the order they are tried.
    """

    name: ClassVar[str] = "cascade"
    attack: str = "pgd"
    bounds: tuple[BoundMethod, ...] = (
        BoundMethod.IBP,
        BoundMethod.CROWN_IBP,
        BoundMethod.CROWN,
        BoundMethod.ALPHA_CROWN,
    )

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise unknown_name("attack", self.attack, ATTACKS)
        if not self.bounds or len(set(self.bounds)) < len(self.bounds):
            raise UsageError(f"expected bounds as one bound method or more, each once, got {list(self.bounds)}")

    def prepare(self, model: nn.Module, example: Tensor) -> Verify:
        """Prepare for a model once; see ``Verifier``."""
        check_mode(model)
        network = bounded(model, example)
        attack = make_attack(self.attack, {})
        refused: dict[BoundMethod, str] = {}

        def verify(x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None) -> Outcome:
            check_batch(model, x, y, ball)
            outcome = Outcome.begin(model, x, y)
            apply_attack(outcome, model, attack, x, y, ball, index)
            for bound in self.bounds:
                if bound not in refused:
                    try:
                        apply_bound(outcome, network, bound, x, y, ball)
                    except UnsupportedLayerError as error:
                        refused[bound] = str(error)
                        log.warning("cascade goes on without %s: %s", bound.value, error)
            if len(refused) == len(self.bounds):
                raise UnsupportedLayerError(
                    f"no bound of the cascade can carry this network: {'; '.join(refused.values())}"
                )
            without = "".join(f"; {bound.value} left out: {why}" for bound, why in refused.items())
            for row in outcome.left().tolist():
                outcome.reason[row] = f"no bound proves a margin above 0{without}"
            outcome.verdicts()
            return outcome

        return verify


@torch.no_grad()
def apply_attack(
    outcome: Outcome, model: nn.Module, attack: Attack, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None
) -> None:
    """Attack the samples that nothing has settled yet, and note which of them break.

    Args:
        outcome: of the whole batch; filled in.
        model: in eval mode.
        attack: searches.
        x: inputs, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        ball: the ball around each input.
        index: positions in the test set, shape ``(B,)``.
    """
    rows = outcome.left()
    if not len(rows):
        return
    began = time.perf_counter()
    index = torch.arange(len(y)) if index is None else index
    x_adv = attack(model, x[rows], y[rows], ball, index.cpu()[rows.cpu()]).x_adv
    logits: Tensor = model(x_adv)
    inside = ball.contains(x_adv, x[rows])
    broken = ~correct(logits, y[rows]) & inside
    seen = worst_margin(logit_margins(logits, y[rows]), y[rows])
    outcome.least[rows] = torch.where(inside, torch.fmin(outcome.least[rows], seen), outcome.least[rows])
    outcome.falsified[rows] = broken
    outcome.x_adv[rows[broken]] = x_adv[broken]
    outcome.seconds[rows.cpu()] += (time.perf_counter() - began) / len(rows)
    for row in rows[broken].tolist():
        outcome.settled_by[row] = attack.name
