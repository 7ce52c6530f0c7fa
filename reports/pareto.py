"""The trade-off: clean against certified accuracy, and what no other recipe beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import Bbox

from robustkit.reports.comparison import ANY_VERIFIER, CLEAN, Block, Cell, Row
from robustkit.reports.facts import eps_text
from robustkit.reports.plots import COLOURS, MUTED, calm, row_name

LEAST_ROWS, DIRECT_LABELS, INSIDE, FAR = 3, 8, 4, 20.0
MARKERS = "osD^vP*X"
# Where a label may stand, in points from its mark: the nearest to the mark first.
PLACES = [
    (reach * x, reach * y)
    for reach in (7, 11, 16, 24, 36, 50)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))
]


def rows_with_both(block: Block) -> list[Row]:
    """Give the rows that have a clean and a certified accuracy."""
    return [row for row in block.rows if all(row.cells.get(name, Cell()).measured for name in (CLEAN, ANY_VERIFIER))]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Give the points that no other equals or exceeds in both, by rising first figure; of equal points one."""
    front: list[tuple[float, float]] = []
    for clean, proved in sorted(set(points), reverse=True):
        if not front or proved > front[-1][1]:
            front.append((clean, proved))
    return front[::-1]


def plot_pareto(block: Block) -> Figure:
    """Draw clean against certified accuracy, the points of one method joined, and the Pareto front as a step line.

    Args:
        block: at least one row with both figures.

    Returns:
        The figure: points are labelled where they are few; else the methods stand in a legend, and the values of a
        swept option beside the points where there is room.
    """
    rows = rows_with_both(block)
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    direct = len(rows) <= DIRECT_LABELS
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    _frame(axes, rows, block)
    _draw_front(axes, rows)
    labels = []
    for place, (method, members) in enumerate(methods.items()):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        option = _swept_option(members)
        told = f"{method} (numbers: {option})" if option else method
        _draw_method(axes, members, colour, marker, None if direct else told)
        for row in members:
            text = row_name(row, block) if direct else row.label.rpartition("=")[2] if option else ""
            labels.append((_point(row), text, colour))
    _draw_legend(figure, axes, outside=not direct and len(methods) > INSIDE)
    _write_labels(figure, axes, labels, always=direct)
    return figure


def _point(row: Row) -> tuple[float, float]:
    return row.cells[CLEAN].value, row.cells[ANY_VERIFIER].value


def _swept_option(rows: Sequence[Row]) -> str:
    """Give the one option that tells the rows of a method apart, or nothing."""
    told = [row.label.removeprefix(row.method).removeprefix(", ") for row in rows]
    names = {text.rpartition("=")[0] for text in told}
    alone = len(rows) > 1 and len(names) == 1 and all(text.count("=") == 1 for text in told)
    return names.pop() if alone else ""


def _frame(axes: Axes, rows: Sequence[Row], block: Block) -> None:
    """Choose the limits, which hold every point, its whiskers and room for labels, and name the axes."""
    for name, limit in ((CLEAN, axes.set_xlim), (ANY_VERIFIER, axes.set_ylim)):
        cells = [row.cells[name] for row in rows]
        reach = [0.0 if math.isnan(cell.deviation) else cell.deviation for cell in cells]
        low = min(cell.value - one for cell, one in zip(cells, reach, strict=True))
        high = max(cell.value + one for cell, one in zip(cells, reach, strict=True))
        room = 0.14 * max(high - low, 0.05)
        limit(low - room, high + room)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("clean accuracy")
    axes.set_ylabel(f"certified accuracy at eps {eps_text(block.eps)}")
    calm(axes, "both")


def _draw_front(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the edge of what the rows dominate, from the left of the frame to its bottom."""
    front = pareto_front([_point(row) for row in rows])
    x, y = [axes.get_xlim()[0]], [front[0][1]]
    for clean, proved in front:
        x += [x[-1], clean]
        y += [proved, proved]
    axes.plot([*x, x[-1]], [*y, axes.get_ylim()[0]], "--", color=MUTED, linewidth=1.0, zorder=1.5, label="Pareto front")


def _draw_method(axes: Axes, rows: Sequence[Row], colour: str, marker: str, label: str | None) -> None:
    x, y = zip(*map(_point, rows), strict=True)
    axes.plot(x, y, "-", color=colour, linewidth=0.9, alpha=0.6, zorder=2)
    clean, proved = ([row.cells[name].deviation for row in rows] for name in (CLEAN, ANY_VERIFIER))
    axes.errorbar(
        x,
        y,
        xerr=clean,
        yerr=proved,
        fmt=marker,
        color=colour,
        markersize=6,
        markeredgecolor="white",
        elinewidth=0.9,
        capsize=2,
        label=label,
        zorder=3,
    )


def _draw_legend(figure: Figure, axes: Axes, *, outside: bool) -> None:
    if outside:
        figure.legend(frameon=False, fontsize=8.5, loc="outside right upper")
        figure.set_figwidth(7.4)
    else:
        axes.legend(frameon=False, fontsize=8.5, loc="best")


def _write_labels(
    figure: Figure, axes: Axes, labels: Sequence[tuple[tuple[float, float], str, str]], *, always: bool
) -> None:
    """Write each label at the nearest place where it covers no mark, no legend and no other label.

    Args:
        figure: its layout is settled here.
        axes: where the marks stand.
        labels: point, text and colour.
        always: write one for which there is no room all the same.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()
    frame, legend, point = axes.get_window_extent(), axes.get_legend(), figure.dpi / 72
    marks = [axes.transData.transform(at) for at, _, _ in labels]
    taken = [Bbox.from_extents(x - 4 * point, y - 4 * point, x + 4 * point, y + 4 * point) for x, y in marks]
    taken += [legend.get_window_extent(renderer)] if legend else []
    for at, text, colour in labels:
        for place in PLACES if text else ():
            note = _annotate(axes, at, text, colour, place)
            box = note.get_window_extent(renderer)
            clear = frame.count_contains(box.corners()) == 4 and not any(box.overlaps(other) for other in taken)
            if clear or (always and place == PLACES[-1]):
                taken.append(box)
                break
            note.remove()


def _annotate(axes: Axes, at: tuple[float, float], text: str, colour: str, place: tuple[float, float]) -> Annotation:
    """Write a label a few points from its mark; one that stands far off has a line to it."""
    across = "left" if place[0] > 0 else "right" if place[0] < 0 else "center"
    along = "bottom" if place[1] > 0 else "top" if place[1] < 0 else "center"
    far = math.hypot(*place) > FAR
    note = axes.annotate(
        text,
        at,
        xytext=place,
        textcoords="offset points",
        horizontalalignment=across,
        verticalalignment=along,
        fontsize=8.5,
        color=colour,
        path_effects=[withStroke(linewidth=2.0, foreground="white")],
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5} if far else None,
        zorder=4,
    )
    note.set_in_layout(False)
    return note
