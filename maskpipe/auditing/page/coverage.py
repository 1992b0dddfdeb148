"""Coverage as tables and charts. A value that the report does not have makes no table and no chart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskpipe.auditing.page.charts import bars, figure
from maskpipe.auditing.page.markup import percent, table, text
from maskpipe.roles import Role

if TYPE_CHECKING:
    from maskpipe.auditing.report import Report


def charts(report: Report, usual: tuple[float, float]) -> list[str]:
    """Figures, in the order in which they should be read."""
    values = report.coverage.values
    out = []
    if "roles" in values:
        out.append(_roles(values["roles"], report.tokens))
    return out


def tables(report: Report) -> list[str]:
    """Tables with their headings, in the order in which they should be read."""
    values = report.coverage.values
    out = []
    if "kinds" in values:
        out.append(_kinds(values))
    for key, title in (("verdicts", "Turns by verdict"), ("dropped", "Documents dropped, by policy")):
        if values.get(key):
            out.append(_plain(title, values[key]))
    if "records" in values:
        out.append(_ledger(values["records"]))
    if values.get("sources"):
        out.append(_sources(values["sources"]))
    return [f"<div>{entry}</div>" for entry in out]


def _roles(roles: dict[str, dict[str, int]], tokens: int) -> str:
    entries = [
        (role, f"r{int(Role[role.upper()])}", n["tokens"], n["loss"], f"{percent(n['loss'], n['tokens'])} trained")
        for role, n in roles.items()
        if n["tokens"]
    ]
    return figure("Tokens by role, and how many of them are trained", bars(entries, what="tokens trained"))


def _kinds(values: dict[str, Any]) -> str:
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


def _plain(title: str, values: dict[str, int]) -> str:
    rows = [(text(name.replace("_", " ")), f"{n:,}") for name, n in values.items()]
    return f"<h3>{text(title)}</h3>{table(('', 'count'), rows)}"


def _ledger(records: dict[str, Any]) -> str:
    rows = [("read", f"{records['read']:,}"), ("kept", f"{records['kept']:,}")]
    rows += [(f"rejected: {text(reason.replace('_', ' '))}", f"{n:,}") for reason, n in records["rejected"].items()]
    rows += [(f"left out: {text(reason.replace('_', ' '))}", f"{n:,}") for reason, n in records["left_out"].items()]
    return f"<h3>Records</h3>{table(('', 'records'), rows)}"


def _sources(sources: list[dict[str, Any]]) -> str:
    rows = [
        (text(source["name"]), f"{source['records']:,}", f"<code>{text(str(source['sha256'])[:12])}</code>")
        for source in sources
    ]
    return f"<h3>Sources</h3>{table(('name', 'records', '<sha256'), rows)}"
