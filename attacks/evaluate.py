"""Attack a test set, and write down only what a fresh prediction confirms."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Protocol
from weakref import WeakSet

import pandas as pd
import torch
from torch import Tensor, nn

from robustkit.attacks.base import (
    Attack,
    AttackResult,
    check_inputs,
    check_labels,
    checked_logits,
    device_of,
    evaluating,
    least_margin,
    probabilities,
)
from robustkit.attacks.replay import Replay
from robustkit.errors import RobustkitError
from robustkit.margins import fold
from robustkit.results import Subject, evaluation_table
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict

log = logging.getLogger(__name__)

SHOWN = 16
"""Samples by which outputs that are probabilities are told from logits."""


_TOLD: WeakSet[nn.Module] = WeakSet()
"""Models that were warned of: once is enough."""


class Samples(Protocol):
    """What is attacked: any object with these three tensors, such as ``robustkit.data.Split``."""

    @property
    def x(self) -> Tensor:
        """Inputs, shape ``(N, ...)``, within the pixel range."""

    @property
    def y(self) -> Tensor:
        """Labels, shape ``(N,)``."""

    @property
    def index(self) -> Tensor:
        """Positions in the test set, shape ``(N,)``."""


def attack_batches(
    attack: Attack, model: nn.Module, split: Samples, ball: LinfBall, subject: Subject, batch_size: int = 250
) -> Iterator[tuple[pd.DataFrame, Tensor]]:
    """Attack samples batch by batch; the caller counts, keeps and may stop after any batch.

    A batch that is too much for the memory is halved, and so are those after it: draws belong to samples, not to
    batches, so the result is the same. A model that gives probabilities for logits is attacked with a warning.

    Args:
        attack: the attack.
        model: the model, in any mode, on its device.
        split: the samples.
        ball: the ball around each.
        subject: which network, on what: the part of a row that all share.
        batch_size: samples attacked together.

    Yields:
        The rows of the results table of a batch, and its points ``x_adv``, shape ``(B, ...)``, on the device of ``x``.

    Raises:
        UsageError: inputs outside the pixel range, or labels that are none.
        RobustkitError: the model gives no usable logits, the attack a point outside its ball, or one sample alone is
            too much for the memory.
    """
    replay = Replay.prepare(model)
    first, size = 0, batch_size
    while first < len(split.y):
        part = slice(first, first + size)
        x, y, index = split.x[part], split.y[part], split.index[part]
        try:
            done = evaluate_batch(attack, replay, x, y, ball, index=index, subject=subject)
        except torch.OutOfMemoryError as error:
            size = _smaller(len(y), error)
            continue
        if not first:
            _say_if_probabilities(model, x[:SHOWN])
        first += len(y)
        yield done


def _smaller(size: int, error: Exception) -> int:
    """Give half a batch size that was too much for the memory, and free what the attempt has left.

    Raises:
        RobustkitError: there is no smaller one.
    """
    if size == 1:
        raise RobustkitError(
            "expected memory for an attack on one sample, got none left; use --device cpu, or free the device"
        ) from error
    log.warning("out of memory with %d samples together; going on with %d, to the same result", size, size // 2)
    torch.cuda.empty_cache()
    return size // 2


def _say_if_probabilities(model: nn.Module, x: Tensor) -> None:
    """Warn of a model that ends in a softmax: it is attacked as it is, but its gradients fade."""
    with evaluating(model), torch.no_grad():
        outputs = checked_logits(model, x.to(device_of(model, x.device)))
    if model not in _TOLD and probabilities(outputs).all():
        _TOLD.add(model)
        log.warning(
            "expected logits, but the model gives probabilities (every row sums to 1): gradients fade through a "
            "softmax, so that attacks leave too much standing; leave the softmax out of the model"
        )


def evaluate_batch(
    attack: Attack,
    replay: Replay,
    x: Tensor,
    y: Tensor,
    ball: LinfBall,
    *,
    index: Tensor,
    subject: Subject,
) -> tuple[pd.DataFrame, Tensor]:
    """Attack one batch, and judge the points by predicting them anew.

    A sample is broken where the verifiers would say so too: a wrong class strictly ahead in the model and in float64.
    What is only a tie, or wrong in one arithmetic alone, leaves the sample standing, and the row's reason says so; a
    sample that is tied itself is misclassified.

    Args:
        attack: the attack.
        replay: the model, in any mode, on its device, and its float64 copy.
        x: inputs, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        ball: the ball around each input.
        index: positions in the test set, shape ``(B,)``.
        subject: which network, on what.

    Returns:
        The rows of the results table, and the points ``x_adv``, shape ``(B, ...)``, on the device of ``x``.

    Raises:
        UsageError: inputs outside the pixel range, or labels that are none.
        RobustkitError: the model gives no usable logits, or the attack a point outside its ball.
    """
    check_inputs(x, y, ball)
    model = replay.model
    device = device_of(model, x.device)
    inputs, labels = x.to(device), y.to(device).long()
    began = time.perf_counter()
    found = attack(model, inputs, labels, ball, index)
    x_adv = found.x_adv.detach()
    seconds = (time.perf_counter() - began) / len(y)
    _check_points(attack, x_adv, inputs, ball)
    with evaluating(model), torch.no_grad():
        logits, logits_adv = checked_logits(model, inputs), checked_logits(model, x_adv)
    check_labels(labels, logits.shape[1])
    margin = least_margin(logits_adv, labels)
    clean = least_margin(logits, labels) > 0
    broken, reason = _judge(replay, x_adv, inputs, labels, ball, clean & ~(margin > 0))
    verdict = [fold(*one, verified=False, checked=False) for one in zip(clean.tolist(), broken, strict=True)]
    rows = evaluation_table(
        subject,
        "attack",
        attack.name,
        repr(attack),
        eps=ball.eps,
        index=index.cpu().numpy(),
        label=y.cpu().numpy(),
        predicted=logits.argmax(dim=1).cpu().numpy(),
        verdict=verdict,
        margin=margin.cpu().numpy(),
        proved_by=_found_by(found, verdict),
        seconds=[seconds] * len(y),
        reason=reason,
    )
    return rows, x_adv.to(x.device)


def _found_by(found: AttackResult, verdict: list[Verdict]) -> list[str] | None:
    """Name the attack of a battery that broke each sample; nothing where none did, or where there is but one."""
    if not found.found_by:
        return None
    falsified = [one is Verdict.FALSIFIED for one in verdict]
    return [name if broken else "" for name, broken in zip(found.found_by, falsified, strict=True)]


def _judge(
    replay: Replay, x_adv: Tensor, x: Tensor, y: Tensor, ball: LinfBall, suspect: Tensor
) -> tuple[list[bool], list[str]]:
    """Run again the points that the model itself gets wrong, and only those: say which break, and why others do not."""
    broken, reason = [False] * len(y), [""] * len(y)
    rows = suspect.nonzero().flatten()
    if len(rows):
        with evaluating(replay.model):
            seen = replay.where_it_runs(x_adv[rows], x[rows], y[rows], ball)
        for place, row in enumerate(rows.tolist()):
            broken[row] = bool(seen.broken[place])
            reason[row] = "" if broken[row] else seen.tie(place)
    return broken, reason


def _check_points(attack: Attack, x_adv: Tensor, x: Tensor, ball: LinfBall) -> None:
    if x_adv.shape != x.shape:
        raise RobustkitError(
            f"expected attack {attack.name!r} to give points of shape {tuple(x.shape)}, got {tuple(x_adv.shape)}"
        )
    inside = ball.contains(x_adv, x)
    if not inside.all():
        apart = (x_adv.double() - x.double()).abs().max()
        raise RobustkitError(
            f"expected attack {attack.name!r} to stay in the ball of eps {ball.eps:g} and in the pixel range, but "
            f"{int((~inside).sum())} of {len(x)} points lie outside (up to {float(apart):.6g} away); "
            "nothing of it was recorded: mend the attack, for example with ball.project"
        )
