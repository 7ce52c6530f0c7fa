"""Complete verification: attack, then branch and bound; every proof is checked again by code of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustkit.attacks import ATTACKS, make_attack
from robustkit.bounds.branches import SplitNetwork
from robustkit.bounds.chain import Statistics, chain_of
from robustkit.bounds.layers import check_layers, check_weights
from robustkit.bounds.symbolic import Backward, Relaxation, carries
from robustkit.errors import UnsupportedLayerError, UsageError, unknown_name
from robustkit.margins import correct, margin_specification
from robustkit.threat import LinfBall
from robustkit.verifiers.base import Outcome, Verify
from robustkit.verifiers.cascade import apply_attack
from robustkit.verifiers.certificate import Certificate
from robustkit.verifiers.certificate_file import save_certificate
from robustkit.verifiers.checker import check
from robustkit.verifiers.claims import Ball
from robustkit.verifiers.preconditions import check_batch, check_mode
from robustkit.verifiers.search import Found, Limits, search


@dataclass(frozen=True)
class Complete:
    """Falsify what an attack breaks; split what is left until it is proved, broken, or time is up.

    The search runs in float32 and is not trusted: what it finds is written as a certificate, and a checker of its own
    recomputes that in float64 with a rigorous bound of all rounding. A sample whose certificate it refuses is counted
    as ``complete (float)``. Plain stacks of layers only. Sound; complete up to the limits and to ties.

    Attributes:
        attack: name of the attack that goes first.
        timeout: seconds for each sample, above 0.
        batch: branches bounded together.
        recheck: check every proof; else all of them are ``complete (float)``.
        certificates: folder to keep the proofs in for ``robustkit check``; empty to keep none.
    """

    name: ClassVar[str] = "complete"
    attack: str = "pgd"
    timeout: float = 60.0
    batch: int = 256
    recheck: bool = True
    certificates: str = ""

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise unknown_name("attack", self.attack, ATTACKS)
        if not self.timeout > 0:
            raise UsageError(f"expected timeout above 0 seconds, got {self.timeout}")
        if self.batch < 4:
            raise UsageError(f"expected batch of at least 4, got {self.batch}")

    def prepare(self, model: nn.Module, example: Tensor) -> Verify:
        """Prepare for a model once; see ``Verifier``."""
        check_mode(model)
        check_layers(model)
        layers = chain_of(model, example)
        if layers is None or not carries(layers):
            raise UnsupportedLayerError(
                "branch and bound carries plain stacks of Linear, Conv2d, batch norm, ReLU and Flatten only; "
                "use --method cascade"
            )
        attack = make_attack(self.attack, {})

        def verify(x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None) -> Outcome:
            check_batch(model, x, y, ball)
            check_weights(model)
            outcome = Outcome.begin(model, x, y)
            apply_attack(outcome, model, attack, x, y, ball, index)
            for row in outcome.left().tolist():
                number = row if index is None else int(index[row])
                self._decide(outcome, model, layers, row, x[row : row + 1], y[row : row + 1], ball, number)
            outcome.verdicts()
            return outcome

        return verify

    def _decide(
        self,
        outcome: Outcome,
        model: nn.Module,
        layers: Sequence[nn.Module],
        row: int,
        x: Tensor,
        y: Tensor,
        ball: LinfBall,
        number: int,
    ) -> None:
        """Search the ball of one sample, and write down what came of it."""
        began = time.monotonic()
        limits = Limits(began + self.timeout, self.batch)
        found, network = _search(model, layers, x, y, ball, limits)
        here = torch.tensor([row], device=x.device)
        if found.x is not None:
            outcome.falsified[here], outcome.x_adv[here] = True, found.x
            outcome.settled_by[row] = self.name
        elif found.reason:
            outcome.reason[row] = f"{found.reason}; {len(found.proof.parent):,} branches, bound {found.lower:.4g}"
        else:
            outcome.prove(here, torch.tensor([found.lower], device=x.device))
            certificate = _certificate(model, found, network, x, y, ball)
            if self.certificates:
                save_certificate(Path(self.certificates) / f"sample-{number}-eps{ball.eps:.4g}.npz", certificate)
            sure = self.recheck and check(certificate, model).proved
            outcome.settled_by[row] = self.name if sure else f"{self.name} (float)"
        outcome.seconds[row] += time.monotonic() - began


@torch.no_grad()
def _search(
    model: nn.Module, layers: Sequence[nn.Module], x: Tensor, y: Tensor, ball: LinfBall, limits: Limits
) -> tuple[Found, SplitNetwork]:
    lb, ub = ball.box(x)
    statistics, both = Statistics(), (Relaxation.PARALLEL, Relaxation.ADAPTIVE)
    box = ((ub + lb) * 0.5, (ub - lb) * 0.5)
    network = SplitNetwork(layers, Backward(layers, box, statistics, relaxations=both, unstable_only=True), statistics)
    specification = margin_specification(y, _classes(layers))[0]
    rows = specification[torch.arange(len(specification), device=y.device) != y]

    def look(points: Tensor) -> Tensor | None:
        points = ball.project(points, x)
        broken = ~correct(model(points), y.expand(len(points))) & ball.contains(points, x.expand_as(points))
        return points[broken][:1] if bool(broken.any()) else None

    return search(network, rows, rows.new_zeros(len(rows)), look, limits), network


def _certificate(
    model: nn.Module, found: Found, network: SplitNetwork, x: Tensor, y: Tensor, ball: LinfBall
) -> Certificate:
    claim = Ball(x[0].cpu().numpy(), ball.eps, int(y), ball.lower, ball.upper)
    return Certificate.build(model, claim, found.proof.trees(network))


def _classes(layers: Sequence[nn.Module]) -> int:
    last = layers[-1]
    assert isinstance(last, nn.Linear)  # a chain ends in one
    return last.out_features
