"""Datasets made from datasets: what repack and merge share.

with new_dataset(OUT, …) as partial:      OUT.partial, of which dataset/ becomes OUT at the end
    …shards…
    publish_derived(partial.dataset, …)   the files of the dataset it was made from, verified; the manifest last
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import maskpipe
from maskpipe import card
from maskpipe.errors import DatasetError, UsageError
from maskpipe.partial import Partial, new_directory
from maskpipe.recipe import Recipe
from maskpipe.shards.chunks import ChunkEntry, chunk_lines, total_counts
from maskpipe.shards.format import CARD_FILE, CHUNKS, DROPPED, MANIFEST, MANIFEST_HASH, RECIPE, REJECTS, RUN_FILE
from maskpipe.shards.manifest import Manifest, ShardRecord, Source, json_lines
from maskpipe.shards.reader import Dataset
from maskpipe.shards.verify import check_file, read_file
from maskpipe.shards.writer import publish

_WRITTEN_ANEW = (RECIPE, REJECTS, DROPPED, CHUNKS)


def new_dataset(out: str | Path, made_by: str, like: Dataset, **identity: Any) -> AbstractContextManager[Partial]:
    """A directory to make the dataset `out` in, with the files that `like` embeds; see partial.new_directory."""
    names = {MANIFEST, MANIFEST_HASH, CARD_FILE, RUN_FILE, *_WRITTEN_ANEW, *(f.name for f in like.manifest.files)}
    return new_directory(out, {"made_by": made_by, **identity}, names)


def scratch_file(partial: Partial, kind: str, number: int) -> Path:
    """A name for a file that is needed while the dataset is made."""
    return partial.stage / f"{kind}-{number:032x}-{0:016x}.arrow"


def embedded_files(dataset: Dataset) -> dict[str, bytes | Path]:
    """The dataset's tokenizer and template, by name, each verified."""
    out: dict[str, bytes | Path] = {}
    for entry in dataset.manifest.files:
        if entry.name not in _WRITTEN_ANEW:
            check_file(dataset.path, entry)
            out[entry.name] = dataset.path / entry.name
    return out


def listed(dataset: Dataset, name: str) -> list[dict[str, Any]]:
    """The entries of rejects.jsonl or dropped.jsonl, verified."""
    entry = next(file for file in dataset.manifest.files if file.name == name)
    lines = read_file(dataset.path, entry).split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        raise DatasetError(f"{dataset.path / name}: not valid JSON; prepare the dataset anew") from None


def publish_derived(
    work: Path,
    shards: Sequence[ShardRecord],
    *,
    recipe: Recipe,
    like: Dataset,
    sources: Sequence[Source],
    records_kept: int,
    left_out: Mapping[str, int],
    rejects: Sequence[Mapping[str, Any]],
    dropped: Sequence[Mapping[str, Any]],
    chunks: Sequence[ChunkEntry],
    role_names: Sequence[str],
    run: Mapping[str, Any],
) -> Manifest:
    """Makes the shards in `work` a dataset with the tokenizer and template of `like`."""
    files: dict[str, bytes | Path] = {
        **embedded_files(like),
        REJECTS: json_lines(rejects),
        DROPPED: json_lines(dropped),
        CHUNKS: chunk_lines(chunks),
    }
    manifest = Manifest.build(
        shards,
        recipe=recipe,
        vocab_size=like.manifest.vocab_size,
        pad_id=like.manifest.pad_id,
        sources=sources,
        records_kept=records_kept,
        left_out=left_out,
        rejected=Counter(entry["reason"] for entry in rejects),
        dropped=Counter(entry["policy"] for entry in dropped),
        files=files,
        role_names=role_names,
    )
    versions = {"maskpipe": maskpipe.__version__}
    run = {**run, "machine": platform.platform(), "python": platform.python_version(), "versions": versions}
    publish(work, manifest, files=files, card=card.of(manifest, total_counts(chunks)), run=run)
    return manifest


def require_chunks(dataset: Dataset, chunks: list[ChunkEntry] | None) -> list[ChunkEntry]:
    """The chunks. UsageError where the dataset was made without chunks.jsonl."""
    if chunks is None:
        raise UsageError(
            f"{dataset.path}: has no {CHUNKS}, which says what was cut for length; prepare it anew with this version"
        )
    return chunks
