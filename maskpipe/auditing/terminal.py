"""A report as a person sees it in a terminal: verdict, what is trained, what was found; good at 80 columns and more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskpipe.auditing.report import Report, level_of
from maskpipe.explain import visible
from maskpipe.findings import Finding, Place
from maskpipe.rules import LEVELS, RULES

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "cyan"}
_VERDICTS = {True: ("clean", "bold green"), False: ("findings", "bold red")}
_BAR = 20
_SHOWN_PLACES = 3


def show(report: Report, console: Console) -> None:
    """Prints verdict, coverage, findings and requirements."""
    word, style = _VERDICTS[not report.errors and not report.warnings]
    if not report.checked:
        word, style = "not checked", "bold"
    counts = ", ".join(f"{len(report.of_level(level)):,} {level}{_s(len(report.of_level(level)))}" for level in LEVELS)
    head = Text.assemble((visible(report.name), "bold"), f" ({visible(report.kind)})   ", (word, style), f"   {counts}")
    console.print(head)
    values = report.coverage.to_dict()
    console.print(
        f"{report.rows:,} rows, {report.tokens:,} tokens"
        + (f", {values['loss_tokens']:,} with loss" if "loss_tokens" in values else "")
        + (f", fill {_percent(values['fill'])}" if "fill" in values else "")
        + (f", {values['signals_per_sequence']:,.0f} signals per row" if "signals_per_sequence" in values else "")
    )
    if "roles" in values:
        console.print()
        console.print(_roles(values["roles"], console.width))
    lines = list(_lines(values))
    if lines:
        console.print()
        console.print(_labelled(lines))
    if report.findings:
        console.print()
        gravest_first = sorted(report.findings, key=lambda finding: LEVELS.index(level_of(finding)))
        console.print(_findings(gravest_first, console.width))
        console.print(f"maskpipe rule {gravest_first[0].code} explains", style="dim")
    rest = [("proof", str(report.proof))] if report.proof is not None else []
    for met in report.requirements:
        value = "not known" if met.value is None else f"{met.value:g}"
        rest.append(("require", f"{met.text}: {value}, {'holds' if met.holds else 'does not hold'}"))
    if rest:
        console.print()
        console.print(_labelled(rest))


def _roles(roles: dict[str, dict[str, int]], width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for name in ("role", "tokens", "with loss", "share"):
        table.add_column(name, header_style="dim", justify="left" if name == "role" else "right", no_wrap=True)
    table.add_column("trained of its tokens" if width >= 100 else "trained", header_style="dim", no_wrap=True)
    for role, cell in roles.items():
        share = cell["loss"] / cell["tokens"] if cell["tokens"] else 0.0
        filled = round(share * _BAR) if share else 0
        bar = Text("█" * max(filled, int(share > 0)), style="green") + Text("·" * (_BAR - filled), style="dim")
        table.add_row(role, f"{cell['tokens']:,}", f"{cell['loss']:,}", _percent(share), bar)
    return table


def _lines(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    histograms = values.get("histograms", {})
    shares = histograms.get("loss_share_per_document")
    if shares:
        share = f"of a document's tokens with loss: mean {_percent(shares['mean'])}"
        if values.get("objective", "sft") == "sft":
            inside = _between(shares, 0.3, 0.7)
            share += f", {_percent(inside / shares['count'])} of documents between 30 and 70 % (typical of SFT)"
        yield "share", share
    lengths = histograms.get("tokens_per_document")
    if lengths:
        yield (
            "documents",
            f"{lengths['count']:,}; mean {lengths['mean']:,.0f} tokens, {lengths['least']:,.0f} to "
            f"{lengths['most']:,.0f}",
        )
    for label, key, count in (("stops", "stops", "turns"), ("begin with", "first_trained", "count")):
        entries = values.get(key, [])[:5]
        if entries:
            said = [f"{_token(entry)} {entry[count]:,}" for entry in entries]
            yield label, ", ".join(said)
    verdicts = values.get("verdicts")
    if verdicts:
        yield (
            "turns",
            ", ".join(f"{n:,} {name.replace('_', ' ').replace('+', ' and ')}" for name, n in verdicts.items()),
        )
    scripts = values.get("scripts", {})
    if scripts:
        total = sum(cell["tokens"] for cell in scripts.values())
        yield (
            "scripts",
            ", ".join(f"{name} {_percent(cell['tokens'] / total)}" for name, cell in [*scripts.items()][:5]),
        )
    ranks = values.get("ranks", {})
    if "8" in ranks:
        yield "ranks", f"with 8, the fullest has {ranks['8']['mean']:.2f} times the mean loss tokens of a step"


def _findings(findings: list[Finding], width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("code", header_style="dim", no_wrap=True)
    if width >= 100:
        table.add_column("name", header_style="dim", no_wrap=True)
    table.add_column("what, and where first", header_style="dim", ratio=1)
    for finding in findings:
        level = level_of(finding)
        places = ", ".join(map(_place, finding.places[:_SHOWN_PLACES]))
        more = ", …" if finding.count > _SHOWN_PLACES and len(finding.places) > _SHOWN_PLACES else ""
        text = Text(visible(finding.text)) + Text(f"  at {places}{more}" if places else "", style="dim")
        name = [RULES[finding.code].name] if width >= 100 else []
        table.add_row(Text(level, style=_STYLES[level]), finding.code, *name, text)
    return table


def _place(place: Place) -> str:
    if place.row < 0:
        return visible(place.file or place.source)
    tokens = "" if place.start < 0 else f":{place.start}" + (f"-{place.end}" if place.end > place.start + 1 else "")
    return f"row {place.row}{tokens}"


def _labelled(lines: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    for label, text in lines:
        table.add_row(label, Text(text))
    return table


def _between(histogram: dict[str, Any], low: float, high: float) -> int:
    edges, counts = histogram["edges"], histogram["counts"]
    return sum(n for k, n in enumerate(counts) if edges[k] >= low - 1e-9 and edges[k + 1] <= high + 1e-9)


def _token(entry: dict[str, Any]) -> str:
    if entry["id"] < 0:
        return "none"
    return repr(visible(entry["text"])) if entry["text"] else f"id {entry['id']}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _s(n: int) -> str:
    return "" if n == 1 else "s"
