"""Tally: findings as they are counted, each with its first places."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from maskpipe.findings import Finding, Place

PLACES = 10
"""Places that a finding keeps."""


@dataclass
class Tally:
    """Counts what is found under (code, text). The text has `{count}` where the number stands."""

    found: dict[tuple[str, str], list[Place]] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, code: str, text: str, count: int, places: list[Place]) -> None:
        """Nothing where count is 0."""
        if count:
            key = (code, text)
            self.counts[key] = self.counts.get(key, 0) + count
            kept = self.found.setdefault(key, [])
            kept += places[: PLACES - len(kept)]

    def findings(self) -> tuple[Finding, ...]:
        """By code, then as they were first seen."""
        ordered = sorted(self.counts, key=lambda key: key[0])
        return tuple(
            Finding(code, text.replace("{count}", f"{self.counts[code, text]:,}"), self.counts[code, text],
                    tuple(self.found[code, text]))
            for code, text in ordered
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Where:
    """Says where tokens of a stretch stand."""

    file: str
    first: int
    """Number of the first row."""
    rows: npt.NDArray[np.int64]
    """[kept rows] their numbers within the stretch; rows that could not be read are left out."""
    offsets: npt.NDArray[np.int64]  # [kept rows + 1]

    def place(self, start: int, end: int) -> Place:
        """Of the tokens start..end, which count from the beginning of the stretch."""
        row = int(np.searchsorted(self.offsets, start, "right")) - 1
        row = min(row, len(self.rows) - 1)
        at = int(self.offsets[row])
        return Place(file=self.file, row=self.first + int(self.rows[row]), start=start - at, end=end - at)

    def row(self, row: int) -> Place:
        """Of a kept row as a whole."""
        return Place(file=self.file, row=self.first + int(self.rows[row]))

    def runs(self, wrong: npt.NDArray[np.bool_]) -> tuple[int, list[Place]]:
        """How many tokens are marked, and the first stretches of them that lie in one row."""
        at = np.flatnonzero(wrong)
        if not len(at):
            return 0, []
        row = np.searchsorted(self.offsets, at, "right")
        breaks = np.flatnonzero((np.diff(at) > 1) | (np.diff(row) > 0)) + 1
        starts = np.concatenate([[0], breaks])[:PLACES]
        ends = np.concatenate([breaks, [len(at)]])[: len(starts)]
        return len(at), [self.place(int(at[s]), int(at[e - 1]) + 1) for s, e in zip(starts, ends, strict=True)]
