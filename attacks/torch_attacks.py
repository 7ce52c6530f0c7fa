"""The adapter of the torchattacks library: the one file that imports it, and believes nothing it returns."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.attacks.base import (
    AttackResult,
    Task,
    Worst,
    checked_logits,
    derived_seed,
    evaluating,
    judged,
    needs_gradient,
)
from robustkit.attacks.draws import RepeatableDraws, seed_generators
from robustkit.errors import RobustkitError, UsageError
from robustkit.threat import LinfBall

Search = Callable[[Any, Tensor, Tensor], Sequence[Tensor]]
"""What to ask of an attack of the library: itself, images ``(B, C, H, W)`` and labels to points of that shape."""


@dataclass(frozen=True)
class Session:
    """One call of an attack that the library's parts are run for.

    Attributes:
        library: torchattacks.
        model: what is attacked, in eval mode.
        task: the samples, and the worst points seen so far.
        ball: the ball around each.
        seed: of all draws.
    """

    library: types.ModuleType
    model: nn.Module
    task: Task
    ball: LinfBall
    seed: int

    @property
    def classes(self) -> int:
        """Number of classes of the model."""
        return self.task.logits.shape[1]

    def result(self) -> AttackResult:
        """Give what was found."""
        return self.task.worst.result()

    def run(self, name: str, search: Search, settings: Mapping[str, Any], *, draw: int = 0) -> None:
        """Run an attack of the library on the samples that stand, and keep what is worse than before.

        What it gives is projected into the ball and predicted again. A sample's draws come from the seed, ``draw`` and
        its index; those that a whole batch shares from the seed and ``draw``.

        Args:
            name: of the library's class.
            search: what to ask of it.
            settings: what the class is made with, besides the model.
            draw: number of the run within this attack.
        """
        rows = self.task.worst.standing()
        if not len(rows):
            return
        x, y = self.task.x[rows], self.task.y[rows]
        draws = RepeatableDraws((self.seed, draw), self.task.index[rows.cpu()].tolist(), x.device)
        with _quiet():
            engine = getattr(self.library, name)(_AsImages(self.model, x, draws).eval(), **settings)
            engine.set_device(x.device)
            seed_generators(derived_seed(self.seed, draw), x.device)
            with draws:
                points = search(engine, as_images(x).float(), y)
        for found in points:
            self.task.worst.offer(rows, _judge(self.model, found, x, y, self.ball))


@contextlib.contextmanager
def session(
    model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None, *, seed: int
) -> Iterator[Session]:
    """Check the inputs of an attack that the library's parts are run for, and leave everything as it was.

    Args:
        model: maps ``(B, ...)`` to logits ``(B, K)``.
        x: inputs, shape ``(B, ...)``.
        y: labels, shape ``(B,)``.
        ball: the ball around each input.
        index: positions in the test set, shape ``(B,)``.
        seed: of all draws.

    Yields:
        What to run the parts by.

    Raises:
        UsageError: as ``Attack.__call__``; or a pixel range other than [0, 1], the only one the library knows.
        RobustkitError: as ``Attack.__call__``; or the library is not installed.
    """
    if (ball.lower, ball.upper) != (0.0, 1.0):
        raise UsageError(
            f"expected pixels in [0, 1] for torchattacks, got the range [{ball.lower:g}, {ball.upper:g}]; "
            "scale the data, or use --method pgd"
        )
    library = import_torchattacks()
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else ()  # the library may seed all of them
    with evaluating(model), torch.random.fork_rng(devices), _frozen(model):
        yield Session(library, model, Task.begin(model, x, y, ball, index), ball, seed)


def call(engine: Any, x: Tensor, y: Tensor) -> tuple[Tensor]:
    """Ask an attack of the library for its points in the ordinary way; it goes as ``search`` into ``Session.run``."""
    return (engine(x, y),)


def as_images(x: Tensor) -> Tensor:
    """Give any inputs as images: features in a row are one of a single channel, one pixel high.

    Args:
        x: shape ``(B, ...)``.

    Returns:
        Shape ``(B, C, H, W)``: images as they are, everything else as ``(B, 1, 1, D)``.
    """
    return x if x.ndim == 4 else x.reshape(len(x), 1, 1, math.prod(x.shape[1:]))


class _AsImages(nn.Module):
    """The model as the library sees it: of images in float32, with checked logits of its own.

    Points that are NaN, which the library makes of a gradient that is zero throughout, are seen as 0.
    """

    def __init__(self, model: nn.Module, x: Tensor, draws: RepeatableDraws) -> None:
        super().__init__()
        self.model, self.shape, self.dtype, self.draws = model, x.shape[1:], x.dtype, draws

    def forward(self, images: Tensor) -> Tensor:
        """Predict, and refuse a model without a gradient where one is needed."""
        x = images.nan_to_num(nan=0.0).to(self.dtype).reshape(len(images), *self.shape)
        self.draws.asleep = True
        try:
            logits = checked_logits(self.model, x)
        finally:
            self.draws.asleep = False
        if x.requires_grad and not logits.requires_grad:
            raise needs_gradient()
        return logits.float().clone()  # the library writes into them


def import_torchattacks() -> types.ModuleType:
    """Import the library, without what it prints and warns about.

    Raises:
        RobustkitError: it is not installed, or too broken to import.
    """
    try:
        with _quiet():
            return importlib.import_module("torchattacks")
    except ImportError as error:
        raise RobustkitError(f"expected torchattacks >= 3.5.1 to be importable ({error}); install it") from error


def _judge(model: nn.Module, found: Tensor, x: Tensor, y: Tensor, ball: LinfBall) -> Worst:
    """Project what the library gave into the ball, and predict it anew; a NaN is the sample's own pixel."""
    points = found.detach().reshape(x.shape).to(x.dtype)
    return judged(model, torch.where(points.isnan(), x, points), x, y, ball)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradient of the weights: the library would add to their ``.grad``."""
    weights = [one for one in model.parameters() if one.requires_grad]
    try:
        for one in weights:
            one.requires_grad_(False)
        yield
    finally:
        for one in weights:
            one.requires_grad_(True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
