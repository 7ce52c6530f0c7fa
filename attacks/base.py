"""What an attack is, and what all attacks share: checked inputs, a model left as it was, the worst point kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robustkit.errors import RobustkitError, UsageError
from robustkit.margins import logit_margins, worst_margin
from robustkit.models.modes import in_eval_mode
from robustkit.threat import LinfBall


@dataclass(frozen=True)
class AttackResult:
    """What an attack found; whoever uses it predicts ``x_adv`` again rather than believe the margin.

    Attributes:
        x_adv: the worst point seen of each sample, in its ball; shape of the inputs.
        margin: ``logit_y`` minus the greatest other logit at ``x_adv``, shape ``(B,)``; at most 0 where misclassified.
        found_by: of an attack made of several, the name of the one that broke each sample, ``""`` where none did;
            empty for an attack that is one.
    """

    x_adv: Tensor
    margin: Tensor
    found_by: tuple[str, ...] = ()


class Attack(Protocol):
    """A frozen dataclass of hyper-parameters; its repr is its test id and its row in a table.

    Heuristic: a misclassified point it returns is a fact, the absence of one proves nothing.
    """

    @property
    def name(self) -> str:
        """What it is called in tables and on the command line."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample for a misclassified point.

        The model's modes, its parameters' ``.grad``, the global random state and the inputs are left as they were.

        Args:
            model: maps ``(B, ...)`` to logits ``(B, K)``; attacked in eval mode.
            x: inputs, shape ``(B, ...)``, within the pixel range of the ball.
            y: labels, shape ``(B,)``, integers in ``[0, K)``.
            ball: the ball around each input.
            index: positions of the samples in their test set, shape ``(B,)``, from which all randomness is drawn;
                ``0 .. B-1`` where none is given.

        Returns:
            The worst point seen of each sample: never worse for the attacker than the sample itself.

        Raises:
            UsageError: inputs outside the pixel range, or labels that are none.
            RobustkitError: the model gives no usable logits or no gradient.
        """


@dataclass
class Worst:
    """The worst point seen of each sample; filled in as an attack goes on.

    A misclassified point beats any that is not; among equals the lower score wins, and the first of a tie stays.

    Attributes:
        x_adv: shape ``(B, ...)``.
        margin: least margin over the wrong classes there, shape ``(B,)``.
        score: what the attack wants low, shape ``(B,)``: the margin, or minus its loss.
    """

    x_adv: Tensor
    margin: Tensor
    score: Tensor

    def offer(self, rows: Tensor, points: Worst) -> None:
        """Keep those points that are worse than what was seen before.

        Args:
            rows: which samples the points belong to, positions of shape ``(R,)``.
            points: one point for each of them.
        """
        wrong, was_wrong = points.margin <= 0, self.margin[rows] <= 0
        worse = (wrong & ~was_wrong) | ((wrong == was_wrong) & (points.score < self.score[rows]))
        chosen = worse.nonzero().flatten()
        for kept, offered in ((self.x_adv, points.x_adv), (self.margin, points.margin), (self.score, points.score)):
            kept.index_copy_(0, rows[chosen], offered.index_select(0, chosen))  # faster than by brackets

    def standing(self) -> Tensor:
        """Give the positions of the samples without a misclassified point, shape ``(R,)``."""
        return (self.margin > 0).nonzero().flatten()

    def result(self) -> AttackResult:
        """Give what was found."""
        return AttackResult(self.x_adv, self.margin)


@dataclass(frozen=True)
class Task:
    """Checked inputs of an attack, and where it starts from.

    Attributes:
        x: inputs, shape ``(B, ...)``, detached.
        y: labels, shape ``(B,)``, on the device of ``x``.
        index: positions in the test set, shape ``(B,)``.
        lb: least point of the ball around each input, shape of ``x``, rounded inward.
        ub: greatest point, likewise.
        worst: the inputs themselves, as the worst points seen so far.
        logits: of the inputs, shape ``(B, K)``.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    lb: Tensor
    ub: Tensor
    worst: Worst
    logits: Tensor

    @classmethod
    @torch.no_grad()
    def begin(cls, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None) -> Task:
        """Check the inputs and predict them; see ``Attack.__call__`` for arguments and errors."""
        check_inputs(x, y, ball)
        x, y = x.detach().clone(), y.detach().to(x.device).long()
        index = torch.arange(len(y)) if index is None else index.detach().cpu()
        if index.shape != y.shape:
            raise UsageError(f"expected one index per sample ({len(y)}), got shape {tuple(index.shape)}")
        logits = checked_logits(model, x)
        check_labels(y, logits.shape[1])
        margin = least_margin(logits, y)
        return cls(x, y, index, *ball.inner_box(x), Worst(x.clone(), margin, margin.clone()), logits)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Attack a model in eval mode with gradients on, and leave it and the global random state as they were.

    Works under an outer ``no_grad`` or ``inference_mode``; every module's own training flag comes back, so that frozen
    layers stay frozen, also after an exception.

    Args:
        model: the model to attack.

    Yields:
        Nothing; inside, the model is in eval mode.
    """
    devices = sorted({one.device.index for one in model.parameters() if one.device.type == "cuda"})
    with in_eval_mode(model), torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        yield


def check_inputs(x: Tensor, y: Tensor, ball: LinfBall) -> None:
    """Refuse inputs that no attack can work on.

    Raises:
        UsageError: the message says which input, what was expected and the remedy.
    """
    if not x.is_floating_point():
        raise UsageError(f"expected x as floating-point pixels, got {x.dtype}; divide grey levels by 255")
    if y.ndim != 1 or len(y) != len(x) or y.is_floating_point():
        raise UsageError(
            f"expected y as {len(x)} integer labels, one for each sample, got {y.dtype} of shape {tuple(y.shape)}"
        )
    if not len(x):
        raise UsageError("expected at least one sample, got an empty batch")
    least, most = float(x.min()), float(x.max())
    if not (ball.lower <= least and most <= ball.upper):
        came = f"max {most:.4g}" if most > ball.upper else f"min {least:.4g}"
        raise UsageError(
            f"expected x in [{ball.lower:g}, {ball.upper:g}], got {came}; put normalisation inside the model"
        )


def check_labels(y: Tensor, classes: int) -> None:
    """Refuse labels that are no class of the model.

    Raises:
        UsageError: a label lies outside ``[0, classes)``.
    """
    least, most = int(y.min()), int(y.max())
    if least < 0 or most >= classes:
        raise UsageError(
            f"expected labels y in [0, {classes - 1}] for a model of {classes} classes, "
            f"got {most if most >= classes else least}; use the model trained on this dataset"
        )


def check_setting(holds: bool, name: str, expected: str, value: object) -> None:
    """Refuse a hyper-parameter that cannot be meant.

    Raises:
        UsageError: ``holds`` is false.
    """
    if not holds:
        raise UsageError(f"expected {name} {expected}, got {value!r}")


def check_counts(attack: object, *names: str) -> None:
    """Refuse hyper-parameters below 1; those not given pass.

    Raises:
        UsageError: one is.
    """
    for name in names:
        value = getattr(attack, name)
        check_setting(value is None or value >= 1, name, "of at least 1", value)


def checked_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Predict, and refuse what cannot be judged: a NaN must never count as robust.

    Args:
        model: in eval mode.
        x: inputs, shape ``(B, ...)``.

    Returns:
        Logits, shape ``(B, K)``.

    Raises:
        RobustkitError: the model gives no tensor, another shape, fewer than two classes, or NaN.
    """
    logits = model(x)
    if not isinstance(logits, Tensor):
        raise RobustkitError(f"expected the model to give a tensor of logits, got {type(logits).__name__}; wrap it")
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise RobustkitError(
            f"expected logits of shape ({len(x)}, K) with K >= 2, got {tuple(logits.shape)}; "
            "flatten the model's output to one row of class scores per sample"
        )
    if logits.isnan().any():
        raise RobustkitError("expected logits to be numbers, got NaN; check the weights and the model's normalisation")
    return logits


def needs_gradient() -> RobustkitError:
    """Give the error of an attack along gradients on a model that has none; it offers the attack that needs none."""
    return RobustkitError(
        "expected logits that depend on x by differentiable operations, got none with a gradient; "
        "remove detach, no_grad or rounding from the model's forward, or attack it by --method square, which needs none"
    )


def least_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Give the least margin over the wrong classes; infinite logits that cannot be compared count as a tie.

    Args:
        logits: shape ``(B, K)``.
        y: labels, shape ``(B,)``.

    Returns:
        Shape ``(B,)``, float64 whatever the logits are; above 0 exactly where ``robustkit.margins.correct`` holds.
    """
    margin = worst_margin(logit_margins(logits, y), y)
    return margin.double().nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


@torch.no_grad()
def judged(model: nn.Module, points: Tensor, x: Tensor, y: Tensor, ball: LinfBall) -> Worst:
    """Believe nothing of points but where they are: project them into the ball, and predict them anew.

    Args:
        model: in eval mode.
        points: shape ``(B, ...)``.
        x: the samples, of the same shape.
        y: labels, shape ``(B,)``.
        ball: the ball around each sample.

    Returns:
        The points in the ball, scored by their margin.
    """
    points = ball.project(points.detach(), x)
    margin = least_margin(checked_logits(model, points), y)
    return Worst(points, margin, margin)


def probabilities(outputs: Tensor) -> Tensor:
    """Say which rows of outputs ``(B, K)`` are probabilities rather than logits, shape ``(B,)``."""
    return (outputs >= 0).all(dim=1) & ((outputs.double().sum(dim=1) - 1.0).abs() < 1e-4)


def device_of(model: nn.Module, otherwise: torch.device) -> torch.device:
    """Give the device of a model's parameters, or another one where it has none."""
    return next((one.device for one in model.parameters()), otherwise)


def derived_seed(*parts: int) -> int:
    """Give 32 well-mixed bits of any integers: all that torch's CPU generator takes in of a seed."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest())
