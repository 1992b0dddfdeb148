"""A report as a person sees it in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from maskpipe.auditing.report import Report, level_of
from maskpipe.explain import visible
from maskpipe.rules import RULES

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "cyan"}


def show(report: Report, console: Console) -> None:
    """Prints coverage, findings and requirements."""
    console.print(str(report).split("\n")[0], style="bold")
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for name in ("level", "code", "name", "count", "what"):
        table.add_column(name, header_style="dim", justify="right" if name == "count" else "left")
    for finding in report.findings:
        level = level_of(finding)
        table.add_row(
            level, finding.code, RULES[finding.code].name, f"{finding.count:,}", visible(finding.text),
            style=_STYLES[level],
        )  # fmt: skip
    if report.findings:
        console.print(table)
        console.print(f"maskpipe rule {report.findings[0].code} explains")
    if report.proof is not None:
        console.print(f"proof     {report.proof}")
    for met in report.requirements:
        value = "not known" if met.value is None else f"{met.value:g}"
        console.print(f"require   {met.text}: {value}   {'holds' if met.holds else 'does not hold'}")
