"""Attack first, then the cheapest bound, each dearer one only on what is left; branch and bound at last."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustkit.attacks import ATTACKS, Attack, make_attack
from robustkit.attacks.replay import Replay
from robustkit.bounds import BoundMethod, bounded
from robustkit.bounds.graph import trace
from robustkit.errors import UnsupportedLayerError, UsageError, unknown_name
from robustkit.threat import LinfBall
from robustkit.verifiers.base import Outcome, Prepared
from robustkit.verifiers.bound import apply_bound
from robustkit.verifiers.branch_and_bound import NAME as BRANCH_AND_BOUND
from robustkit.verifiers.branch_and_bound import BranchAndBound
from robustkit.verifiers.exact_network import ExactNetwork, Semantics
from robustkit.verifiers.preconditions import check_mode, checking
from robustkit.verifiers.recheck import Recheck

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cascade:
    """Falsify what an attack breaks, prove what is left with ever dearer bounds, and split what these leave open.

    Each bound is intersected with those before it, margin by margin: together they can prove what none does alone.
    Branch and bound begins with alpha-CROWN, so the engine's own is left to networks that it cannot carry. Each sample
    records the stage that settled it. Sound; complete but for its limits. A stage that cannot carry a layer of the
    network is left out, and the reason is kept with every sample that stays unknown. What is proved is checked again in
    float64 with all rounding accounted for, and counts as ``verified (float)`` where that fails.

    Attributes:
        attack: name of the attack that goes first.
        bounds: the bound methods, in the order they are tried.
        split: end in branch and bound.
        timeout: seconds of branch and bound for each sample, above 0.
        total: seconds of branch and bound for all samples of an evaluation; those likeliest to be proved go first.
        batch: branches bounded together.
        memory: GB that the branches of a sample may take.
        recheck: check every proof; else all of them are ``verified (float)``.
        certificates: folder to keep the proofs of branch and bound in for ``robustkit check``; empty to keep none.
        semantics: which outputs of the network a checked proof is about, ``real`` or ``float32``.
    """

    name: ClassVar[str] = "cascade"
    attack: str = "pgd"
    bounds: tuple[BoundMethod, ...] = (
        BoundMethod.IBP,
        BoundMethod.CROWN_IBP,
        BoundMethod.CROWN,
        BoundMethod.ALPHA_CROWN,
    )
    split: bool = True
    timeout: float = 10.0
    total: float = 300.0
    batch: int = 256
    memory: float = 2.0
    recheck: bool = True
    certificates: str = ""
    semantics: Semantics = Semantics.REAL

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise unknown_name("attack", self.attack, ATTACKS)
        if not self.bounds or len(set(self.bounds)) < len(self.bounds):
            raise UsageError(f"expected bounds as one bound method or more, each once, got {list(self.bounds)}")
        if not (self.timeout > 0 and self.total > 0):
            raise UsageError(f"expected timeout and total above 0 seconds, got {self.timeout:g} and {self.total:g}")
        if self.batch < 4 or not self.memory > 0:
            raise UsageError(f"expected batch of at least 4 and memory above 0, got {self.batch} and {self.memory:g}")

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Prepare for a model once; see ``Verifier``."""
        check_mode(model)
        network = bounded(model, example)
        attack, replay = make_attack(self.attack, {}), Replay.prepare(model)
        recheck = Recheck.prepare(model, example, wanted=self.recheck, semantics=self.semantics)
        refused: dict[str, str] = {}
        finish = self._finish(replay, example, refused, recheck.network) if self.split else None
        bounds = [one for one in self.bounds if finish is None or one is not BoundMethod.ALPHA_CROWN]

        def screen(x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None) -> Outcome:
            outcome = Outcome.begin(model, x, y)
            apply_attack(outcome, replay, attack, x, y, ball, index)
            for bound in bounds:
                if bound.value not in refused:
                    try:
                        apply_bound(outcome, network, bound, x, y, ball)
                    except UnsupportedLayerError as error:
                        refused[bound.value] = str(error)
                        log.warning("cascade goes on without %s: %s", bound.value, error)
            if finish is None and all(bound.value in refused for bound in bounds):
                raise UnsupportedLayerError(
                    f"no bound of the cascade can carry this network: {'; '.join(refused.values())}"
                )
            without = "".join(f"; {stage} left out: {why}" for stage, why in refused.items())
            for row in outcome.left().tolist():
                outcome.give_up(row, f"no bound proves a margin above 0{without}")
            recheck(outcome, x, y, ball)
            outcome.verdicts()
            return outcome

        return Prepared(checking(model, screen), finish, recheck.network is not None, self.timeout, self.total)

    def _finish(
        self, replay: Replay, example: Tensor, refused: dict[str, str], exact: ExactNetwork | None
    ) -> BranchAndBound | None:
        """Prepare branch and bound, or note why it is left out."""
        try:
            graph = trace(replay.model, example)
        except UnsupportedLayerError as error:
            refused[BRANCH_AND_BOUND] = str(error)
            return None
        limits = (self.timeout, self.batch, self.memory)
        return BranchAndBound(
            graph,
            replay,
            *limits,
            recheck=self.recheck,
            certificates=self.certificates,
            semantics=self.semantics,
            exact=exact,
        )


@torch.no_grad()
def apply_attack(
    outcome: Outcome, replay: Replay, attack: Attack, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None
) -> None:
    """Attack the samples that nothing has settled yet, and note which of them break when run again.

    Args:
        outcome: of the whole batch; filled in.
        replay: the model, and what counterexamples must pass.
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
    x_adv = attack(replay.model, x[rows], y[rows], ball, index.cpu()[rows.cpu()]).x_adv
    seen = replay(x_adv, x[rows], y[rows], ball)
    broken, least = seen.broken, outcome.least[rows]
    outcome.least[rows] = torch.where(seen.inside, torch.fmin(least, seen.native), least)
    outcome.falsified[rows] = broken
    outcome.x_adv[rows[broken]] = x_adv[broken]
    outcome.seconds[rows.cpu()] += (time.perf_counter() - began) / len(rows)
    for row in rows[broken].tolist():
        outcome.settled_by[row] = attack.name
    for place in seen.tied.nonzero().flatten().tolist():
        outcome.tie[int(rows[place])] = seen.tie(place)
