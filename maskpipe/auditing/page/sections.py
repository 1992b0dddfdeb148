"""What the page says: verdict, numbers, findings, coverage; each section is HTML from a Report's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpipe.auditing.page import coverage as covering
from maskpipe.auditing.page.charts import gauge
from maskpipe.auditing.page.markup import count, percent, text
from maskpipe.findings import Finding, Place
from maskpipe.roles import Role
from maskpipe.rules import LEVELS, RULES

if TYPE_CHECKING:
    from maskpipe.auditing.report import Report
    from maskpipe.auditing.specimens import Specimen

USUAL = (0.3, 0.7)
"""The share of tokens with loss that is said to be typical of SFT; measured ones go from 12 to 96 %."""
_BADGES = {"error": "✕", "warning": "!", "clean": "✓", "unchecked": "?"}
_HERE = Path(__file__).parent
_NOT_CHECKED = ("MP321", "MP515")
"""Codes that say what could not be looked at."""
_PLACES = 40
"""Places of a finding that are listed."""


def verdict(report: Report) -> tuple[str, str, str]:
    """(error, warning, clean or unchecked; one sentence; what else to know)."""
    errors, warnings, notes = (report.of_level(level) for level in LEVELS)
    unmet = [met for met in report.requirements if not met.holds]
    tail = _share_words(report)
    if notes:
        tail += f" {count(len(notes), 'note')}, below."
    if errors:
        names = _names(errors)
        return "error", f"Do not train on this yet: {names}.", tail
    if unmet:
        words = "; ".join(met.text for met in unmet)
        return "error", f"Not what was required: {words}.", tail
    if warnings:
        names = _names(warnings)
        return "warning", f"Look before you train: {names}.", tail
    if not report.checked:
        return "unchecked", "Counted, not checked: this is what the manifest says.", tail
    open_codes = [finding.code for finding in notes if finding.code in _NOT_CHECKED]
    passed = "Every check passed" if report.kind == "maskpipe" else "Nothing wrong was found"
    if open_codes:
        passed = f"Nothing wrong was found, but not all could be checked ({', '.join(dict.fromkeys(open_codes))})"
    return "clean", f"{passed}: {_loss_sentence(report)}.", _after_clean(report, bool(open_codes))


def _names(findings: Sequence[Finding]) -> str:
    shown = [f"{RULES[f.code].name.replace('-', ' ')} ({f.code}, {f.count:,} ×)" for f in findings[:3]]
    more = len(findings) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _loss_sentence(report: Report) -> str:
    values = report.coverage.values
    loss = values.get("loss_tokens")
    if loss is None:
        return f"{report.tokens:,} tokens in {count(report.rows, 'row')}"
    return f"{loss:,} of {report.tokens:,} tokens ({percent(loss, report.tokens)}) are trained"


def _share_words(report: Report) -> str:
    return f"{_loss_sentence(report)[:1].upper()}{_loss_sentence(report)[1:]}."


def _after_clean(report: Report, partly: bool) -> str:
    notes = len(report.of_level("note"))
    what = "every token of every row, file and count" if report.kind == "maskpipe" else "every row that was read"
    what = f"{what}, but for what the notes say" if partly else what
    proof = "" if report.proof is None else f" Against the source: {report.proof}."
    return f"Checked: {what}.{proof}" + (f" {count(notes, 'note')} below." if notes else "")


def header(report: Report) -> str:
    state, sentence, tail = verdict(report)
    what = "a dataset of maskpipe" if report.kind == "maskpipe" else report.kind
    return f"""<header id="top">
<h1><b>{text(report.name)}</b> · {text(what)} · audit</h1>
<div class="verdict {state}"><div class="badge" aria-hidden="true">{_BADGES[state]}</div>
<p>{text(sentence)}<small>{text(tail)}</small></p></div>
</header>"""


def navigation(report: Report) -> str:
    found = len(report.findings)
    return f"""<nav><div><a href="#top">Summary</a><a href="#findings">Findings{f" ({found})" if found else ""}</a>
<a href="#tokens">Tokens</a><a href="#coverage">Coverage</a>
<button type="button" id="theme" title="light or dark">◐<span hidden> light or dark</span></button></div></nav>"""


def _usual(report: Report) -> tuple[float, float] | None:
    return USUAL if report.coverage.values.get("objective", "sft") == "sft" else None


def summary(report: Report) -> str:
    values = report.coverage.values
    tiles = []
    loss, length = values.get("loss_tokens"), values.get("sequence_length")
    if loss is not None:
        share = loss / report.tokens if report.tokens else 0.0
        tiles.append(
            f'<div class="tile wide"><div><b>{percent(loss, report.tokens)}</b>'
            f"<span>trained: {loss:,} of {report.tokens:,} tokens</span></div>"
            f"{gauge(share, _usual(report))}</div>"
        )
    else:
        tiles.append(_tile(f"{report.tokens:,}", "tokens"))
    of = "rows of" if report.kind == "maskpipe" else "rows, the longest of"
    tiles.append(_tile(f"{report.rows:,}", f"{of} {length:,} tokens" if length else "rows"))
    if "documents" in values:
        tiles.append(_tile(f"{values['documents']:,}", "documents"))
    if "signals_per_sequence" in values:
        tiles.append(_tile(f"{values['signals_per_sequence']:,.0f}", "trained tokens per row"))
    if "fill" in values:
        tiles.append(_tile(f"{100 * values['fill']:.1f} %", "of positions filled"))
    if "records" in values:
        records = values["records"]
        tiles.append(_tile(f"{records['kept']:,}", f"of {records['read']:,} records kept"))
    return f"""<section id="summary"><div class="tiles">{"".join(tiles)}</div>
{_requirements(report)}{_proof(report)}{_read_as(values)}</section>"""


def _tile(value: str, name: str) -> str:
    return f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>'


def _requirements(report: Report) -> str:
    if not report.requirements:
        return ""
    lines = "".join(
        f"<li>{'✓' if met.holds else '✕'} <code>{text(met.text)}</code>: "
        f"{'not known' if met.value is None else f'{met.value:,.6g}'}</li>"
        for met in report.requirements
    )
    return f"<h3>Required</h3><ul class='places'>{lines}</ul>"


def _proof(report: Report) -> str:
    if report.proof is None:
        return ""
    values = report.proof.to_dict()
    cells = "".join(
        _tile(f"{value:,}", name.replace("_", " ")) for name, value in values.items() if isinstance(value, int)
    )
    why = "".join(
        f"<li>{text(reason.replace('_', ' '))}: {n:,}</li>"
        for value in values.values()
        if isinstance(value, Mapping)
        for reason, n in value.items()
    )
    title = "Proof against the source: rendered and encoded again, every token compared"
    reasons = f"<p class='none-found'>Documents that this cannot prove:</p><ul class=places>{why}</ul>" if why else ""
    return f'<h3>{title}</h3><div class="tiles">{cells}</div>{reasons}'


def _read_as(values: Mapping[str, Any]) -> str:
    lines = [*values.get("read_as", ())]
    if "turns_located_by" in values:
        lines.append(f"turns located by {values['turns_located_by']}")
    return f'<p class="none-found">{text("; ".join(lines))}</p>' if lines else ""


# -- findings


def findings(report: Report, specimens: Sequence[Specimen]) -> str:
    shown = {specimen.row: specimen for specimen in specimens}
    if not report.findings:
        words = "None." if report.checked else "Nothing was checked."
        return f'<section id="findings"><h2>Findings</h2><p class="none-found">{words}</p></section>'
    entries = "".join(_finding(f, shown) for level in LEVELS for f in report.findings if RULES[f.code].level == level)
    return f'<section id="findings"><h2>Findings</h2>{entries}</section>'


def _finding(finding: Finding, shown: Mapping[int, Specimen]) -> str:
    rule = RULES[finding.code]
    places = "".join(f"<li>{_place(place, shown)}</li>" for place in finding.places[:_PLACES])
    more = len(finding.places) - _PLACES
    if more > 0:
        places += f"<li>and {more:,} more</li>"
    facts = "".join(
        f"<dt>{name}</dt><dd>{text(words)}</dd>"
        for name, words in (("what", rule.what), ("why", rule.why), ("do", rule.do), ("such as", rule.example))
        if words
    )
    opened = " open" if rule.level == "error" else ""
    return (
        f'<details class="finding {rule.level}" id="{rule.code}"{opened}><summary>'
        f'<span class="level">{rule.level}</span> '
        f"<code>{rule.code}</code> {text(rule.name.replace('-', ' '))}: {text(finding.text)}"
        f"{f' ({finding.count:,} ×)' if finding.count != 1 else ''}</summary>"
        f"{f'<ul class=places>{places}</ul>' if places else ''}<dl>{facts}</dl></details>"
    )


def _place(place: Place, shown: Mapping[int, Specimen]) -> str:
    words = []
    if place.row >= 0:
        words.append(f"row {place.row:,}")
        if place.start >= 0:
            end = place.end - 1
            words.append(f"token {place.start:,}" if end <= place.start else f"tokens {place.start:,} to {end:,}")
    elif place.file:
        words.append(place.file)
    if place.record >= 0:
        words.append(f"{place.source or 'source'} record {place.record:,}")
    elif place.source:
        words.append(place.source)
    if place.message >= 0:
        words.append(f"messages[{place.message}]")
    if place.field:
        words.append(place.field)
    label = text(" · ".join(words))
    specimen = shown.get(place.row)
    if specimen is None:
        return label
    position = f":{place.start}" if place.start >= 0 else ""
    return f'<a href="#row-{place.row}{position}">{label}</a>'


# -- coverage


def coverage(report: Report) -> str:
    charts, tables = covering.charts(report, _usual(report)), covering.tables(report)
    if not charts and not tables:
        return '<section id="coverage"><h2>Coverage</h2><p class="none-found">Nothing was counted.</p></section>'
    return (
        f'<section id="coverage"><h2>Coverage</h2><div class="charts">{"".join(charts)}</div>'
        f'<div class="two">{"".join(tables)}</div></section>'
    )


# -- tokens


def tokens(report: Report, specimens: Sequence[Specimen], missing: Sequence[int]) -> str:
    if not specimens:
        return '<section id="tokens"><h2>Tokens</h2><p class="none-found">No row is shown: none was read.</p></section>'
    legend = "".join(
        f'<span data-role="{int(role)}"><span class="swatch r{int(role)}"></span>{role.name.lower()}</span>'
        for role in Role
        if role is not Role.PADDING
    )
    size = sum(len(specimen) for specimen in specimens)
    shown = f"{count(len(specimens), 'row')} of {report.rows:,}, {size:,} tokens, chosen because they are worth reading"
    gone = f"; {count(len(missing), 'row')} more would not fit or cannot be read" if missing else ""
    keys = "".join(
        f"<span><kbd>{key}</kbd> {words}</span> "
        for key, words in (
            ("n", "next row"), ("t", "next trained run"), ("d", "next document"), ("f", "next finding"),
            ("m", "next match"), ("/", "search"), ("← →", "one token"),
        )
    )  # fmt: skip
    selects = "".join(
        f'<label>{name} <select id="f-{key}"><option value="">all</option>{extra}</select></label>'
        for key, name, extra in (
            ("role", "role", ""), ("part", "part", ""),
            ("loss", "loss", '<option value="1">trained</option><option value="0">untrained</option>'),
            ("code", "finding", ""),
        )
    )  # fmt: skip
    out = (_HERE / "viewer.html").read_text(encoding="utf-8")
    for name, part in (("shown", text(shown + gone)), ("selects", selects), ("legend", legend), ("keys", keys)):
        out = out.replace(f"<!--{name}-->", part)
    return out


def footer(report: Report) -> str:
    values: Mapping[str, Any] = report.coverage.values
    fingerprint = values.get("fingerprint")
    about = f"Fingerprint {text(fingerprint)}. " if fingerprint else ""
    return (
        f"<footer>{about}<code>{text(report.path)}</code> A finding's code is explained by "
        "<code>maskpipe rule CODE</code>. This page is one file and asks nothing of a network.</footer>"
    )


def fragment(report: Report) -> str:
    """For notebooks: inline styles only, colours that suit light and dark."""
    state, sentence, tail = verdict(report)
    colour = {"error": "#c22f2f", "warning": "#9a6700", "clean": "#1d7a33", "unchecked": "#777"}[state]
    rows = "".join(
        f"<tr><td style='text-align:left'>{RULES[f.code].level}</td><td style='text-align:left'>{f.code}</td>"
        f"<td style='text-align:left'>{text(RULES[f.code].name.replace('-', ' '))}</td>"
        f"<td style='text-align:right'>{f.count:,}</td><td style='text-align:left'>{text(f.text)}</td></tr>"
        for level in LEVELS
        for f in report.findings
        if RULES[f.code].level == level
    )
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("level", "code", "name", "count", "what"))
    table = f"<table><tr>{head}</tr>{rows}</table>" if rows else ""
    return (
        f"<div style='border-left:4px solid {colour};padding:2px 12px'><div><b>{text(report.name)}</b>: "
        f"<span style='color:{colour}'>{_BADGES[state]}</span> {text(sentence)}</div>"
        f"<div style='opacity:.7'>{text(tail)}</div>{table}</div>"
    )
