"""The least radius at which an attack breaks each sample, by bisection between the radii it was attacked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from robustkit.attacks import Attack, Points, attack_batches, compose_attack, warmed
from robustkit.config import EvaluationConfig, digest
from robustkit.data import Split
from robustkit.errors import RobustkitError, UsageError
from robustkit.files import replacing
from robustkit.networks import Network
from robustkit.progress import Reporter, working
from robustkit.runs import file_name, share_of, shares_of
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict

FOLDER = "minimal-eps"
"""Where in a run directory the radii are kept."""


@dataclass(frozen=True)
class Minimal:
    """What one attack came to.

    Attributes:
        method: name of the attack.
        radii: columns ``index``, ``label``, ``stands``, the largest radius tried that did not break the sample, and
            ``breaks``, the smallest that did: 0 and 0 for one misclassified itself, NaN where no radius did.
        path: the table as CSV.
    """

    method: str
    radii: pd.DataFrame
    path: Path

    def write(self) -> None:
        """Write the table.

        Raises:
            RobustkitError: it cannot be written.
        """
        with replacing(self.path) as file:
            self.radii.to_csv(file, index=False)

    def plain(self) -> dict[str, Any]:
        """Give its figures as JSON holds them; the median is null where most samples were not broken."""
        median = float(self.radii["breaks"].fillna(np.inf).median())
        return {
            "method": self.method,
            "n": len(self.radii),
            "broken": int(self.radii["breaks"].notna().sum()),
            "median": median if np.isfinite(median) else None,
            "path": str(self.path),
        }

    def describe(self) -> str:
        """Say it in a line."""
        figures = self.plain()
        median = "above all radii" if figures["median"] is None else f"{figures['median']:.4g}"
        return (
            f"minimal eps by {self.method}: median {median}, {figures['broken']} of {figures['n']} samples broken; "
            f"wrote {self.path}"
        )


def minimal_radii(
    network: Network, table: pd.DataFrame, settings: EvaluationConfig, tolerance: float, reporter: Reporter
) -> list[Minimal]:
    """Find for each sample and attack the least radius at which it breaks, and write a table for each attack.

    An upper bound of the true least radius: heuristic, as the attack. Samples between the same two radii are attacked
    together, at the middle of these, first from the points known to break them. Several processes share the samples.
    What an earlier sitting has narrowed is gone on with.

    Args:
        network: the network.
        table: the rows of its attacks, as ``evaluate`` gives them.
        settings: those it was attacked by.
        tolerance: how near ``breaks`` shall come to ``stands``, above 0.
        reporter: told of the progress.

    Returns:
        One for each attack.

    Raises:
        UsageError: the tolerance is not above 0.
        RobustkitError: a file cannot be written, or the model gives no usable logits or no gradient.
    """
    if not tolerance > 0:
        raise UsageError(f"expected --minimal-eps with a tolerance above 0, such as 0.001, got {tolerance:g}")
    found = []
    for name in dict.fromkeys(settings.methods):
        attack = compose_attack(name, settings.options)
        radii = brackets(table[table["method"] == name])
        split, seen = network.dataset.test.take(settings.n), sorted(set(table["eps"]))
        described = [repr(attack), network.subject.model, network.dataset.name, seen, len(split), tolerance]
        path = network.run.path / FOLDER / f"{file_name(name)}-{digest(described)}.csv"
        shares = shares_of(path)
        own = radii.iloc[network.world.share(len(radii), settings.batch_size).numpy()].copy()
        for one in (path, *shares):
            own = narrowed(own, one)
        own_path = path if network.world.size == 1 else share_of(path, network.world.rank)
        with working(reporter, f"minimal eps by {name}", len(own)):
            for finished in _bisect(network, attack, split, own, tolerance, settings.batch_size):
                reporter.advance(finished)
                Minimal(name, own, own_path).write()
        radii = pd.concat(network.world.gather(own)).sort_values("index", ignore_index=True)
        found.append(Minimal(name, radii, path))
        network.world.from_first(found[-1].write)
        for one in {own_path, *shares} - {path}:
            one.unlink(missing_ok=True)
    return found


def narrowed(radii: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Give brackets, narrowed to those that an earlier sitting has written.

    Raises:
        RobustkitError: the file is damaged.
    """
    if not path.exists():
        return radii
    radii = radii.copy()
    try:
        before = pd.read_csv(path).astype({"stands": float, "breaks": float}).set_index("index")
        known = radii["index"].isin(before.index)
        radii.loc[known, ["stands", "breaks"]] = before.loc[radii.loc[known, "index"], ["stands", "breaks"]].to_numpy()
    except (OSError, ValueError, KeyError) as error:
        raise RobustkitError(f"expected least radii in {path}, could not read them ({error}); delete it") from error
    return radii


def brackets(table: pd.DataFrame) -> pd.DataFrame:
    """Give between which radii each sample falls.

    Args:
        table: the rows of one attack at any number of radii.

    Returns:
        The columns of ``Minimal.radii``, a row for each sample; ``stands`` is 0 where the least radius breaks it.
    """
    rows = []
    for (index, label), group in table.groupby(["index", "label"], sort=True):
        broken = group.loc[group["verdict"] == Verdict.FALSIFIED, "eps"]
        breaks = float(broken.min()) if len(broken) else np.nan
        below = group.loc[(group["verdict"] == Verdict.UNKNOWN) & ~(group["eps"] >= breaks), "eps"]
        stands = float(below.max()) if len(below) else 0.0
        wrong = bool((group["verdict"] == Verdict.MISCLASSIFIED).any())
        rows.append((index, label, 0.0 if wrong else stands, 0.0 if wrong else breaks))
    return pd.DataFrame(rows, columns=["index", "label", "stands", "breaks"])


def _bisect(
    network: Network, attack: Attack, split: Split, radii: pd.DataFrame, tolerance: float, batch_size: int
) -> Iterator[int]:
    """Narrow every bracket, in place, and tell how many are narrow enough after each round."""
    known: dict[int, Tensor] = {}
    done = 0
    while True:
        wide = radii[radii["breaks"] - radii["stands"] > tolerance]
        yield len(radii) - len(wide) - done
        done = len(radii) - len(wide)
        if not len(wide):
            return
        for _, group in wide.groupby(["stands", "breaks"]):
            stands, breaks = float(group["stands"].iloc[0]), float(group["breaks"].iloc[0])
            middle = (stands + breaks) / 2
            start = Points(breaks, {one: known[one] for one in group["index"] if one in known})
            part = split.rows(split.among(group["index"])).to(network.device)
            warm = warmed(attack, start)
            for rows, x_adv in attack_batches(warm, network.model, part, LinfBall(middle), network.subject, batch_size):
                broken = (rows["verdict"] == Verdict.FALSIFIED).to_numpy(dtype=bool)
                numbers = rows["index"].to_numpy()
                radii.loc[radii["index"].isin(numbers[broken]), "breaks"] = middle
                radii.loc[radii["index"].isin(numbers[~broken]), "stands"] = middle
                known.update({int(numbers[row]): x_adv[row].cpu() for row in np.flatnonzero(broken)})
