"""Attacks: search for wrongly classified points of a ball; what they miss proves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustkit.attacks.apgd import APGDCE, APGDDLR, APGDT
from robustkit.attacks.autoattack import AutoAttack
from robustkit.attacks.base import Attack, AttackResult
from robustkit.attacks.battery import JOIN, Battery
from robustkit.attacks.borrowed import MIFGSM, TorchAttacksPGD
from robustkit.attacks.by_name import PREFIX, TorchAttack, library_attack, library_attacks, library_page
from robustkit.attacks.checks import Check, run_checks
from robustkit.attacks.evaluate import attack_batches
from robustkit.attacks.examples import Examples, load_examples, save_examples
from robustkit.attacks.fab import FAB
from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.interval_gradient import IntervalGradient
from robustkit.attacks.pgd import CW, PGD
from robustkit.attacks.replay import Replay, Replayed, replay_examples
from robustkit.attacks.square import Square
from robustkit.attacks.targeted import TargetedPGD
from robustkit.attacks.warm import Points, Warm, warmed
from robustkit.config import build
from robustkit.errors import UsageError, unknown_name

ATTACKS: dict[str, type[Attack]] = {
    "pgd": PGD,
    "cw": CW,
    "targeted-pgd": TargetedPGD,
    "fgsm": FGSM,
    "mi-fgsm": MIFGSM,
    "apgd-ce": APGDCE,
    "apgd-dlr": APGDDLR,
    "apgd-t": APGDT,
    "fab": FAB,
    "square": Square,
    "autoattack": AutoAttack,
    "interval-gradient": IntervalGradient,
    "torchattacks-pgd": TorchAttacksPGD,
}
"""Every attack by the name that tables and the command line use."""

__all__ = [
    "APGDCE",
    "APGDDLR",
    "APGDT",
    "ATTACKS",
    "CW",
    "FAB",
    "FGSM",
    "JOIN",
    "MIFGSM",
    "PGD",
    "PREFIX",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "Battery",
    "Check",
    "Examples",
    "IntervalGradient",
    "Points",
    "Replay",
    "Replayed",
    "Square",
    "TargetedPGD",
    "TorchAttack",
    "TorchAttacksPGD",
    "Warm",
    "attack_batches",
    "compose_attack",
    "library_attacks",
    "library_page",
    "load_examples",
    "make_attack",
    "replay_examples",
    "run_checks",
    "save_examples",
    "warmed",
]


def make_attack(name: str, options: Mapping[str, Any] | None = None) -> Attack:
    """Make an attack by name.

    Args:
        name: a key of ``ATTACKS``, or ``torchattacks:NAME``.
        options: hyper-parameters as TOML gives them; those left out keep their defaults.

    Returns:
        The attack.

    Raises:
        UsageError: no attack has this name, or it has no such hyper-parameter; the nearest names are offered.
    """
    if name.startswith(PREFIX):
        return library_attack(name, options or {})
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return build(ATTACKS[name], options or {}, f"attack.options.{name}")


def compose_attack(name: str, options: Mapping[str, Mapping[str, Any]]) -> Attack:
    """Make an attack, or a battery of several, from the options of all attacks.

    Args:
        name: as of ``make_attack``, or several of them joined by ``+``.
        options: hyper-parameters, by the name of a single attack.

    Returns:
        The attack, or the battery.

    Raises:
        UsageError: as ``make_attack``; or a name that stands twice.
    """
    names = name.split(JOIN)
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        raise UsageError(f"expected each attack of a battery once, got {', '.join(twice)} twice; leave one out")
    attacks = tuple(make_attack(one, options.get(one)) for one in names)
    return attacks[0] if len(attacks) == 1 else Battery(attacks)
