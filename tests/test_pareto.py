from dataclasses import replace

import pytest

from robustkit.reports.comparison import ANY_VERIFIER, CLEAN, Block, Cell, Row
from robustkit.reports.pareto import pareto_front, plot_pareto, rows_with_both
from robustkit.reports.plots import png


def row(label: str, clean: float, proved: float, deviation: float = float("nan")) -> Row:
    method = label.split(",")[0]
    cells = {CLEAN: Cell(clean, n=100, deviation=deviation), ANY_VERIFIER: Cell(proved, n=100, deviation=deviation)}
    return Row(label, method, 0.1, (0,), (label,), cells)


def block(*rows: Row) -> Block:
    return Block("digits", "mlp", 0.1, (CLEAN, ANY_VERIFIER), rows)


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(0.9, 0.5), (0.8, 0.6), (0.85, 0.55), (0.7, 0.4), (0.8, 0.5), (0.9, 0.5)]
    assert pareto_front(points) == [(0.8, 0.6), (0.85, 0.55), (0.9, 0.5)]
    assert pareto_front([(0.5, 0.5)]) == [(0.5, 0.5)]


def test_rows_without_a_proof_are_left_out() -> None:
    unproved = replace(row("PGD training", 0.99, 0.0), cells={CLEAN: Cell(0.99, n=100)})
    assert [one.label for one in rows_with_both(block(row("IBP", 0.9, 0.8), unproved))] == ["IBP"]


@pytest.mark.parametrize("count", [1, 3, 16])
def test_every_row_is_drawn_and_named(count: int) -> None:
    rows = [row(f"MTL-IBP, alpha={place / 10}", 0.9 + place / 200, 0.8 - place / 100, 0.01) for place in range(count)]
    figure = plot_pareto(block(*rows, row("IBP", 0.88, 0.82)))
    axes = figure.axes[0]
    texts = " ".join(one.get_text() for one in axes.texts)
    drawn = sum(len(one.get_offsets()) for one in axes.collections if hasattr(one, "get_offsets"))
    points = sum(len(one.lines[0].get_xdata()) for one in axes.containers)
    assert points == count + 1 or drawn == count + 1
    if count <= 3:
        assert "IBP" in texts
    low, high = axes.get_xlim()
    assert low < 0.88 and high > 0.9 + (count - 1) / 200 + 0.01, "whiskers fit"
    assert png(figure) == png(plot_pareto(block(*rows, row("IBP", 0.88, 0.82))))
