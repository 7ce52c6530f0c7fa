"""Reports: tables, plots and pages derived from the results table."""

from robustkit.reports.comparison import Block, Cell, Row, compare
from robustkit.reports.facts import RunFacts, ShownCheck
from robustkit.reports.report import write_report
from robustkit.reports.tables import as_csv, as_latex, as_markdown, as_text

__all__ = [
    "Block",
    "Cell",
    "Row",
    "RunFacts",
    "ShownCheck",
    "as_csv",
    "as_latex",
    "as_markdown",
    "as_text",
    "compare",
    "write_report",
]
