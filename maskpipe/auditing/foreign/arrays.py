"""Rows of OLMo-core's arrays: token_ids*.npy and label masks beside them, raw numbers without a header.

Borders stand in csv.gz files beside the ids, a line "start,end" per document (more columns may follow); without them
rows of sequence_length tokens have none. The number type comes from dataset.json, else it is the smallest unsigned one
that holds the tokenizer's vocabulary, as OLMo-core takes it: that is said.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskpipe.auditing.foreign.raw import Int64, Ragged, Stretch
from maskpipe.errors import DatasetError, UsageError
from maskpipe.exports.olmo import token_dtype
from maskpipe.strict_json import parse

TOKENS = 1 << 20
"""Tokens that are read at a time, rows aside that are longer."""
PREFIXES = (("token_ids", "labels_mask"), ("token_ids", "label_mask"), ("input_ids", "label_mask"))
"""How files of ids and of masks are named; what follows is the same in both."""
ROW = 8192
"""Length of the rows where nothing says documents or sequence_length."""


@dataclass(frozen=True)
class Arrays:
    """What was found in a directory of raw arrays."""

    pairs: tuple[tuple[Path, Path | None], ...]
    """Files of ids, each with the file of its mask."""
    dtype: np.dtype[Any]
    row: int
    """Length of rows where no borders are given."""
    pad_id: int | None
    about: Mapping[str, str]

    @property
    def columns(self) -> list[str]:
        has_mask = all(mask is not None for _, mask in self.pairs)
        has_borders = all(_borders_file(ids).is_file() for ids, _ in self.pairs)
        return ["input_ids", *(["label_mask"] if has_mask else []), *(["seq_lengths"] if has_borders else [])]


def find(directory: Path, vocab_size: int) -> Arrays | None:
    """The arrays of a directory; None when it has none of these names. UsageError where only some have masks."""
    for ids_name, mask_name in PREFIXES:
        files = sorted(directory.glob(f"{ids_name}*.npy"))
        pairs = tuple((file, directory / file.name.replace(ids_name, mask_name, 1)) for file in files)
        if files and (any(mask.is_file() for _, mask in pairs) or (ids_name, mask_name) == PREFIXES[0]):
            break
    else:
        return None
    with_mask = [mask.is_file() for _, mask in pairs]
    if any(with_mask) and not all(with_mask):
        missing = pairs[with_mask.index(False)][1].name
        raise UsageError(f"{directory}: {missing} is missing, while other files of ids have their mask")
    described = _described(directory / "dataset.json")
    about: dict[str, str] = {}
    if "dtype" in described:
        dtype = np.dtype(str(described["dtype"]))
        about["number type"] = f"{dtype.name}, as dataset.json says"
    else:
        dtype = token_dtype(vocab_size)
        about["number type"] = f"{dtype.name}, the smallest that holds the vocabulary of {vocab_size:,}"
    row = int(described.get("sequence_length", ROW))
    if not all(_borders_file(file).is_file() for file in files):
        said = "as dataset.json says" if "sequence_length" in described else "taken because nothing says it"
        about["rows"] = f"{row:,} tokens each, {said}; nothing says where documents end"
    pad = described.get("pad_id")
    return Arrays(
        tuple((ids, mask if with_mask[0] else None) for ids, mask in pairs),
        dtype,
        row,
        int(pad) if isinstance(pad, int) else None,
        about,
    )


def _described(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = parse(path.read_bytes())
    except Exception as error:
        raise DatasetError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: no JSON object")
    if value.get("dtype", "uint32") not in ("uint8", "uint16", "uint32", "uint64", "int32", "int64"):
        raise DatasetError(f"{path}: dtype {value['dtype']!r} is no integer type")
    return value


def _borders_file(ids: Path) -> Path:
    return ids.with_suffix(".csv.gz")


def stretches(arrays: Arrays, root: Path, limit: int | None) -> Iterator[Stretch]:
    """The rows in order, at most `limit`: one per document where borders are given. DatasetError where sizes of files
    do not fit each other."""
    first = 0
    for ids_file, mask_file in arrays.pairs:
        if ids_file.stat().st_size % arrays.dtype.itemsize:
            raise DatasetError(f"{ids_file}: its size is no multiple of {arrays.dtype.itemsize} ({arrays.dtype.name})")
        size = ids_file.stat().st_size // arrays.dtype.itemsize
        if mask_file is not None and mask_file.stat().st_size != size:
            raise DatasetError(
                f"{mask_file}: {mask_file.stat().st_size:,} bytes for the {size:,} tokens of {ids_file.name}"
            )
        if not size:
            continue
        ids = np.memmap(ids_file, arrays.dtype, "r")
        mask = np.memmap(mask_file, np.uint8, "r") if mask_file is not None else None
        starts, ends, documents = _rows(ids_file, size, arrays)
        at = 0
        while at < len(starts) and (limit is None or first < limit):
            after = max(at + 1, int(np.searchsorted(ends, starts[at] + TOKENS, "right")))
            if limit is not None:
                after = min(after, at + limit - first)
            begin, end = int(starts[at]), int(ends[after - 1])
            offsets = np.concatenate([starts[at:after], [end]]) - begin
            columns = {"input_ids": Ragged(np.asarray(ids[begin:end]), offsets)}
            if mask is not None:
                columns["label_mask"] = Ragged(np.asarray(mask[begin:end]), offsets)
            if documents:
                columns["seq_lengths"] = Ragged(np.diff(offsets), np.arange(after - at + 1))
            yield Stretch(ids_file.name, first, columns)
            first += after - at
            at = after


def _rows(ids_file: Path, size: int, arrays: Arrays) -> tuple[Int64, Int64, bool]:
    """Where rows begin and end, and whether they are documents."""
    borders = _borders_file(ids_file)
    if not borders.is_file():
        starts = np.arange(0, size, arrays.row)
        return starts, np.minimum(starts + arrays.row, size), False
    try:
        with gzip.open(borders, "rt", encoding="utf-8", newline="") as file:
            table = np.array([[int(line[0]), int(line[1])] for line in csv.reader(file) if line], np.int64)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DatasetError(f"{borders}: not lines of start,end: {error}") from None
    if not len(table) or table[0, 0] != 0 or table[-1, 1] != size or (table[1:, 0] != table[:-1, 1]).any():
        raise DatasetError(f"{borders}: its documents do not tile the {size:,} tokens of {ids_file.name}")
    if (table[:, 1] <= table[:, 0]).any():
        raise DatasetError(f"{borders}: a document without tokens")
    return table[:, 0], table[:, 1], True
