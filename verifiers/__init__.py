"""Verifiers: prove that every point of a ball is classified rightly, or say why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustkit.bounds import BoundMethod
from robustkit.config import build
from robustkit.errors import UsageError, unknown_name
from robustkit.verifiers.base import Outcome, Prepared, Verifier
from robustkit.verifiers.bound import BoundVerifier
from robustkit.verifiers.cascade import Cascade
from robustkit.verifiers.complete import Complete
from robustkit.verifiers.evaluate import verify_batches

__all__ = [
    "VERIFIERS",
    "BoundVerifier",
    "Cascade",
    "Complete",
    "Outcome",
    "Prepared",
    "Verifier",
    "make_verifier",
    "verify_batches",
]

VERIFIERS: dict[str, type[BoundVerifier] | type[Cascade] | type[Complete]] = {
    **dict.fromkeys((bound.value for bound in BoundMethod), BoundVerifier),
    Cascade.name: Cascade,
    Complete.name: Complete,
}
"""Every verifier by name; a bound method's name stands for the verifier of that bound alone."""


def make_verifier(name: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """Make a verifier by name.

    Args:
        name: one of ``VERIFIERS``.
        options: its settings.

    Returns:
        The verifier, to be prepared for a model.

    Raises:
        UsageError: an unknown name or option; the nearest are offered.
    """
    if name not in VERIFIERS:
        raise unknown_name("verifier", name, VERIFIERS)
    given, where = dict(options or {}), f"verify.options.{name}"
    if name not in set(BoundMethod):
        verifier: Verifier = build(VERIFIERS[name], given, where)
        return verifier
    if "bound" in given:
        raise UsageError(f"expected no bound for verifier {name!r}, which is one; remove {where}.bound")
    alone: Verifier = build(BoundVerifier, {**given, "bound": name}, where)
    return alone
