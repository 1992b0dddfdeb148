"""Shelf: of rows that are read once, those that a report may show, with what was learnt of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.auditing.foreign.habits import AFTER, HEADER, JOINT, STOP
from maskpipe.auditing.foreign.locate import Turns
from maskpipe.auditing.foreign.rows import Rows
from maskpipe.auditing.foreign.tally import Tally
from maskpipe.auditing.gallery import Gallery
from maskpipe.auditing.shortlist import PER_FINDING, Shortlist
from maskpipe.auditing.specimens import Specimen, of_arrays
from maskpipe.findings import Finding
from maskpipe.roles import Part, Role
from maskpipe.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class _Kept:
    file: str
    ids: npt.NDArray[np.int32]
    loss: npt.NDArray[np.bool_]
    roles: npt.NDArray[np.uint8]
    parts: npt.NDArray[np.uint8]
    ends: list[int]


class Shelf:
    """`add` takes rows as they come; what cannot be shown any more is let go."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer = tokenizer
        self._shortlist = Shortlist(name)
        self._kept: dict[int, _Kept] = {}

    def add(self, rows: Rows, turns: Turns, tally: Tally) -> None:
        """Rows and their turns, after they were checked into `tally`."""
        numbers = rows.where.first + rows.where.rows
        offsets = rows.offsets
        real, loss = (_core.count_marked(marked, offsets[:-1], offsets[1:]) for marked in (~rows.padding, rows.loss))
        of_row = np.searchsorted(offsets, turns.starts, "right") - 1
        longest = np.zeros(len(numbers), np.int64)
        np.maximum.at(longest, of_row, turns.ends - turns.starts)
        self._shortlist.add_many(numbers, real, loss, longest)
        wanted = self._shortlist.candidates() | _places(tally)
        self._kept = {row: kept for row, kept in self._kept.items() if row in wanted}
        first, last = int(numbers[0]), int(numbers[-1])
        here = [row for row in sorted(wanted) if first <= row <= last]
        at = np.searchsorted(numbers, here)
        for k in at[numbers[np.minimum(at, len(numbers) - 1)] == here].tolist():
            self._kept[int(numbers[k])] = self._keep(rows, turns, k, turns.ends[of_row == k])

    def gallery(self) -> Gallery:
        """Of the rows that are here now."""
        return Gallery(self._shortlist.rows, self._look)

    def _keep(self, rows: Rows, turns: Turns, k: int, ends: npt.NDArray[np.int64]) -> _Kept:
        start, stop = int(rows.offsets[k]), int(rows.offsets[k + 1])
        roles, marks = turns.roles[start:stop], turns.marks[start:stop]
        known = roles != Role.UNKNOWN
        parts = np.where(known, int(Part.CONTENT), int(Part.NONE))
        parts[known & (marks & (HEADER | JOINT | AFTER) > 0)] = Part.SCAFFOLD
        parts[known & (marks & STOP > 0)] = Part.STOP
        return _Kept(
            rows.where.file,
            rows.ids[start:stop].copy(),
            rows.loss[start:stop].copy(),
            roles.copy(),
            parts.astype(np.uint8),
            (ends - start).tolist(),
        )

    def _look(self, row: int, chosen: tuple[str, ...], findings: Sequence[Finding]) -> Specimen | None:
        kept = self._kept.get(row)
        if kept is None:
            return None
        return of_arrays(
            kept.ids, kept.loss, row, tokenizer=self._tokenizer, role_ids=kept.roles, part_ids=kept.parts,
            document_ends=kept.ends, file=kept.file, chosen=chosen, findings=findings,
        )  # fmt: skip


def _places(tally: Tally) -> set[int]:
    """The first rows that findings name, as many as a report shows of a code."""
    rows: dict[str, list[int]] = {}
    for (code, _), places in tally.found.items():
        of_code = rows.setdefault(code, [])
        of_code += [place.row for place in places if place.row >= 0 and place.row not in of_code]
    return {row for each in rows.values() for row in each[:PER_FINDING]}
