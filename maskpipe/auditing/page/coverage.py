"""Coverage as tables and charts. A value that the report does not have makes no table and no chart."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maskpipe.auditing.page.charts import bars, columns, figure, histogram
from maskpipe.auditing.page.markup import percent, table, text
from maskpipe.roles import Role

if TYPE_CHECKING:
    from maskpipe.auditing.report import Report

Values = Mapping[str, Any]
_SHARES = (
    ("loss_share_per_document", "Trained share of each document", "documents"),
    ("loss_share_per_sequence", "Trained share of each row", "rows"),
)
_SIZES = (
    ("tokens_per_document", "Length of documents", "documents", "tokens"),
    ("turns_per_document", "Trained turns per document", "documents", "trained turns"),
    ("signals_per_sequence", "Trained tokens per row", "rows", "trained tokens"),
    ("documents_per_sequence", "Documents per row", "rows", "documents"),
)
_TERSE = 12
"""Lines of a table of most common tokens."""


def charts(report: Report, usual: tuple[float, float] | None) -> list[str]:
    """Figures, in the order in which they should be read."""
    values: Values = report.coverage.values
    histograms: Values = values.get("histograms", {})
    out = [_share(histograms[key], title, what, usual) for key, title, what in _SHARES if key in histograms]
    if values.get("roles"):
        out.append(_roles(values["roles"]))
    if values.get("messages"):
        out.append(_messages(values["messages"]))
    out += [_sizes(histograms[key], title, what, axis) for key, title, what, axis in _SIZES if key in histograms]
    if values.get("ranks"):
        out.append(_ranks(values["ranks"]))
    if values.get("scripts"):
        out.append(_scripts(values["scripts"]))
    return out


def tables(report: Report) -> list[str]:
    """Tables with their headings, in the order in which they should be read."""
    values: Values = report.coverage.values
    out = []
    if values.get("kinds"):
        out.append(_kinds(values))
    if values.get("stops"):
        out.append(_stops(values["stops"]))
    if values.get("first_trained"):
        out.append(_ends(values["first_trained"], values.get("last_trained", [])))
    if values.get("verdicts"):
        out.append(_plain("Turns by verdict", values["verdicts"]))
    if "records" in values:
        out.append(_ledger(values))
    if values.get("sources"):
        out.append(_sources(values))
    return [f"<div>{entry}</div>" for entry in out]


# -- charts


def _share(h: Values, title: str, what: str, usual: tuple[float, float] | None) -> str:
    """`usual`: the shares that are usual in SFT; None for data of another kind."""
    edges, counts = h["edges"], h["counts"]
    low, high = usual or (0.0, 1.0)
    inside = sum(n for n, a, b in zip(counts, edges, edges[1:], strict=False) if a >= low - 1e-9 and b <= high + 1e-9)
    drawn = histogram(
        counts,
        [(k / 4, f"{25 * k} %") for k in range(5)],
        [f"{100 * a:.0f} to {100 * b:.0f} %" for a, b in itertools.pairwise(edges)],
        what=what,
        band=usual,
        band_name=f"{100 * low:.0f}-{100 * high:.0f} %" if usual else "",
        mark=h["mean"],
        mark_name=f"mean {100 * h['mean']:.1f} %",
    )
    reach = f"from {100 * h['least']:.1f} to {100 * h['most']:.1f} %."
    if usual is None:
        return figure(title, drawn, f"{h['count']:,} {what}, {reach}")
    where = f"{percent(inside, h['count'])} of {h['count']:,} {what} lie within the {100 * low:.0f}-{100 * high:.0f} %"
    return figure(title, drawn, f"{where} that are usual in SFT; {reach}")


def _sizes(h: Values, title: str, what: str, axis: str) -> str:
    edges, counts = [round(edge) for edge in h["edges"]], h["counts"]
    first = next((k for k, n in enumerate(counts) if n), 0)
    doubling = len(edges) > 3 and edges[3] == 2 * edges[2]
    if not doubling:
        first = 0
    edges, counts = edges[first:], counts[first:]
    every = max(1, -(-len(edges) // 7))
    if doubling:
        ticks = [(k / len(counts), _short(edge)) for k, edge in enumerate(edges) if k % every == 0] if counts else []
    else:
        ticks = [(k / 4, f"{edges[-1] * k / 4:,.0f}") for k in range(5)]
    names = [_range(a, b) for a, b in itertools.pairwise(edges)]
    drawn = histogram(counts, ticks, names, what=what, axis=axis)
    note = f"mean {h['mean']:,.1f}, from {round(h['least']):,} to {round(h['most']):,}"
    return figure(title, drawn, f"{note}; {'columns double in width' if doubling else 'columns of one width'}.")


def _range(start: int, stop: int) -> str:
    return f"{start:,}" if stop - start <= 1 else f"{start:,} to {stop - 1:,}"


def _short(n: int) -> str:
    if n >= 1 << 20:
        return f"{n / (1 << 20):.3g}Mi"
    return f"{n >> 10}Ki" if n >= 1 << 10 and n % (1 << 10) == 0 else f"{n:,}"


def _roles(roles: Mapping[str, Values]) -> str:
    entries = [
        (role, f"r{int(Role[role.upper()])}", n["tokens"], n["loss"], f"{percent(n['loss'], n['tokens'])} trained")
        for role, n in roles.items()
        if n["tokens"]
    ]
    return figure("Tokens by role", bars(entries, what="tokens trained"), "Solid: trained.")


def _messages(messages: Mapping[str, Values]) -> str:
    names = list(messages)
    cells = list(messages.values())
    drawn = columns(
        names,
        [cell["tokens"] for cell in cells],
        [cell["loss"] for cell in cells],
        what="tokens trained",
        axis="index of the message",
    )
    return figure("Tokens by message", drawn, "Solid: trained. “none”: text of the template around the messages.")


def _ranks(ranks: Mapping[str, Values]) -> str:
    entries = [
        (f"{count} ranks", "r3", cell["worst"] - 1, cell["mean"] - 1,
         f"+{100 * (cell['mean'] - 1):.1f} %, worst +{100 * (cell['worst'] - 1):.0f} %")
        for count, cell in ranks.items()
    ]  # fmt: skip
    note = "How many more trained tokens the fullest rank of a step has than the mean: solid on average, pale at worst."
    return figure("Balance over ranks", bars(entries, what="more than the mean", titled=False), note)


def _scripts(scripts: Mapping[str, Values]) -> str:
    entries = [
        (name, "r8", cell["tokens"], cell["loss"], f"{percent(cell['loss'], cell['tokens'])} trained")
        for name, cell in list(scripts.items())[:_TERSE]
    ]
    return figure("Tokens by script", bars(entries, what="tokens trained"), "Solid: trained.")


# -- tables


def _kinds(values: Values) -> str:
    rows = []
    last = ""
    for key, n in values["kinds"].items():
        role, part = key.split(".")
        if role != last:
            own = values["roles"].get(role, n)
            rows.append((f"<b>{text(role)}</b>", "", f"{own['tokens']:,}", percent(own["tokens"], values["tokens"]),
                         f"{own['loss']:,}", percent(own["loss"], own["tokens"])))  # fmt: skip
            last = role
        rows.append(("", text(part), f"{n['tokens']:,}", percent(n["tokens"], values["tokens"]), f"{n['loss']:,}",
                     percent(n["loss"], n["tokens"])))  # fmt: skip
    head = ("role", "<part", "tokens", "share", "trained", "of these")
    return f"<h3>Tokens by role and part</h3>{table(head, rows)}"


def _stops(stops: Sequence[Values]) -> str:
    rows = [
        (
            f"<code>{text(stop['text'] or '?')}</code> {stop['id']}" if stop["id"] >= 0 else "no stop token",
            f"{stop['turns']:,}",
            f"{stop['trained']:,}" if stop["id"] >= 0 else "-",
        )
        for stop in stops
    ]
    return f"<h3>How trained turns end</h3>{table(('stop token', 'turns', 'trained'), rows)}"


def _ends(first: Sequence[Values], last: Sequence[Values]) -> str:
    def cell(tokens: Sequence[Values], k: int) -> tuple[str, str]:
        if k >= len(tokens):
            return "", ""
        return f"<code>{text(tokens[k]['text'] or tokens[k]['id'])}</code>", f"{tokens[k]['count']:,}"

    rows = [(*cell(first, k), *cell(last, k)) for k in range(min(_TERSE, max(len(first), len(last))))]
    return (
        "<h3>Most common first and last trained tokens of turns</h3>"
        f"{table(('first', 'turns', '<last', 'turns'), rows)}"
    )


def _plain(title: str, values: Mapping[str, int]) -> str:
    rows = [(text(name.replace("_", " ").replace("+", ", ")), f"{n:,}") for name, n in values.items()]
    return f"<h3>{text(title)}</h3>{table(('', 'count'), rows)}"


def _ledger(values: Values) -> str:
    records, dropped = values["records"], values.get("dropped", {})
    rows = [("read", f"{records['read']:,}"), ("kept", f"{records['kept']:,}")]
    rows += [(f"rejected: {text(reason.replace('_', ' '))}", f"{n:,}") for reason, n in records["rejected"].items()]
    rows += [(f"left out: {text(reason.replace('_', ' '))}", f"{n:,}") for reason, n in records["left_out"].items()]
    rows += [(f"documents dropped: {text(reason.replace('_', ' '))}", f"{n:,}") for reason, n in dropped.items()]
    return f"<h3>Records</h3>{table(('', 'count'), rows)}"


def _sources(values: Values) -> str:
    tokens = {entry["source"]: entry for entry in values.get("by_source", [])}
    rows = []
    for k, source in enumerate(values["sources"]):
        cell = tokens.get(k)
        rows.append((
            text(source["name"]),
            f"{source['records']:,}",
            "-" if cell is None else f"{cell['tokens']:,}",
            "-" if cell is None else percent(cell["loss"], cell["tokens"]),
        ))  # fmt: skip
    return f"<h3>Sources</h3>{table(('name', 'records', 'tokens', 'trained'), rows)}"
