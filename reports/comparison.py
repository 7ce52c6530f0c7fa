"""The comparison: training methods against what attacks leave and what verifiers prove, derived from the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from scipy.stats import binomtest

from robustkit.reports.facts import RunFacts, eps_text, recipes
from robustkit.verdict import Verdict

CLEAN, ALL_ATTACKS, UNDECIDED, TIME = "clean", "all attacks", "undecided", "training s"
ANY_VERIFIER, FLOAT_ONLY = "certified", "certified (float)"
FLOAT_LEGEND = f"{FLOAT_ONLY}: proved in addition, but in floating point only, not confirmed by the float64 checker"
BROKEN = [Verdict.MISCLASSIFIED, Verdict.FALSIFIED]


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        value: a fraction in [0, 1], or seconds; NaN where nothing was measured.
        low: lower end of the 95 % Wilson interval, or NaN.
        high: upper end.
        n: samples.
        deviation: sample standard deviation over the seeds; NaN for a single one.
        best: no other row has a better value.
        runs: how many were measured.
        missing: how many more runs of the row were not.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    deviation: float = math.nan
    best: bool = False
    runs: int = 1
    missing: int = 0

    @property
    def measured(self) -> bool:
        """Whether there is a figure."""
        return not math.isnan(self.value)


@dataclass(frozen=True)
class Row:
    """One training recipe, over all its seeds.

    Attributes:
        label: the method, and what tells it from another row of the same method.
        method: the method alone.
        train_eps: radius it was trained for; NaN where unknown.
        seeds: of its runs.
        runs: their names.
        cells: by column.
    """

    label: str
    method: str
    train_eps: float
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Block:
    """All methods at one radius on one dataset with one architecture.

    Attributes:
        dataset: its name.
        model: architecture.
        eps: radius of the evaluation.
        columns: headings, in order.
        rows: one per method.
        hardware: what the runs were computed on.
    """

    dataset: str
    model: str
    eps: float
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    hardware: tuple[str, ...] = field(default=())

    @property
    def n(self) -> int:
        """The number of samples most cells share."""
        sizes = pd.Series(
            [cell.n for row in self.rows for name, cell in row.cells.items() if cell.n and name != FLOAT_ONLY]
        )
        return int(sizes.mode().max()) if len(sizes) else 0

    @property
    def caption(self) -> str:
        """Say what the figures are, on what, how many and by what."""
        return (
            f"{self.dataset}, {self.model}, L-infinity eps {eps_text(self.eps)}, N = {self.n:,} test samples, "
            f"{self._seeds}; accuracy in %, {self._spread}; "
            f"measured on {'; '.join(self.hardware) or 'unknown hardware'}{self._float}"
        )

    @property
    def uneven(self) -> bool:
        """Whether rows stand on different numbers of runs."""
        return len({len(row.runs) for row in self.rows}) > 1

    @property
    def _float(self) -> str:
        return f"; {FLOAT_LEGEND}" if FLOAT_ONLY in self.columns else ""

    @property
    def _seeds(self) -> str:
        seeds = sorted({seed for row in self.rows for seed in row.seeds})
        listed = ", ".join(map(str, seeds))
        return f"seed {listed}" if len(seeds) == 1 else f"{len(seeds)} seeds ({listed})"

    @property
    def _spread(self) -> str:
        most = max((len(row.runs) for row in self.rows), default=1)
        if most == 1:
            return "95 % Wilson intervals"
        over = "seeds" if all(len(row.runs) == len(row.seeds) for row in self.rows) else "runs"
        single = ", 95 % Wilson intervals where there is one" if self.uneven else ""
        return f"mean and standard deviation over {over}{single}"


def compare(table: pd.DataFrame, runs: Sequence[RunFacts]) -> list[Block]:
    """Derive the comparison from a results table.

    Args:
        table: rows of any number of runs and evaluations.
        runs: facts of each of these runs.

    Returns:
        One block for each dataset, architecture and radius, in this order.
    """
    kinds = sorted({(run.dataset, run.model) for run in runs})
    blocks = []
    for dataset, model in kinds:
        members = [run for run in runs if (run.dataset, run.model) == (dataset, model)]
        rows = table[table["run"].isin([run.name for run in members]) & (table["dataset"] == dataset)]
        blocks += [_block(rows[rows["eps"] == eps], members, eps) for eps in sorted(rows["eps"].unique())]
    return blocks


def figures(rows: pd.DataFrame) -> dict[str, Cell]:
    """Derive every figure of one network at one radius.

    Where a method was run with several settings, the evaluation with the most samples counts.

    Args:
        rows: results of that network at that radius.

    Returns:
        Cells by column.
    """
    evaluations = _evaluations(rows)
    cells = {CLEAN: _share(max(evaluations.values(), key=len)["verdict"] != Verdict.MISCLASSIFIED)}
    attacks = {name: one for (kind, name), one in evaluations.items() if kind == "attack"}
    verifiers = {name: one for (kind, name), one in evaluations.items() if kind == "verify"}
    for name, one in attacks.items():
        cells[name] = _share(~one["verdict"].isin(BROKEN))
    verdicts = pd.DataFrame({key: one.set_index("index")["verdict"] for key, one in evaluations.items()})
    falsifying = [name for name, one in verifiers.items() if (one["verdict"] == Verdict.FALSIFIED).any()]
    by = [("attack", name) for name in attacks] or [("verify", name) for name in falsifying]
    searched = verdicts[by].dropna() if by else verdicts.iloc[:0]
    standing = ~verdicts.loc[searched.index].isin(BROKEN).any(axis=1)
    if len(attacks) > 1 or (by and verifiers):
        cells[ALL_ATTACKS] = _share(standing)
    for name, one in verifiers.items():
        cells[_certified_by(name)] = _share(one["verdict"] == Verdict.VERIFIED)
    if verifiers:
        found = verdicts[[("verify", name) for name in verifiers]].dropna()
        proved, unchecked = (found.isin([one]).any(axis=1) for one in (Verdict.VERIFIED, Verdict.VERIFIED_FLOAT))
        cells[ANY_VERIFIER], cells[FLOAT_ONLY] = _share(proved), _share(unchecked & ~proved)
        common = standing.index.intersection(proved.index)
        if len(common):
            cells[UNDECIDED] = _share(standing[common] & ~proved[common] & ~unchecked[common])
    return cells


def _certified_by(verifier: str) -> str:
    return f"certified ({verifier})"


def _is_of_one_verifier(column: str) -> bool:
    return column.startswith("certified (") and column != FLOAT_ONLY


def _evaluations(rows: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    chosen: dict[tuple[str, str], pd.DataFrame] = {}
    for (kind, method, _), one in rows.groupby(["kind", "method", "settings"], sort=False):
        key = (str(kind), str(method))
        if key not in chosen or len(one) > len(chosen[key]):
            chosen[key] = one
    return chosen


def _share(holds: pd.Series[bool]) -> Cell:
    if not len(holds):
        return Cell()
    interval = binomtest(int(holds.sum()), len(holds)).proportion_ci(method="wilson")
    return Cell(float(holds.mean()), float(interval.low), float(interval.high), len(holds))


def _block(rows: pd.DataFrame, members: Sequence[RunFacts], eps: float) -> Block:
    evaluated = set(rows["run"])
    found = [(label, [run for run in group if run.name in evaluated]) for label, group in recipes(members)]
    groups = [(label, group) for label, group in found if group]
    made = [_row(rows, label, group) for label, group in groups]
    present = [name for row in made for name in row.cells]
    columns = tuple(sorted(set(present), key=_place))
    if sum(map(_is_of_one_verifier, columns)) == 1:  # one verifier: its column is the answer
        columns = tuple(name for name in columns if not _is_of_one_verifier(name))
    if not any(row.cells[FLOAT_ONLY].value > 0 for row in made if FLOAT_ONLY in row.cells):
        columns = tuple(name for name in columns if name != FLOAT_ONLY)
    if sum(name not in (CLEAN, ALL_ATTACKS, UNDECIDED, TIME) for name in columns if "certified" not in name) == 1:
        columns = tuple(name for name in columns if name != ALL_ATTACKS) if not _differs(made) else columns
    hardware = tuple(sorted({run.hardware for _, group in groups for run in group if run.hardware}))
    first = members[0]
    return Block(first.dataset, first.model, eps, columns, tuple(_mark_best(made, columns)), hardware)


def _differs(rows: Sequence[Row]) -> bool:
    """Say whether a verifier broke a sample that the only attack had left."""
    for row in rows:
        attacked = [cell for name, cell in row.cells.items() if _place(name)[0] == 1]
        every = row.cells.get(ALL_ATTACKS, Cell())
        if attacked and every.measured and every.value < attacked[0].value:
            return True
    return False


def _place(column: str) -> tuple[int, str]:
    order = {CLEAN: 0, ALL_ATTACKS: 2, ANY_VERIFIER: 4, FLOAT_ONLY: 5, UNDECIDED: 6, TIME: 7}
    if column in order:
        return order[column], ""
    if column.startswith("certified ("):
        return 3, column
    return 1, "" if column == "pgd" else column


def _row(rows: pd.DataFrame, label: str, group: Sequence[RunFacts]) -> Row:
    each = [figures(rows[rows["run"] == run.name]) for run in group]
    names = {name: None for one in each for name in one}
    cells = {name: _over_seeds([one.get(name, Cell()) for one in each]) for name in names}
    times = _over_seeds([Cell(run.train_seconds) for run in group])
    if times.measured:
        cells[TIME] = times
    seeds = tuple(sorted({run.seed for run in group}))
    return Row(label, group[0].label, group[0].train_eps, seeds, tuple(run.name for run in group), cells)


def _over_seeds(cells: Sequence[Cell]) -> Cell:
    """Take the mean over the runs in which the figure was measured, and say in how many it was not."""
    measured = [cell for cell in cells if cell.measured]
    missing = len(cells) - len(measured)
    if len(measured) < 2:
        return replace(measured[0], missing=missing) if measured else Cell()
    values = pd.Series([cell.value for cell in measured])
    size, deviation = min(cell.n for cell in measured), float(values.std(ddof=1))
    return Cell(float(values.mean()), n=size, deviation=deviation, runs=len(measured), missing=missing)


def _mark_best(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    best = {}
    for name in columns:
        values = [row.cells[name].value for row in rows if name in row.cells and row.cells[name].measured]
        if name not in (FLOAT_ONLY, UNDECIDED, TIME) and len(values) > 1:
            best[name] = max(values)
    return [
        replace(
            row,
            cells={
                name: replace(cell, best=name in best and cell.value == best[name]) for name, cell in row.cells.items()
            },
        )
        for row in rows
    ]
