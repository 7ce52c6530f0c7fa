"""The competition's two tables: the instances of a benchmark, and their results."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from robustkit.errors import RobustkitError, UsageError
from robustkit.files import replacing

ERROR = "error"
"""Result of an instance whose worker broke down or was killed; it is tried again."""
RESULTS = ("sat", "unsat", "unknown", "timeout", ERROR)
PROOFS = ("checked", "float")


@dataclass(frozen=True)
class Instance:
    """One line of ``instances.csv``.

    Attributes:
        folder: of the file, from which the paths start; its name is the benchmark's.
        onnx: path of the network as it is written there; the file may have ``.gz`` behind it.
        vnnlib: path of the property, likewise.
        timeout: seconds.
    """

    folder: Path
    onnx: str
    vnnlib: str
    timeout: float

    @property
    def name(self) -> str:
        """Network and property in short."""
        return f"{Path(self.onnx).stem} {Path(self.vnnlib).stem}"

    def file(self, written: str) -> Path:
        """Find a file as it is or gzipped."""
        path = self.folder / written
        packed = path.with_name(f"{path.name}.gz")
        return packed if packed.is_file() and not path.is_file() else path


@dataclass(frozen=True)
class Row:
    """One line of ``results.csv``, in the competition's order.

    Attributes:
        benchmark: its name.
        onnx: as in ``instances.csv``.
        vnnlib: as in ``instances.csv``.
        prepare_time: seconds that reading both took.
        result: ``sat``, ``unsat``, ``unknown``, ``timeout`` or ``error``.
        run_time: seconds that the verdict took, the check of its proof included.
        proof: of ``unsat``: ``checked`` where the independent checker has accepted the proof, else ``float``.
        check_time: seconds that the check took.
        note: why a proof is not accepted.
    """

    benchmark: str
    onnx: str
    vnnlib: str
    prepare_time: float
    result: str
    run_time: float
    proof: str = ""
    check_time: float = 0.0
    note: str = ""


def read_instances(path: Path, timeout: float | None = None) -> list[Instance]:
    """Read ``instances.csv``: lines of ``onnx,vnnlib,seconds``, with paths from its own folder.

    Args:
        path: the file.
        timeout: seconds for every instance, instead of its own.

    Raises:
        UsageError: a timeout that is not above 0.
        RobustkitError: the file is absent or empty, or a line is malformed or there twice; with its number.
    """
    if timeout is not None and not 0 < timeout < math.inf:
        raise UsageError(f"expected a timeout above 0 seconds, got {timeout:g}; give it time")
    found: dict[tuple[str, str], Instance] = {}
    for number, cells in _lines(path):
        if len(cells) != 3:
            raise _malformed(path, number, f"onnx,vnnlib,seconds, got {len(cells)} cells")
        seconds = _number(cells[2])
        if not seconds > 0:
            raise _malformed(path, number, f"seconds above 0, got {cells[2]!r}")
        one = Instance(path.resolve().parent, cells[0], cells[1], timeout or seconds)
        if (one.onnx, one.vnnlib) in found:
            raise _malformed(path, number, f"every instance once, got {one.name} again")
        missing = next((file for file in map(one.file, (one.onnx, one.vnnlib)) if not file.is_file()), None)
        if missing:
            raise _malformed(path, number, f"a file at {missing} (or {missing.name}.gz), found none")
        found[one.onnx, one.vnnlib] = one
    if not found:
        raise RobustkitError(f"expected instances in {path}, got none; check the file")
    return list(found.values())


def read_results(path: Path) -> list[Row]:
    """Read ``results.csv`` and, where it lies beside it, ``results.proofs.csv``; an absent file has no rows.

    An ``unsat`` of which the second says nothing counts as ``float``.

    Raises:
        RobustkitError: a line is malformed; with its number.
    """
    rows, proofs = [], _read_proofs(proofs_of(path))
    for number, cells in _lines(path) if path.exists() else ():
        if len(cells) != 6:
            raise _malformed(path, number, f"6 cells, got {len(cells)}")
        times = _number(cells[3]), _number(cells[5])
        if cells[4] not in RESULTS or not min(times) >= 0:
            raise _malformed(path, number, f"a result of {', '.join(RESULTS)} and two times, got {','.join(cells[3:])}")
        proof = proofs.get((cells[1], cells[2]), ("float", 0.0, "")) if cells[4] == "unsat" else ("", 0.0, "")
        rows.append(Row(cells[0], cells[1], cells[2], times[0], cells[4], times[1], *proof))
    return rows


def proofs_of(path: Path) -> Path:
    """Name the table of proofs that lies beside a table of results."""
    return path.with_name(f"{path.stem}.proofs.csv")


def _read_proofs(path: Path) -> dict[tuple[str, str], tuple[str, float, str]]:
    """Read of each ``unsat``, by network and property, what became of its proof."""
    found = {}
    for number, cells in _lines(path) if path.exists() else ():
        seconds = _number(cells[3]) if len(cells) == 5 else math.nan
        if not seconds >= 0 or cells[2] not in PROOFS:
            raise _malformed(path, number, f"onnx,vnnlib,{' or '.join(PROOFS)},seconds,note, got {','.join(cells)}")
        found[cells[0], cells[1]] = (cells[2], seconds, cells[4])
    return found


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write ``results.csv`` without a heading, as the competition's scoring reads it, and what it has no column for.

    ``results.proofs.csv`` beside it says of every ``unsat`` whether its proof was checked. Each is written whole or not
    at all.
    """
    proofs = [(row.onnx, row.vnnlib, row.proof, row.check_time, row.note) for row in rows if row.result == "unsat"]
    _write(proofs_of(path), proofs)
    _write(path, [astuple(row)[:6] for row in rows])


def _write(path: Path, rows: Sequence[tuple[object, ...]]) -> None:
    with replacing(path) as file:
        csv.writer(file, lineterminator="\n").writerows(
            [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row] for row in rows
        )


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(enumerate([[cell.strip() for cell in cells] for cells in csv.reader(file)], start=1))
    except OSError as error:
        raise RobustkitError(f"expected a table at {path}: {error.strerror}; check the path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise RobustkitError(f"{path} is no table of comma-separated values: {error}; check the file") from None
    return [(number, cells) for number, cells in rows if any(cells)]


def _number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def _malformed(path: Path, number: int, what: str) -> RobustkitError:
    return RobustkitError(f"{path}, line {number}: expected {what}; mend the line")
