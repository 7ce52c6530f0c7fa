"""What a verifier is, and what it says of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustkit.errors import SoundnessError
from robustkit.margins import correct, fold, logit_margins, worst_margin
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict

SLACK = 1e-3
"""Share of the largest logit that the rounding of float32 bounds may amount to; the bound tests allow 1e-4 in all."""


@dataclass
class Outcome:
    """What is known of each sample of a batch; a verifier fills it in, stage by stage.

    Attributes:
        predicted: predicted classes, shape ``(B,)``.
        clean: which samples are classified rightly, shape ``(B,)``.
        falsified: which have a replayed counterexample, shape ``(B,)``.
        verified: which have only positive margins by bounds computed in floating point, shape ``(B,)``.
        checked: of which the proof checker confirms that, shape ``(B,)``.
        least: least worst margin seen at a point of the ball, the sample among them, shape ``(B,)``.
        slack: by how much rounding may lift a proved margin above it, shape ``(B,)``.
        margins: greatest lower bound of each margin proved so far, shape ``(B, K)``: the intersection of all bounds.
        margin: greatest lower bound of the worst margin that was proved, shape ``(B,)``; NaN where none was.
        x_adv: the counterexample, else the sample itself, shape of the inputs.
        tie: what is known of a point that is neither right nor a counterexample; empty where none was seen.
        settled_by: name of the stage that settled each sample.
        reason: why each sample is unknown, or verified in floating point only.
        seconds: time spent on each sample, shape ``(B,)``.
    """

    predicted: Tensor
    clean: Tensor
    falsified: Tensor
    verified: Tensor
    checked: Tensor
    least: Tensor
    slack: Tensor
    margins: Tensor
    margin: Tensor
    x_adv: Tensor
    tie: list[str]
    settled_by: list[str]
    reason: list[str]
    seconds: Tensor

    @classmethod
    @torch.no_grad()
    def begin(cls, model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        """Start from the predictions alone."""
        began = time.perf_counter()
        logits: Tensor = model(x)
        clean = correct(logits, y)
        size = len(y)
        return cls(
            predicted=logits.argmax(dim=1),
            clean=clean,
            falsified=torch.zeros_like(clean),
            verified=torch.zeros_like(clean),
            checked=torch.zeros_like(clean),
            least=worst_margin(logit_margins(logits, y), y),
            slack=SLACK * (1.0 + logits.abs().amax(dim=1)),
            margins=torch.full_like(logits, -torch.inf),
            margin=torch.full((size,), torch.nan, device=x.device),
            x_adv=x.clone(),
            tie=[""] * size,
            settled_by=["" if good else "prediction" for good in clean.tolist()],
            reason=[""] * size,
            seconds=torch.full((size,), (time.perf_counter() - began) / size, dtype=torch.float64),
        )

    def take(self, rows: Sequence[int]) -> Outcome:
        """Give a copy of what is known of some samples."""
        places = torch.tensor(rows, dtype=torch.int64)
        parts: dict[str, Any] = {}
        for one in fields(self):
            part = getattr(self, one.name)
            tensor = isinstance(part, Tensor)
            parts[one.name] = part[places.to(part.device)] if tensor else [part[row] for row in rows]
        return Outcome(**parts)

    def put(self, row: int, one: Outcome) -> None:
        """Take over what is known of a single sample."""
        for part in fields(self):
            getattr(self, part.name)[row] = getattr(one, part.name)[0]

    def left(self) -> Tensor:
        """Give the positions of the samples that nothing has settled, shape ``(R,)``."""
        return (self.clean & ~self.falsified & ~self.verified).nonzero().flatten()

    def give_up(self, row: int, reason: str) -> None:
        """Note why a sample is left unknown, behind the tie that was seen, if there was one."""
        self.settled_by[row] = ""
        self.reason[row] = "; ".join(one for one in (self.tie[row], reason) if one)

    def prove(self, rows: Tensor, worst: Tensor) -> None:
        """Take in proved margins, after holding them against every point of the ball that is known.

        Args:
            rows: which samples, positions of shape ``(R,)``.
            worst: a lower bound of the worst margin of each, shape ``(R,)``; minus infinity where nothing is proved.

        Raises:
            SoundnessError: a point of a ball has a smaller margin than the one proved for all of the ball.
        """
        self._hold(rows, worst)
        self.verified[rows] = worst > 0
        proved = torch.where(worst > -torch.inf, worst, torch.nan)
        self.margin[rows] = torch.fmax(self.margin[rows], proved)

    def confirm(self, rows: Tensor, worst: Tensor) -> None:
        """Take in what the proof checker makes of samples that bounds prove, held against known points as well.

        Args:
            rows: which samples, positions of shape ``(R,)``.
            worst: what it proves of the worst margin of each, shape ``(R,)``; minus infinity where nothing.

        Raises:
            SoundnessError: a point of a ball has a smaller margin than the one proved for all of the ball.
        """
        self._hold(rows, worst)
        self.checked[rows] = worst > 0

    def _hold(self, rows: Tensor, worst: Tensor) -> None:
        false = (worst > self.least[rows] + self.slack[rows]).nonzero().flatten()
        if len(false):
            first = false[0]
            raise SoundnessError(
                f"a margin of {worst[first].item():.6g} is proved for a ball that holds a point of margin "
                f"{self.least[rows[first]].item():.6g} ({len(false)} such samples): the bound is unsound, "
                "and no result of this run may be used"
            )

    def verdicts(self) -> list[Verdict]:
        """Fold what is known into one verdict per sample.

        Raises:
            SoundnessError: a sample is verified although a point of its ball is classified wrongly.
        """
        flags = (one.tolist() for one in (self.clean, self.falsified, self.verified, self.checked))
        return [fold(*one) for one in zip(*flags, strict=True)]


def _nobody(_: str) -> None:
    """Tell nobody."""


class Screen(Protocol):
    """The stages that work on a whole batch."""

    def __call__(self, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None) -> Outcome:
        """Verify a batch.

        Args:
            x: inputs, shape ``(B, ...)``, in the pixel range.
            y: labels, shape ``(B,)``.
            ball: the ball around each input.
            index: positions in the test set, from which an attack draws its starts, shape ``(B,)``.

        Returns:
            What is known of each sample.

        Raises:
            UsageError: inputs outside the pixel range, or batch norm or dropout in train mode.
        """


Tell = Callable[[str], None]
"""Is told, every now and then, how far the work on a sample has come."""


class Finish(Protocol):
    """The stage that works on one sample at a time."""

    def __call__(self, outcome: Outcome, x: Tensor, y: Tensor, ball: LinfBall, number: int, tell: Tell) -> None:
        """Go on with a sample that is left.

        Args:
            outcome: of this sample alone; filled in.
            x: the input, shape ``(1, ...)``.
            y: its label, shape ``(1,)``.
            ball: the ball around it.
            number: position in the test set.
            tell: is told how far it has come.
        """


@dataclass(frozen=True)
class Prepared:
    """A verifier prepared for a model.

    Attributes:
        screen: the stages that work on a whole batch.
        finish: the stage that goes on with each sample left; None where there is none.
        unchecked: go on also with samples that are verified in floating point only.
        timeout: seconds that it searches for one sample.
        total: seconds for all of them; samples whose turn does not come stay unknown.
    """

    screen: Screen
    finish: Finish | None = None
    unchecked: bool = False
    timeout: float = math.inf
    total: float = math.inf

    def __call__(self, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None) -> Outcome:
        """Verify a batch to the end; see ``Screen``."""
        outcome = self.screen(x, y, ball, index)
        until = time.monotonic() + self.total
        for row in self.open(outcome):
            one, number = outcome.take([row]), row if index is None else int(index[row])
            self.go_on(one, x[row : row + 1], y[row : row + 1], ball, number, until=until)
            outcome.put(row, one)
        outcome.verdicts()
        return outcome

    def open(self, outcome: Outcome) -> list[int]:
        """Give the positions of the samples that ``finish`` goes on with."""
        if self.finish is None:
            return []
        left = outcome.clean & ~outcome.falsified & ~(outcome.checked if self.unchecked else outcome.verified)
        rows: list[int] = left.nonzero().flatten().tolist()
        return rows

    def go_on(
        self, one: Outcome, x: Tensor, y: Tensor, ball: LinfBall, number: int, *, until: float, tell: Tell = _nobody
    ) -> None:
        """Go on with a sample that is left, unless time is up by the clock of ``time.monotonic``; see ``Finish``."""
        assert self.finish is not None
        if time.monotonic() < until:
            self.finish(one, x, y, ball, number, tell)
        elif not bool(one.verified[0]):
            one.give_up(0, f"the {self.total:g} s for all samples were over before its turn")


class Verifier(Protocol):
    """A frozen dataclass of settings; its repr is its row in a table."""

    @property
    def name(self) -> str:
        """What it is called in tables and on the command line."""

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Prepare for a model once.

        Args:
            model: in eval mode, on its device.
            example: one input, shape ``(1, ...)``.

        Returns:
            What is then called for every batch.

        Raises:
            UnsupportedLayerError: a layer cannot be bounded soundly; the layer is named.
            UsageError: batch norm or dropout in train mode.
        """
