"""The results table: one row per sample and evaluation, from which every reported figure is derived."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from robustkit.errors import RobustkitError, SoundnessError
from robustkit.files import replacing
from robustkit.verdict import Verdict

COLUMNS: dict[str, str] = {
    "run": "str",  # the run directory's name
    "model": "str",  # fingerprint of the weights, so that rows of two networks are never mixed
    "training": "str",  # training method, or "" for a network trained elsewhere
    "train_eps": "float64",
    "dataset": "str",
    "seed": "int64",
    "kind": "str",  # "attack" or "verify"
    "method": "str",  # name of the attack or verifier
    "settings": "str",  # its repr, hyper-parameters included
    "eps": "float64",
    "index": "int64",  # of the sample in its test set
    "label": "int64",
    "predicted": "int64",
    "verdict": "str",
    "margin": "float64",  # attack: the worst margin found; verify: the margin proved; NaN where there is none
    "proved_by": "str",  # what settled the sample
    "reason": "str",  # why it is unknown (of an attack: a tie), or verified in floating point only
    "seconds": "float64",  # this sample's share of the time
}
"""Every column and its type."""

IDENTITY = ["run", "model", "training", "train_eps", "dataset", "seed"]
"""The columns that say which network was evaluated, on what."""


@dataclass(frozen=True)
class Subject:
    """Which network is evaluated, on what: the part of a row that all rows of an evaluation share.

    Attributes:
        run: name of the run.
        model: fingerprint of the weights.
        training: training method, empty for a network trained elsewhere.
        train_eps: radius it was trained for; NaN where unknown.
        dataset: name of the dataset.
        seed: seed of the training run.
    """

    run: str
    model: str
    training: str
    train_eps: float
    dataset: str
    seed: int


def evaluation_table(
    subject: Subject,
    kind: str,
    method: str,
    settings: str,
    *,
    eps: float,
    index: ArrayLike,
    label: ArrayLike,
    predicted: ArrayLike,
    verdict: list[Verdict],
    margin: ArrayLike,
    seconds: ArrayLike,
    proved_by: list[str] | None = None,
    reason: list[str] | None = None,
) -> pd.DataFrame:
    """Make the rows of one evaluation.

    Args:
        subject: which network, on what.
        kind: ``"attack"`` or ``"verify"``.
        method: name of the attack or verifier.
        settings: its repr.
        eps: radius, in pixel units.
        index: positions in the test set, shape ``(N,)``.
        label: true classes, shape ``(N,)``.
        predicted: predicted classes, shape ``(N,)``.
        verdict: one per sample.
        margin: the margin found or proved, shape ``(N,)``.
        seconds: time per sample, shape ``(N,)``.
        proved_by: what settled each sample.
        reason: why each sample is unknown (of an attack: a tie), or verified in floating point only.

    Returns:
        A table with the columns of ``COLUMNS``.
    """
    rows = len(verdict)
    columns = {
        **vars(subject),
        "kind": kind,
        "method": method,
        "settings": settings,
        "eps": eps,
        "index": np.asarray(index),
        "label": np.asarray(label),
        "predicted": np.asarray(predicted),
        "verdict": [str(one) for one in verdict],
        "margin": np.asarray(margin, dtype=float),
        "proved_by": proved_by or [""] * rows,
        "reason": reason or [""] * rows,
        "seconds": np.asarray(seconds, dtype=float),
    }
    return pd.DataFrame(columns, index=range(rows))[list(COLUMNS)].astype(COLUMNS)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a results table as CSV, whole or not at all.

    Raises:
        RobustkitError: the file cannot be written.
    """
    with replacing(path) as file:
        table[list(COLUMNS)].to_csv(file, index=False)


def read_table(path: Path) -> pd.DataFrame:
    """Read a results table and hold it against the schema.

    Raises:
        RobustkitError: the file is missing, cut short, or not a results table.
    """
    try:
        table = pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, na_values={"margin": "", "train_eps": ""})
    except FileNotFoundError:
        raise RobustkitError(f"expected a results table at {path}, found none; run attack or verify first") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise RobustkitError(f"expected a results table at {path}, could not read it ({error}); delete it") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    strange = sorted(set(table["verdict"]) - set(Verdict)) if not missing else []
    if missing or strange:
        what = f"columns {', '.join(missing)} are missing" if missing else f"verdict {strange[0]!r} is unknown"
        raise RobustkitError(f"expected a results table at {path}, but {what}; delete it and evaluate again")
    return _without_claims_of_old(table[list(COLUMNS)])


def _without_claims_of_old(table: pd.DataFrame) -> pd.DataFrame:
    """Count as verified in floating point only what was written before proofs of bounds were checked again."""
    settings = table["settings"]
    unchecked = settings.str.startswith(("BoundVerifier(", "Cascade(")) & ~settings.str.contains("recheck=True")
    unchecked |= table["proved_by"].str.endswith("(float)")
    claimed = unchecked & (table["verdict"] == Verdict.VERIFIED)
    return table.assign(verdict=table["verdict"].mask(claimed, str(Verdict.VERIFIED_FLOAT)))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Derive the figures of every evaluation.

    Args:
        table: any results table.

    Returns:
        One row per evaluation, with its identity, ``kind, method, eps`` and: ``n`` samples; ``clean``, the fraction
        classified rightly; ``robust``, the fraction left standing: not broken by an attack (ERA), or verified and
        checked again (VRA); ``float``, the fraction verified in floating point only, which ``robust`` leaves out;
        ``falsified`` and ``unknown`` fractions; and ``seconds`` in all.
    """
    keys = [*IDENTITY, "kind", "method", "eps"]
    verdict = table["verdict"]
    standing = (verdict == Verdict.VERIFIED) | ((table["kind"] == "attack") & (verdict == Verdict.UNKNOWN))
    figures = table[keys].assign(
        n=1.0,
        clean=verdict != Verdict.MISCLASSIFIED,
        robust=standing,
        float=verdict == Verdict.VERIFIED_FLOAT,
        falsified=verdict == Verdict.FALSIFIED,
        unknown=verdict == Verdict.UNKNOWN,
        seconds=table["seconds"],
    )
    means = dict.fromkeys(("clean", "robust", "float", "falsified", "unknown"), "mean")
    rules = {"n": "size", **means, "seconds": "sum"}
    return figures.groupby(keys, sort=False, dropna=False).agg(rules).reset_index()


def find_clashes(table: pd.DataFrame) -> pd.DataFrame:
    """Find the samples verified, of either kind, at a radius at which or below which they are broken.

    Args:
        table: results of any number of evaluations.

    Returns:
        One row per pair: the verified row, and the broken one's columns with the suffix ``_broken``.
    """
    sample = ["model", "dataset", "index"]
    broken = table[table["verdict"].isin([Verdict.MISCLASSIFIED, Verdict.FALSIFIED])].copy()
    broken.loc[broken["verdict"] == Verdict.MISCLASSIFIED, "eps"] = 0.0
    verified = table[table["verdict"].isin([Verdict.VERIFIED, Verdict.VERIFIED_FLOAT])]
    pairs = verified.merge(broken, on=sample, suffixes=("", "_broken"))
    return pairs[pairs["eps_broken"] <= pairs["eps"]]


def check_coherence(table: pd.DataFrame) -> None:
    """Hold ``VRA <= ERA <= clean`` sample by sample, over all evaluations of a network together.

    A sample verified at one radius must not be misclassified, nor falsified at that radius or any smaller one.

    Args:
        table: results of any number of evaluations.

    Raises:
        SoundnessError: a sample is both verified and broken; the message names it.
    """
    clashes = find_clashes(table)
    if len(clashes):
        first = clashes.iloc[0]
        raise SoundnessError(
            f"sample {first['index']} of {first['dataset']} is {first['verdict']} at eps {first['eps']:g} "
            f"by {first['method']} and {first['verdict_broken']} at eps {first['eps_broken']:g} "
            f"by {first['method_broken']} "
            f"({len(clashes)} such pairs): one of the two is wrong, and no result of this run may be used"
        )
