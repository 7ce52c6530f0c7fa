"""Verify a test set batch by batch, and write down one row per sample."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor, nn

from robustkit.attacks.base import check_inputs, check_labels, checked_logits, evaluating
from robustkit.data import Split
from robustkit.results import Subject, evaluation_table
from robustkit.threat import LinfBall
from robustkit.verifiers.base import Verifier


def verify_batches(
    verifier: Verifier, model: nn.Module, split: Split, ball: LinfBall, subject: Subject, batch_size: int = 250
) -> Iterator[tuple[pd.DataFrame, Tensor]]:
    """Verify samples batch by batch; the caller counts, keeps and may stop after any batch.

    Args:
        verifier: the verifier.
        model: in any mode, on the device of the samples.
        split: the samples.
        ball: the ball around each.
        subject: which network, on what: the part of a row that all share.
        batch_size: samples verified together.

    Yields:
        The rows of the results table of a batch; and its counterexamples, shape ``(B, ...)``: where there is none, the
        sample itself.

    Raises:
        UsageError: inputs outside the pixel range, or labels that are none.
        RobustkitError: the model gives no usable logits.
        UnsupportedLayerError: a layer cannot be bounded soundly; the layer is named.
        SoundnessError: a sample is verified although a point of its ball is classified wrongly.
    """
    if not len(split):
        return
    with evaluating(model):
        verify = verifier.prepare(model, split.x[:1])
    for first in range(0, len(split), batch_size):
        part = slice(first, first + batch_size)
        x, y, index = split.x[part], split.y[part], split.index[part]
        check_inputs(x, y, ball)
        with evaluating(model):
            with torch.no_grad():
                check_labels(y, checked_logits(model, x).shape[1])
            outcome = verify(x, y, ball, index)
        rows = evaluation_table(
            subject,
            "verify",
            verifier.name,
            repr(verifier),
            eps=ball.eps,
            index=index.cpu().numpy(),
            label=y.cpu().numpy(),
            predicted=outcome.predicted.cpu().numpy(),
            verdict=outcome.verdicts(),
            margin=outcome.margin.double().cpu().numpy(),
            seconds=outcome.seconds.numpy(),
            proved_by=outcome.settled_by,
            reason=outcome.reason,
        )
        yield rows, outcome.x_adv
