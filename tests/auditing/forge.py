"""A dataset changed and sealed again: rows as dense arrays, written with counts, hashes and fingerprint that fit, so
that only a look at what the rows say can find the change."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

import maskpipe
from maskpipe.roles import Flag, Role
from maskpipe.shards import rows as rows_module
from maskpipe.shards.batches import batch_hashes
from maskpipe.shards.format import (
    DOCUMENT_DTYPE,
    MANIFEST,
    MANIFEST_HASH,
    REGION_SIZE,
    RUN_DTYPE,
    VERDICT_DTYPE,
    WEIGHT_DTYPE,
    batch_rows,
    sequence_schema,
    shard_metadata,
)
from maskpipe.shards.manifest import Counts, Manifest, Shard, fingerprint, manifest_hash
from maskpipe.shards.rows import Rows


@dataclass
class Row:
    """One row, dense; `n_loss` and `counts` None: what follows from the flags."""

    ids: npt.NDArray[np.int32]
    role: npt.NDArray[np.uint8]
    part: npt.NDArray[np.uint8]
    flags: npt.NDArray[np.uint8]
    message: npt.NDArray[np.int32]
    documents: npt.NDArray[np.void]
    verdicts: list[npt.NDArray[np.void]]
    weights: npt.NDArray[np.void]
    n_loss: int | None = None
    split_runs: tuple[int, ...] = ()
    """Where a run ends although its facts go on."""

    def bounds(self) -> list[tuple[int, int]]:
        """Start and end of each document."""
        return list(itertools.pairwise([0, *self.documents["end"].tolist()]))


def read(path: Path) -> list[Row]:
    """All rows of a dataset."""
    out = []
    for row in maskpipe.open(path):
        dense = (row.input_ids, row.role_ids, row.part_ids, row.flags, row.message_ids)
        out.append(
            Row(*(array.copy() for array in dense), row.documents.copy(), [v.copy() for v in row.verdicts],
                row.weight_ranges.copy())
        )  # fmt: skip
    return out


def to_rows(rows: list[Row]) -> Rows:
    """As record batches have them."""
    runs, run_offsets = [], [0]
    for row in rows:
        changes = np.zeros(len(row.ids) + 1, bool)
        changes[-1] = True
        for fact in (row.role, row.part, row.flags, row.message):
            changes[1:-1] |= fact[1:] != fact[:-1]
        changes[row.documents["end"][(row.documents["end"] > 0) & (row.documents["end"] <= len(row.ids))]] = True
        changes[list(row.split_runs)] = True
        ends = np.flatnonzero(changes)
        entry = np.empty(len(ends), RUN_DTYPE)
        entry["end"] = ends
        for name, fact in (("role", row.role), ("part", row.part), ("flags", row.flags), ("message", row.message)):
            entry[name] = fact[ends - 1]
        runs.append(entry)
        run_offsets.append(run_offsets[-1] + len(entry))
    verdicts = [verdict for row in rows for verdict in row.verdicts]
    return Rows(
        input_ids=np.stack([row.ids for row in rows]),
        runs=np.concatenate(runs),
        run_offsets=np.array(run_offsets),
        documents=np.concatenate([np.empty(0, DOCUMENT_DTYPE), *(row.documents for row in rows)]),
        document_offsets=np.cumsum([0, *(len(row.documents) for row in rows)]),
        verdicts=np.concatenate([np.empty(0, VERDICT_DTYPE), *verdicts]),
        verdict_offsets=np.cumsum([0, *map(len, verdicts)]),
        weights=np.concatenate([np.empty(0, WEIGHT_DTYPE), *(row.weights for row in rows)]),
        weight_offsets=np.cumsum([0, *(len(row.weights) for row in rows)]),
        n_loss=np.array(
            [int((row.flags & Flag.LOSS > 0).sum()) if row.n_loss is None else row.n_loss for row in rows], np.int32
        ),
    )


def write(source: Path, out: Path, rows: list[Row], **changes: Any) -> None:
    """The dataset `source` with these rows, in one shard, sealed; `changes` of the manifest are sealed with it."""
    manifest = maskpipe.open(source).manifest
    out.mkdir()
    for entry in manifest.files:
        shutil.copyfile(source / entry.name, out / entry.name)
    metadata = shard_metadata(
        recipe_fingerprint=manifest.recipe_sha256,
        sequence_length=manifest.sequence_length,
        vocab_size=manifest.vocab_size,
        pad_id=manifest.pad_id,
    )
    schema, step = sequence_schema(manifest.sequence_length, metadata), batch_rows(manifest.sequence_length)
    sink, counts, digests = pa.BufferOutputStream(), [], []
    with pa.ipc.new_file(sink, schema) as stream:
        for first in range(0, len(rows), step):
            batch = to_rows(rows[first : first + step])
            stream.write_batch(rows_module.to_batch(batch, schema))
            counts.append(rows_module.count(batch))
            digests.append(rows_module.digests(batch))
    raw = sink.getvalue().to_pybytes()
    sha256 = hashlib.sha256(raw).hexdigest()
    regions = "".join(xxhash.xxh3_64_hexdigest(raw[k : k + REGION_SIZE]) for k in range(0, len(raw), REGION_SIZE))
    batches = batch_hashes(lambda size, offset: raw[offset : offset + size], len(raw))
    name = f"part-00000-{sha256[:16]}.arrow"
    (out / name).write_bytes(raw)
    total = changes.pop("counts", lambda made: made)(Counts.total(counts))
    manifest = replace(manifest, shards=(Shard(name, len(raw), sha256, regions, batches, total),), **changes)
    sealed = replace(manifest, fingerprint=changes.get("fingerprint", fingerprint(manifest, digests)))
    seal(out, sealed)


def seal(out: Path, manifest: Manifest) -> None:
    """Writes manifest.json and manifest.sha256."""
    text = manifest.to_json()
    (out / MANIFEST).write_bytes(text)
    (out / MANIFEST_HASH).write_bytes(manifest_hash(text))


def with_file(out: Path, name: str, content: bytes) -> None:
    """Another content of a listed file, sealed."""
    manifest = maskpipe.open(out).manifest
    (out / name).write_bytes(content)
    files = tuple(
        replace(entry, size=len(content), sha256=hashlib.sha256(content).hexdigest()) if entry.name == name else entry
        for entry in manifest.files
    )
    changed = replace(manifest, files=files)
    seal(out, changed)


def json_lines(out: Path, name: str) -> list[dict[str, Any]]:
    """The entries of a listed file."""
    return [json.loads(line) for line in (out / name).read_bytes().splitlines()]


def turns(row: Row) -> list[tuple[int, int, int]]:
    """(document, start, end) of each trained turn: stretches of sampled assistant tokens with loss."""
    found = []
    for number, (start, end) in enumerate(row.bounds()):
        own = (row.role[start:end] == Role.ASSISTANT) & (row.flags[start:end] & Flag.SAMPLED > 0)
        message = np.where(own, row.message[start:end], -1)
        borders = np.flatnonzero(np.diff(message, prepend=-1, append=-1)).tolist()
        for a, b in itertools.pairwise(borders):
            if message[a] >= 0 and np.all(row.flags[start + a : start + b] & Flag.LOSS):
                found.append((number, start + a, start + b))
    return found
