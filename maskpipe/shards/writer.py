"""Writing a dataset: shards by any number of processes, then one publish that makes them a dataset.

    write_shard(out, 0, documents, pieces)   in any process, in any order; a shard that is there already is not redone
    publish(out, manifest, files=…)          the rest; manifest.json is last, and only then does a dataset exist

Every file is written under a temporary name, synced, and renamed; then the directory is synced. Nothing that was there
before is deleted or overwritten, and after an error only what this call made is taken away again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maskpipe import _core
from maskpipe.durable import HashingFile, place, sync_directory, temporary, write_all
from maskpipe.errors import DatasetError, UsageError
from maskpipe.pack import Pieces
from maskpipe.shards import rows as rows_module
from maskpipe.shards.batches import batch_hashes
from maskpipe.shards.documents import DocumentColumns, table_columns
from maskpipe.shards.format import (
    CARD_FILE,
    DOCUMENT_DTYPE,
    MANIFEST,
    MANIFEST_HASH,
    RECIPE,
    REGION_SIZE,
    RUN_FILE,
    WEIGHT_DTYPE,
    batch_rows,
    sequence_schema,
    shard_metadata,
)
from maskpipe.shards.manifest import Counts, Manifest, Shard, ShardRecord, manifest_hash, recipe_yaml
from maskpipe.shards.rows import Int32, Int64, Rows, Structs, packed_runs, run_arrays


def write_shard(
    directory: str | Path,
    index: int,
    documents: pa.Table,
    pieces: Pieces,
    *,
    sequence_length: int,
    pad_id: int,
    vocab_size: int,
    recipe_fingerprint: str,
) -> ShardRecord:
    """Lays out the rows of `pieces` and writes them as shard number `index`; returns its entry for the manifest.

    `documents` is a table of DOCUMENT_SCHEMA that holds at least the documents that the pieces name. The bytes are a
    function of the arguments after `directory` alone. Rows are laid out, checked, hashed and written one record batch
    at a time, so beside the documents this needs a few MiB.

    DatasetError when a row breaks a rule of the format, or a file of the shard's name is there with other content;
    UsageError when there are no rows.
    """
    if pieces.rows < 1:
        raise UsageError(f"shard {index} would have no rows; a shard has at least one")
    return write_rows(
        directory,
        index,
        _lay_out(table_columns(documents), pieces, sequence_length, pad_id),
        sequence_length=sequence_length,
        pad_id=pad_id,
        vocab_size=vocab_size,
        recipe_fingerprint=recipe_fingerprint,
    )


def write_rows(
    directory: str | Path,
    index: int,
    batches: Iterable[Rows],
    *,
    sequence_length: int,
    pad_id: int,
    vocab_size: int,
    recipe_fingerprint: str,
) -> ShardRecord:
    """Writes rows that are laid out already, a record batch of format.batch_rows (the last one fewer) at a time, as
    shard number `index`. Otherwise as write_shard."""
    path = Path(directory)
    metadata = shard_metadata(
        recipe_fingerprint=recipe_fingerprint, sequence_length=sequence_length, vocab_size=vocab_size, pad_id=pad_id
    )
    schema = sequence_schema(sequence_length, metadata)
    counts, digests, first = [], [], 0
    with temporary(path) as (unfinished, descriptor):
        sink = HashingFile(descriptor, REGION_SIZE)
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema, options=_OPTIONS) as stream:
            for rows in batches:
                wrong = rows_module.check(rows, sequence_length=sequence_length, vocab_size=vocab_size, pad_id=pad_id)
                if wrong is not None:
                    raise DatasetError(
                        f"shard {index}, batch that begins with row {first}: {wrong}; nothing was published"
                    )
                stream.write_batch(rows_module.to_batch(rows, schema))
                counts.append(rows_module.count(rows))
                digests.append(rows_module.digests(rows))
                first += len(rows)
        sha256, regions = sink.finish()
        hashes = batch_hashes(lambda size, offset: os.pread(descriptor, size, offset), sink.position)
        name = f"part-{index:05d}-{sha256[:16]}.arrow"
        place(path, unfinished, descriptor, name, sha256)
    return ShardRecord(Shard(name, sink.position, sha256, regions, hashes, Counts.total(counts)), b"".join(digests))


def publish(
    directory: str | Path,
    manifest: Manifest,
    *,
    files: Mapping[str, bytes | Path],
    card: str,
    run: Mapping[str, Any],
    replace: bool = False,
) -> None:
    """Makes the shards in `directory` a dataset: writes recipe.yaml, `files` (the same as for Manifest.build),
    README.md (`card`), run.json (`run`), then manifest.sha256 and, last, manifest.json.

    The directory must hold the manifest's shards and nothing else; DatasetError names what is missing or foreign.
    `replace` is for a run that continues in a directory of its own: files of the names written here, which a publish
    that was killed left behind, are then written anew; never the manifest.
    Hidden files (temporary ones of killed writers) are left alone. After an error the files made here are removed and
    the shards are left.
    """
    path = Path(directory)
    contents: dict[str, bytes | Path] = {RECIPE: recipe_yaml(manifest.recipe), **files}
    listed = {entry.name: entry for entry in manifest.files}
    if contents.keys() != listed.keys():
        raise DatasetError(f"{path}: the manifest lists {sorted(listed)}, the files given are {sorted(contents)}")
    raw = manifest.to_json()
    contents[CARD_FILE] = card.encode()
    contents[RUN_FILE] = (json.dumps(run, indent=1, sort_keys=True) + "\n").encode()
    contents[MANIFEST_HASH] = manifest_hash(raw)
    contents[MANIFEST] = raw
    _check_present(path, manifest, set() if not replace else contents.keys() - {MANIFEST})
    made: list[str] = []
    try:
        for name, content in contents.items():
            with temporary(path) as (unfinished, descriptor):
                sha256, size = _write(descriptor, content)
                if name in listed and (sha256, size) != (listed[name].sha256, listed[name].size):
                    raise DatasetError(
                        f"{path}: {name} is not what the manifest lists; build the manifest from the same files"
                    )
                os.fsync(descriptor)
                if name == MANIFEST:
                    sync_directory(path)  # all that the manifest speaks of is on the disk before the manifest is
                if not replace and os.path.lexists(path / name):
                    raise DatasetError(
                        f"{path}: {name} appeared while the dataset was being published; is another run writing here?"
                    )
                os.rename(path / unfinished, path / name)
                made.append(name)
        sync_directory(path)
    except BaseException:
        for name in reversed(made):
            os.unlink(path / name)
        raise


_OPTIONS = pa.ipc.IpcWriteOptions(compression=None, use_threads=False)


def _lay_out(columns: DocumentColumns, pieces: Pieces, sequence_length: int, pad_id: int) -> Iterator[Rows]:
    """The rows of the pieces, one record batch at a time."""
    step = batch_rows(sequence_length)
    unknown = (pieces.documents < 0) | (pieces.documents >= len(columns))
    if unknown.any():
        raise DatasetError(
            f"the plan names document {pieces.documents[np.argmax(unknown)]}, but the table has {len(columns)} "
            "documents"
        )
    for first in range(0, pieces.rows, step):
        bounds = pieces.row_offsets[first : first + step + 1]
        chosen = slice(bounds[0], bounds[-1])
        of, starts, stops = pieces.documents[chosen], pieces.starts[chosen], pieces.stops[chosen]
        offsets = bounds - bounds[0]
        # Only the documents of this batch go to the core: it checks all that it gets.
        used, local = np.unique(of, return_inverse=True)
        ids, id_offsets = _gather(columns.input_ids, columns.id_offsets, used)
        runs, run_offsets = _gather(columns.runs, columns.run_offsets, used)
        try:
            out = _core.lay_out(
                ids,
                id_offsets,
                *run_arrays(runs),
                run_offsets,
                np.asarray(local, np.int64),
                starts,
                stops,
                offsets,
                sequence_length,
                pad_id,
            )
        except ValueError as error:
            raise DatasetError(f"the plan does not fit the documents, from row {first} on: {error}") from None
        facts = columns.facts[of]
        facts["start"], facts["end"] = starts, out.piece_ends
        verdicts, verdict_offsets = _gather(columns.verdicts, columns.verdict_offsets, of)
        weights, weight_offsets = _place_weights(columns, of, starts, stops, out.piece_ends, offsets)
        yield Rows(
            input_ids=out.input_ids.reshape(-1, sequence_length),
            runs=packed_runs(out.run_ends, out.run_roles, out.run_parts, out.run_flags, out.run_messages),
            run_offsets=out.row_run_offsets,
            documents=facts.astype(DOCUMENT_DTYPE, copy=False),
            document_offsets=offsets,
            verdicts=verdicts,
            verdict_offsets=verdict_offsets,
            weights=weights,
            weight_offsets=weight_offsets,
            n_loss=out.n_loss,
        )


def _gather(values: npt.NDArray[Any], offsets: Int64, groups: Int64) -> tuple[npt.NDArray[Any], Int64]:
    """The values of the chosen groups, one group after the other, and their offsets."""
    out = np.zeros(len(groups) + 1, np.int64)
    np.cumsum(np.diff(offsets)[groups], out=out[1:])
    starts, stops = offsets[groups].tolist(), offsets[groups + 1].tolist()
    plain = values.view(f"V{values.dtype.itemsize}")  # numpy reconciles the fields of structs, array by array
    parts = [plain[start:stop] for start, stop in zip(starts, stops, strict=True)]
    return np.concatenate([plain[:0], *parts]).view(values.dtype), out


def _place_weights(
    columns: DocumentColumns, of: Int64, starts: Int32, stops: Int32, ends: Int32, row_offsets: Int64
) -> tuple[Structs, Int64]:
    """The weight ranges of the pieces, cut to them and moved to where they stand in their rows."""
    ranges, offsets = _gather(columns.weights, columns.weight_offsets, of)
    piece = np.repeat(np.arange(len(of)), np.diff(offsets))
    shift = (ends - stops)[piece]
    placed = np.empty(len(ranges), WEIGHT_DTYPE)
    placed["start"] = np.maximum(ranges["start"], starts[piece]) + shift
    placed["end"] = np.minimum(ranges["end"], stops[piece]) + shift
    placed["weight"] = ranges["weight"]
    inside = placed["start"] < placed["end"]
    row = np.searchsorted(row_offsets, piece[inside], side="right") - 1
    per_row = np.zeros(len(row_offsets), np.int64)
    np.cumsum(np.bincount(row, minlength=len(row_offsets) - 1), out=per_row[1:])
    return placed[inside], per_row


def _check_present(directory: Path, manifest: Manifest, ours: set[str]) -> None:
    try:
        present = {name for name in os.listdir(directory) if not name.startswith(".")}
    except OSError as error:
        raise DatasetError(f"{directory}: cannot be read: {error.strerror}") from None
    shards = {shard.name: shard.size for shard in manifest.shards}
    foreign = sorted(present - shards.keys() - ours)
    if foreign:
        raise DatasetError(
            f"{directory}: holds {_names(foreign)}, which this dataset does not list; nothing was published"
        )
    for name, size in shards.items():
        if name not in present or os.stat(directory / name, follow_symlinks=False).st_size != size:
            raise DatasetError(f"{directory}: {name} is missing or not {size} bytes long; nothing was published")


def _write(descriptor: int, content: bytes | Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    for block in _blocks(content):
        digest.update(block)
        size += len(block)
        write_all(descriptor, block)
    return digest.hexdigest(), size


def _blocks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while block := stream.read(REGION_SIZE):
            yield block


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
