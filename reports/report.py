"""A report: every table, every plot and the page, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from robustkit.files import replacing
from robustkit.reports.comparison import FLOAT_ONLY, Block, compare
from robustkit.reports.facts import RunFacts, eps_text, recipes
from robustkit.reports.page import as_page
from robustkit.reports.pareto import LEAST_ROWS, plot_pareto, rows_with_both
from robustkit.reports.plots import pdf, plot_accuracy_vs_eps, plot_band, plot_examples, plot_training, png
from robustkit.reports.tables import as_csv, as_latex, as_markdown, as_text
from robustkit.results import check_coherence

SIDE_BY_SIDE = 6
Plot = tuple[str, str, Figure]


def write_report(table: pd.DataFrame, runs: Sequence[RunFacts], out: Path, *, title: str) -> list[Path]:
    """Write the comparison of some runs; nothing is written of results that contradict each other.

    Args:
        table: their results, one row per sample and evaluation.
        runs: facts of each of these runs.
        out: folder for ``comparison.{txt,md,csv,tex}``, ``plots/`` and ``report.html``.
        title: heads the page.

    Returns:
        The files, the text first.

    Raises:
        SoundnessError: a sample is both verified and broken.
        RobustkitError: a file cannot be written.
    """
    check_coherence(table)
    blocks = compare(table, runs)
    texts = {
        "comparison.txt": as_text(blocks),
        "comparison.md": as_markdown(blocks, title),
        "comparison.csv": as_csv(blocks),
        "comparison.tex": as_latex(blocks),
    }
    written = [_write(out / name, text.encode()) for name, text in texts.items()]
    shown = []
    for name, caption, figure in _plots(blocks, runs):
        image = png(figure)
        shown.append((caption, image))
        written.append(_write(out / "plots" / f"{name}.png", image))
        _write(out / "plots" / f"{name}.pdf", pdf(figure))
    page = as_page(title, blocks, shown, table, runs)
    return [*written, _write(out / "report.html", page.encode())]


def _plots(blocks: Sequence[Block], runs: Sequence[RunFacts]) -> list[Plot]:
    plots: list[Plot] = []
    for block in blocks:
        at = f"eps {eps_text(block.eps)} on {block.dataset}, N = {block.n:,}"
        name = _file_name("band", block.dataset, block.model, f"eps{block.eps:.4g}")
        caption = (
            f"Certified to attacked accuracy at {at}; the true robust accuracy lies inside the band{_float(block)}."
        )
        plots.append((name, caption, plot_band(block)))
        if len(rows_with_both(block)) >= LEAST_ROWS:
            name = _file_name("pareto", block.dataset, block.model, f"eps{block.eps:.4g}")
            front = f"dashed: the Pareto front of what was measured{_spread(block)}"
            caption = f"Clean against certified accuracy at {at}; {front}{_float(block, shown=False)}."
            plots.append((name, caption, plot_pareto(block)))
    for (dataset, model), group in groupby(blocks, key=lambda block: (block.dataset, block.model)):
        radii = list(group)
        caption = f"Accuracy against the radius on {dataset}, {model}; solid: left by all attacks, dashed: certified"
        caption += "".join(dict.fromkeys(map(_float, radii))) + "."
        plots.append((_file_name("accuracy-vs-eps", dataset, model), caption, plot_accuracy_vs_eps(radii)))
    trained = [run for run in runs if len(run.history)]
    if trained:
        plots += _training_plots(trained)
    for label, members in recipes(runs):
        run = next((one for one in members if one.examples is not None and len(one.examples.y)), None)
        if run is not None and run.examples is not None:  # those of one seed stand for all
            caption = f"Adversarial examples of {label} ({run.name}) at eps {eps_text(run.examples.eps)}."
            plots.append((_file_name("examples", run.name), caption, plot_examples(run.examples)))
    return plots


def _training_plots(runs: Sequence[RunFacts]) -> list[Plot]:
    """Draw the training of all recipes, a few side by side in each figure."""
    found = recipes(runs)
    caption = "Training: accuracy on validation samples, the loss, the eps ramp, and the weight of the robust loss"
    caption += "; thin: each seed, thick: their mean." if any(len(group) > 1 for _, group in found) else "."
    starts = range(0, len(found), SIDE_BY_SIDE)
    names = ["training"] if len(starts) == 1 else [f"training-{place + 1}" for place in range(len(starts))]
    return [
        (name, caption, plot_training(found[start : start + SIDE_BY_SIDE]))
        for name, start in zip(names, starts, strict=True)
    ]


def _spread(block: Block) -> str:
    return "; whiskers: standard deviation over seeds" if any(len(row.runs) > 1 for row in block.rows) else ""


def _float(block: Block, *, shown: bool = True) -> str:
    """Say how proofs in floating point alone are told apart, where there are any."""
    how = "dotted: with what floating point alone proves" if shown else "what floating point alone proves is left out"
    return f"; {how}" if FLOAT_ONLY in block.columns else ""


def _file_name(*parts: str) -> str:
    return "-".join("".join(one if one.isalnum() or one in "._-" else "_" for one in part) for part in parts)


def _write(path: Path, data: bytes) -> Path:
    with replacing(path, "wb") as file:
        file.write(data)
    return path
