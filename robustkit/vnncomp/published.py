"""Results beside what the tools of a competition found: how many are solved, and whether any contradict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkit.errors import RobustkitError, SoundnessError
from robustkit.vnncomp.instances import Row

PUBLISHED = "published_results.json"
LEAST_TOOLS = 2
DECIDED = ("sat", "unsat")

Verdicts = dict[tuple[str, str], str]
"""By names of network and property: the verdict to hold results against."""


@dataclass(frozen=True)
class Summary:
    """What became of a benchmark.

    Attributes:
        benchmark: its name.
        instances: how many have a result.
        verified: how many are ``unsat``.
        falsified: how many are ``sat``, each with a replayed counterexample.
        undecided: the others.
        compared: how many are decided here and have a published verdict; None where none are published.
        contradictions: names of those whose published verdict is the other one.
    """

    benchmark: str
    instances: int
    verified: int
    falsified: int
    undecided: int
    compared: int | None
    contradictions: tuple[str, ...]

    @property
    def solved(self) -> int:
        """How many are decided."""
        return self.verified + self.falsified


def summarise(rows: Sequence[Row], published: Verdicts | None) -> Summary:
    """Count results, and hold them against published verdicts.

    Args:
        rows: results of one benchmark.
        published: verdicts by names of network and property; None where there are none.
    """
    results = [row.result for row in rows]
    verified, falsified = results.count("unsat"), results.count("sat")
    pairs = [(row, (published or {}).get(_key(row.onnx, row.vnnlib))) for row in rows if row.result in DECIDED]
    return Summary(
        rows[0].benchmark if rows else "",
        len(rows),
        verified,
        falsified,
        len(rows) - verified - falsified,
        None if published is None else sum(verdict is not None for _, verdict in pairs),
        tuple(
            f"{Path(row.onnx).stem} {Path(row.vnnlib).stem} ({row.result} here, {verdict} published)"
            for row, verdict in pairs
            if verdict not in (None, row.result)
        ),
    )


def read_published(path: Path) -> Verdicts | None:
    """Read published results, and give the verdict of the majority of tools for each instance.

    A verdict counts where at least two tools give it, and more than half of those that decide. The files hold no
    counterexamples; a verdict of a single tool, or one that half of them contradict, is nothing to hold others by.

    Args:
        path: a list of ``{"onnx": name, "vnnlib": name, "results": {tool: [verdict, seconds]}}``.

    Returns:
        The verdicts; None where the file is absent.

    Raises:
        RobustkitError: it is no such list.
    """
    if not path.is_file():
        return None
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        found = {
            _key(one["onnx"], one["vnnlib"]): _majority([given[0] for given in one["results"].values()])
            for one in entries
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise RobustkitError(f"{path} holds no published results ({error!r}); copy it again or remove it") from None
    return {key: verdict for key, verdict in found.items() if verdict is not None}


def check_published(summary: Summary) -> None:
    """Refuse results that contradict published verdicts.

    Raises:
        SoundnessError: names them.
    """
    if summary.contradictions:
        names = "; ".join(summary.contradictions)
        raise SoundnessError(
            f"{len(summary.contradictions)} results of {summary.benchmark} contradict what most tools found: {names}; "
            "find out who is wrong before using any result"
        )


def table(summaries: Sequence[Summary]) -> str:
    """Write summaries as lines of text."""
    heads = ("benchmark", "instances", "solved", "verified", "falsified", "undecided", "compared", "contradict")
    lines = ["".join(f"{head:<16}" if head == heads[0] else f"{head:>11}" for head in heads)]
    for one in summaries:
        compared = ("-", "-") if one.compared is None else (one.compared, len(one.contradictions))
        numbers = (one.instances, one.solved, one.verified, one.falsified, one.undecided, *compared)
        lines.append(f"{one.benchmark:<16}" + "".join(f"{number:>11}" for number in numbers))
    return "\n".join(lines)


def _majority(verdicts: Sequence[str]) -> str | None:
    decided = [one for one in verdicts if one in DECIDED]
    for verdict in DECIDED:
        count = decided.count(verdict)
        if count >= LEAST_TOOLS and 2 * count > len(decided):
            return verdict
    return None


def _key(onnx: str, vnnlib: str) -> tuple[str, str]:
    return Path(onnx).name.removesuffix(".gz"), Path(vnnlib).name.removesuffix(".gz")
