"""The five things that can be said of one sample and one ball."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What is known of a sample within its ball; only a proof that was checked makes it ``VERIFIED``."""

    MISCLASSIFIED = "misclassified"
    """The clean sample is already wrong; a tie for the first place counts as wrong."""

    FALSIFIED = "falsified"
    """A replayed point of the ball is classified wrongly."""

    UNKNOWN = "unknown"
    """Neither a proof nor a counterexample was found."""

    VERIFIED_FLOAT = "verified (float)"
    """Bounds computed in floating point are positive for every margin, but the proof checker does not confirm it."""

    VERIFIED = "verified"
    """Every margin over the ball is positive in real arithmetic, by the float64 proof checker."""
