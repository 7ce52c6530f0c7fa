"""Verify a test set, and write down one row per sample: whole batches first, then one by one what these leave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustkit.attacks.base import check_inputs, check_labels, checked_logits, evaluating
from robustkit.data import Split
from robustkit.results import Subject, evaluation_table
from robustkit.threat import LinfBall
from robustkit.verifiers.base import Outcome, Prepared, Tell, Verifier
from robustkit.workers import Lost, work_off

CHECKING = 60.0
"""Seconds that a process may take beyond twice the limit of a sample, for its check, before it is ended."""


def verify_batches(
    verifier: Verifier,
    model: nn.Module,
    split: Split,
    ball: LinfBall,
    subject: Subject,
    batch_size: int = 250,
    *,
    jobs: int = 1,
    tell: Tell = lambda _: None,
) -> Iterator[tuple[pd.DataFrame, Tensor]]:
    """Verify samples; the caller counts, keeps, and may stop after any rows.

    Args:
        verifier: the verifier.
        model: in any mode, on the device of the samples.
        split: the samples.
        ball: the ball around each.
        subject: which network, on what: the part of a row that all share.
        batch_size: samples verified together.
        jobs: processes that go on with single samples.
        tell: is told how far the work on a single sample has come.

    Yields:
        Rows of the results table, of every sample once, in any order; and their counterexamples, shape ``(B, ...)``:
        where there is none, the sample itself.

    Raises:
        UsageError: inputs outside the pixel range, or labels that are none.
        RobustkitError: the model gives no usable logits.
        UnsupportedLayerError: a layer cannot be bounded soundly; the layer is named.
        SoundnessError: a sample is verified although a point of its ball is classified wrongly.
    """
    if not len(split):
        return
    with evaluating(model):
        prepared = verifier.prepare(model, split.x[:1])
    table = _Table(verifier, ball, subject)
    waiting: list[_Waiting] = []
    for first in range(0, len(split), batch_size):
        part = split.rows(torch.arange(first, min(first + batch_size, len(split))))
        check_inputs(part.x, part.y, ball)
        with evaluating(model):
            with torch.no_grad():
                check_labels(part.y, checked_logits(model, part.x).shape[1])
            outcome = prepared.screen(part.x, part.y, ball, part.index)
        left = prepared.open(outcome)
        waiting += [_Waiting(outcome.take([row]), part.rows(torch.tensor([row]))) for row in left]
        settled = [row for row in range(len(part)) if row not in set(left)]
        if settled:
            yield table.of(outcome.take(settled), part.rows(torch.tensor(settled)))
    finisher = _Finisher(verifier, model, ball, prepared)
    waiting.sort(key=lambda one: -one.promise)
    if jobs == 1 or len(waiting) < 2:
        done: Iterator[tuple[_Waiting, Outcome | Lost]] = ((one, finisher(one, lambda: None, tell)) for one in waiting)
    else:
        done = work_off(waiting, finisher, jobs=jobs, limit=lambda _: 2.0 * prepared.timeout + CHECKING, tell=tell)
    for one, found in done:
        if isinstance(found, Lost):
            one.outcome.give_up(0, found.reason)
        yield table.of(one.outcome if isinstance(found, Lost) else found, one.sample)


@dataclass(frozen=True)
class _Waiting:
    """A sample that is left open, and what is known of it."""

    outcome: Outcome
    sample: Split

    @property
    def promise(self) -> float:
        """The greatest lower bound of its worst margin; minus infinity where there is none."""
        margin = float(self.outcome.margin[0])
        return -math.inf if math.isnan(margin) else margin


class _Finisher:
    """Goes on with what is left, in this process or in another."""

    def __init__(self, verifier: Verifier, model: nn.Module, ball: LinfBall, prepared: Prepared) -> None:
        self.verifier, self.model, self.ball, self.until = verifier, model, ball, time.monotonic() + prepared.total
        self.prepared: Prepared | None = prepared

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "prepared": None}  # every process prepares for itself

    def __call__(self, one: _Waiting, begin: Callable[[], None], tell: Tell) -> Outcome:
        """Go on with a sample."""
        sample, outcome = one.sample, one.outcome
        number = int(sample.index[0])

        def told(text: str) -> None:
            tell(f"sample {number}: {text}")

        with evaluating(self.model):
            self.prepared = self.prepared or self.verifier.prepare(self.model, sample.x)
            begin()
            self.prepared.go_on(outcome, sample.x, sample.y, self.ball, number, until=self.until, tell=told)
        return outcome


@dataclass(frozen=True)
class _Table:
    """What all rows of an evaluation share."""

    verifier: Verifier
    ball: LinfBall
    subject: Subject

    def of(self, outcome: Outcome, split: Split) -> tuple[pd.DataFrame, Tensor]:
        """Write down what is known of samples."""
        rows = evaluation_table(
            self.subject,
            "verify",
            self.verifier.name,
            repr(self.verifier),
            eps=self.ball.eps,
            index=split.index.cpu().numpy(),
            label=split.y.cpu().numpy(),
            predicted=outcome.predicted.cpu().numpy(),
            verdict=outcome.verdicts(),
            margin=outcome.margin.double().cpu().numpy(),
            seconds=outcome.seconds.numpy(),
            proved_by=outcome.settled_by,
            reason=outcome.reason,
        )
        return rows, outcome.x_adv
