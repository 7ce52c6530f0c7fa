"""The adapter of the torchattacks library: the one file that imports it, and believes nothing it returns."""

from __future__ import annotations

import contextlib
import importlib
import io
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustkit.attacks.base import (
    AttackResult,
    Task,
    Worst,
    check_setting,
    checked_logits,
    derived_seed,
    evaluating,
    least_margin,
)
from robustkit.errors import RobustkitError, UsageError
from robustkit.threat import LinfBall


@dataclass(frozen=True)
class TorchAttacksPGD:
    """PGD of the torchattacks library, to hold our own against.

    The library gives its last point unchecked: it is projected into the ball and predicted again, and the sample itself
    comes back where that is no worse. It draws one random start for a whole batch, so a result repeats for the same
    batch but, unlike those of our own attacks, depends on how samples are batched; it runs every step for all samples.

    Attributes:
        steps: gradient steps.
        rel_step_size: step as a fraction of eps.
        random_start: start from a random point of the ball rather than from the sample.
        seed: of the random start, together with the first sample's index.

    Source: Kim 2020, arXiv 2010.01950; Madry et al. 2018, arXiv 1706.06083.
    """

    name: ClassVar[str] = "torchattacks-pgd"
    steps: int = 40
    rel_step_size: float = 1 / 30
    random_start: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, "steps", "of at least 1", self.steps)
        check_setting(self.rel_step_size > 0, "rel_step_size", "above 0", self.rel_step_size)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``.

        Raises:
            UsageError: a pixel range other than [0, 1], the only one the library knows.
        """
        if (ball.lower, ball.upper) != (0.0, 1.0):
            raise UsageError(
                f"expected pixels in [0, 1] for torchattacks, got the range [{ball.lower:g}, {ball.upper:g}]; "
                "scale the data, or use --method pgd"
            )
        library = import_torchattacks()
        with evaluating(model):
            task = Task.begin(model, x, y, ball, index)
            rows = task.worst.standing()
            if len(rows):
                _seed(derived_seed(self.seed, int(task.index[rows[0]])), task.x.device)
                with _quiet():
                    found = self._run(library, model, task.x[rows], task.y[rows], ball)
                task.worst.offer(rows, _judge(model, found, task, ball, rows))
            return task.worst.result()

    def _run(self, library: types.ModuleType, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall) -> Tensor:
        engine = library.PGD(
            model,
            eps=ball.eps,
            alpha=self.rel_step_size * ball.eps,
            steps=self.steps,
            random_start=self.random_start,
        )
        engine.set_device(x.device)
        found: Tensor = engine(x, y)
        return found


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


@torch.no_grad()
def _judge(model: nn.Module, found: Tensor, task: Task, ball: LinfBall, rows: Tensor) -> Worst:
    """Project what the library gave into the ball, and predict it anew."""
    points = ball.project(found.detach(), task.x[rows])
    margin = least_margin(checked_logits(model, points), task.y[rows])
    return Worst(points, margin, margin)


def _seed(seed: int, device: torch.device) -> None:
    """Seed what ``evaluating`` will put back, and no other device as ``torch.manual_seed`` would."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
