"""The rows and the examples of one evaluation, in memory and on disk: what an earlier sitting computed is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from robustkit.attacks import Examples, load_examples, save_examples
from robustkit.data import Split
from robustkit.errors import RobustkitError
from robustkit.networks import Network
from robustkit.results import COLUMNS, read_table, write_table
from robustkit.runs import EXAMPLES, RESULTS, share_of, shares_of
from robustkit.verdict import Verdict
from robustkit.world import World

KEPT_EXAMPLES = 500
"""Adversarial examples kept of each evaluation."""

WRITE_EVERY = 5.0
"""Seconds after which finished rows are written, at the latest."""


@dataclass(frozen=True)
class Rows:
    """Rows of an evaluation, with some of its examples; both ascend by the position of their sample.

    Attributes:
        table: the rows, one for each sample.
        examples: of samples that were broken, at most ``KEPT_EXAMPLES``; None where there are none.
    """

    table: pd.DataFrame
    examples: Examples | None = None

    @classmethod
    def none(cls) -> Rows:
        """Give no rows."""
        return cls(pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS))

    @classmethod
    def read(cls, files: _Files, model: str) -> Rows:
        """Read what is there for these very weights; what is of other weights that stood here before is left out."""
        if not files.table.exists():
            return cls.none()
        table = read_table(files.table)
        if (table["model"] != model).any():
            files.examples.unlink(missing_ok=True)
            return cls.none()
        return cls(table, load_examples(files.examples) if files.examples.exists() else None)

    @classmethod
    def together(cls, parts: Sequence[Rows]) -> Rows:
        """Give all rows; where parts have the same sample, that of the first."""
        tables = [one.table for one in parts if len(one.table)]
        if not tables:
            return cls.none()
        table = pd.concat(tables, ignore_index=True).drop_duplicates("index")
        examples = None
        for one in parts:
            examples = one.examples.after(examples) if one.examples is not None else examples
        return cls(table.sort_values("index", ignore_index=True), _first(examples))

    def write(self, files: _Files) -> None:
        """Write both, each whole or not at all."""
        write_table(self.table, files.table)
        if self.examples is not None and len(self.examples.y):
            save_examples(files.examples, self.examples)


@dataclass(frozen=True)
class _Files:
    """Where rows and their examples lie."""

    table: Path
    examples: Path

    @classmethod
    def of(cls, network: Network, name: str) -> _Files:
        """Give the files of an evaluation."""
        folder = network.run.path
        return cls(folder / RESULTS / f"{name}.csv", folder / EXAMPLES / f"{name}.npz")

    def share(self, rank: int) -> _Files:
        """Give the files of one process's share."""
        return _Files(share_of(self.table, rank), share_of(self.examples, rank))

    def shares(self) -> list[_Files]:
        """Give the files of the shares that lie beside these."""
        return [_Files(one, self.examples.with_name(f"{one.stem}.npz")) for one in shares_of(self.table)]

    def unlink(self) -> None:
        """Remove both."""
        self.examples.unlink(missing_ok=True)  # first: the table says that they are there
        self.table.unlink(missing_ok=True)


@dataclass
class Store:
    """The rows and the examples of one evaluation, in memory and on disk.

    Several processes share one evaluation: each writes what it has computed into files of its own, and in the end the
    first puts all of it together. What a process leaves that is lost is taken up by the next sitting.

    Attributes:
        world: the processes that share it.
        files: where all of it lies in the end.
        own: where this process writes meanwhile; the same for one process.
        known: what was there before, the same in all processes.
        new: what this process has added, in parts.
    """

    world: World
    files: _Files
    own: _Files
    known: Rows
    new: list[Rows] = field(default_factory=list)
    written: float = field(default_factory=time.monotonic)
    dirty: bool = False

    @classmethod
    def open(cls, network: Network, name: str) -> Store:
        """Take up what is there for these very weights, shares of processes that were lost among it."""
        world, files = network.world, _Files.of(network, name)
        _check_alike(world, (name, *astuple(network.subject)))
        shares = files.shares()
        known = Rows.together([Rows.read(one, network.subject.model) for one in (files, *shares)])
        own = files.share(world.rank) if world.size > 1 else files
        every = world.gather(known)
        both = Rows.together(every)
        store = cls(world, files, own, both, dirty=bool(shares) or len(both.table) > len(every[0].table))
        store.join()
        for one in shares:
            one.unlink()
        return store

    def carry(self, smaller: Store, eps: float, split: Split) -> None:
        """Take over the samples of a split that are broken in a smaller ball, with their points where those were kept.

        A sample that stood here in an earlier sitting is broken now. To be called by all processes, before they add.
        """
        table = smaller.known.table
        broken = table[(table["verdict"] == Verdict.FALSIFIED) & table["index"].isin(split.index.tolist())]
        settled = self.known.table["verdict"] != Verdict.UNKNOWN
        new = broken[~broken["index"].isin(self.known.table.loc[settled, "index"])]
        if not len(new):
            return
        radii = [f"broken at eps {one:.6g} already" for one in new["eps"]]
        reason = new["reason"].where(new["reason"] != "", radii)
        rows, examples = new.assign(eps=eps, seconds=0.0, reason=reason), smaller.known.examples
        if examples is not None:
            examples = examples.at(np.flatnonzero(np.isin(examples.index, new["index"])), eps)
        self.known = Rows.together([Rows(rows, examples), self.known])
        self.dirty = True

    def add(self, rows: pd.DataFrame, x: Tensor, x_adv: Tensor, predicted: Tensor) -> None:
        """Add a batch, and write if it is time."""
        self.new.append(Rows(rows, Examples.of(rows, x, x_adv, predicted)))
        self.dirty = True
        if time.monotonic() - self.written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write what has come since the last time."""
        if not self.dirty:
            return
        self.new = [Rows.together(self.new)]
        if self.own == self.files:
            Rows.together([self.known, *self.new]).write(self.files)
        elif len(self.new[0].table):
            self.new[0].write(self.own)
        self.dirty, self.written = False, time.monotonic()

    def join(self) -> None:
        """Put together what all processes have, and let the first write it."""
        every = self.world.gather((Rows.together(self.new), self.dirty or bool(self.new)))
        changed = any(has_more for _, has_more in every)
        self.known = Rows.together([self.known, *(new for new, _ in every)])
        self.new, self.dirty = [], False
        if changed:
            self.world.from_first(lambda: self.known.write(self.files))
        if self.own != self.files:
            self.own.unlink()


def _check_alike(world: World, described: tuple[object, ...]) -> None:
    """Refuse processes that would evaluate different networks, as where hosts hold other weights at one path.

    Raises:
        RobustkitError: they would; raised in all of them.
    """
    every = world.gather(repr(described))
    if len(set(every)) > 1:
        raise RobustkitError(
            f"expected one network and evaluation in all processes, got {' and '.join(sorted(set(every)))}; "
            "put the same run directory or checkpoint on every host, and name it by --run or --checkpoint"
        )


def _first(examples: Examples | None) -> Examples | None:
    """Give the first examples of each sample, ascending, as many as are kept."""
    if examples is None:
        return None
    places = np.unique(examples.index, return_index=True)[1]
    return examples.at(places[:KEPT_EXAMPLES])
