"""One self-contained page: the tables, the plots, and what every figure rests on."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import jinja2
import pandas as pd

from robustkit.reports.comparison import Block, Cell
from robustkit.reports.facts import MISSING, RunFacts, ShownCheck, eps_text
from robustkit.reports.tables import first_columns, heading, interval, percent


def as_page(
    title: str,
    blocks: Sequence[Block],
    plots: Sequence[tuple[str, bytes]],
    table: pd.DataFrame,
    runs: Sequence[RunFacts],
) -> str:
    """Write the page.

    Args:
        title: its heading.
        blocks: the comparison.
        plots: caption and PNG of each.
        table: the results, for what every figure rests on.
        runs: facts of each run.

    Returns:
        HTML that needs nothing from elsewhere.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robustkit.reports", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=title,
        blocks=[_block(block) for block in blocks],
        plots=[{"caption": caption, "data": base64.b64encode(data).decode()} for caption, data in plots],
        evaluations=_evaluations(table),
        checks=[_check(run, one) for run in runs for one in run.checks],
        runs=[_run(run) for run in runs],
    )


def _block(block: Block) -> dict[str, Any]:
    front = first_columns(block)
    rows = [
        {
            "front": [text(row) for _, text in front],
            "cells": [_cell(row.cells.get(name, Cell()), name, block) for name in block.columns],
        }
        for row in block.rows
    ]
    return {
        "heading": f"{block.dataset}, {block.model}, eps {eps_text(block.eps)}",
        "caption": block.caption,
        "front": len(front),
        "head": [name for name, _ in front] + [heading(name) for name in block.columns],
        "rows": rows,
    }


def _cell(cell: Cell, column: str, block: Block) -> dict[str, Any]:
    return {"text": percent(cell, column, block), "interval": interval(cell), "best": cell.best}


def _evaluations(table: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for key, rows in table.groupby(["run", "kind", "method", "settings", "eps"], sort=False):
        run, kind, method, settings, eps = key
        by = (
            rows["proved_by"].replace("", "unknown") if kind == "verify" else rows["proved_by"][rows["proved_by"] != ""]
        )
        settled = by.value_counts()
        found.append(
            {
                "run": run,
                "kind": kind,
                "method": method,
                "settings": settings,
                "eps": eps_text(float(str(eps))),
                "n": f"{len(rows):,}",
                "seconds": f"{rows['seconds'].sum():,.1f}",
                "each": f"{rows['seconds'].mean():.2g}",
                "settled": ", ".join(f"{name} {count:,}" for name, count in settled.items()) or MISSING,
            }
        )
    return found


def _check(run: RunFacts, check: ShownCheck) -> dict[str, Any]:
    return {
        "run": run.name,
        "name": check.name,
        "passed": "pass" if check.passed else "warn",
        "value": f"{check.value:.3g}",
        "expected": check.expected,
    }


def _run(run: RunFacts) -> dict[str, Any]:
    return {
        "name": run.name,
        "training": run.training or "elsewhere",
        "model": run.model,
        "eps": eps_text(run.train_eps),
        "seed": run.seed,
        "seconds": MISSING if math.isnan(run.train_seconds) else f"{run.train_seconds:,.1f}",
        "hardware": run.hardware or MISSING,
    }
