"""Which rows are worth reading: those with findings, the strangest of each kind, and a few at random.

    Shortlist(seed) ─add(row, tokens, loss, …) or add_rows(…)─▶ rows(findings) ─▶ {row: why it was chosen}

One pass over rows in any order, with memory for a handful; the same rows whoever adds them, because ties go to the
lower row and chance is a hash of (seed, row).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from maskpipe.explain import verdict_words
from maskpipe.findings import Finding
from maskpipe.roles import Role, Verdict
from maskpipe.shards.format import Branch
from maskpipe.shards.rows import Rows

Int64 = npt.NDArray[np.int64]

ROWS = 20
"""Rows shown, by default."""
PER_FINDING = 2
"""Rows shown for each code, as long as there is room; the first places of each code come first."""
RANDOM = 4
EXTREMES = ("least loss", "most loss", "longest document")


class Shortlist:
    """Candidates so far. `seed` is what the random rows depend on, such as the dataset's fingerprint."""

    def __init__(self, seed: str = "") -> None:
        digest = hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest()
        self._seed = np.uint64(int.from_bytes(digest[:8], "little"))
        self._best: dict[str, tuple[float, int]] = {}
        """Reason → (how strange, row); the lowest wins."""
        self._random: list[tuple[int, int]] = []

    def add(self, row: int, *, tokens: int, loss: int, longest: int = 0, kinds: Iterable[str] = ()) -> None:
        """One row of `tokens` tokens without padding, `loss` of them targets, whose longest document has `longest`.
        `kinds`: in words, what it has that others may not; the first row of each is a candidate."""
        number, size, trained, most = (np.array([value], np.int64) for value in (row, tokens, loss, longest))
        self.add_many(number, size, trained, most, [(kind, 0) for kind in kinds])

    def add_many(
        self,
        rows: Int64,
        tokens: Int64,
        loss: Int64,
        longest: Int64,
        kinds: Iterable[tuple[str, int]] = (),
    ) -> None:
        """As `add`, for [n] rows by their numbers; a kind comes with the index of its first row among them."""
        if not len(rows):
            return
        share = np.where(tokens > 0, loss / np.maximum(tokens, 1), np.nan)
        size = np.where(longest > 0, -longest.astype(np.float64), np.nan)
        for reason, values in zip(EXTREMES, (share, -share, size), strict=True):
            if not np.isnan(values).all():
                best = int(np.nanargmin(values))
                self._offer(reason, float(values[best]), int(rows[best]))
        for kind, k in kinds:
            self._offer(kind, 0, int(rows[k]))
        keys = _hash(rows.astype(np.uint64) ^ self._seed)
        lowest = np.argsort(keys, kind="stable")[:RANDOM].tolist()
        self._random = sorted({*self._random, *((int(keys[k]), int(rows[k])) for k in lowest)})[:RANDOM]

    def add_rows(self, first_row: int, rows: Rows) -> None:
        """Rows of a dataset of ours, from `first_row` on."""
        if not len(rows):
            return
        ends = rows.documents["end"].astype(np.int64)
        first, last = rows.document_offsets[:-1], rows.document_offsets[1:] - 1
        starts = np.concatenate(([0], ends[:-1]))
        starts[first] = 0
        longest = np.maximum.reduceat(ends - starts, first)
        numbers = np.arange(first_row, first_row + len(rows), dtype=np.int64)
        self.add_many(numbers, ends[last], rows.n_loss.astype(np.int64), longest, _kinds(rows))

    def candidates(self) -> set[int]:
        """Rows that may be chosen as things stand, findings aside: whoever reads rows only once keeps these."""
        return {row for _, row in self._best.values()} | {row for _, row in self._random}

    def rows(self, findings: Iterable[Finding] = (), limit: int = ROWS) -> dict[int, tuple[str, ...]]:
        """At most `limit` rows in their order, each with why it was chosen. First come rows with findings, one of each
        code before a second of any; then the extremes, then one of each kind, then chance."""
        found: dict[int, list[str]] = {}
        for reason, row in self._in_order(list(findings)):
            if row in found or len(found) < limit:
                found.setdefault(row, []).append(reason)
        return {row: tuple(dict.fromkeys(found[row])) for row in sorted(found)}

    def _in_order(self, findings: list[Finding]) -> list[tuple[str, int]]:
        per_code: dict[str, list[int]] = {}
        for finding in findings:
            places = [place.row for place in finding.places if place.row >= 0]
            per_code[finding.code] = list(dict.fromkeys([*per_code.get(finding.code, []), *places]))
        by_finding = [(code, rows[k]) for k in range(PER_FINDING) for code, rows in per_code.items() if k < len(rows)]
        by_kind = [(reason, row) for reason, (_, row) in self._best.items()]
        by_kind.sort(key=lambda entry: (entry[0] not in EXTREMES, entry[0]))
        return by_finding + by_kind + [("random", row) for _, row in self._random]

    def _offer(self, reason: str, strangeness: float, row: int) -> None:
        best = self._best.get(reason)
        if best is None or (strangeness, row) < best:
            self._best[reason] = (strangeness, row)


def _kinds(rows: Rows) -> list[tuple[str, int]]:
    """(what some row has that others may not, the first such row): verdicts, pairs, turns split off, rare roles …"""
    per_document = np.repeat(np.arange(len(rows)), np.diff(rows.document_offsets))
    per_verdict = np.repeat(per_document, np.diff(rows.verdict_offsets))
    per_run = np.repeat(np.arange(len(rows)), np.diff(rows.run_offsets))
    documents, out = rows.documents, []
    for value, k in zip(*np.unique(rows.verdicts["verdict"], return_index=True), strict=True):
        out.append((f"verdict {verdict_words(Verdict(int(value)))}", int(per_verdict[k])))
    for value, k in zip(*np.unique(documents["branch"], return_index=True), strict=True):
        if value != Branch.NONE:
            out.append((f"{Branch(int(value)).name.lower()} of a pair", int(per_document[k])))
    for value, k in zip(*np.unique(rows.runs["role"], return_index=True), strict=True):
        if value in (Role.TOOL, Role.CONTEXT, Role.OTHER, Role.TEXT):
            out.append((f"role {Role(int(value)).name.lower()}", int(per_run[k])))
    for words, where in (("turn split off", documents["turn"] >= 0), ("cut document", documents["start"] > 0)):
        if where.any():
            out.append((words, int(per_document[np.argmax(where)])))
    weighted = np.diff(rows.weight_offsets) > 0
    if weighted.any():
        out.append(("source weights", int(np.argmax(weighted))))
    return out


def _hash(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of uint64 that scatters neighbours."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
