"""Coverage: what a dataset holds, and how much of it is trained. Plain values under stable keys (docs/AUDIT.md).

From the manifest alone: tokens and loss per role and part, fill, verdicts, the ledger. From a pass over the rows:
per message and source, histograms, stop tokens, first and last trained tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from maskpipe.stats import Stats

if TYPE_CHECKING:
    from maskpipe.shards.reader import Dataset

_METRICS = {"sampled_tokens": "sampled"}
"""Metrics that stand under another key."""


@dataclass(frozen=True)
class Coverage:
    """Numbers of one dataset. What is not known has no key."""

    values: dict[str, Any] = field(default_factory=dict)

    def metric(self, name: str) -> float | None:
        """A number by the name that requirements use; None where it is not known."""
        value = self.values.get(_METRICS.get(name, name))
        if name in ("records", "kept_share", "rejected", "dropped"):
            return self._ledger(name)
        return value if isinstance(value, int | float) else None

    def _ledger(self, name: str) -> float | None:
        records = self.values.get("records")
        if records is None:
            return None
        if name == "dropped":
            return float(sum(self.values["dropped"].values()))
        if name == "rejected":
            return float(sum(records["rejected"].values()))
        if name == "records":
            return float(records["read"])
        return records["kept"] / records["read"] if records["read"] else None

    def to_dict(self) -> dict[str, Any]:
        """The values, as JSON takes them."""
        return self.values


def from_manifest(dataset: Dataset) -> Coverage:
    """What the manifest says; no shard is read."""
    values = Stats.of(dataset).to_dict()
    for key in ("path", "pretraining_signals_per_sequence"):
        del values[key]
    values["sampled"] = sum(dataset.manifest.totals.sampled.values())
    return Coverage(values)
