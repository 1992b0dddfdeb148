"""Which documents go where, once all are made: duplicates away, train and validation apart, weighted sources repeated.

    keys of all conversations ─▶ duplicates (the first stays) ─▶ the side of each record ─▶ stages of each side

The side of a record is decided by the least key among its conversations, so all its branches are on one side. Records
that share what a conversation says are on one side too: the least key among all of them decides.
A function of the keys in the order of the sources; memory: 16 bytes per conversation and 4 for its row, 8 per document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskpipe.errors import RecordError
from maskpipe.keys import UInt64, below
from maskpipe.partitions import Stage
from maskpipe.recipe import Recipe

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

TRAIN, VALIDATION = "train", "validation"
DUPLICATE, OTHER_SIDE = "duplicate", "other_side"
NOTHING_LEFT, EMPTY_SPLIT_SIDE = "nothing_left", "empty_split_side"
"""Reasons for which all records together come to no dataset."""
TOKENS_DUPLICATE, TOKENS_OTHER_SIDE, TOKENS_REPEATED = (
    "tokens_dropped_duplicate",
    "tokens_dropped_other_side",
    "tokens_repeated",
)


class ChunkKeys(NamedTuple):
    """The conversations of one chunk that have documents, in order."""

    source: int
    first_row: int
    keys: UInt64  # [conversations, 2]
    rows: Int32  # [conversations] record number in the chunk


class ChunkDocuments(NamedTuple):
    """The documents of one chunk, in order."""

    file: str
    lengths: Int32  # [documents]
    conversations: Int32  # [documents] index into ChunkKeys
    units: Int32 | None = None  # [documents] as in Stage


@dataclass
class Side:
    """One dataset to write."""

    name: str
    """train, validation, or "" when there is no split."""
    stages: list[Stage] = field(default_factory=list)
    kept: int = 0
    """Records with a document here."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Records that could be here and are not, by reason."""
    counts: list[Counter[str]] = field(default_factory=list)
    """Per chunk, what is counted here beside what the map step counted."""


class Duplicate(NamedTuple):
    """A record all of whose conversations stand earlier."""

    source: int
    row: int
    first_source: int
    first_row: int
    """Where its first conversation stands first."""


class Selection:
    """Decides for every conversation, from the keys alone."""

    def __init__(self, chunks: Sequence[ChunkKeys], recipe: Recipe, weights: Sequence[float]) -> None:
        self._chunks = chunks
        self._weights = weights
        self._split = recipe.validation > 0
        self._offsets = np.concatenate([[0], np.cumsum([len(chunk.rows) for chunk in chunks])]).astype(np.int64)
        keys = np.concatenate([np.zeros((0, 2), np.uint64), *(chunk.keys for chunk in chunks)])
        self._first = _first_places(keys) if recipe.deduplicate else None
        starts = [np.diff(chunk.rows, prepend=-1) != 0 for chunk in chunks]
        record = np.cumsum(np.concatenate([np.zeros(0, bool), *starts])) - 1
        self._validation = _on_validation(keys[:, 0], record, recipe.validation) if self._split else None
        self._shares = _least(keys[:, 1], record)[record] if len(record) else keys[:, 1]

    def sides(self, documents: Callable[[int], ChunkDocuments]) -> list[Side]:
        """The stages of each side. `documents` gives those of a chunk; it is called for each in order."""
        sides = [Side(TRAIN), Side(VALIDATION)] if self._split else [Side("")]
        repeats: dict[int, list[Stage]] = {}
        for number, chunk in enumerate(self._chunks):
            here = slice(int(self._offsets[number]), int(self._offsets[number + 1]))
            made = documents(number)
            fresh = np.ones(len(chunk.rows), bool)
            if self._first is not None:
                fresh = self._first[here] == np.arange(here.start, here.stop)
            gone = int(made.lengths[~fresh[made.conversations]].sum())
            duplicates = len(np.unique(chunk.rows)) - len(np.unique(chunk.rows[fresh]))
            second = None if self._validation is None else self._validation[here]
            for side in sides:
                ours = fresh if second is None else fresh & (second == (side.name == VALIDATION))
                kept, all_kept = len(np.unique(chunk.rows[ours])), len(np.unique(chunk.rows[fresh]))
                side.kept += kept
                side.left_out.update({DUPLICATE: duplicates, OTHER_SIDE: all_kept - kept})
                of = ours[made.conversations]
                rows = np.flatnonzero(of).astype(np.int32)
                lengths = made.lengths[rows]
                other = int(made.lengths[fresh[made.conversations] & ~of].sum())
                counts = Counter({TOKENS_DUPLICATE: gone, TOKENS_OTHER_SIDE: other})
                counts["conversations_duplicate"] = int((~fresh).sum())
                units = None if made.units is None else made.units[rows]
                side.stages.append(Stage(made.file, lengths, None if of.all() else rows, units))
                if side.name != VALIDATION:
                    times = self._times(chunk.source, here)[made.conversations][rows]
                    for turn in range(1, int(times.max(initial=1))):
                        again = times > turn
                        repeated = None if units is None else units[again]
                        repeats.setdefault(turn, []).append(Stage(made.file, lengths[again], rows[again], repeated))
                        counts[TOKENS_REPEATED] += int(lengths[again].sum())
                        counts["documents_repeated"] += int(again.sum())
                side.counts.append(counts)
        for turn in sorted(repeats):
            sides[0].stages += repeats[turn]
        return sides

    def _times(self, source: int, here: slice) -> Int32:
        """How often each conversation's documents are taken."""
        whole, part = divmod(max(1.0, self._weights[source]), 1.0)
        return (int(whole) + (below(self._shares[here], part))).astype(np.int32)

    def duplicates(self) -> Iterator[Duplicate]:
        """The records that are left out because all they say stands earlier."""
        if self._first is None:
            return
        for number, chunk in enumerate(self._chunks):
            start = int(self._offsets[number])
            first = self._first[start : int(self._offsets[number + 1])]
            fresh = set(chunk.rows[first == np.arange(start, start + len(first))].tolist())
            seen = -1
            for row, place in zip(chunk.rows.tolist(), first.tolist(), strict=True):
                if row in fresh or row == seen:
                    continue
                seen = row
                other = int(np.searchsorted(self._offsets, place, side="right")) - 1
                there = self._chunks[other]
                inside = int(there.rows[place - int(self._offsets[other])])
                yield Duplicate(chunk.source, chunk.first_row + row, there.source, there.first_row + inside)


def check_sides(sides: Sequence[Side], recipe: Recipe) -> None:
    """RecordError where a side of the split has no record."""
    for side in sides:
        if side.name and not side.kept:
            records = sum(other.kept for other in sides)
            raise RecordError(
                f"validation={recipe.validation:g} of {records:,} record{'s' * (records != 1)} leaves the side "
                f"{side.name!r} empty; nothing was written. Take another share, more data, or no validation",
                reason=EMPTY_SPLIT_SIDE,
            )


def _first_places(keys: UInt64) -> npt.NDArray[np.int64]:
    """Per conversation, the index of the first one with the same key."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal keys the first comes first
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    out = np.empty(len(keys), np.int64)
    out[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return out


def _least(values: UInt64, record: npt.NDArray[np.int64]) -> UInt64:
    """Per record, the least value among its conversations."""
    return np.asarray(np.minimum.reduceat(values, np.flatnonzero(np.diff(record, prepend=-1))))


def _on_validation(keys: UInt64, record: npt.NDArray[np.int64], share: float) -> Bool:
    """Per conversation: is its record on the validation side? `keys`: of what is said."""
    if not len(record):
        return np.zeros(0, bool)
    least = _least(keys, record)
    several = (np.bincount(record) > 1)[record]
    if several.any():
        # Only conversations that some record of several has can tie records together.
        _, same = np.unique(keys, return_inverse=True)
        tied = np.zeros(int(same.max()) + 1, bool)
        tied[same[several]] = True
        at = np.flatnonzero(tied[same])
        while True:
            of_key = np.full(len(tied), np.iinfo(np.uint64).max)
            np.minimum.at(of_key, same[at], least[record[at]])
            before = least.copy()
            np.minimum.at(least, record[at], of_key[same[at]])
            if np.array_equal(before, least):
                break
    return below(least, share)[record]
