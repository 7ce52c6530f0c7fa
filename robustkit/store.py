"""The rows and the examples of one evaluation, in memory and on disk: what an earlier sitting computed is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from robustkit.attacks import Examples, load_examples, save_examples
from robustkit.data import Split
from robustkit.networks import Network
from robustkit.results import COLUMNS, read_table, write_table
from robustkit.runs import EXAMPLES, RESULTS
from robustkit.verdict import Verdict

KEPT_EXAMPLES = 500
"""Adversarial examples kept of each evaluation."""

WRITE_EVERY = 5.0
"""Seconds after which finished rows are written, at the latest."""


@dataclass
class Store:
    """The rows and the examples of one evaluation, in memory and on disk."""

    path: Path
    examples_path: Path
    table: pd.DataFrame
    examples: Examples | None
    written: float = field(default_factory=time.monotonic)
    dirty: bool = False

    @classmethod
    def open(cls, network: Network, name: str) -> Store:
        """Take up what is there for these very weights."""
        path = network.run.path / RESULTS / f"{name}.csv"
        examples_path = network.run.path / EXAMPLES / f"{name}.npz"
        table = read_table(path) if path.exists() else pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
        if (table["model"] != network.subject.model).any():  # of weights that stood here before
            examples_path.unlink(missing_ok=True)
            return cls(path, examples_path, table.iloc[:0], None)
        return cls(path, examples_path, table, load_examples(examples_path) if examples_path.exists() else None)

    def carry(self, smaller: Store, eps: float, split: Split) -> None:
        """Take over the samples of a split that are broken in a smaller ball, with their points where those were kept.

        A sample that stood here in an earlier sitting is broken now.
        """
        broken = smaller.table[(smaller.table["verdict"] == Verdict.FALSIFIED)]
        broken = broken[broken["index"].isin(split.index.tolist())]
        settled = self.table["verdict"] != Verdict.UNKNOWN
        new = broken[~broken["index"].isin(self.table.loc[settled, "index"])]
        if not len(new):
            return
        radii = [f"broken at eps {one:.6g} already" for one in new["eps"]]
        reason = new["reason"].where(new["reason"] != "", radii)
        rows = new.assign(eps=eps, seconds=0.0, reason=reason)
        kept = self.table[~self.table["index"].isin(new["index"])]
        self.table = pd.concat([kept, rows], ignore_index=True) if len(kept) else rows.reset_index(drop=True)
        if smaller.examples is not None:
            chosen = np.isin(smaller.examples.index, new["index"].to_numpy())
            self._keep(smaller.examples.where(chosen, eps))
        self.dirty = True

    def _keep(self, examples: Examples) -> None:
        if self.examples is None or len(self.examples.y) < KEPT_EXAMPLES:
            self.examples = examples.after(self.examples).take(KEPT_EXAMPLES)

    def add(self, rows: pd.DataFrame, x: Tensor, x_adv: Tensor, predicted: Tensor) -> None:
        """Add a batch, and write if it is time."""
        self.table = pd.concat([self.table, rows], ignore_index=True) if len(self.table) else rows
        self._keep(Examples.of(rows, x, x_adv, predicted))
        self.dirty = True
        if time.monotonic() - self.written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write what has come since the last time."""
        if self.dirty:
            write_table(self.table, self.path)
            if self.examples is not None and len(self.examples.y):
                save_examples(self.examples_path, self.examples)
            self.dirty, self.written = False, time.monotonic()
