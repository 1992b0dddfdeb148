"""Rows of list columns in Parquet files, a row group of about GROUP_TOKENS tokens in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

GROUP_TOKENS = 1_000_000

Columns = tuple[npt.NDArray[Any], ...]


def list_schema(columns: dict[str, pa.DataType], metadata: dict[str, str]) -> pa.Schema:
    """Columns of lists, name → type of the elements; nothing is null."""
    fields = [
        pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), nullable=False)
        for name, kind in columns.items()
    ]
    return pa.schema(fields, metadata=metadata)


def write_parquet(path: Path, rows: Iterable[Columns], schema: pa.Schema) -> None:
    """Writes the rows, each with one array per column of the schema, and syncs the file."""
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            group: list[Columns] = []
            size = 0
            for columns in rows:
                group.append(columns)
                size += len(columns[0])
                if size >= GROUP_TOKENS:
                    writer.write_table(_table(group, schema), row_group_size=len(group))
                    group, size = [], 0
            if group:
                writer.write_table(_table(group, schema), row_group_size=len(group))
        file.flush()
        os.fsync(file.fileno())


def _table(group: list[Columns], schema: pa.Schema) -> pa.Table:
    columns = []
    for k, field in enumerate(schema):
        offsets = np.concatenate(([0], np.cumsum([len(row[k]) for row in group]))).astype(np.int32)
        values = pa.array(np.concatenate([row[k] for row in group]), type=field.type.value_type)
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), values, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)
