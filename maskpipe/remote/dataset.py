"""A dataset that lies elsewhere, read through the cache; and maskpipe.open, which takes both kinds."""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskpipe.errors import DatasetError, UsageError
from maskpipe.remote.cache import Lease, ShardCache
from maskpipe.remote.storage import Location, Storage, is_uri, of_filesystem, parse
from maskpipe.remote.transfer import Unreachable, fetch_small
from maskpipe.shards.format import MANIFEST, MANIFEST_HASH
from maskpipe.shards.manifest import Manifest, manifest_hash
from maskpipe.shards.reader import OPEN_SHARDS, Dataset, ShardReader
from maskpipe.shards.reader import open as open_directory

_LIMIT = 1 << 32  # bytes of a manifest


class RemoteDataset(Dataset):
    """A dataset behind a URI. `path` is its directory in the cache, where shards are as long as they are in use."""

    def __init__(self, location: Location, cache: ShardCache, manifest: Manifest, digest: str) -> None:
        super().__init__(cache.directory(digest), manifest)
        self.cache = cache
        self._location = location
        self._digest = digest
        self._leases: dict[int, Lease] = {}
        self._storage: tuple[int, Storage] | None = None
        self._storage_lock = threading.Lock()

    @property
    def uri(self) -> str:
        return self._location.uri

    @property
    def name(self) -> str:
        return self._location.name

    def lease(
        self,
        number: int,
        *,
        stop: threading.Event | None = None,
        wait_for_room: bool = True,
        give_back: Callable[[], bool] = lambda: False,
    ) -> Lease | None:
        """Shard `number`, in the cache for as long as the lease is held; see ShardCache.get."""
        return self.cache.get(
            self._digest, self.manifest.shards[number], self._location, self._open_storage, stop=stop,
            wait_for_room=wait_for_room, give_back=give_back,
        )  # fmt: skip

    def recheck(self, number: int) -> bool:
        """See ShardCache.recheck."""
        return self.cache.recheck(self._digest, self.manifest.shards[number])

    @contextmanager
    def shard_open(self, number: int) -> Iterator[None]:
        """Fetches the shard, and keeps it while inside."""
        lease = self.lease(number, give_back=self._give_back)
        try:
            yield
        finally:
            if lease is not None:
                lease.release()

    def verify(self) -> Any:
        raise UsageError(f"{self.uri}: only shards are fetched; to verify all of it, copy the dataset and verify that")

    def close(self) -> None:
        super().close()
        with self._lock:
            for lease in self._leases.values():
                lease.release()
            self._leases.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._location.filesystem is not None:
            raise UsageError(f"{self.uri}: a dataset opened with a filesystem object cannot be sent to another process")
        return (_reopen, (self._location, self.cache.path, _settings(self.cache), self.manifest.fingerprint))

    def __repr__(self) -> str:
        return super().__repr__().replace(repr(str(self.path)), repr(self.uri), 1)

    def _open_storage(self) -> Storage:
        with self._storage_lock:
            if self._storage is None:
                self._storage = (os.getpid(), self._location.storage(self.cache.timeout))
            return self._storage[1]

    def _shard(self, number: int) -> ShardReader:
        if number not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                self._give_back()
            lease = self.lease(number, give_back=self._give_back)
            assert lease is not None
            try:
                self._open[number] = ShardReader(self.path, self.manifest, number)
            except BaseException:
                lease.release()
                raise
            self._leases[number] = lease
        self._open.move_to_end(number)
        return self._open[number]

    def _give_back(self) -> bool:
        if not self._open:
            return False
        number, reader = self._open.popitem(last=False)
        reader.close()
        self._leases.pop(number).release()
        return True


def open(
    path: str | Path, *, shard_cache: ShardCache | str | Path | None = None, filesystem: Any = None
) -> Dataset | RemoteDataset:
    """The dataset in a directory, or behind a URI (file, s3, gs, hf, http, https). Reads manifest.json and
    manifest.sha256 only.

    shard_cache: where shards of remote datasets are kept: a ShardCache, or the path of one with its defaults.
    filesystem: of pyarrow.fs or fsspec; `path` is then a directory as it knows it.

    DatasetError when the path is no directory, one of the two files is missing, cannot be fetched, they do not agree,
    or the manifest is not valid or of an unknown major version; UsageError for a URI that is not allowed.
    """
    text = str(path)
    if filesystem is None and not (isinstance(path, str) and is_uri(text)):
        if shard_cache is not None and not isinstance(shard_cache, ShardCache):
            raise UsageError(f"{text}: is a directory; shard_cache is for remote datasets")
        return open_directory(path)
    location = parse(text) if filesystem is None else of_filesystem(text, filesystem)
    if location.scheme == "file":
        split = urllib.parse.urlsplit(text)
        if split.netloc not in ("", "localhost"):
            raise UsageError("file:// URI: expected file:///directory")
        return open_directory(urllib.request.url2pathname(split.path))
    cache = shard_cache if isinstance(shard_cache, ShardCache) else ShardCache(shard_cache)
    return _open_remote(location, cache)


def _open_remote(location: Location, cache: ShardCache) -> RemoteDataset:
    digest = cache.known(location) if cache.offline else _ask(location, cache)
    manifest = None if digest is None else cache.manifest(digest)
    if digest is None or manifest is None:
        raise DatasetError(
            f"{location.uri}: its manifest is not in the cache {cache.path}, and offline=True; run once with a network"
            + ("" if location.key else " (what a filesystem object was asked is not remembered: give a URI)")
        )
    return RemoteDataset(location, cache, Manifest.from_json(manifest, where=f"{location.uri}/{MANIFEST}"), digest)


def _ask(location: Location, cache: ShardCache) -> str:
    """The SHA-256 of the manifest that lies there, which is then in the cache."""
    stop = threading.Event()
    more = (cache.patience, stop, cache.tally)
    try:
        storage = location.storage(cache.timeout)
        said = fetch_small(storage, location, MANIFEST_HASH, 200, *more, check=_no_digest)
        digest = said[:64].decode()
        manifest = cache.manifest(digest)
        if manifest is None:

            def problem_of(data: bytes) -> str | None:
                if manifest_hash(data) == said:
                    return None
                # Nothing proves the hash itself: it may be what came wrong.
                again = fetch_small(storage, location, MANIFEST_HASH, 200, *more, check=_no_digest)
                return None if manifest_hash(data) == again else f"it is not what {MANIFEST_HASH} says"

            manifest = fetch_small(storage, location, MANIFEST, _LIMIT, *more, check=problem_of)
            digest = hashlib.sha256(manifest).hexdigest()
            Manifest.from_json(manifest, where=f"{location.uri}/{MANIFEST}")
            cache.keep_manifest(location, manifest, digest)
        else:
            cache.keep_manifest(location, None, digest)
        return digest
    except Unreachable as error:
        known, problem = cache.known(location), str(error)
    if known is None:
        raise DatasetError(problem)
    warnings.warn(f"{problem}. Going on with what the cache has of it (manifest {known[:12]})", stacklevel=4)
    return known


def _no_digest(data: bytes) -> str | None:
    try:
        digest = data[:64].decode("ascii")
        if len(bytes.fromhex(digest)) == 32 and digest == digest.lower() and data[64:] == f"  {MANIFEST}\n".encode():
            return None
    except ValueError:
        pass
    return "it does not hold a SHA-256"


def _settings(cache: ShardCache) -> dict[str, Any]:
    names = ("max_bytes", "timeout", "downloads", "room_wait", "offline")
    return {"tries": cache.patience.tries, "pause": cache.patience.pause} | {
        name: getattr(cache, name) for name in names
    }


def _reopen(location: Location, path: Path, settings: dict[str, Any], fingerprint: str) -> RemoteDataset:
    dataset = _open_remote(location, ShardCache(path, **settings))
    if dataset.manifest.fingerprint != fingerprint:
        raise DatasetError(
            f"{location.uri}: holds another dataset than when it was opened (fingerprint "
            f"{dataset.manifest.fingerprint[:12]}, not {fingerprint[:12]}); open it again"
        )
    return dataset
