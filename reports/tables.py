"""The comparison as terminal text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Sequence

from robustkit.reports.comparison import TIME, Block, Cell, Row
from robustkit.reports.facts import MISSING, eps_text

HEADINGS = {"pgd": "PGD", "cw": "CW", "fgsm": "FGSM", "interval-gradient": "int. gradient", TIME: "train s"}


def heading(column: str) -> str:
    """Give a column's heading in print."""
    return HEADINGS.get(column, column)


def percent(cell: Cell, column: str, block: Block) -> str:
    """Write a figure: percent with one decimal, two from 1,000 samples on, its N where that differs; or seconds.

    Over several seeds the standard deviation follows; where some runs lack the figure, how many have it.
    """
    if not cell.measured:
        return MISSING
    scale, digits = (1, 0 if cell.value >= 10 else 1) if column == TIME else (100, _digits(cell))
    spread = "" if math.isnan(cell.deviation) else f" ± {scale * cell.deviation:,.{digits}f}"
    size = "" if cell.n == block.n or column == TIME else f" (N={cell.n:,})"
    some = f" ({cell.runs} of {cell.runs + cell.missing} runs)" if cell.missing else ""
    return f"{scale * cell.value:,.{digits}f}{spread}{size}{some}"


def interval(cell: Cell) -> str:
    """Write the confidence interval, or nothing."""
    digits = _digits(cell)
    return "" if math.isnan(cell.low) else f"[{100 * cell.low:.{digits}f}, {100 * cell.high:.{digits}f}]"


def first_columns(block: Block) -> list[tuple[str, Callable[[Row], str]]]:
    """Give the columns that say which row it is."""
    columns: list[tuple[str, Callable[[Row], str]]] = [("training", lambda row: row.label)]
    if len({repr(row.train_eps) for row in block.rows if not math.isnan(row.train_eps)}) > 1:
        columns.append(("at eps", lambda row: eps_text(row.train_eps)))
    if block.uneven:
        columns.append(("seeds", lambda row: str(len(row.seeds))))
    return columns


def as_text(blocks: Sequence[Block]) -> str:
    """Write the comparison for a terminal, the best of each column marked with a star."""
    return "\n\n".join(_text_block(block) for block in blocks) + "\n"


def as_markdown(blocks: Sequence[Block], title: str) -> str:
    """Write the comparison in Markdown, the best in bold, with intervals."""
    return f"# {title}\n\n" + "\n\n".join(_markdown_block(block) for block in blocks) + "\n"


def as_csv(blocks: Sequence[Block]) -> str:
    """Write every figure in full precision, one per line, fractions in [0, 1] and seconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "dataset",
            "model",
            "eps",
            "training",
            "train_eps",
            "seeds",
            "figure",
            "value",
            "low",
            "high",
            "sd",
            "n",
            "runs",
        ]
    )
    for block in blocks:
        for row in block.rows:
            seeds = " ".join(map(str, row.seeds))
            for name, cell in row.cells.items():
                values = [_number(one) for one in (cell.value, cell.low, cell.high, cell.deviation)]
                which = [block.dataset, block.model, block.eps, row.label, _number(row.train_eps), seeds]
                writer.writerow([*which, name, *values, cell.n or "", cell.runs])
    return out.getvalue()


def as_latex(blocks: Sequence[Block]) -> str:
    """Write the comparison as booktabs tables; the document needs ``\\usepackage{booktabs}``."""
    return "\n\n".join(_latex_block(block) for block in blocks) + "\n"


def escape_latex(text: str) -> str:
    """Escape what LaTeX would take for a command."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", MISSING: "--"}
    plain = {one: f"\\{one}" for one in "&%$#_{}"}
    return "".join({**plain, **special}.get(one, one) for one in text).replace("±", r"$\pm$")


def _digits(cell: Cell) -> int:
    return 2 if cell.n >= 1000 else 1


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _text_block(block: Block) -> str:
    front = first_columns(block)
    head = [name for name, _ in front] + [heading(name) for name in block.columns]
    lines = []
    for row in block.rows:
        cells = [row.cells.get(name, Cell()) for name in block.columns]
        marked = [
            percent(cell, name, block) + ("*" if cell.best else " ")
            for cell, name in zip(cells, block.columns, strict=True)
        ]
        lines.append([text(row) for _, text in front] + marked)
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(len(head))]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)

    def join(line: Sequence[str]) -> str:
        left = [one.ljust(width) for one, width in zip(line[: len(front)], widths, strict=False)]
        right = [one.rjust(width) for one, width in zip(line[len(front) :], widths[len(front) :], strict=True)]
        return "  ".join(left + right).rstrip()

    shown = [join([*head[: len(front)], *(f"{name} " for name in head[len(front) :])]), rule, *map(join, lines), rule]
    widest = max(
        ((cell.high - cell.low) / 2 for row in block.rows for cell in row.cells.values() if not math.isnan(cell.low)),
        default=math.nan,
    )
    sure = "" if math.isnan(widest) else f" At this N the intervals are at most ±{100 * widest:.1f} wide."
    star = "* best of the column." if any(cell.best for row in block.rows for cell in row.cells.values()) else ""
    return "\n".join([*_wrap(block.caption + "."), *shown, *_wrap(f"{star}{sure}".strip())])


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 98)


def _markdown_block(block: Block) -> str:
    front = first_columns(block)
    head = [name for name, _ in front] + [heading(name) for name in block.columns]
    lines = [head, ["---"] * len(front) + ["---:"] * len(block.columns)]
    for row in block.rows:
        line = [text(row).replace("|", r"\|") for _, text in front]
        for name in block.columns:
            cell = row.cells.get(name, Cell())
            value = percent(cell, name, block)
            line.append(f"{f'**{value}**' if cell.best else value} {interval(cell)}".rstrip())
        lines.append(line)
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{block.caption}.\n\n{body}"


def _latex_block(block: Block) -> str:
    front = first_columns(block)
    head = [name for name, _ in front] + [heading(name) for name in block.columns]
    lines = []
    for row in block.rows:
        line = [escape_latex(text(row)) for _, text in front]
        for name in block.columns:
            cell = row.cells.get(name, Cell())
            value = escape_latex(percent(cell, name, block))
            small = f" {{\\scriptsize {interval(cell)}}}" if interval(cell) else ""
            line.append((f"\\textbf{{{value}}}" if cell.best else value) + small)
        lines.append(" & ".join(line) + r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{escape_latex(block.caption)}.}}",
            f"\\begin{{tabular}}{{{'l' * len(front)}{'r' * len(block.columns)}}}",
            r"\toprule",
            " & ".join(escape_latex(name) for name in head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )
