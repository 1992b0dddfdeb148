"""Parquet and Arrow files, and batches of any origin → chunks."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskpipe.errors import UsageError
from maskpipe.sources import limits
from maskpipe.sources.chunk import Chunk
from maskpipe.sources.source import Reading
from maskpipe.sources.unpack import hashed


def read_parquet(path: Path, reading: Reading) -> Iterator[Chunk]:
    try:
        with path.open("rb") as file:
            for _ in hashed(file, reading.hash):
                pass
            with pq.ParquetFile(path) as parquet:
                yield from cut_batches(parquet.iter_batches(batch_size=limits.ARROW_ROWS), reading)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: cannot read it as Parquet: {error}") from None


def read_arrow(path: Path, reading: Reading) -> Iterator[Chunk]:
    try:
        with path.open("rb") as file:
            magic = file.read(6)
            file.seek(0)
            for _ in hashed(file, reading.hash):
                pass
            file.seek(0)
            if magic == b"ARROW1":
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
                yield from cut_batches(map(_validated, batches), reading)
            else:
                yield from cut_batches(map(_validated, pa.ipc.open_stream(file)), reading)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: cannot read it as Arrow (IPC file or stream): {error}") from None


def _validated(batch: Any) -> Any:
    """The batch, once its offsets, lengths and indices are known to stay inside it: Arrow itself trusts files.

    Text that is no UTF-8 passes: it costs one record, when that is read. ArrowInvalid for anything else.
    """
    for column in batch.columns:
        plain = _without_text(column.type)
        (column if plain == column.type else column.view(plain)).validate(full=True)
    return batch


def _without_text(kind: Any) -> Any:
    """The type with bytes in the place of text."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([entry.with_type(_without_text(entry.type)) for entry in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_text(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_without_text(kind.value_type)))
    return kind


def cut_batches(batches: Iterable[Any], reading: Reading) -> Iterator[Chunk]:
    held: list[Any] = []
    size = 0
    for batch in batches:
        for start in range(0, batch.num_rows, limits.ARROW_ROWS):
            for piece in _halved(batch.slice(start, limits.ARROW_ROWS)):
                held.append(piece)
                size += piece.nbytes
                if size >= limits.CHUNK_BYTES:
                    yield _arrow_chunk(held, reading)
                    held, size = [], 0
    if held:
        yield _arrow_chunk(held, reading)


def _halved(batch: Any) -> Iterator[Any]:
    if batch.nbytes <= limits.CHUNK_BYTES or batch.num_rows <= 1:
        yield batch
    else:
        half = batch.num_rows // 2
        yield from _halved(batch.slice(0, half))
        yield from _halved(batch.slice(half))


def _arrow_chunk(batches: list[Any], reading: Reading) -> Chunk:
    names = batches[0].schema.names
    if len(set(names)) != len(names):
        raise UsageError(f"{reading.name}: two columns have the same name; its columns: {', '.join(names)}")
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return reading.chunk("arrow", sink.getvalue(), sum(batch.num_rows for batch in batches))
