"""The datasets of a loader: opened, refused where they do not fit one another, and as the core is told of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskpipe.data.order import MAX_SOURCES
from maskpipe.errors import UsageError
from maskpipe.remote.cache import ShardCache
from maskpipe.remote.dataset import RemoteDataset
from maskpipe.remote.dataset import open as open_dataset
from maskpipe.remote.storage import is_uri
from maskpipe.shards.format import batch_rows
from maskpipe.shards.manifest import Manifest
from maskpipe.shards.reader import Dataset

Source = str | Path | Dataset
"""A directory, a URI or an opened dataset."""


def open_all(given: Sequence[Source], shard_cache: ShardCache | str | Path | None) -> list[Dataset]:
    """With one cache for all that are remote. UsageError for a cache that nobody needs."""
    cache = shard_cache
    remote = [
        source for source in given if isinstance(source, str) and is_uri(source) and not source.startswith("file:")
    ]
    if cache is not None and not remote:
        raise UsageError("shard_cache is for URIs, and datasets has none; one that is opened has its own")
    if remote and not isinstance(cache, ShardCache):
        cache = ShardCache(cache)
    return [
        source if isinstance(source, Dataset) else open_dataset(source, shard_cache=cache if source in remote else None)
        for source in given
    ]


def warn_of_small_caches(datasets: Sequence[Dataset]) -> None:
    """A shuffled epoch uses every shard all the time, so what does not fit is fetched again and again."""
    needed: dict[ShardCache, int] = {}
    for dataset in datasets:
        if isinstance(dataset, RemoteDataset):
            size = sum(shard.size for shard in dataset.manifest.shards)
            needed[dataset.cache] = needed.get(dataset.cache, 0) + size
    for cache, size in needed.items():
        if size > cache.max_bytes:
            warnings.warn(
                f"the shards have {size:,} bytes and the cache {cache.path} may hold {cache.max_bytes:,}: in random "
                "order each shard is fetched many times; raise max_bytes, or read with shuffle=False",
                stacklevel=3,
            )


def core_source(dataset: Dataset) -> tuple[Any, ...]:
    """As _core.Reader takes it."""
    manifest: Manifest = dataset.manifest
    shards = manifest.shards
    return (
        str(dataset.path),
        [shard.name for shard in shards],
        np.array([shard.size for shard in shards], np.int64),
        np.array([shard.rows for shard in shards], np.int64),
        [shard.regions for shard in shards],
        [shard.batches for shard in shards],
        batch_rows(manifest.sequence_length),
        manifest.pad_id,
    )


def check_datasets(datasets: Sequence[Dataset]) -> None:
    """UsageError unless batches can be made of all of them together."""
    if not datasets:
        raise UsageError("datasets: there is none")
    if len(datasets) > MAX_SOURCES:
        raise UsageError(f"datasets: there are {len(datasets)}, at most {MAX_SOURCES} can be mixed; merge some of them")
    first = datasets[0]
    seen: dict[str, Path] = {}
    for dataset in datasets:
        manifest = dataset.manifest
        if len(dataset) == 0:
            raise UsageError(f"{dataset.path}: has no sequences")
        for name in ("sequence_length", "vocab_size"):
            one, other = getattr(first.manifest, name), getattr(manifest, name)
            if one != other:
                raise UsageError(f"{dataset.path}: has {name} {other}, {first.path} has {one}; a batch needs the same")
        tokenizers = [{f.sha256 for f in m.files if f.name == "tokenizer.json"} for m in (first.manifest, manifest)]
        if all(tokenizers) and tokenizers[0] != tokenizers[1]:
            raise UsageError(f"{dataset.path}: was prepared with another tokenizer than {first.path}")
        if manifest.fingerprint in seen:
            raise UsageError(
                f"{dataset.path}: holds the same as {seen[manifest.fingerprint]}; give one of them a larger mixture "
                "weight"
            )
        seen[manifest.fingerprint] = dataset.path
