"""Attacks: search for wrongly classified points of a ball; what they miss proves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustkit.attacks.base import Attack, AttackResult
from robustkit.attacks.evaluate import attack_batches
from robustkit.attacks.examples import Examples, load_examples, save_examples
from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.interval_gradient import IntervalGradient
from robustkit.attacks.pgd import CW, PGD
from robustkit.attacks.targeted import TargetedPGD
from robustkit.attacks.torch_attacks import TorchAttacksPGD
from robustkit.config import build
from robustkit.errors import unknown_name

ATTACKS: dict[str, type[Attack]] = {
    "pgd": PGD,
    "cw": CW,
    "targeted-pgd": TargetedPGD,
    "fgsm": FGSM,
    "interval-gradient": IntervalGradient,
    "torchattacks-pgd": TorchAttacksPGD,
}
"""Every attack by the name that tables and the command line use."""

__all__ = [
    "ATTACKS",
    "CW",
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "Examples",
    "IntervalGradient",
    "TargetedPGD",
    "TorchAttacksPGD",
    "attack_batches",
    "load_examples",
    "make_attack",
    "save_examples",
]


def make_attack(name: str, options: Mapping[str, Any] | None = None) -> Attack:
    """Make an attack by name.

    Args:
        name: a key of ``ATTACKS``.
        options: hyper-parameters as TOML gives them; those left out keep their defaults.

    Returns:
        The attack.

    Raises:
        UsageError: no attack has this name, or it has no such hyper-parameter; the nearest names are offered.
    """
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return build(ATTACKS[name], options or {}, f"attack.options.{name}")
