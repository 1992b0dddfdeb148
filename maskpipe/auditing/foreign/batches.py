"""Batches of any training loop as stretches of rows: by what they offer, not by what they are; without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.foreign.raw import Ragged, Stretch
from maskpipe.auditing.foreign.shapes import ENDS, KNOWN, LENGTHS, STARTS
from maskpipe.errors import UsageError


def stretches_of_batches(batches: Iterable[Any], limit: int | None = None) -> Iterator[Stretch]:
    """The rows of each batch; at most `limit` batches are taken. UsageError for what is no batch, naming it."""
    first = 0
    expected: set[str] | None = None
    for number, batch in enumerate(islice(batches, limit)):
        stretch = _stretch(batch, number, first)
        columns = set(stretch.columns)
        if expected is not None and columns != expected:
            raise UsageError(
                f"batch {number} has {', '.join(sorted(columns))}; those before it {', '.join(sorted(expected))}"
            )
        expected = columns
        first += stretch.rows
        yield stretch


def _stretch(batch: Any, number: int, first: int) -> Stretch:
    entries = _entries(batch, number)
    if "input_ids" not in entries:
        found = ", ".join(map(str, entries)) or "nothing"
        raise UsageError(f"batch {number}: no input_ids (found {found})")
    ids = _rows(entries["input_ids"], "input_ids", number)
    columns = {"input_ids": ids}
    column: Ragged | None
    for name in KNOWN:
        if name == "input_ids" or entries.get(name) is None:
            continue
        if name in (*ENDS, *STARTS, *LENGTHS):
            column = _bounds(entries[name], name, number, ids)
        else:
            column = _alike(entries[name], name, number, ids)
        if column is not None:
            columns[name] = column
    return Stretch(f"batch {number}", first, columns)


def _entries(batch: Any, number: int) -> Mapping[str, Any]:
    if isinstance(batch, Mapping):
        return batch
    data = getattr(batch, "data", None)
    if isinstance(data, Mapping):
        return data
    found = {name: getattr(batch, name) for name in KNOWN if hasattr(batch, name)}
    if not found:
        raise UsageError(
            f"batch {number} is a {type(batch).__name__}; a mapping with input_ids is needed, such as a dict of tensors"
        )
    return found


def _array(value: Any, name: str, number: int) -> npt.NDArray[Any]:
    """The numbers of a tensor, an array or lists."""
    for method in ("detach", "cpu"):
        if hasattr(value, method):
            value = getattr(value, method)()
    try:
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"batch {number}: {name} cannot be read as numbers: {error}") from None
    if array.dtype.kind not in "iubf":
        raise UsageError(f"batch {number}: {name} holds {array.dtype}; numbers are needed")
    return array


def _rows(value: Any, name: str, number: int) -> Ragged:
    """[rows, length], [length], or a list of rows of any length."""
    if isinstance(value, list | tuple) and value and not np.isscalar(value[0]):
        rows = [_array(row, name, number).reshape(-1) for row in value]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        return Ragged(np.concatenate(rows), offsets)
    array = _array(value, name, number)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise UsageError(f"batch {number}: {name} has the shape {array.shape}; [rows, length] is needed")
    return Ragged(np.ascontiguousarray(array).reshape(-1), np.arange(len(array) + 1) * array.shape[1])


def _alike(value: Any, name: str, number: int, ids: Ragged) -> Ragged | None:
    """A column with one value per token; None for one of another kind (a 4-D mask, positions of several axes)."""
    if not isinstance(value, list | tuple):
        array = _array(value, name, number)
        if array.ndim > 2 or (array.ndim == 2 and len(array) != len(ids.offsets) - 1 and name == "position_ids"):
            return None
    column = _rows(value, name, number)
    if len(column.offsets) == 2 < len(ids.offsets) and column.lengths[0] == ids.lengths[0]:
        rows = len(ids.offsets) - 1  # one row of positions for all
        column = Ragged(np.tile(column.values, rows), np.arange(rows + 1) * len(column.values))
    if len(column.offsets) != len(ids.offsets):
        raise UsageError(f"batch {number}: {name} has {len(column.offsets) - 1} rows, input_ids {len(ids.offsets) - 1}")
    return column


def _bounds(value: Any, name: str, number: int, ids: Ragged) -> Ragged:
    """Lengths or bounds of documents per row. One list for all rows counts through the whole batch."""
    nested = isinstance(value, list | tuple) and bool(value) and not np.isscalar(value[0])
    column = _rows(value, name, number)
    rows = len(ids.offsets) - 1
    if len(column.offsets) - 1 == rows and (nested or rows == 1 or _array(value, name, number).ndim == 2):
        return column
    flat = column.values.astype(np.int64)
    if name in LENGTHS:
        flat = np.concatenate([[0], np.cumsum(flat)])
    elif name in STARTS:
        flat = np.concatenate([flat, ids.offsets[-1:]])
    parts = []
    for begin, end in zip(ids.offsets[:-1].tolist(), ids.offsets[1:].tolist(), strict=True):
        inside = flat[(flat >= begin) & (flat <= end)] - begin
        parts.append(np.diff(inside) if name in LENGTHS else inside[:-1] if name in STARTS else inside)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Ragged(np.concatenate(parts), offsets)
