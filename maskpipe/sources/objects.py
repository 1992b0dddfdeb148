"""HF datasets, Arrow tables and iterables of dicts → sources."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from maskpipe.errors import RecordError, UsageError
from maskpipe.sources import limits
from maskpipe.sources.arrow import cut_batches
from maskpipe.sources.chunk import Chunk
from maskpipe.sources.paths import choose_split
from maskpipe.sources.source import Reading, Source
from maskpipe.strict_json import refuse_foreign, refuse_lone_surrogates


def from_object(source: Any, split: str | None) -> Source:
    module = type(source).__module__.partition(".")[0]
    kind = type(source).__name__
    if module == "datasets" and kind in ("DatasetDict", "IterableDatasetDict"):
        return from_object(source[choose_split(source, split, f"this {kind}")], None)
    if split is not None and str(getattr(source, "split", None)) != split:
        raise UsageError(f"split={split!r} chooses from a DatasetDict or a directory; this is a {kind}")
    transformed = getattr(source, "format", {}).get("type") == "custom" if kind == "Dataset" else False
    if module == "datasets" and kind in ("Dataset", "IterableDataset") and source.features and not transformed:
        return Source("dataset", lambda reading: read_dataset(source, reading))
    if isinstance(source, pa.Table):
        return Source("table", lambda reading: _hash_records(cut_batches(source.to_batches(), reading), reading))
    if isinstance(source, Mapping | bytes) or hasattr(source, "iterrows") or not isinstance(source, Iterable):
        raise UsageError(
            f"cannot read records from a {type(source).__module__}.{kind}: pass a path, a dataset or an iterable of "
            "dicts (a data frame as df.to_dict('records'), one record as [record])"
        )
    left = [iter(source)] if iter(source) is source else None  # an iterator: one pass only

    def read(reading: Reading) -> Iterator[Chunk]:
        if left is None:
            return _read_iterable(source, reading)
        if not left:
            raise UsageError(
                "this iterator has been read already: pass a list, or an object that can be iterated again"
            )
        return _read_iterable(left.pop(), reading)

    return Source("iterable", read)


def read_dataset(dataset: Any, reading: Reading) -> Iterator[Chunk]:
    batches = (
        batch
        for table in dataset.with_format("arrow").iter(batch_size=limits.ARROW_ROWS)
        for batch in table.combine_chunks().to_batches()
    )
    yield from _hash_records(cut_batches(batches, reading), reading)


def _hash_records(chunks: Iterator[Chunk], reading: Reading) -> Iterator[Chunk]:
    for chunk in chunks:
        for _, record in chunk.records():
            reading.hash.update(json.dumps(record, ensure_ascii=True, default=_described).encode() + b"\n")
        yield chunk


def _described(value: Any) -> str:
    """A value that JSON cannot hold, for the hash only."""
    return f"{type(value).__name__} {bytes(value).hex() if isinstance(value, bytes) else value}"


def _read_iterable(records: Iterable[Any], reading: Reading) -> Iterator[Chunk]:
    payload = bytearray()
    ends = array("q")
    for record in records:
        try:
            text = _json_text(record)
        except RecordError as error:
            if ends:
                yield reading.chunk("array", bytes(payload), len(ends), ends=ends.tobytes())
                payload, ends = bytearray(), array("q")
            message = f"{reading.name}: record {reading.rows}: {error}"
            reading.hash.update(message.encode(errors="replace") + b"\n")
            yield reading.bad(message, error.reason)
            continue
        reading.hash.update(text + b"\n")
        payload += text
        ends.append(len(payload))
        if len(payload) >= limits.CHUNK_BYTES:
            yield reading.chunk("array", bytes(payload), len(ends), ends=ends.tobytes())
            payload, ends = bytearray(), array("q")
    if ends:
        yield reading.chunk("array", bytes(payload), len(ends), ends=ends.tobytes())


def _json_text(record: Any) -> bytes:
    """The record as JSON text that parses to the same value. RecordError names the first value for which none does."""
    refuse_foreign(record)
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        refuse_lone_surrogates(record)
        raise
