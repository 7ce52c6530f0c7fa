"""Attack and verify a network sample by sample; what an earlier sitting computed is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustkit.attacks import Examples, attack_batches, compose_attack, load_examples, make_attack, save_examples
from robustkit.config import EvaluationConfig, digest
from robustkit.data import Split
from robustkit.errors import SoundnessError, UnsupportedLayerError, UsageError, unknown_name
from robustkit.networks import Network
from robustkit.progress import Reporter, working
from robustkit.results import COLUMNS, check_coherence, find_clashes, read_table, write_table
from robustkit.runs import EXAMPLES, RESULTS
from robustkit.threat import LinfBall
from robustkit.verifiers import VERIFIERS, make_verifier, verify_batches

Kind = Literal["attack", "verify"]
Batches = Callable[[Split], Iterator[tuple[pd.DataFrame, Tensor]]]

SHOWN_OF_NAME = 100
"""Characters of a method's name in the name of its file; a battery's can be longer than a file's may be."""

KEPT_EXAMPLES = 500
"""Adversarial examples kept of each evaluation."""

WRITE_EVERY = 5.0
"""Seconds after which finished rows are written, at the latest."""


def evaluate(network: Network, kind: Kind, settings: EvaluationConfig, reporter: Reporter) -> pd.DataFrame:
    """Attack or verify a network by every method and at every radius asked for.

    Rows that an earlier sitting computed are kept; only samples without one are worked on.

    Args:
        network: the network.
        kind: ``"attack"`` or ``"verify"``.
        settings: methods, radii, how many samples.
        reporter: told of the progress.

    Returns:
        The rows of the results table, one per sample, method and radius.

    Raises:
        SoundnessError: a sample is both verified and broken; it is saved beside the results.
        UnsupportedLayerError: what was asked for needs bounds, and a layer has none; what came before it is kept.
        RobustkitError: anything the user can mend; see the message.
    """
    if not settings.methods:
        raise UsageError(f"expected at least one method to {kind} by, got none; name one with --method")
    _check_names(kind, settings)
    if not len(network.dataset.test):
        raise UsageError(f"expected test samples in {network.dataset.name}, found none")
    tables: dict[tuple[float, str], pd.DataFrame] = {}
    for eps in dict.fromkeys(settings.eps or network.config.attack.eps):
        for name in dict.fromkeys(settings.methods):
            try:
                tables[eps, name] = _evaluate_one(network, kind, name, settings, eps, reporter)
            except UnsupportedLayerError as error:
                if kind == "verify":
                    raise
                raise UnsupportedLayerError(_attack_without_bounds(network, name, list(tables), error)) from error
    stop_at_clash(network)
    return pd.concat(tables.values(), ignore_index=True)


def _check_names(kind: Kind, settings: EvaluationConfig) -> None:
    """Refuse unknown names and options before any work is done."""
    if kind == "attack":
        for name in settings.methods:
            compose_attack(name, settings.options)
        for name, options in settings.options.items():
            make_attack(name, options)
        return
    for name in (*settings.methods, *settings.options):
        if name not in VERIFIERS:
            raise unknown_name("verifier", name, VERIFIERS)


def _attack_without_bounds(
    network: Network, name: str, done: list[tuple[float, str]], error: UnsupportedLayerError
) -> str:
    """Say which attack needs bounds of the network, what to attack by instead, and what is kept."""
    finished = ", ".join(f"{one} at eps {eps:.4g}" for eps, one in done)
    kept = f"; the results of {finished} are kept in {network.run.path / RESULTS}" if finished else ""
    return f"attack {name} needs bounds of this network: {error}; attack it by --method pgd instead{kept}"


def stop_at_clash(network: Network) -> None:
    """Save the samples that are both verified and broken, and stop the program.

    Raises:
        SoundnessError: there is one.
    """
    table = network.run.table()
    clashes = find_clashes(table[table["model"] == network.subject.model])
    if not len(clashes):
        return
    path = network.run.path / "soundness.npz"
    save_examples(path, _evidence(network, clashes))
    try:
        check_coherence(table)
    except SoundnessError as error:
        raise SoundnessError(f"{error}; the samples are saved in {path}") from None


def _evidence(network: Network, clashes: pd.DataFrame) -> Examples:
    """Give the samples that clash, with the points that break them where those were kept."""
    split = network.dataset.test
    rows = _among(split, clashes["index"])
    x, y, index = (one[rows].numpy() for one in (split.x, split.y, split.index))
    x_adv, predicted = x.copy(), y.copy()
    eps = float(clashes["eps"].max())
    for path in sorted((network.run.path / EXAMPLES).glob("*.npz")):
        kept = load_examples(path)
        if kept.eps > eps:  # a point of a larger ball contradicts nothing
            continue
        for place, one in enumerate(index):
            found = np.flatnonzero(kept.index == one)
            if len(found):
                x_adv[place], predicted[place] = kept.x_adv[found[0]], kept.predicted[found[0]]
    return Examples(x, x_adv, y, predicted, index, eps)


def _evaluate_one(
    network: Network, kind: Kind, name: str, settings: EvaluationConfig, eps: float, reporter: Reporter
) -> pd.DataFrame:
    batches, described = _worker(network, kind, name, settings, eps, reporter)
    shown = name.replace(":", "-")[:SHOWN_OF_NAME]
    file = f"{kind}-{shown}-eps{eps:.6g}-{digest([described, network.dataset.name, eps])}"
    store = _Store.open(network, file)
    split = network.dataset.test.take(settings.n)
    known = _among(split, store.table["index"])
    todo = Split(split.x[~known], split.y[~known], split.index[~known])
    todo = todo.to(next(network.model.parameters()).device)
    place = {int(number): row for row, number in enumerate(todo.index)}
    with working(reporter, f"{kind} {name} at eps {eps:.4g}", len(split), int(known.sum())):
        try:
            for rows, x_adv in batches(todo):
                with torch.no_grad():
                    predicted = network.model(x_adv).argmax(dim=1)
                store.add(rows, todo.x[[place[number] for number in rows["index"]]], x_adv, predicted)
                reporter.advance(len(rows))
        finally:
            store.write()
    wanted = store.table["index"].isin(split.index.tolist())
    return store.table[wanted].reset_index(drop=True)


def _among(split: Split, index: pd.Series[int]) -> Tensor:
    """Say which samples of a split are in a column of positions, shape ``(N,)``."""
    return torch.from_numpy(np.isin(split.index.numpy(), index.to_numpy()))


def _worker(
    network: Network, kind: Kind, name: str, settings: EvaluationConfig, eps: float, reporter: Reporter
) -> tuple[Batches, str]:
    """Give what evaluates a split, and the settings that name its results."""
    model, subject, ball, size = network.model, network.subject, LinfBall(eps), settings.batch_size
    if kind == "attack":
        attack = compose_attack(name, settings.options)
        return lambda split: attack_batches(attack, model, split, ball, subject, size), repr(attack)
    verifier = make_verifier(name, settings.options.get(name))

    def tell(text: str) -> None:
        reporter.advance(0, text)

    def verify(split: Split) -> Iterator[tuple[pd.DataFrame, Tensor]]:
        return verify_batches(verifier, model, split, ball, subject, size, jobs=settings.jobs, tell=tell)

    return verify, repr(verifier)


@dataclass
class _Store:
    """The rows and the examples of one evaluation, in memory and on disk."""

    path: Path
    examples_path: Path
    table: pd.DataFrame
    examples: Examples | None
    written: float = field(default_factory=time.monotonic)
    dirty: bool = False

    @classmethod
    def open(cls, network: Network, name: str) -> _Store:
        """Take up what is there for these very weights."""
        path = network.run.path / RESULTS / f"{name}.csv"
        examples_path = network.run.path / EXAMPLES / f"{name}.npz"
        table = read_table(path) if path.exists() else pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
        if (table["model"] != network.subject.model).any():  # of weights that stood here before
            examples_path.unlink(missing_ok=True)
            return cls(path, examples_path, table.iloc[:0], None)
        return cls(path, examples_path, table, load_examples(examples_path) if examples_path.exists() else None)

    def add(self, rows: pd.DataFrame, x: Tensor, x_adv: Tensor, predicted: Tensor) -> None:
        """Add a batch, and write if it is time."""
        self.table = pd.concat([self.table, rows], ignore_index=True) if len(self.table) else rows
        if self.examples is None or len(self.examples.y) < KEPT_EXAMPLES:
            self.examples = Examples.of(rows, x, x_adv, predicted).after(self.examples).take(KEPT_EXAMPLES)
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
