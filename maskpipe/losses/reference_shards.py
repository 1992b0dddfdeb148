"""The side shards of a dataset that keep a reference model's log-probabilities; docs/FORMAT.md, R1 to R6.

    ref/
      part-00000-4be1f0aa93c2d761.arrow      row k belongs to row k of the dataset's shard 0
      reference.json  reference.sha256       of which dataset and model; written last

One float32 per token with loss, in the order of the row, and where those tokens stand. No torch here.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maskpipe.durable import HashingFile, place, temporary, write_file
from maskpipe.errors import DatasetError
from maskpipe.shards.format import REGION_SIZE, SHARD_NAME, batch_rows
from maskpipe.shards.manifest import Counts, Shard
from maskpipe.shards.reader import Member, VerifiedFile
from maskpipe.shards.rows import find_null, flat_list, numbers

FORMAT = "maskpipe reference log-probabilities 1"
REFERENCE, REFERENCE_HASH = "reference.json", "reference.sha256"
HELD_BATCHES = 64
"""Record batches kept in memory per reader: at most 1 MiB of values each."""
REPAIR = "copy the file again from where it came from, or make the reference log-probabilities anew"

_SPAN = pa.struct([pa.field("start", pa.int32(), nullable=False), pa.field("end", pa.int32(), nullable=False)])
_FIELDS = [
    pa.field("spans", pa.list_(pa.field("item", _SPAN, nullable=False)), nullable=False),
    pa.field("logps", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
]


@dataclass(frozen=True)
class ReferenceInfo:
    """What reference.json says."""

    dataset: str
    """Fingerprint of the dataset: of the content of all its rows (F31)."""
    model: str
    """SHA-256 of the model's configuration and weights; see reference_logps.model_sha256."""
    model_name: str
    """Directory or name it was loaded from; for people."""
    dtype: str
    """Of the weights, such as "bfloat16"."""
    train_on: tuple[str, ...] | None
    """Which tokens have a value, where that is not as the dataset was prepared."""
    sequence_length: int
    values: int
    """Tokens with a value."""
    shards: tuple[Shard, ...]
    """`counts` hold sequences only."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys, the list of shards left out."""
        return {
            "dataset": self.dataset,
            "model": self.model,
            "model_name": self.model_name,
            "dtype": self.dtype,
            "train_on": None if self.train_on is None else list(self.train_on),
            "rows": self.rows,
            "values": self.values,
        }

    def __str__(self) -> str:
        return (
            f"made      log p of {self.values:,} tokens with loss in {self.rows:,} rows\n"
            f"dataset   {self.dataset}\nmodel     {self.model}  {self.model_name}, {self.dtype}\n"
            'next      RefLogps.open("REF", loader).documents(batch, plan).pairs, the reference of preference losses'
        )

    def to_json(self) -> bytes:
        value = {
            "format": FORMAT,
            "dataset": self.dataset,
            "model": {"sha256": self.model, "name": self.model_name, "dtype": self.dtype},
            "train_on": None if self.train_on is None else list(self.train_on),
            "sequence_length": self.sequence_length,
            "values": self.values,
            "shards": [
                {"name": s.name, "size": s.size, "sha256": s.sha256, "regions": s.regions, "rows": s.rows}
                for s in self.shards
            ],
        }
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_json(raw: bytes, where: str) -> ReferenceInfo:
        """DatasetError, beginning with `where`, unless it is valid and of this format."""
        try:
            value = json.loads(raw)
            if value["format"] != FORMAT:
                raise DatasetError(f"{where}: is of format {value['format']!r}, this version reads {FORMAT!r}")
            train_on = value["train_on"]
            info = ReferenceInfo(
                str(value["dataset"]), str(value["model"]["sha256"]), str(value["model"]["name"]),
                str(value["model"]["dtype"]), None if train_on is None else tuple(map(str, train_on)),
                int(value["sequence_length"]), int(value["values"]),
                tuple(shard_entry(entry) for entry in value["shards"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{where}: is no description of reference log-probabilities ({error}); {REPAIR}"
            ) from None
        for number, shard in enumerate(info.shards):
            match = SHARD_NAME.fullmatch(shard.name)
            tiled = len(shard.regions) == 16 * -(-shard.size // REGION_SIZE)
            if not match or int(match[1]) != number or match[2] != shard.sha256[:16] or not tiled:
                raise DatasetError(f"{where}: {shard.name!r} is no valid entry of shard {number}; {REPAIR}")
        return info


def shard_entry(value: Mapping[str, Any]) -> Shard:
    """An entry of `shards` in reference.json."""
    counts = Counts(sequences=int(value["rows"]))
    return Shard(str(value["name"]), int(value["size"]), str(value["sha256"]), str(value["regions"]), "", counts)


@dataclass(frozen=True, eq=False)
class RowLogps:
    """What is kept of one row of the dataset."""

    positions: npt.NDArray[np.int32]  # [n] increasing: tokens with a value, as targets
    logps: npt.NDArray[np.float32]  # [n] log p of each, given what stands before it in its document


def write_shard(directory: Path, number: int, rows: list[RowLogps], dataset: str, model: str, length: int) -> Shard:
    """Writes side shard `number`, durably, under the name of its content."""
    schema = pa.schema(_FIELDS, _metadata(dataset, model, number))
    step = batch_rows(length)
    with temporary(directory) as (unfinished, descriptor):
        sink = HashingFile(descriptor, REGION_SIZE)
        options = pa.ipc.IpcWriteOptions(compression=None, use_threads=False)
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema, options=options) as stream:
            for first in range(0, len(rows), step):
                stream.write_batch(_to_batch(rows[first : first + step], schema))
        sha256, regions = sink.finish()
        name = f"part-{number:05d}-{sha256[:16]}.arrow"
        place(directory, unfinished, descriptor, name, sha256)
    return Shard(name, sink.position, sha256, regions, "", Counts(sequences=len(rows)))


def write_info(directory: Path, info: ReferenceInfo) -> None:
    """Writes reference.sha256 and, last, reference.json."""
    raw = info.to_json()
    write_file(directory / REFERENCE_HASH, _hash_line(raw))
    write_file(directory / REFERENCE, raw)


def _metadata(dataset: str, model: str, number: int) -> dict[str, str]:
    return {
        "maskpipe.reference": FORMAT,
        "maskpipe.dataset": dataset,
        "maskpipe.model": model,
        "maskpipe.shard": str(number),
    }


def _to_batch(rows: list[RowLogps], schema: pa.Schema) -> pa.RecordBatch:
    starts, ends, counts = [], [], [0]
    for row in rows:
        breaks = np.flatnonzero(np.diff(row.positions) != 1)
        first = row.positions[np.concatenate(([0], breaks + 1))] if len(row.positions) else row.positions
        last = row.positions[np.concatenate((breaks, [len(row.positions) - 1]))] if len(row.positions) else first
        starts.append(first)
        ends.append(last + 1)
        counts.append(len(first))
    spans = pa.StructArray.from_arrays(
        [pa.array(np.concatenate(part).astype(np.int32)) for part in (starts, ends)], fields=list(_SPAN)
    )
    logps = pa.array(np.concatenate([row.logps for row in rows]).astype(np.float32))
    sizes = [0, *(len(row.logps) for row in rows)]
    arrays = [
        pa.ListArray.from_arrays(pa.array(np.cumsum(offsets).astype(np.int32)), values, type=field.type)
        for offsets, values, field in zip((counts, sizes), (spans, logps), _FIELDS, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class ReferenceShards:
    """Side shards on disk: `row(k)` of row k of the dataset. Every byte is in a region whose hash was compared."""

    def __init__(self, path: Path) -> None:
        """Reads reference.json and reference.sha256 only. DatasetError when they are missing or do not agree."""
        if not path.is_dir():
            raise DatasetError(f"{path}: no such directory; `maskpipe reference-logps` makes one")
        with Member(path, REFERENCE) as described, Member(path, REFERENCE_HASH) as digest:
            raw = described.read_all()
            if digest.read_all() != _hash_line(raw):
                raise DatasetError(f"{path / REFERENCE}: is not what {REFERENCE_HASH} says; {REPAIR}")
        self.path = path
        self.info = ReferenceInfo.from_json(raw, str(path / REFERENCE))
        self._ends = np.cumsum([shard.rows for shard in self.info.shards]).tolist()
        self._held: OrderedDict[tuple[int, int], list[RowLogps]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def row(self, row: int) -> RowLogps:
        """DatasetError when its bytes are not what reference.json says, naming file and region."""
        number = bisect.bisect_right(self._ends, row)
        within = row - (self._ends[number] - self.info.shards[number].rows)
        batch, place_in_batch = divmod(within, batch_rows(self.info.sequence_length))
        key = (number, batch)
        if key not in self._held:
            self._held[key] = self._read(number, batch)
            if len(self._held) > HELD_BATCHES:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        found: RowLogps = self._held[key][place_in_batch]
        return found

    def _read(self, number: int, batch: int) -> list[RowLogps]:
        shard = self.info.shards[number]
        with Member(self.path, shard.name) as member:
            schema = pa.schema(_FIELDS, _metadata(self.info.dataset, self.info.model, number))
            try:
                stream = pa.ipc.open_file(pa.PythonFile(VerifiedFile(member, shard), mode="r"))
                if not stream.schema.equals(schema, check_metadata=True):
                    raise DatasetError(f"{member.where}: is of another dataset, model or format; {REPAIR}")
                found = stream.get_batch(batch)
                found.validate(full=True)
            except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
                raise DatasetError(f"{member.where}: record batch {batch} cannot be read: {error}; {REPAIR}") from None
        for column, field in zip(found.columns, found.schema, strict=True):
            if find_null(column, field) is not None:
                raise DatasetError(f"{member.where}: record batch {batch} has null in {field.name}; {REPAIR}")
        try:
            return list(_rows_of(found))
        except ValueError as error:
            raise DatasetError(f"{member.where}: record batch {batch}: {error}; {REPAIR}") from None


def _rows_of(batch: pa.RecordBatch) -> Iterator[RowLogps]:
    span_offsets, spans = flat_list(batch.column("spans"))
    value_offsets, values = flat_list(batch.column("logps"))
    starts, ends, logps = numbers(spans.field("start")), numbers(spans.field("end")), numbers(values)
    for k in range(len(batch)):
        mine, sizes = slice(span_offsets[k], span_offsets[k + 1]), slice(value_offsets[k], value_offsets[k + 1])
        start, lengths = starts[mine], ends[mine] - starts[mine]
        if np.any(lengths < 1) or np.any(start[1:] <= ends[mine][:-1]) or lengths.sum() != sizes.stop - sizes.start:
            raise ValueError(f"the spans of row {k} do not fit its values")
        before = np.repeat(np.cumsum(lengths) - lengths, lengths)
        positions = np.repeat(start, lengths) + np.arange(len(before)) - before
        yield RowLogps(positions.astype(np.int32), logps[sizes])


def _hash_line(raw: bytes) -> bytes:
    """What `sha256sum reference.json` prints."""
    return f"{hashlib.sha256(raw).hexdigest()}  {REFERENCE}\n".encode()
