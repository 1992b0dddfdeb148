"""The plan: which documents of which stage files share a row, and which rows share a shard.

Documents are packed inside a partition, a run of chunks with enough tokens; the rows that stay badly filled are taken
apart and packed once more together. That costs about 0.1 % more padding than packing everything at once, and needs no
shuffle. Everything here is a function of the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskpipe.pack import Pieces, plan
from maskpipe.recipe import Recipe

PARTITION_TOKENS = 1 << 25
"""Tokens packed together: at least 1,000 sequences cost 0.1 % more padding than packing all at once (DESIGN §7)."""
PARTITION_SEQUENCES = 1000
FULL = 0.95
"""A row filled less is packed again with the others like it, across partitions."""

Int64 = npt.NDArray[np.int64]


class Stage(NamedTuple):
    """Documents of a stage file, and their lengths."""

    name: str
    lengths: npt.NDArray[np.int32]  # [documents]
    rows: npt.NDArray[np.int32] | None = None
    """[documents] Which ones of the file; None: all."""
    units: npt.NDArray[np.int32] | None = None
    """[documents] Numbers of what must stand in one row, such as the documents of a preference pair, which follow each
    other; None: each document alone."""

    def of(self, inside: Int64) -> Int64:
        """These of the documents, as rows of the file."""
        return inside if self.rows is None else self.rows[inside].astype(np.int64)


class ShardPlan(NamedTuple):
    """One shard: its rows, and the documents that they name, in order: of each stage file all, or those of `rows`."""

    stages: list[tuple[str, Int64 | None]]
    pieces: Pieces
    pairs: Int64 | None = None
    """[documents] The number in the dataset of the unit that each belongs to, where stages have units."""


def plan_shards(stages: Sequence[Stage], recipe: Recipe) -> Iterator[ShardPlan]:
    """The shards of a dataset, in order, one partition planned at a time."""
    partitions = _partitions(stages, recipe)
    left: list[tuple[Stage, Int64]] = []
    left_units: list[Int64] = []
    n_units = 0
    for partition in partitions:
        lengths = np.concatenate([stage.lengths for stage in partition])
        units = _number(partition, n_units)
        n_units = n_units if units is None else int(units[-1]) + 1
        pieces = plan_units(lengths, units, recipe)
        if len(partitions) > 1 and recipe.packing in ("best_fit", "first_fit"):
            pieces, documents = _set_apart(pieces, lengths, recipe.sequence_length)
            left += _by_stage(partition, documents)
            left_units += [] if units is None else [units[documents]]
        whole: list[tuple[str, Int64 | None]] = [
            (stage.name, None if stage.rows is None else stage.rows.astype(np.int64)) for stage in partition
        ]
        for one in _shards_of(pieces, recipe):
            yield ShardPlan(whole, one, units)
    if left:
        lengths = np.concatenate([stage.lengths[rows] for stage, rows in left])
        units = np.concatenate(left_units) if left_units else None
        pieces = plan_units(lengths, units, recipe)
        for one in _shards_of(pieces, recipe):
            yield _narrowed([(stage.name, stage.of(rows)) for stage, rows in left], one, units)


def plan_units(lengths: npt.NDArray[np.int32], units: Int64 | None, recipe: Recipe) -> Pieces:
    """Pieces of all documents, those of one unit together in a row and in order. `units` [documents] are numbers, equal
    for neighbours that belong together; None: each document is a unit."""
    if units is None:
        return plan(lengths, recipe.sequence_length, recipe.packing)
    begins = np.flatnonzero(np.diff(units, prepend=units[:1] - 1))
    sizes = np.diff(begins, append=len(units))
    packed = plan(np.add.reduceat(lengths, begins), recipe.sequence_length, recipe.packing)
    counts = sizes[packed.documents]
    stops = np.cumsum(counts)
    place = np.arange(int(stops[-1])) - np.repeat(stops - counts, counts)  # of each document in its unit
    documents = np.repeat(begins[packed.documents], counts) + place
    offsets = np.concatenate(([0], stops))[packed.row_offsets].astype(np.int64)
    return Pieces(documents.astype(np.int64), np.zeros(len(documents), np.int32), lengths[documents], offsets)


def _number(partition: list[Stage], first: int) -> Int64 | None:
    """[documents] The unit of each document, numbered from `first` on; None where stages have no units."""
    if partition[0].units is None:
        return None
    begins = [np.diff(stage.units, prepend=-1) != 0 for stage in partition if stage.units is not None]
    return np.cumsum(np.concatenate(begins), dtype=np.int64) - 1 + first


def _narrowed(stages: list[tuple[str, Int64]], pieces: Pieces, units: Int64 | None) -> ShardPlan:
    """The shard with those documents only that its pieces name: a shard takes memory for what is in it."""
    used, local = np.unique(pieces.documents, return_inverse=True)
    chosen: list[tuple[str, Int64 | None]] = []
    first = 0
    for name, rows in stages:
        inside = used[(used >= first) & (used < first + len(rows))] - first
        if len(inside):
            chosen.append((name, rows[inside]))
        first += len(rows)
    pieces = replace(pieces, documents=local.astype(np.int64))
    return ShardPlan(chosen, pieces, None if units is None else units[used])


def _partitions(stages: Sequence[Stage], recipe: Recipe) -> list[list[Stage]]:
    """Runs of stages with enough tokens to be packed on their own."""
    enough = max(PARTITION_TOKENS, PARTITION_SEQUENCES * recipe.sequence_length)
    out: list[list[Stage]] = []
    tokens = enough
    for stage in stages:
        if not len(stage.lengths):
            continue
        if tokens >= enough:
            out.append([])
            tokens = 0
        out[-1].append(stage)
        tokens += int(stage.lengths.sum(dtype=np.int64))
    return out


def _set_apart(pieces: Pieces, lengths: Int64, sequence_length: int) -> tuple[Pieces, Int64]:
    """The well filled rows, and the documents of the others in their order."""
    row_of = np.repeat(np.arange(pieces.rows), np.diff(pieces.row_offsets))
    filled = np.bincount(row_of, weights=lengths[pieces.documents], minlength=pieces.rows)
    full = filled >= FULL * sequence_length
    keep = full[row_of]
    offsets = np.concatenate(([0], np.cumsum(np.diff(pieces.row_offsets)[full]))).astype(np.int64)
    kept = Pieces(pieces.documents[keep], pieces.starts[keep], pieces.stops[keep], offsets)
    return kept, np.sort(pieces.documents[~keep])


def _by_stage(partition: list[Stage], documents: Int64) -> list[tuple[Stage, Int64]]:
    """The same documents as (stage, rows in it)."""
    out = []
    first = 0
    for stage in partition:
        inside = documents[(documents >= first) & (documents < first + len(stage.lengths))] - first
        if len(inside):
            out.append((stage, inside))
        first += len(stage.lengths)
    return out


def _shards_of(pieces: Pieces, recipe: Recipe) -> Iterator[Pieces]:
    """The plan cut into shards of at most `shard_size` of ids."""
    rows = max(1, recipe.shard_bytes // (4 * recipe.sequence_length))
    for first in range(0, pieces.rows, rows):
        offsets = pieces.row_offsets[first : first + rows + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        yield Pieces(pieces.documents[begin:end], pieces.starts[begin:end], pieces.stops[begin:end], offsets - begin)
