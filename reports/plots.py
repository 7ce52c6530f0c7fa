"""The plots of a report: figures without global state, saved as PNG and PDF."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from robustkit.reports.comparison import ALL_ATTACKS, ANY_VERIFIER, CLEAN, FLOAT_ONLY, TIME, UNDECIDED, Block, Cell, Row
from robustkit.reports.facts import RunFacts, Shown, eps_text

# Okabe & Ito's palette, told apart by readers with any common colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, MUTED, GRID = "#222222", "#666666", "#dddddd"
SHOWN_EXAMPLES = 8


def png(figure: Figure) -> bytes:
    """Render a figure as PNG; the same figure gives the same bytes."""
    return _render(figure, "png", {"Software": None})


def pdf(figure: Figure) -> bytes:
    """Render a figure as PDF; the same figure gives the same bytes."""
    return _render(figure, "pdf", {"CreationDate": None, "Producer": None, "Creator": None})


def plot_band(block: Block) -> Figure:
    """Draw, for each method, the band from certified to attacked accuracy: the truth lies inside.

    Args:
        block: methods at one radius.

    Returns:
        The figure; methods top to bottom as in the table.
    """
    rows = list(block.rows)
    figure, axes = _figure(7.0, 1.3 + 0.5 * len(rows))
    for place, row in enumerate(rows):
        colour = COLOURS[place % len(COLOURS)]
        cells = row.cells.get(ANY_VERIFIER, Cell()), standing_cell(row), row.cells.get(CLEAN, Cell())
        proved, standing, clean = (cell.value for cell in cells)
        low, high = (0.0 if math.isnan(proved) else proved), (clean if math.isnan(standing) else standing)
        axes.barh(place, high - low, left=low, height=0.5, color=colour, alpha=0.45, edgecolor=colour, linewidth=1.2)
        if not math.isnan(proved):
            axes.plot([low, low], [place - 0.25, place + 0.25], color=colour, linewidth=3.5, solid_capstyle="butt")
        if FLOAT_ONLY in block.columns and (added := row.cells.get(FLOAT_ONLY, Cell()).value) > 0:
            axes.plot([low + added] * 2, [place - 0.25, place + 0.25], ":", color=colour, linewidth=1.8)
        axes.plot(clean, place, marker="D", color=colour, markersize=6, markeredgecolor="white", zorder=3)
        for cell, lift in zip(cells, (0.1, -0.1, 0.0), strict=True):
            if not math.isnan(cell.deviation):
                axes.errorbar(cell.value, place + lift, xerr=cell.deviation, color=INK, linewidth=1.0, capsize=2.5)
    axes.set_yticks(range(len(rows)), [row_name(row, block) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("accuracy on the test samples")
    spread = "; whiskers: standard deviation over seeds" if any(len(row.runs) > 1 for row in rows) else ""
    apart = "; dotted: with what floating point alone proves" if FLOAT_ONLY in block.columns else ""
    axes.set_title(
        f"Certified (thick edge) to attacked accuracy at eps {eps_text(block.eps)}; diamond: clean{spread}{apart}"
    )
    calm(axes, "x")
    return figure


def plot_accuracy_vs_eps(blocks: Sequence[Block]) -> Figure:
    """Draw accuracy against the radius: clean at 0, what the attacks leave solid, what is certified dashed.

    Args:
        blocks: one dataset and architecture at every radius.

    Returns:
        The figure; one colour per method.
    """
    figure, axes = _figure(7.0, 4.2)
    names: dict[str, list[tuple[float, Row]]] = {}
    for block in blocks:
        for row in block.rows:
            names.setdefault(row_name(row, block), []).append((block.eps, row))
    for place, (name, points) in enumerate(names.items()):
        colour = COLOURS[place % len(COLOURS)]
        clean = points[0][1].cells.get(CLEAN, Cell())
        for style, marker, take in (("-", "o", standing_cell), ("--", "s", _certified), (":", "^", _with_float)):
            found = [(eps, take(row)) for eps, row in points if take(row).measured]
            if found:
                x, cells = zip(*[(0.0, clean), *found], strict=True)
                y, deviations = [cell.value for cell in cells], [cell.deviation for cell in cells]
                label = name if style == "-" else None
                axes.plot(x, y, style, color=colour, linewidth=1.1, alpha=0.5)
                axes.errorbar(x, y, deviations, fmt=marker, color=colour, markersize=5, capsize=2.5, label=label)
    axes.plot([], [], "-o", color=MUTED, markersize=5, linewidth=1.1, label="left by all attacks")
    axes.plot([], [], "--s", color=MUTED, markersize=5, linewidth=1.1, label="certified")
    if any(_with_float(row).measured for block in blocks for row in block.rows):
        axes.plot([], [], ":^", color=MUTED, markersize=5, linewidth=1.1, label="with floating point alone")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("eps (L-infinity radius, pixels in [0, 1])")
    axes.set_ylabel("accuracy")
    axes.set_title("Accuracy against the radius; markers are measured, lines only join them")
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
    calm(axes, "both")
    return figure


def plot_training(recipes: Sequence[tuple[str, Sequence[RunFacts]]]) -> Figure:
    """Draw each recipe's training: accuracy and certified accuracy on validation samples, eps, and the loss weight.

    Args:
        recipes: what each is called and its runs, which have a history.

    Returns:
        The figure: a column for each recipe, its seeds thin and their mean thick; panels for accuracy, loss, eps (none
        for natural training) and weight.
    """
    count = len(recipes)
    figure = Figure(figsize=(2.2 + 2.4 * count, 6.4), layout="constrained")
    grid = figure.subplots(4, count, sharex="col", sharey="row", squeeze=False, height_ratios=[3, 1.4, 1.2, 1.2])
    for column, (label, runs) in enumerate(recipes):
        histories = [run.history for run in runs]
        accuracy, loss, eps, weight = (grid[line][column] for line in range(4))
        _seeds(accuracy, histories, "val_clean", COLOURS[0], "clean")
        _seeds(accuracy, histories, "val_vra", COLOURS[1], "certified at the epoch's eps")
        _seeds(loss, histories, "loss", INK)
        robust = not math.isnan(runs[0].train_eps)
        if robust:  # natural training has no radius
            _seeds(eps, histories, "eps", COLOURS[2])
        _seeds(weight, histories, "weight", COLOURS[3])
        at = f", eps {eps_text(runs[0].train_eps)}" if robust else ""
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        accuracy.set_title(textwrap.fill(f"{label}{at}{seeds}", 26), fontsize=10)
        weight.set_xlabel("epoch")
        weight.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axes in (accuracy, loss, eps, weight):
            calm(axes, "both")
    grid[0][0].set_ylim(0, 1.02)
    grid[0][0].yaxis.set_major_formatter(PercentFormatter(1.0))
    for line, name in enumerate(("validation\naccuracy", "loss", "eps", "loss\nweight")):
        grid[line][0].set_ylabel(name)
    handles = {label: one for axes in grid[0] for one, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def plot_examples(examples: Shown, class_names: Sequence[str] = ()) -> Figure:
    """Draw adversarial examples: the sample, the change (blue darker, red brighter), and the example.

    Args:
        examples: at least one.
        class_names: for the labels; numbers where there are none.

    Returns:
        The figure: a column for each of the first few.
    """
    count = min(SHOWN_EXAMPLES, len(examples.y))
    figure = Figure(figsize=(0.9 + 1.05 * count, 3.7), layout="constrained")
    grid = figure.subplots(3, count, squeeze=False)
    reach = max(examples.eps, 1e-9)
    for column in range(count):
        x, x_adv = (np.moveaxis(one[column], 0, -1) for one in (examples.x, examples.x_adv))
        change = (x_adv - x).mean(axis=-1)
        _image(grid[0][column], x)
        grid[1][column].imshow(change, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
        _image(grid[2][column], x_adv)
        true, seen = int(examples.y[column]), int(examples.predicted[column])
        names = [class_names[one] if class_names else str(one) for one in (true, seen)]
        grid[0][column].set_title(f"{names[0]} → {names[1]}", fontsize=10)
        for axes in grid[:, column]:
            axes.set_xticks([])
            axes.set_yticks([])
    for line, name in enumerate(("sample", f"change, ±{eps_text(examples.eps)}", "adversarial")):
        grid[line][0].set_ylabel(name, fontsize=9)
    return figure


def _seeds(axes: Axes, histories: Sequence[pd.DataFrame], column: str, colour: str, label: str | None = None) -> None:
    """Draw one metric over the epochs: every seed thin, and their mean."""
    whole = pd.concat(histories).dropna(subset=[column])
    if not len(whole):
        return
    for history in histories if len(histories) > 1 else ():
        axes.plot(history["epoch"], history[column], color=colour, linewidth=0.8, alpha=0.4)
    mean = whole.groupby("epoch")[column].mean()
    axes.plot(mean.index, mean, color=colour, label=label)


def _render(figure: Figure, kind: str, metadata: dict[str, str | None]) -> bytes:
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=160, metadata=metadata)
    return out.getvalue()


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def calm(axes: Axes, grid: str) -> None:
    """Take away what draws the eye from the data; ``grid`` is ``"x"`` or ``"both"``."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if grid == "x" else "both", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK)
    axes.title.set_fontsize(10.5)


def _image(axes: Axes, image: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    shown = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def row_name(row: Row, block: Block) -> str:
    """Call a row by its label, and by its radius where rows were trained for several."""
    several = len({repr(one.train_eps) for one in block.rows if not math.isnan(one.train_eps)}) > 1
    return f"{row.label} ({eps_text(row.train_eps)})" if several and not math.isnan(row.train_eps) else row.label


def standing_cell(row: Row) -> Cell:
    """Give what all attacks leave; with one attack, what it leaves."""
    if ALL_ATTACKS in row.cells:
        return row.cells[ALL_ATTACKS]
    others = (CLEAN, ANY_VERIFIER, FLOAT_ONLY, UNDECIDED, TIME)
    left = [cell for name, cell in row.cells.items() if name not in others and "certified" not in name]
    return min((cell for cell in left if cell.measured), key=lambda cell: cell.value, default=Cell())


def _certified(row: Row) -> Cell:
    return row.cells.get(ANY_VERIFIER, Cell())


def _with_float(row: Row) -> Cell:
    """Give what is certified or proved in floating point alone; nothing where that adds nothing."""
    added = row.cells.get(FLOAT_ONLY, Cell()).value
    return Cell(_certified(row).value + added) if added > 0 else Cell()
