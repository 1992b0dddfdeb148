"""Rows of Arrow and Parquet files, and of directories that `datasets` wrote with save_to_disk.

save_to_disk writes state.json, which names data-*.arrow streams in order; a DatasetDict has dataset_dict.json and a
directory per split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskpipe.auditing.foreign.raw import Ragged, Stretch
from maskpipe.auditing.foreign.shapes import KNOWN
from maskpipe.errors import DatasetError, UsageError
from maskpipe.strict_json import parse

TOKENS = 1 << 20
"""About so many tokens of Parquet are read at a time."""


def saved_files(directory: Path) -> list[Path] | None:
    """The data files of a directory that save_to_disk wrote, in order, those of all splits one after another; None when
    it is none."""
    if (directory / "dataset_dict.json").is_file():
        splits = _object(directory / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(_is_name(name) for name in splits):
            raise DatasetError(f"{directory / 'dataset_dict.json'}: no list of splits")
        return [file for name in splits for file in _of_state(directory / name)]
    if (directory / "state.json").is_file() and (directory / "dataset_info.json").is_file():
        return _of_state(directory)
    return None


def _of_state(directory: Path) -> list[Path]:
    files = _object(directory / "state.json").get("_data_files")
    if not isinstance(files, list) or not files:
        raise DatasetError(f"{directory / 'state.json'}: no list of data files")
    out = []
    for entry in files:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _is_name(name):
            raise DatasetError(f"{directory / 'state.json'}: {entry!r} names no file of this directory")
        out.append(directory / name)
    return out


def _is_name(value: Any) -> bool:
    """Is this the name of something in a directory, and no way out of it?"""
    return isinstance(value, str) and value not in ("", ".", "..") and Path(value).name == value


def _object(path: Path) -> dict[str, Any]:
    try:
        value = parse(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing") from None
    except Exception as error:
        raise DatasetError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: no JSON object")
    return value


def column_names(file: Path) -> list[str]:
    """The columns of a file, without reading rows. DatasetError when it is no Arrow or Parquet file."""
    try:
        if file.suffix == ".parquet":
            return list(pq.read_schema(file).names)
        with _arrow(file) as reader:
            return list(reader.schema.names)
    except (pa.ArrowException, OSError) as error:
        if file.suffix in (".json", ".jsonl", ".txt"):
            raise DatasetError(
                f"{file}: audit reads prepared data, Arrow or Parquet with token ids; "
                f"what chats or text become: maskpipe prepare {file} --tokenizer T --dry-run"
            ) from None
        raise DatasetError(f"{file}: cannot be read: {error}") from None


def stretches(files: Sequence[Path], root: Path, limit: int | None) -> Iterator[Stretch]:
    """The rows of these files in order, at most `limit`. DatasetError for a file that cannot be read, or where files
    have other columns than the first."""
    first = 0
    expected: set[str] | None = None
    for file in files:
        name = str(file.relative_to(root)) if file.is_relative_to(root) else file.name
        columns = {column for column in column_names(file) if column in KNOWN}
        if expected is not None and columns != expected:
            raise DatasetError(
                f"{name}: has the columns {', '.join(sorted(columns))}, the files before it "
                f"{', '.join(sorted(expected))}; audit them one by one"
            )
        expected = columns
        try:
            for batch in _batches(file):
                stretch = _stretch(batch, name, first)
                if limit is not None and first + stretch.rows > limit:
                    keep = np.arange(max(0, limit - first))
                    yield Stretch(name, first, {key: value.take(keep) for key, value in stretch.columns.items()})
                    return
                first += stretch.rows
                yield stretch
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{name}: cannot be read after row {first}: {error}") from None


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as parquet:
            columns = [name for name in parquet.schema_arrow.names if name in KNOWN]
            yield from parquet.iter_batches(batch_size=_rows_at_a_time(parquet.metadata), columns=columns)
        return
    with _arrow(file) as reader:
        if isinstance(reader, pa.RecordBatchFileReader):
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
        else:
            yield from reader


def _rows_at_a_time(metadata: pq.FileMetaData) -> int:
    """Rows with about TOKENS tokens, were all alike."""
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    chunks = [group.column(k) for group in groups for k in range(group.num_columns)]
    values: int = sum(int(chunk.num_values) for chunk in chunks if chunk.path_in_schema.split(".")[0] == "input_ids")
    rows = int(metadata.num_rows)
    return max(1, rows * TOKENS // max(values, rows, 1))


def _arrow(file: Path) -> Any:
    """A reader of an IPC stream (what save_to_disk writes) or an IPC file."""
    with file.open("rb") as opened:
        is_file = opened.read(6) == b"ARROW1"
    source = pa.OSFile(str(file))
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _stretch(batch: pa.RecordBatch, name: str, first: int) -> Stretch:
    columns = {}
    for index, field in enumerate(batch.schema):
        if field.name in KNOWN:
            columns[field.name] = _ragged(batch.column(index), field.name, name, first)
    return Stretch(name, first, columns)


def _ragged(column: pa.Array, name: str, file: str, first: int) -> Ragged:
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (_is_number(kind.value_type)):
        raise UsageError(f"{file}: column {name} has the type {kind}; a list of numbers per row is needed")
    lengths = pc.list_value_length(column)
    if lengths.null_count:
        row = first + int(np.flatnonzero(np.asarray(lengths.is_null()))[0])
        raise DatasetError(f"{file}: row {row} has no {name} (null)")
    values = pc.list_flatten(column)
    if values.null_count:
        raise DatasetError(f"{file}: {name} holds nulls among its values (rows from {first})")
    counts = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Ragged(values.to_numpy(zero_copy_only=False), offsets)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind))
