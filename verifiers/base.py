"""What a verifier is, and what it says of a batch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

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
        verified: which have only positive margins, shape ``(B,)``.
        least: least worst margin seen at a point of the ball, the sample among them, shape ``(B,)``.
        slack: by how much rounding may lift a proved margin above it, shape ``(B,)``.
        margins: greatest lower bound of each margin proved so far, shape ``(B, K)``: the intersection of all bounds.
        margin: greatest lower bound of the worst margin that was proved, shape ``(B,)``; NaN where none was.
        x_adv: the counterexample, else the sample itself, shape of the inputs.
        settled_by: name of the stage that settled each sample.
        reason: why each unsettled sample is unknown.
        seconds: time spent on each sample, shape ``(B,)``.
    """

    predicted: Tensor
    clean: Tensor
    falsified: Tensor
    verified: Tensor
    least: Tensor
    slack: Tensor
    margins: Tensor
    margin: Tensor
    x_adv: Tensor
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
            least=worst_margin(logit_margins(logits, y), y),
            slack=SLACK * (1.0 + logits.abs().amax(dim=1)),
            margins=torch.full_like(logits, -torch.inf),
            margin=torch.full((size,), torch.nan, device=x.device),
            x_adv=x.clone(),
            settled_by=["" if good else "prediction" for good in clean.tolist()],
            reason=[""] * size,
            seconds=torch.full((size,), (time.perf_counter() - began) / size, dtype=torch.float64),
        )

    def left(self) -> Tensor:
        """Give the positions of the samples that nothing has settled, shape ``(R,)``."""
        return (self.clean & ~self.falsified & ~self.verified).nonzero().flatten()

    def prove(self, rows: Tensor, worst: Tensor) -> None:
        """Take in proved margins, after holding them against every point of the ball that is known.

        Args:
            rows: which samples, positions of shape ``(R,)``.
            worst: a lower bound of the worst margin of each, shape ``(R,)``; minus infinity where nothing is proved.

        Raises:
            SoundnessError: a point of a ball has a smaller margin than the one proved for all of the ball.
        """
        false = (worst > self.least[rows] + self.slack[rows]).nonzero().flatten()
        if len(false):
            first = false[0]
            raise SoundnessError(
                f"a margin of {worst[first].item():.6g} is proved for a ball that holds a point of margin "
                f"{self.least[rows[first]].item():.6g} ({len(false)} such samples): the bound is unsound, "
                "and no result of this run may be used"
            )
        self.verified[rows] = worst > 0
        proved = torch.where(worst > -torch.inf, worst, torch.nan)
        self.margin[rows] = torch.fmax(self.margin[rows], proved)

    def verdicts(self) -> list[Verdict]:
        """Fold what is known into one verdict per sample.

        Raises:
            SoundnessError: a sample is verified although a point of its ball is classified wrongly.
        """
        flags = zip(self.clean.tolist(), self.falsified.tolist(), self.verified.tolist(), strict=True)
        return [fold(*one) for one in flags]


class Verify(Protocol):
    """A verifier prepared for a model."""

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


class Verifier(Protocol):
    """A frozen dataclass of settings; its repr is its row in a table."""

    @property
    def name(self) -> str:
        """What it is called in tables and on the command line."""

    def prepare(self, model: nn.Module, example: Tensor) -> Verify:
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
