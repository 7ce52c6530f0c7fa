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
        verified: how many are ``unsat`` with a proof that the independent checker has accepted.
        floating: how many are ``unsat`` by float32 arithmetic alone.
        falsified: how many are ``sat``, each with a replayed counterexample.
        timeouts: how many the time was not enough for.
        undecided: the others.
        compared: how many are decided here and have a published verdict; None where none are published.
        contradictions: names of those whose published verdict is the other one.
    """

    benchmark: str
    instances: int
    verified: int
    floating: int
    falsified: int
    timeouts: int
    undecided: int
    compared: int | None
    contradictions: tuple[str, ...]

    @property
    def solved(self) -> int:
        """How many are decided."""
        return self.verified + self.floating + self.falsified


def summarise(rows: Sequence[Row], published: Verdicts | None) -> Summary:
    """Count results, and hold them against published verdicts.

    Args:
        rows: results of one benchmark.
        published: verdicts by names of network and property; None where there are none.
    """
    results = [row.result for row in rows]
    unsat, falsified, timeouts = (results.count(one) for one in ("unsat", "sat", "timeout"))
    verified = sum(row.result == "unsat" and row.proof == "checked" for row in rows)
    pairs = [(row, (published or {}).get(_key(row.onnx, row.vnnlib))) for row in rows if row.result in DECIDED]
    return Summary(
        rows[0].benchmark if rows else "",
        len(rows),
        verified,
        unsat - verified,
        falsified,
        timeouts,
        len(rows) - unsat - falsified - timeouts,
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
    found = {key: _majority([verdict for verdict, _ in results.values()]) for key, results in _entries(path).items()}
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


@dataclass(frozen=True)
class Tool:
    """What a tool of the competition came to.

    Attributes:
        name: of the tool.
        instances: how many of the instances it was given.
        verified: how many it found ``unsat``.
        falsified: how many it found ``sat``.
        against: how many of these verdicts contradict that of most tools.
        slowest: seconds that the slowest of its verdicts took; 0 without any.
    """

    name: str
    instances: int
    verified: int
    falsified: int
    against: int
    slowest: float

    @property
    def solved(self) -> int:
        """How many it decided."""
        return self.verified + self.falsified


def read_tools(path: Path, rows: Sequence[Row]) -> list[Tool]:
    """Count what published tools decided of the instances that have a result here, the best tool first.

    Args:
        path: see ``read_published``.
        rows: results of one benchmark.

    Returns:
        The tools; none where the file is absent. Their verdicts count as they stand, contradicted ones too.

    Raises:
        RobustkitError: it is no such list.
    """
    wanted = {_key(row.onnx, row.vnnlib) for row in rows}
    given: dict[str, list[tuple[str, float, bool]]] = {}
    for key, results in _entries(path).items():
        most = _majority([verdict for verdict, _ in results.values()])
        for tool, (verdict, seconds) in results.items() if key in wanted else ():
            given.setdefault(tool, []).append((verdict, seconds, verdict in DECIDED and most not in (None, verdict)))
    return sorted((_tool(name, found) for name, found in given.items()), key=lambda one: (-one.solved, one.name))


def _tool(name: str, found: Sequence[tuple[str, float, bool]]) -> Tool:
    verdicts, against = [verdict for verdict, _, _ in found], sum(wrong for _, _, wrong in found)
    slowest = max((seconds for verdict, seconds, _ in found if verdict in DECIDED), default=0.0)
    return Tool(name, len(found), verdicts.count("unsat"), verdicts.count("sat"), against, slowest)


def table(summaries: Sequence[Summary], tools: Sequence[Tool] = ()) -> str:
    """Write summaries as lines of text, and below them what published tools came to at their own limits.

    ``verified`` counts checked proofs only; a tool's are counted as it published them.
    """
    heads = ("benchmark", "instances", "solved", "verified", "float", "falsified", "timeout", "undecided", "compared")
    lines = [_line(*heads, "contradict")]
    for one in summaries:
        compared = ("-", "-") if one.compared is None else (one.compared, len(one.contradictions))
        numbers = (one.instances, one.solved, one.verified, one.floating, one.falsified, one.timeouts, one.undecided)
        lines.append(_line(one.benchmark, *numbers, *compared))
    if tools:
        lines += ["", _line("published", "instances", "solved", "unsat", "sat", "against", "slowest s")]
        lines += [
            _line(one.name, one.instances, one.solved, one.verified, one.falsified, one.against, f"{one.slowest:.0f}")
            for one in tools
        ]
    return "\n".join(lines)


def _line(name: str, *cells: object) -> str:
    return f"{name:<18}" + "".join(f"{cell!s:>11}" for cell in cells)


def _entries(path: Path) -> dict[tuple[str, str], dict[str, tuple[str, float]]]:
    """Read of each instance what every tool said and how long it took; nothing where the file is absent."""
    if not path.is_file():
        return {}
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return {
            _key(one["onnx"], one["vnnlib"]): {
                tool: (str(given[0]), float(given[1])) for tool, given in one["results"].items()
            }
            for one in entries
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise RobustkitError(f"{path} holds no published results ({error!r}); copy it again or remove it") from None


def _majority(verdicts: Sequence[str]) -> str | None:
    decided = [one for one in verdicts if one in DECIDED]
    for verdict in DECIDED:
        count = decided.count(verdict)
        if count >= LEAST_TOOLS and 2 * count > len(decided):
            return verdict
    return None


def _key(onnx: str, vnnlib: str) -> tuple[str, str]:
    return Path(onnx).name.removesuffix(".gz"), Path(vnnlib).name.removesuffix(".gz")
