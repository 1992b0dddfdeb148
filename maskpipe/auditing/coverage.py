"""Coverage: what a dataset holds, and how much of it is trained. Plain values under stable keys (docs/AUDIT.md).

From the manifest alone: tokens and loss per role and part, fill, verdicts, the ledger. From a pass over the rows
(Collector): per message, source and script, histograms, stop tokens, first and last trained tokens, balance over ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.histograms import Histogram, counts_histogram, lengths_histogram, shares_histogram
from maskpipe.stats import Stats

if TYPE_CHECKING:
    from maskpipe.shards.reader import Dataset

Cell = dict[str, int]
"""tokens, sampled, loss."""

_METRICS = {"sampled_tokens": "sampled"}
"""Metrics that stand under another key."""
MOST_COMMON = 20
RANKS = (2, 4, 8, 16, 32, 64)
KEPT_ROWS = 1 << 20
"""Rows whose loss counts are kept to see how even they fall on ranks: the first ones."""


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


class Collector:
    """What a pass over rows adds up, whoever made them; `values` gives it under the keys of Coverage."""

    def __init__(self, sequence_length: int) -> None:
        self.share_per_document = shares_histogram("share of a document's tokens with loss")
        self.share_per_sequence = shares_histogram("share of a sequence's tokens with loss")
        self.signals = counts_histogram("tokens with loss per sequence", sequence_length)
        self.documents = lengths_histogram("documents per sequence")
        self.lengths = lengths_histogram("tokens per document")
        self.turns = lengths_histogram("trained turns per document")
        self.fill = shares_histogram("share of a sequence's positions that are filled")
        self._length = sequence_length
        self._first: Counter[int] = Counter()
        self._last: Counter[int] = Counter()
        self._stops: Counter[int] = Counter()
        self._stops_trained: Counter[int] = Counter()
        self._row_loss: list[npt.NDArray[np.int32]] = []
        self._kept = 0

    def add_documents(
        self, tokens: npt.NDArray[np.int32], loss: npt.NDArray[np.int32], turns: npt.NDArray[np.int32] | None = None
    ) -> None:
        """[documents] tokens, tokens with loss and trained turns of each, where turns are known."""
        self.share_per_document.add(loss / np.maximum(tokens, 1))
        self.lengths.add(tokens)
        if turns is not None:
            self.turns.add(turns)

    def add_rows(
        self, tokens: npt.NDArray[np.int32], loss: npt.NDArray[np.int32], documents: npt.NDArray[np.int64] | None = None
    ) -> None:
        """[rows] tokens of documents, tokens with loss, and documents of each, where they are known."""
        self.share_per_sequence.add(loss / np.maximum(tokens, 1))
        self.signals.add(loss)
        self.fill.add(tokens / self._length)
        if documents is not None:
            self.documents.add(documents)
        if self._kept < KEPT_ROWS:
            self._row_loss.append(loss[: KEPT_ROWS - self._kept].astype(np.int32))
            self._kept += len(loss)

    def add_turns(
        self,
        first: npt.NDArray[np.int32],
        last: npt.NDArray[np.int32],
        stop: npt.NDArray[np.int32],
        trained: npt.NDArray[np.uint8],
    ) -> None:
        """[trained turns] ids of the first and last token with loss, of the stop (-1 without one, -2 where it is no
        turn), and whether the stop has loss."""
        _count(self._first, first)
        _count(self._last, last)
        _count(self._stops, stop[stop >= -1])
        _count(self._stops_trained, stop[(stop >= 0) & (trained > 0)])

    def values(self, text_of: Callable[[int], str]) -> dict[str, Any]:
        """Plain values; `text_of` shows an id."""
        histograms = (
            ("loss_share_per_document", self.share_per_document),
            ("loss_share_per_sequence", self.share_per_sequence),
            ("signals_per_sequence", self.signals),
            ("documents_per_sequence", self.documents),
            ("tokens_per_document", self.lengths),
            ("turns_per_document", self.turns),
            ("fill_per_sequence", self.fill),
        )
        return {
            "histograms": {name: histogram.to_dict() for name, histogram in histograms if histogram.count},
            "stops": [
                {"id": id, "text": text_of(id) if id >= 0 else "", "turns": n, "trained": self._stops_trained[id]}
                for id, n in _most_common(self._stops)
            ],
            "first_trained": _shown(self._first, text_of),
            "last_trained": _shown(self._last, text_of),
            "ranks": self._ranks(),
        }

    def _ranks(self) -> dict[str, dict[str, float]]:
        """Per number of ranks, each with one sequence per step in a shuffled order: how much more loss tokens the
        fullest rank of a step has than the mean, on average and at worst."""
        if not self._row_loss:
            return {}
        loss = np.random.default_rng(0).permutation(np.concatenate(self._row_loss)).astype(np.float64)
        out = {}
        for ranks in RANKS:
            steps = len(loss) // ranks
            if not steps:
                break
            by_step = loss[: steps * ranks].reshape(steps, ranks)
            mean = by_step.mean(axis=1)
            over = by_step.max(axis=1)[mean > 0] / mean[mean > 0]
            if len(over):
                out[str(ranks)] = {"mean": round(float(over.mean()), 4), "worst": round(float(over.max()), 4)}
        return out


def cells(table: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, Cell]:
    """[names, 3] as {name: cell}; what has no token is left out."""
    rows = zip(names, table.tolist(), strict=True)
    return {name: {"tokens": t, "sampled": s, "loss": loss} for name, (t, s, loss) in rows if t}


def _count(counter: Counter[int], ids: npt.NDArray[np.int32]) -> None:
    values, counts = np.unique(ids, return_counts=True)
    counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _most_common(counter: Counter[int]) -> list[tuple[int, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:MOST_COMMON]


def _shown(counter: Counter[int], text_of: Callable[[int], str]) -> list[dict[str, Any]]:
    return [{"id": id, "text": text_of(id), "count": n} for id, n in _most_common(counter)]


__all__ = ["Collector", "Coverage", "Histogram", "cells", "from_manifest"]
