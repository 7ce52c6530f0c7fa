"""The four things that can be said of one sample and one ball."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What is known of a sample within its ball; only a proof makes it ``VERIFIED``."""

    MISCLASSIFIED = "misclassified"
    """The clean sample is already wrong; a tie for the first place counts as wrong."""

    FALSIFIED = "falsified"
    """A replayed point of the ball is classified wrongly."""

    UNKNOWN = "unknown"
    """Neither a proof nor a counterexample was found."""

    VERIFIED = "verified"
    """A sound lower bound of every margin over the ball is positive."""
