"""The checks of a network's attacks: run once on a few samples, kept in the run directory, read by reports."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from robustkit.attacks import Check, compose_attack, run_checks
from robustkit.config import EvaluationConfig, build, digest
from robustkit.errors import RobustkitError
from robustkit.files import replacing
from robustkit.networks import Network
from robustkit.progress import Reporter, working
from robustkit.runs import Run
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict

CHECKS_FILE = "checks.json"
REMEDY = "  after a warning, what attacks left may flatter the network: add --method targeted-pgd or autoattack"
BLIND = "  where gradients are hidden, what attacks left flatters the network: add --method square, which needs none"
FEWEST, MOST = 10, 50
"""Samples checked: a tenth of those attacked, within these limits."""


@dataclass(frozen=True)
class Checked:
    """What the checks of a network's attacks came to.

    Attributes:
        key: changes with the weights, the attacks, the radius and the samples.
        eps: the radius they were made at: of several the middle one.
        n: samples.
        checks: the checks.
    """

    key: str
    eps: float
    n: int
    checks: tuple[Check, ...]

    def plain(self) -> dict[str, Any]:
        """Give it as JSON holds it."""
        return asdict(self)


def check_attacks(
    network: Network, table: pd.DataFrame, settings: EvaluationConfig, reporter: Reporter
) -> Checked | None:
    """Check what attacks found on a network; what an earlier sitting checked is kept.

    It costs at most about as much as PGD-40 on all samples, from a hundred of them on.

    Args:
        network: the network.
        table: the rows of its attacks, as ``evaluate`` gives them.
        settings: those it was attacked by.
        reporter: told of the progress.

    Returns:
        The checks, or None where they are switched off or every radius is 0.

    Raises:
        RobustkitError: the file cannot be written, or the model gives no usable logits or no gradient.
    """
    radii = sorted(eps for eps in set(table["eps"]) if eps > 0)
    if not settings.checks or not radii:
        return None
    eps = radii[len(radii) // 2]
    rows = table[table["eps"] == eps]
    split = network.dataset.test.take(settings.n)
    part = split.take(min(MOST, max(FEWEST, len(split) // 10)))
    described = sorted(set(rows["settings"]))
    key = digest([network.subject.model, network.dataset.name, eps, len(part), described, "1"])
    before = network.world.from_first(lambda: read_checks(network.run))
    if before is not None and before.key == key:
        return before
    broken = rows.loc[rows["verdict"] == Verdict.FALSIFIED, "index"]
    attacks = [compose_attack(name, settings.options) for name in dict.fromkeys(settings.methods)]

    def check() -> Checked:
        with working(reporter, f"checks at eps {eps:.4g}", len(part)):
            checks = run_checks(network.model, part.x, part.y, LinfBall(eps), part.among(broken), attacks)
            reporter.advance(len(part))
        checked = Checked(key, eps, len(part), tuple(checks))
        with replacing(network.run.path / CHECKS_FILE) as file:
            json.dump(checked.plain(), file, indent=2)
        return checked

    return network.world.from_first(check)


def read_checks(run: Run) -> Checked | None:
    """Read the checks of a run; None where there are none.

    Raises:
        RobustkitError: the file is damaged.
    """
    path = run.path / CHECKS_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        checks = tuple(build(Check, one) for one in found.pop("checks"))
        return Checked(**found, checks=checks)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RobustkitError) as error:
        raise RobustkitError(
            f"expected checks of attacks in {path}, could not read them ({error}); delete it"
        ) from error


def describe_checks(checked: Checked) -> list[str]:
    """Say what checks came to: a line for all of them, and one for each."""
    passed = sum(check.passed for check in checked.checks)
    blind = any(check.name == "zero-gradient" and not check.passed for check in checked.checks)
    return [
        f"checks on {checked.n} samples at eps {checked.eps:.4g}: {passed} of {len(checked.checks)} pass",
        *(
            f"  {'pass' if check.passed else 'warn'}  {check.name:<15}{check.value:>10.3g}  {check.expected}"
            for check in checked.checks
        ),
        *([] if passed == len(checked.checks) else [BLIND if blind else REMEDY]),
    ]
