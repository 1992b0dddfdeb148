"""What each record of a dataset says, in a few numbers per fact: so that two datasets are compared by record.

A fact's digest is the sum, modulo 2^64, of a mixed hash of (turn, position in the document, value) over the record's
tokens. Sums do not care how packing spread a record over rows, or where it cut a document. Two records that differ in a
fact have the same digest with probability 2^-64; this finds differences, it is no protection against a forger.

Memory: RUN_RECORDS records of about 100 bytes and one block of BLOCK_RECORDS rows; the rest is in temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.roles import Flag
from maskpipe.shards.format import Branch
from maskpipe.shards.reader import Dataset, ShardReader
from maskpipe.shards.rows import Rows

FACTS = ("documents", "tokens", "roles", "sampled", "loss", "weights", "verdicts")
"""documents: turn and length of each; roles: role, part and message; sampled: every flag but loss."""
RECORD = np.dtype(
    [
        ("source", "<i8"),  # number that two datasets share for the same source
        ("row", "<i8"),
        ("n_documents", "<i8"),
        ("n_tokens", "<i8"),
        ("n_loss", "<i8"),
        *((fact, "<u8") for fact in FACTS),
    ]
)
RUN_RECORDS = 1 << 20
BLOCK_RECORDS = 1 << 18

UInt64 = npt.NDArray[np.uint64]
Records = npt.NDArray[np.void]


class RecordIndex:
    """The records of a dataset in order of (source, row)."""

    def __init__(self, dataset: Dataset, numbers: Sequence[int]) -> None:
        """Reads the dataset once. `numbers` are the shared numbers of its sources. DatasetError when it is damaged."""
        self._runs: list[Records] = []
        table = np.array(numbers, np.int64)
        pending: list[Records] = []
        size = 0
        pretrain = dataset.manifest.recipe.get("objective") == "pretrain"
        for shard in range(len(dataset.manifest.shards)):
            reader = ShardReader(dataset.path, dataset.manifest, shard)
            try:
                for batch in range(reader.n_batches):
                    records = _records(reader.batch(batch), pretrain)
                    records["source"] = table[records["source"]]
                    pending.append(records)
                    size += len(records)
                    if size >= RUN_RECORDS:
                        self._spill(_summed(pending))
                        pending, size = [], 0
            finally:
                reader.close()
        last = _summed(pending)
        if len(last):
            self._runs.append(last)

    def keys(self) -> Iterator[tuple[int, int, int]]:
        """(source, first row, last row) of every source."""
        spans: dict[int, tuple[int, int]] = {}
        for run in self._runs:
            for source in np.unique(run["source"]).tolist():
                first, stop = np.searchsorted(run["source"], [source, source + 1])
                low, high = int(run["row"][first]), int(run["row"][stop - 1])
                before = spans.get(source, (low, high))
                spans[source] = (min(before[0], low), max(before[1], high))
        return ((source, *span) for source, span in sorted(spans.items()))

    def block(self, source: int, first: int, stop: int) -> Records:
        """The records [first, stop) of a source that are in the dataset."""
        parts = []
        for run in self._runs:
            low, high = np.searchsorted(run["source"], [source, source + 1])
            begin, end = low + np.searchsorted(run["row"][low:high], [first, stop])
            parts.append(np.asarray(run[begin:end]))
        return _summed(parts)

    def _spill(self, records: Records) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(records.tobytes())
            file.flush()
            self._runs.append(np.memmap(file, RECORD, "r", shape=records.shape))


def blocks(a: RecordIndex, b: RecordIndex) -> Iterator[tuple[Records, Records]]:
    """Both indexes side by side, block by block, in order."""
    spans: dict[int, tuple[int, int]] = {}
    for source, first, last in (*a.keys(), *b.keys()):
        before = spans.get(source, (first, last))
        spans[source] = (min(before[0], first), max(before[1], last))
    for source, (first, last) in sorted(spans.items()):
        for start in range(first, last + 1, BLOCK_RECORDS):
            yield a.block(source, start, start + BLOCK_RECORDS), b.block(source, start, start + BLOCK_RECORDS)


def _summed(parts: Sequence[Records]) -> Records:
    """One entry per record, sorted; the numbers of its entries are added."""
    records = np.concatenate([np.empty(0, RECORD), *parts])
    records = records[np.lexsort((records["row"], records["source"]))]
    if not len(records):
        return records
    new = np.ones(len(records), bool)
    new[1:] = (np.diff(records["row"]) != 0) | (np.diff(records["source"]) != 0)
    first = np.flatnonzero(new)
    out: Records = records[first].copy()
    for name in (RECORD.names or ())[2:]:
        out[name] = np.add.reduceat(records[name], first)
    return out


def _records(rows: Rows, pretrain: bool) -> Records:
    """One entry per document or fragment of some rows."""
    documents = rows.documents
    length = rows.input_ids.shape[1]
    base = np.repeat(np.arange(len(rows), dtype=np.int64) * length, np.diff(rows.document_offsets))
    stops = base + documents["end"]
    starts = np.empty_like(stops)
    starts[1:] = stops[:-1]
    starts[rows.document_offsets[:-1]] = np.arange(len(rows), dtype=np.int64) * length
    sizes = stops - starts
    filled = rows.documents["end"][rows.document_offsets[1:] - 1]
    inside = (np.arange(length) < filled[:, None]).reshape(-1)
    first = np.cumsum(sizes) - sizes  # of each entry, among the tokens that are no padding
    position = np.arange(int(sizes.sum()), dtype=np.int64) + np.repeat(documents["start"] - first, sizes)
    # What tells the documents of a record apart, and the place in the document.
    own = _mix(_conversation(rows)) + _mix(
        (documents["turn"].astype(np.uint64) << np.uint64(2)) | documents["branch"].astype(np.uint64)
    )
    place = _mix(np.repeat(own, sizes) ^ _mix(position.astype(np.uint64)))

    def dense(name: str) -> npt.NDArray[Any]:
        lengths = np.diff(rows.runs["end"], prepend=0)
        lengths[rows.run_offsets[:-1]] = rows.runs["end"][rows.run_offsets[:-1]]
        return np.repeat(rows.runs[name], lengths)[inside]

    def digest(values: npt.NDArray[Any]) -> UInt64:
        out: UInt64 = np.add.reduceat(_mix(place ^ _mix(values.astype(np.uint64))), first)
        return out

    flags, weights = dense("flags"), _dense_weights(rows)[inside]
    loss = flags & Flag.LOSS > 0
    if pretrain:  # where packing cut a document, its fragment's first token has no loss; elsewhere it has
        cut = first[documents["start"] > 0]
        loss[cut] = weights[cut] != 0
    facts = dense("role").astype(np.int64) | dense("part").astype(np.int64) << 8
    facts |= dense("message").astype(np.int64) << 16
    begins = documents["start"] == 0
    out = np.zeros(len(documents), RECORD)
    out["source"], out["row"] = documents["source"], documents["row"]
    out["n_documents"], out["n_tokens"] = begins, sizes
    out["n_loss"] = np.add.reduceat(loss.astype(np.int64), first)
    out["documents"] = np.where(begins, _mix(own ^ _mix(documents["length"].astype(np.uint64))), 0)
    out["tokens"] = digest(rows.input_ids.reshape(-1)[inside])
    out["roles"] = digest(facts)
    out["sampled"] = digest(flags & np.uint8(0xFF ^ Flag.LOSS))
    out["loss"] = digest(loss)
    out["weights"] = digest(weights.view(np.uint32))
    out["verdicts"] = np.where(begins, _verdicts(rows, own), 0)
    return out


def _conversation(rows: Rows) -> UInt64:
    """[entries] the first turn of the conversation that an entry is of: a record may hold several."""
    out = np.full(len(rows.documents), -1, np.int64)
    some = np.diff(rows.verdict_offsets) > 0
    out[some] = rows.verdicts["message"][rows.verdict_offsets[:-1][some]]
    return out.astype(np.uint64)


def _dense_weights(rows: Rows) -> npt.NDArray[np.float32]:
    length = rows.input_ids.shape[1]
    weights = np.ones(rows.input_ids.size, np.float32)
    row = np.repeat(np.arange(len(rows)), np.diff(rows.weight_offsets)) * length
    for begin, (start, end, weight) in zip(row.tolist(), rows.weights.tolist(), strict=True):
        weights[begin + start : begin + end] = weight
    return weights


def _verdicts(rows: Rows, own: UInt64) -> UInt64:
    """[entries] digest of the verdicts, and of what a pair says of the document."""
    values = rows.verdicts["message"].astype(np.uint64) << np.uint64(8) | rows.verdicts["verdict"].astype(np.uint64)
    entry = np.repeat(np.arange(len(own)), np.diff(rows.verdict_offsets))
    out = np.zeros(len(own), np.uint64)
    np.add.at(out, entry, _mix(_mix(own)[entry] ^ _mix(values)))
    judged = rows.documents["branch"] != Branch.NONE
    judged |= (rows.documents["label"] >= 0) | ~np.isnan(rows.documents["score"])
    if judged.any():
        score = np.ascontiguousarray(rows.documents["score"]).view(np.uint32).astype(np.uint64)
        label = rows.documents["label"].astype(np.uint8).astype(np.uint64)
        out += np.where(judged, _mix(score << np.uint64(8) | label), 0).astype(np.uint64)
    return out


def _mix(values: UInt64) -> UInt64:
    """splitmix64's finaliser: a bijection of 64-bit numbers in which every bit depends on every bit."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
