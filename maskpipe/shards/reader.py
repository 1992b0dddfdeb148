"""Reading a dataset: opening reads the manifest only; rows are read, hashed and only then parsed.

    dataset = maskpipe.open("out/")          manifest.json and manifest.sha256, nothing else
    dataset[7].loss_mask                     one record batch of one shard: hash → Arrow → validate → check → views

Bytes come by pread (a mapped file that shrinks kills the process), and every byte that Arrow or the core sees is in a
region whose hash was compared first. Only names that the manifest lists are opened, inside the directory, never
through a symbolic link.
"""

from __future__ import annotations

import bisect
import itertools
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from maskpipe.document import Document, Float32, Int32, UInt8
from maskpipe.errors import DatasetError
from maskpipe.roles import Flag
from maskpipe.shards.documents import dense_weights, pair_facts, verdict_map
from maskpipe.shards.format import MANIFEST, MANIFEST_HASH, REGION_SIZE, batch_rows, sequence_schema, shard_metadata
from maskpipe.shards.manifest import Manifest, Shard, manifest_hash
from maskpipe.shards.rows import Rows, Structs, check, find_null, from_batch

if TYPE_CHECKING:
    from maskpipe.shards.verify import Verified

_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises for a file that is not what it claims to be."""
OPEN_SHARDS = 16
"""Shards kept open per Dataset, each with its last record batch (about 1 MiB of ids)."""
REPAIR = "copy the file again from where the dataset came from, or prepare the dataset anew"


@dataclass(frozen=True, eq=False)
class Sequence:
    """One packed row of L tokens. All arrays are read-only; dense ones have L entries and are made when asked for."""

    input_ids: Int32  # [L]
    runs: Structs  # format.RUN_DTYPE: the facts of tokens, once per stretch
    documents: Structs  # format.DOCUMENT_DTYPE: end, source, row, turn, start, length, pair facts
    verdicts: tuple[Structs, ...]  # per document, format.VERDICT_DTYPE
    weight_ranges: Structs  # format.WEIGHT_DTYPE: where the source weight is not 1
    n_loss: int
    """Tokens with loss."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def role_ids(self) -> UInt8:
        """[L] roles.Role."""
        return self._dense("role")

    @cached_property
    def part_ids(self) -> UInt8:
        """[L] roles.Part."""
        return self._dense("part")

    @cached_property
    def flags(self) -> UInt8:
        """[L] bits of roles.Flag."""
        return self._dense("flags")

    @cached_property
    def message_ids(self) -> Int32:
        """[L] index in the document's normalised conversation, -1 for none."""
        return self._dense("message")

    @cached_property
    def sampled(self) -> UInt8:
        """[L] 0 or 1."""
        return _frozen((self.flags & Flag.SAMPLED > 0).astype(np.uint8))

    @cached_property
    def loss_mask(self) -> UInt8:
        """[L] 0 or 1: this token is a target with loss."""
        return _frozen((self.flags & Flag.LOSS > 0).astype(np.uint8))

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """[L] the token's own id where it has loss, else -100. Not shifted: labels[i] is predicted at i - 1."""
        return _frozen(np.where(self.loss_mask, self.input_ids, -100).astype(np.int64))

    @cached_property
    def segment_ids(self) -> Int32:
        """[L] 1, 2, … per document, 0 in padding."""
        segments = np.zeros(len(self), np.int32)
        numbers = np.arange(1, len(self.documents) + 1, dtype=np.int32)
        segments[: self.cu_seqlens[-1]] = np.repeat(numbers, np.diff(self.cu_seqlens))
        return _frozen(segments)

    @cached_property
    def position_ids(self) -> Int32:
        """[L] place in the document as it stands in this row, from 0; 0 in padding."""
        positions = np.zeros(len(self), np.int32)
        filled = self.cu_seqlens[-1]
        starts = np.repeat(self.cu_seqlens[:-1], np.diff(self.cu_seqlens))
        positions[:filled] = np.arange(filled, dtype=np.int32) - starts
        return _frozen(positions)

    @cached_property
    def cu_seqlens(self) -> Int32:
        """[documents + 1] 0 and the end of each document; padding, which comes after, belongs to none."""
        return _frozen(np.concatenate(([0], self.documents["end"])).astype(np.int32))

    @cached_property
    def weights(self) -> Float32:
        """[L] source weight, the data's own; 1 where the data says nothing."""
        return dense_weights(self.weight_ranges, len(self))

    def _dense(self, name: str) -> npt.NDArray[Any]:
        return _frozen(np.repeat(self.runs[name], np.diff(self.runs["end"], prepend=0)))


class Dataset:
    """A dataset on disk: `len`, `[i]`, iteration in row order. Open with maskpipe.open. Threads may share one, and so
    may forked processes; pickled, it opens the directory anew and demands the same fingerprint."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        """What the dataset says of itself; see Manifest."""
        self._ends = np.cumsum([shard.rows for shard in manifest.shards]).tolist()
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """For people: the directory's name."""
        return self.path.name

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def __getitem__(self, index: int) -> Sequence:
        """Sequence `index`, negative ones from the end. IndexError outside; DatasetError when its bytes are not what
        the manifest says, naming file and region."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sequence {index} of a dataset of {len(self)}")
        number = bisect.bisect_right(self._ends, position)
        row = position - (self._ends[number] - self.manifest.shards[number].rows)
        with self._lock:
            rows, within = self._shard(number).row(row)
        return sequence(rows, within)

    def __iter__(self) -> Iterator[Sequence]:
        return (self[index] for index in range(len(self)))

    def documents(self) -> Iterator[Document]:
        """The documents in row order, fragments of cut documents as they are."""
        return itertools.chain.from_iterable(map(self.documents_of, range(len(self))))

    def documents_of(self, index: int) -> Iterator[Document]:
        """The documents of one row, as `documents` gives them."""
        row = self[index]
        for k, (start, end) in enumerate(itertools.pairwise(row.cu_seqlens.tolist())):
            weights = row.weights[start:end] if len(row.weight_ranges) else None
            yield Document(
                input_ids=row.input_ids[start:end],
                role_ids=row.role_ids[start:end],
                part_ids=row.part_ids[start:end],
                flags=row.flags[start:end],
                message_ids=row.message_ids[start:end],
                weights=weights if weights is not None and np.any(weights != 1) else None,
                source=int(row.documents["source"][k]),
                row=int(row.documents["row"][k]),
                turn=int(row.documents["turn"][k]),
                verdicts=verdict_map(row.verdicts[k]),
                **pair_facts(row.documents[k]),
            )

    def verify(self) -> Verified:
        """Checks every byte and every rule of the format; see verify.verify."""
        from maskpipe.shards.verify import verify

        return verify(self.path)

    @contextmanager
    def shard_open(self, number: int) -> Iterator[None]:
        """While inside, shard `number` lies under its name in `path`."""
        yield

    def close(self) -> None:
        """Closes the files; the dataset opens them again when it is used."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self.path, self.manifest.fingerprint))

    def __repr__(self) -> str:
        totals, length = self.manifest.totals, self.manifest.sequence_length
        share = totals.n_loss / totals.n_tokens if totals.n_tokens else 0.0
        return (
            f"Dataset({str(self.path)!r}: {len(self):,} sequences of {length:,} tokens in "
            f"{len(self.manifest.shards):,} shards, {totals.documents:,} documents, "
            f"{totals.n_tokens:,} tokens, loss on {share:.1%}, fill {totals.fill:.1%}, "
            f"fingerprint {self.manifest.fingerprint[:12]})"
        )

    def _shard(self, number: int) -> ShardReader:
        reader = self._open.get(number)
        if reader is None:
            reader = self._open[number] = ShardReader(self.path, self.manifest, number)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return reader


def open(path: str | Path) -> Dataset:
    """The dataset in a directory. Reads manifest.json and manifest.sha256 only.

    DatasetError when the path is no directory, one of the two is missing, they do not agree, or the manifest is not
    valid or of an unknown major version.
    """
    directory = Path(path)
    raw = read_manifest(directory)
    return Dataset(directory, Manifest.from_json(raw, where=str(directory / MANIFEST)))


def _reopen(path: Path, fingerprint: str) -> Dataset:
    dataset = open(path)
    if dataset.manifest.fingerprint != fingerprint:
        raise DatasetError(
            f"{path}: holds another dataset than when it was opened (fingerprint "
            f"{dataset.manifest.fingerprint[:12]}, not {fingerprint[:12]}); open it again"
        )
    return dataset


def read_manifest(directory: Path) -> bytes:
    """The bytes of manifest.json, once manifest.sha256 has confirmed them."""
    if not directory.is_dir():
        raise DatasetError(f"{directory}: no such directory; a dataset is a directory with {MANIFEST}")
    sides = [name for name in ("train", "validation") if (directory / name / MANIFEST).is_file()]
    if len(sides) == 2 and not os.path.lexists(directory / MANIFEST):
        raise DatasetError(
            f"{directory}: holds two datasets, {directory / sides[0]} and {directory / sides[1]}: name one"
        )
    for name in (MANIFEST, MANIFEST_HASH):
        if not os.path.lexists(directory / name):
            raise DatasetError(
                f"{directory}: has no {name}, so it is no dataset, or its preparation did not finish; "
                "run the preparation again"
            )
    with Member(directory, MANIFEST) as manifest, Member(directory, MANIFEST_HASH) as digest:
        raw = manifest.read_all()
        if digest.read_all() != manifest_hash(raw):
            raise DatasetError(f"{directory / MANIFEST}: is not what {MANIFEST_HASH} says; {REPAIR}")
    return raw


class Member:
    """A regular file directly inside a directory, open for pread. DatasetError, naming it, for anything else."""

    def __init__(self, directory: Path, name: str) -> None:
        self.where = directory / name
        self._descriptor = -1
        try:
            parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:  # O_NONBLOCK: a pipe in the place of a file must not hang us
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                self._descriptor = os.open(name, flags, dir_fd=parent)
            finally:
                os.close(parent)
        except OSError as error:
            link = os.path.islink(self.where)
            what = (
                "is a symbolic link; put the file itself there"
                if link
                else f"cannot be opened: {error.strerror}; {REPAIR}"
            )
            raise DatasetError(f"{self.where}: {what}") from None
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise DatasetError(f"{self.where}: is no regular file; {REPAIR}")

    def expect_size(self, size: int) -> None:
        if self.size != size:
            raise DatasetError(f"{self.where}: has {self.size} bytes, the manifest says {size}; {REPAIR}")

    def pread(self, size: int, offset: int) -> bytes:
        """Exactly `size` bytes; DatasetError when the file ends before or cannot be read."""
        parts, at = [], offset
        while at < offset + size:
            try:
                part = os.pread(self._descriptor, offset + size - at, at)
            except OSError as error:
                raise DatasetError(f"{self.where}: cannot be read at byte {at}: {error.strerror}") from None
            if not part:
                raise DatasetError(f"{self.where}: ends at byte {at}, while it was being read; {REPAIR}")
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_all(self) -> bytes:
        return self.pread(self.size, 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class VerifiedFile:
    """A shard as Arrow reads it: every byte comes from a region whose hash was compared just before."""

    closed = False

    def __init__(self, member: Member, shard: Shard) -> None:
        member.expect_size(shard.size)
        self._member = member
        self._shard = shard
        self._position = 0
        self._region = -1
        self._bytes = b""

    def region(self, number: int) -> bytes:
        """The bytes of a region. DatasetError when they do not have the hash that the manifest lists."""
        if number != self._region:
            offset = number * REGION_SIZE
            size = min(REGION_SIZE, self._shard.size - offset)
            data = self._member.pread(size, offset)
            if xxhash.xxh3_64_hexdigest(data) != self._shard.region_hash(number):
                raise DatasetError(
                    f"{self._member.where}: region {number} (bytes {offset} to {offset + size}) is not what "
                    f"the manifest says; {REPAIR}"
                )
            self._region, self._bytes = number, data
        return self._bytes

    def read(self, size: int = -1) -> bytes:
        part = self.pread(self._shard.size if size < 0 else size, self._position)
        self._position += len(part)
        return part

    def pread(self, size: int, offset: int) -> bytes:
        """`size` bytes, fewer where the file ends."""
        end = min(offset + size, self._shard.size)
        parts, at = [], offset
        while at < end:
            number, within = divmod(at, REGION_SIZE)
            parts.append(self.region(number)[within : within + end - at])
            at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._shard.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        """Nothing: the member is closed by who opened it."""


class ShardReader:
    """One open shard: its record batches, each hashed, validated and checked against the format before it is used."""

    def __init__(self, directory: Path, manifest: Manifest, number: int) -> None:
        self._manifest = manifest
        self._entry = manifest.shards[number]
        self.member = Member(directory, self._entry.name)
        self.file = VerifiedFile(self.member, self._entry)
        self._step = batch_rows(manifest.sequence_length)
        self._batch = -1
        self._rows: Rows | None = None
        try:
            self._stream = pa.ipc.open_file(pa.PythonFile(self.file, mode="r"))
        except _ARROW_ERRORS as error:
            raise self.wrong(f"is no Arrow IPC file: {error}") from None
        metadata = shard_metadata(
            recipe_fingerprint=manifest.recipe_sha256,
            sequence_length=manifest.sequence_length,
            vocab_size=manifest.vocab_size,
            pad_id=manifest.pad_id,
            version=manifest.format,
            label_version=manifest.label_version,
        )
        if not self._stream.schema.equals(sequence_schema(manifest.sequence_length, metadata), check_metadata=True):
            raise self.wrong("has another schema or metadata than the format and the manifest say")
        if self._stream.num_record_batches != self.n_batches:
            raise self.wrong(f"has {self._stream.num_record_batches} record batches, expected {self.n_batches}")

    @property
    def step(self) -> int:
        """Rows of each record batch but the last."""
        return self._step

    @property
    def n_batches(self) -> int:
        return -(-self._entry.rows // self._step)

    def row(self, row: int) -> tuple[Rows, int]:
        """The batch that holds a row, and the row's place in it."""
        number, within = divmod(row, self._step)
        if number != self._batch or self._rows is None:
            self._rows, self._batch = self.batch(number), number
        return self._rows, within

    def batch(self, number: int) -> Rows:
        """Record batch `number`. DatasetError when it breaks a rule of the format."""
        rows, manifest = self.raw_batch(number), self._manifest
        problem = check(
            rows, sequence_length=manifest.sequence_length, vocab_size=manifest.vocab_size, pad_id=manifest.pad_id
        )
        if problem is not None:
            raise self.wrong(f"batch that begins with row {number * self._step}: {problem}")
        return rows

    def raw_batch(self, number: int) -> Rows:
        """Record batch `number`, hashed and valid as Arrow; whether its rows are of the format is not looked at."""
        expected = min(self._step, self._entry.rows - number * self._step)
        try:
            batch = self._stream.get_batch(number)
            batch.validate(full=True)
        except _ARROW_ERRORS as error:
            raise self.wrong(f"record batch {number} is not valid Arrow: {error}") from None
        if batch.num_rows != expected:
            raise self.wrong(f"record batch {number} has {batch.num_rows} rows, expected {expected}")
        for column, field in zip(batch.columns, batch.schema, strict=True):
            path = find_null(column, field)
            if path is not None:
                raise self.wrong(f"record batch {number} has null in {path}")
        try:
            return from_batch(batch)
        except ValueError as error:
            raise self.wrong(f"record batch {number}: {error}") from None

    def wrong(self, problem: str) -> DatasetError:
        return DatasetError(
            f"{self.member.where}: {problem}; it was not written by this version of maskpipe, prepare it anew"
        )

    def close(self) -> None:
        self.member.close()


def sequence(rows: Rows, r: int) -> Sequence:
    """Row `r` as a Sequence of views."""
    documents = slice(rows.document_offsets[r], rows.document_offsets[r + 1])
    offsets = rows.verdict_offsets[documents.start : documents.stop + 1].tolist()
    return Sequence(
        input_ids=_frozen(rows.input_ids[r]),
        runs=_frozen(rows.runs[rows.run_offsets[r] : rows.run_offsets[r + 1]]),
        documents=_frozen(rows.documents[documents]),
        verdicts=tuple(_frozen(rows.verdicts[a:b]) for a, b in itertools.pairwise(offsets)),
        weight_ranges=_frozen(rows.weights[rows.weight_offsets[r] : rows.weight_offsets[r + 1]]),
        n_loss=int(rows.n_loss[r]),
    )


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
