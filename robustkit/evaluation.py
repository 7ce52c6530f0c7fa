"""Attack and verify a network sample by sample; what an earlier sitting computed is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustkit.attacks import (
    Examples,
    Points,
    attack_batches,
    compose_attack,
    load_examples,
    make_attack,
    save_examples,
    warmed,
)
from robustkit.config import EvaluationConfig, digest
from robustkit.data import Split
from robustkit.errors import SoundnessError, UnsupportedLayerError, UsageError, unknown_name
from robustkit.networks import Network
from robustkit.progress import Reporter, working
from robustkit.results import check_coherence, find_clashes
from robustkit.runs import RESULTS, file_name
from robustkit.store import Store
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import VERIFIERS, make_verifier, verify_batches

Kind = Literal["attack", "verify"]
Batches = Callable[[Split], Iterator[tuple[pd.DataFrame, Tensor]]]


def evaluate(network: Network, kind: Kind, settings: EvaluationConfig, reporter: Reporter) -> pd.DataFrame:
    """Attack or verify a network by every method and at every radius asked for.

    Rows that an earlier sitting computed are kept; only samples without one are worked on. Several processes share the
    samples, and each gives the whole table. Radii are taken in ascending
    order: a sample that an attack breaks at one is broken at every larger one without work, and one that stands is
    attacked there first from the worst point so far. So what an attack leaves never rises with the radius.

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
    smaller: dict[str, _Smaller] = {}
    radii = sorted(set(settings.eps or network.config.attack.eps))
    for eps in radii:
        for name in dict.fromkeys(settings.methods):
            try:
                one = _Evaluation(network, kind, name, settings, eps, larger=eps < radii[-1])
                tables[eps, name], smaller[name] = _evaluate_one(one, smaller.get(name), reporter)
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
    """Save the samples that are both verified and broken, and stop the program; all processes look at what any has.

    Raises:
        SoundnessError: there is one.
    """
    table = pd.concat(network.world.gather(network.run.table()), ignore_index=True).drop_duplicates()
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
    rows = split.among(clashes["index"])
    x, y, index = (one[rows].numpy() for one in (split.x, split.y, split.index))
    x_adv, predicted = x.copy(), y.copy()
    eps = float(clashes["eps"].max())
    for path in network.run.examples():
        kept = load_examples(path)
        if kept.eps > eps:  # a point of a larger ball contradicts nothing
            continue
        for place, one in enumerate(index):
            found = np.flatnonzero(kept.index == one)
            if len(found):
                x_adv[place], predicted[place] = kept.x_adv[found[0]], kept.predicted[found[0]]
    return Examples(x, x_adv, y, predicted, index, eps)


@dataclass(frozen=True)
class _Evaluation:
    """What is evaluated, and how; and whether a larger radius follows."""

    network: Network
    kind: Kind
    name: str
    settings: EvaluationConfig
    eps: float
    larger: bool


@dataclass(frozen=True)
class _Smaller:
    """What one method found at a radius, for the next larger one: its results and the worst points of this sitting."""

    store: Store
    points: Points


def _evaluate_one(one: _Evaluation, smaller: _Smaller | None, reporter: Reporter) -> tuple[pd.DataFrame, _Smaller]:
    """Evaluate by one method at one radius: give the rows, and what the next larger radius can use."""
    network, eps = one.network, one.eps
    batches, described = _worker(one, smaller, reporter)
    store = Store.open(
        network, f"{one.kind}-{file_name(one.name)}-eps{eps:.6g}-{digest([described, network.dataset.name, eps])}"
    )
    split = network.dataset.test.take(one.settings.n)
    if one.kind == "attack" and smaller is not None:
        store.carry(smaller.store, eps, split)
    known = split.among(store.known.table["index"])
    left = split.rows(~known)
    own = left.rows(network.world.share(len(left), one.settings.batch_size)).to(network.device)
    place = {int(number): row for row, number in enumerate(own.index)}
    found: dict[int, Tensor] = {}
    others = len(left) - len(own)
    label = f"{one.kind} {one.name} at eps {eps:.4g}" + (f", but {others} by other processes" if others else "")
    with working(reporter, label, len(split) - others, int(known.sum())):
        try:
            for rows, x_adv in batches(own):
                with torch.no_grad():
                    predicted = network.model(x_adv).argmax(dim=1)
                store.add(rows, own.x[[place[number] for number in rows["index"]]], x_adv, predicted)
                if one.larger:
                    found.update(_standing(rows, x_adv))
                reporter.advance(len(rows))
            store.join()
        finally:
            store.write()
    table = store.known.table
    points = {number: point for part in network.world.gather(found) for number, point in part.items()}
    return table[table["index"].isin(split.index.tolist())].reset_index(drop=True), _Smaller(store, Points(eps, points))


def _standing(rows: pd.DataFrame, x_adv: Tensor) -> dict[int, Tensor]:
    """Give the points of the samples that an attack has not broken, by their position in the test set."""
    left = (rows["verdict"] == Verdict.UNKNOWN) & (rows["kind"] == "attack")
    return {int(rows["index"].iloc[row]): x_adv[row].cpu() for row in np.flatnonzero(left)}


def _worker(one: _Evaluation, smaller: _Smaller | None, reporter: Reporter) -> tuple[Batches, str]:
    """Give what evaluates a split, and the settings that name its results."""
    settings = one.settings
    model, subject, ball, size = one.network.model, one.network.subject, LinfBall(one.eps), settings.batch_size
    if one.kind == "attack":
        attack = compose_attack(one.name, settings.options)
        if smaller is not None:
            attack = warmed(attack, smaller.points)
        return lambda split: attack_batches(attack, model, split, ball, subject, size), repr(attack)
    verifier = make_verifier(one.name, settings.options.get(one.name))

    def tell(text: str) -> None:
        reporter.advance(0, text)

    def verify(split: Split) -> Iterator[tuple[pd.DataFrame, Tensor]]:
        return verify_batches(verifier, model, split, ball, subject, size, jobs=settings.jobs, tell=tell)

    return verify, repr(verifier)
