"""The errors a user can cause or must hear of; everything else is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RobustkitError(Exception):
    """A mistake the user can mend: the message says what was expected, what came and what to do."""

    exit_code = 1


class UsageError(RobustkitError):
    """A value on the command line or in a configuration file that cannot be meant."""

    exit_code = 2


class UnsupportedLayerError(RobustkitError):
    """A layer that the chosen bound method cannot carry soundly."""


class SoundnessError(RobustkitError):
    """A sample was both falsified and verified: one of the two is wrong, and nothing may be believed."""

    exit_code = 3


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that no registry holds, with the nearest names that do exist.

    Args:
        kind: what was looked up, e.g. ``"dataset"``.
        name: what the user wrote.
        known: every name that would have been accepted.

    Returns:
        The error, ready to raise.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UsageError(f"unknown {kind} {name!r}; {hint}")
