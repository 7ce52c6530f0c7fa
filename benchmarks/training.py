"""Cost of a training step of every method, as a ratio to a natural step and to PGD-40 adversarial training."""

from __future__ import annotations

from typing import Any

from benchmarks import networks, steps
from robustkit.training import METHODS, TrainingMethod, make_method

KS = (1, 5, 20)
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "pgd": {"PGD-40": {"steps": 40}},
    "crown-ibp": {"crown-ibp, loss fusion": {}, "crown-ibp, every margin": {"loss_fusion": False}},
    "dual": {"dual, full batch": {}},
    "mixtrain": {f"MixTrain k={k}": {"k": k} for k in KS},
}
"""Rows of the table, where a method has others than the one of its name and its defaults."""


def table(rounds: int) -> list[str]:
    """Time a step of each on fresh weights and on a trained network: bounds cost what neurons are unstable."""
    data, (name, model) = networks.dataset(), networks.robust()
    fresh = steps.costs(candidates(), networks.fresh(), rounds)
    trained = steps.costs(candidates(), model, rounds)
    lines = [
        "| method | ms a step | natural steps | of PGD-40 | trained: ms | natural steps | of PGD-40 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {one} | {_ratios(one, fresh)} | {_ratios(one, trained)} |" for one in fresh]
    setting = f"{data.model} on {data.name}, batch {steps.BATCH}, eps {data.eps:.3g}"
    return [f"One training step, {setting}; trained: {name}:", "", *lines, "", *claims(fresh, trained)]


def candidates() -> dict[str, TrainingMethod]:
    """Give every method by the name of its row."""
    rows = {name: VARIANTS.get(name, {name: {}}) for name in METHODS}
    return {row: make_method(name, options) for name, variants in rows.items() for row, options in variants.items()}


def claims(fresh: steps.Costs, trained: steps.Costs) -> list[str]:
    """Set what was measured beside the paper's claims, which are of whole trainings, and our own targets."""
    lines = ["| claim | claimed | fresh weights | trained |", "| --- | ---: | ---: | ---: |"]
    for k in KS[:2]:
        for slower, claimed in (("PGD-40", 3), ("dual, full batch", 15)):
            found = (f"{one[slower] / one[f'MixTrain k={k}']:.1f}" for one in (fresh, trained))
            lines.append(f"| MixTrain k={k} cheaper than {slower} by | {claimed} (paper) | {' | '.join(found)} |")
    for row, target in (("ibp", 3), ("MixTrain k=1", 10), ("MixTrain k=5", 30)):
        found = (f"{one[row] / one['natural']:.1f}" for one in (fresh, trained))
        lines.append(f"| {row}, natural steps | at most {target} (target) | {' | '.join(found)} |")
    return lines


def _ratios(name: str, seconds: steps.Costs) -> str:
    one = seconds[name]
    return f"{1000 * one:.1f} | {one / seconds['natural']:.1f} | {one / seconds['PGD-40']:.2f}"
