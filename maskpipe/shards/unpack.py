"""Rows → the documents they were packed from: the inverse of laying out.

    row    5 6 7 8 9 4 _ _   documents [5 6 7] [8 9 4]   ─unpack─▶   5 6 7 | 8 9 4   and where each comes from

Whole documents come back exactly as they were before packing. Of documents that packing cut, the fragments come back;
`join` makes them whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from maskpipe.document import Document, Float32
from maskpipe.shards.documents import table_of
from maskpipe.shards.format import RUN_DTYPE, WEIGHT_DTYPE
from maskpipe.shards.reader import Dataset, ShardReader
from maskpipe.shards.rows import Int64, Rows, Structs


class Unpacked(NamedTuple):
    """Documents, and fragments of documents, in the order of their rows."""

    table: pa.Table
    """DOCUMENT_SCHEMA, one row per entry."""
    facts: Structs  # [entries] DOCUMENT_DTYPE, as the row lists them: start and length tell fragments


def unpack(rows: Rows) -> Unpacked:
    """The entries of the rows, in order. The rows have passed rows.check."""
    length = rows.input_ids.shape[1]
    base = np.repeat(np.arange(len(rows), dtype=np.int64) * length, np.diff(rows.document_offsets))
    stops = base + rows.documents["end"]  # counted over all rows, padding included
    starts = np.empty_like(stops)
    starts[1:] = stops[:-1]
    starts[rows.document_offsets[:-1]] = np.arange(len(rows), dtype=np.int64) * length
    filled = rows.documents["end"][rows.document_offsets[1:] - 1]
    ids = rows.input_ids[np.arange(length) < filled[:, None]]
    runs, run_offsets = _runs(rows, starts, stops, length)
    weights, weight_offsets = _weights(rows, starts, stops, length)
    table = table_of(
        input_ids=(ids, _offsets(stops - starts)),
        runs=(runs, run_offsets),
        weights=(weights, weight_offsets),
        verdicts=(rows.verdicts, rows.verdict_offsets),
        facts=rows.documents,
    )
    return Unpacked(table, rows.documents)


def unpack_shards(dataset: Dataset) -> Iterator[tuple[int, Unpacked]]:
    """The entries of a dataset, a record batch (about 1 MiB of ids) at a time, each with the number of its first row.
    DatasetError when something on disk is not what the manifest says."""
    first = 0
    for number in range(len(dataset.manifest.shards)):
        reader = ShardReader(dataset.path, dataset.manifest, number)
        try:
            for batch in range(reader.n_batches):
                rows = reader.batch(batch)
                yield first, unpack(rows)
                first += len(rows)
        finally:
            reader.close()


def conversations(table: pa.Table) -> Int64:
    """[documents] a message of the conversation that each document of a DOCUMENT_SCHEMA table is of, -1 for text. A
    record may hold several conversations, its messages numbered through all of them: this tells their documents apart,
    in order."""
    verdicts = table["verdicts"].combine_chunks()
    offsets = verdicts.offsets.to_numpy() - verdicts.offsets[0].as_py()
    messages = verdicts.flatten().field("message").to_numpy()
    out = np.full(table.num_rows, -1, np.int64)
    some = np.diff(offsets) > 0
    out[some] = messages[offsets[:-1][some]]  # a document lists all the turns of its conversation, the first one first
    runs = table["runs"].combine_chunks()
    for k in np.flatnonzero(~some).tolist():
        own = runs[k].values.field("message").to_numpy()
        out[k] = min(own[own >= 0].tolist(), default=-1)
    return out


def join(fragments: Sequence[Document], starts: Sequence[int]) -> Document:
    """The document that these fragments, sorted by where they start, were cut from. The first token of a fragment never
    has loss, so loss must be decided anew (encoder.with_loss). ValueError when they do not meet."""
    at = 0
    for fragment, start in zip(fragments, starts, strict=True):
        if start != at:
            raise ValueError(f"fragments do not meet at token {at}")
        at += len(fragment)
    return replace(
        fragments[0],
        input_ids=np.concatenate([fragment.input_ids for fragment in fragments]),
        role_ids=np.concatenate([fragment.role_ids for fragment in fragments]),
        part_ids=np.concatenate([fragment.part_ids for fragment in fragments]),
        flags=np.concatenate([fragment.flags for fragment in fragments]),
        message_ids=np.concatenate([fragment.message_ids for fragment in fragments]),
        weights=_joined_weights(fragments),
    )


def _joined_weights(fragments: Sequence[Document]) -> Float32 | None:
    if all(fragment.weights is None for fragment in fragments):
        return None
    ones = [np.ones(len(f), np.float32) if f.weights is None else f.weights for f in fragments]
    return np.concatenate(ones)


def _runs(rows: Rows, starts: Int64, stops: Int64, length: int) -> tuple[Structs, Int64]:
    """The runs of each entry, without padding; ends count from the entry's first token."""
    row = np.repeat(np.arange(len(rows), dtype=np.int64), np.diff(rows.run_offsets))
    ends = row * length + rows.runs["end"]
    entry = np.searchsorted(stops, ends, side="left")  # no run crosses the end of a document
    entry[entry == len(stops)] = 0
    inside = (ends > starts[entry]) & (ends <= stops[entry])
    out = np.empty(int(inside.sum()), RUN_DTYPE)
    for name in RUN_DTYPE.names or ():
        out[name] = rows.runs[name][inside]
    out["end"] = ends[inside] - starts[entry[inside]]
    return out, _offsets(np.bincount(entry[inside], minlength=len(stops)))


def _weights(rows: Rows, starts: Int64, stops: Int64, length: int) -> tuple[Structs, Int64]:
    """The weight ranges of each entry; one that reaches over several is cut to each."""
    row = np.repeat(np.arange(len(rows), dtype=np.int64), np.diff(rows.weight_offsets))
    begin, end = row * length + rows.weights["start"], row * length + rows.weights["end"]
    first = np.searchsorted(stops, begin, side="right")
    last = np.searchsorted(starts, end, side="left") - 1
    n = np.maximum(last - first + 1, 0)
    which = np.repeat(np.arange(len(row)), n)
    entry = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n)
    out = np.empty(len(which), WEIGHT_DTYPE)
    out["start"] = np.maximum(begin[which], starts[entry]) - starts[entry]
    out["end"] = np.minimum(end[which], stops[entry]) - starts[entry]
    out["weight"] = rows.weights["weight"][which]
    return out, _offsets(np.bincount(entry, minlength=len(stops)))


def _offsets(lengths: Int64) -> Int64:
    out = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return out
