"""stats: what a dataset holds, from its manifest alone; no shard is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from maskpipe.explain import visible
from maskpipe.roles import Part, Role
from maskpipe.summary import by_role

if TYPE_CHECKING:
    from maskpipe.shards.reader import Dataset

STAGES = (
    ("pretraining", "all", "how text continues"),
    ("SFT", "assistant tokens only, typically 30-70 %", "how to answer"),
    ("preference tuning", "neither directly: loss over pairs of responses", "which answer is preferred"),
)
"""The three stages: which tokens get loss, what the model learns."""


@dataclass(frozen=True)
class Stats:
    """The numbers of one dataset."""

    values: dict[str, Any]

    @staticmethod
    def of(dataset: Dataset) -> Stats:
        """From an open dataset's manifest."""
        manifest, totals = dataset.manifest, dataset.manifest.totals
        length = manifest.sequence_length
        kinds = {
            key: {
                "tokens": n,
                "sampled": totals.sampled.get(key, 0),
                "loss": totals.loss.get(key, 0),
            }
            for key, n in sorted(totals.tokens.items(), key=lambda item: _order(item[0]))
            if key != "padding.none"
        }
        loss = by_role(totals.loss)
        return Stats(
            {
                "path": str(dataset.path),
                "fingerprint": manifest.fingerprint,
                "objective": manifest.recipe["objective"],
                "sequence_length": length,
                "sequences": totals.sequences,
                "documents": totals.documents,
                "documents_per_sequence": _ratio(totals.fragments, totals.sequences),
                "shards": len(manifest.shards),
                "bytes": sum(shard.size for shard in manifest.shards),
                "tokens": totals.n_tokens,
                "padding": totals.padding,
                "fill": totals.fill,
                "loss_tokens": totals.n_loss,
                "loss_share": _ratio(totals.n_loss, totals.n_tokens),
                "signals_per_sequence": totals.signals_per_sequence,
                "pretraining_signals_per_sequence": length - 1,
                "roles": {role: {"tokens": n, "loss": loss.get(role, 0)} for role, n in by_role(totals.tokens).items()},
                "kinds": kinds,
                "verdicts": dict(sorted(totals.verdicts.items())),
                "straddles": totals.straddles,
                "cuts": totals.cuts,
                "records": {
                    "read": manifest.records,
                    "kept": manifest.records_kept,
                    "rejected": dict(sorted(manifest.rejected.items())),
                    "left_out": dict(sorted(manifest.left_out.items())),
                },
                "dropped": dict(sorted(manifest.dropped.items())),
                "other_roles": list(manifest.role_names),
                "sources": [source.to_dict() for source in manifest.sources],
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys: what `--format json` prints, and what a logger takes."""
        return self.values


def show(stats: Stats, console: Console) -> None:
    """Prints the numbers as tables."""
    v = stats.values
    console.print(
        f"{visible(v['path'])}   {v['sequences']:,} sequences of {v['sequence_length']:,} in {v['shards']} "
        f"shard{'' if v['shards'] == 1 else 's'}, "
        f"{v['bytes'] / 1e6:,.1f} MB   objective {v['objective']}",
        style="bold",
    )
    fill = _percent(v["tokens"], v["tokens"] + v["padding"])
    console.print(f"{v['documents']:,} documents, {v['documents_per_sequence']:.1f} per sequence; fill {fill}\n")
    console.print(_kinds(v))
    console.print()
    console.print(_stages(v))
    console.print()
    for line in _lines(v):
        console.print(line, soft_wrap=True)


def _plain(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), show_edge=False)
    for k, name in enumerate(columns):
        table.add_column(name, justify="left" if k == 0 else "right", header_style="dim")
    return table


def _kinds(v: dict[str, Any]) -> Table:
    table = _plain("role", "part", "tokens", "share", "sampled", "with loss", "loss / tokens")
    table.columns[1].justify = "left"
    total = v["tokens"]
    last = ""
    for key, n in v["kinds"].items():
        role, part = key.split(".")
        if role != last:
            own = v["roles"][role]
            table.add_row(
                role, "", f"{own['tokens']:,}", _percent(own["tokens"], total), "", f"{own['loss']:,}",
                _percent(own["loss"], own["tokens"]), style="bold",
            )  # fmt: skip
            last = role
        table.add_row(
            "", part, f"{n['tokens']:,}", _percent(n["tokens"], total), f"{n['sampled']:,}", f"{n['loss']:,}",
            _percent(n["loss"], n["tokens"]),
        )  # fmt: skip
    table.add_row(
        "all", "", f"{total:,}", "", "", f"{v['loss_tokens']:,}", _percent(v["loss_tokens"], total), style="bold"
    )
    if v["padding"]:
        table.add_row("padding", "", f"{v['padding']:,}", "", "", "0", "0 %", style="dim")
    return table


def _stages(v: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), show_edge=False)
    for name in ("stage", "which tokens get loss", "signals per sequence", "what the model learns"):
        table.add_column(name, header_style="dim", justify="right" if name.startswith("signals") else "left")
    length = v["sequence_length"]
    signals = (f"{length - 1:,}", f"{0.3 * length:,.0f}-{0.7 * length:,.0f}", "-")
    for (stage, which, learns), n in zip(STAGES, signals, strict=True):
        table.add_row(stage, which, n, learns)
    share = _percent(v["loss_tokens"], v["tokens"])
    signal = f"{v['signals_per_sequence']:,.1f}"
    table.add_row("this dataset", f"{share} of its tokens, measured", signal, "", style="bold")
    return table


def _lines(v: dict[str, Any]) -> list[str]:
    records = v["records"]
    rejected = sum(records["rejected"].values())
    left_out = sum(records["left_out"].values())
    lines = [
        f"records   {records['read']:,} read = {records['kept']:,} kept + {rejected:,} rejected"
        + (f" + {left_out:,} left out" if left_out else "")
    ]
    lines += [f"          {n:,} {reason}" for reason, n in records["rejected"].items()]
    lines += [f"          {n:,} {reason.replace('_', ' ')}" for reason, n in records["left_out"].items()]
    if v["verdicts"]:
        shown = ", ".join(f"{n:,} {name.replace('_', ' ').replace('+', ' and ')}" for name, n in v["verdicts"].items())
        lines.append(f"turns     {shown} (as documents list them; a split conversation's turns count in each)")
    if v["dropped"]:
        lines.append("dropped   " + ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in v["dropped"].items()))
    lines.append(f"borders   {v['straddles']:,} straddling tokens, {v['cuts']:,} cuts")
    if v["other_roles"]:
        lines.append("roles     'other' stands for " + ", ".join(map(visible, v["other_roles"])))
    for k, source in enumerate(v["sources"]):
        label = "sources" if k == 0 else ""
        digest = source["sha256"][:12]
        lines.append(f"{label:<10}{visible(source['name'])}: {source['records']:,} records, sha256 {digest}")
    return lines


def _order(key: str) -> tuple[int, int]:
    role, part = key.split(".")
    return Role[role.upper()], Part[part.upper()]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if part and whole else "0 %"


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
