"""One remote file to a local one: ranges, each proved as it comes; what fails is asked for again, with growing pauses.

A try that brought something proved starts the count anew, so a connection that breaks often still arrives. After a
failure smaller ranges are asked for, down to one region.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import xxhash

from maskpipe.errors import DatasetError
from maskpipe.remote.storage import Location, Storage, clean, is_final
from maskpipe.shards.format import REGION_SIZE
from maskpipe.shards.manifest import Shard

T = TypeVar("T")
RANGE = 8 * REGION_SIZE
"""Bytes asked for at a time."""
LONGEST_PAUSE = 16.0  # seconds


class Stopped(Exception):
    """The caller does not want it any more."""


class Unreachable(DatasetError):
    """A file that could not be fetched, and may be when it is tried later."""


@dataclass
class Tally:
    """What was done in this process."""

    shards_fetched: int = 0
    bytes_fetched: int = 0
    """Proved bytes of shards."""
    failed_tries: int = 0
    shards_found: int = 0
    """Leases on shards that were in the cache."""
    shards_evicted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, n in counts.items():
                setattr(self, name, getattr(self, name) + n)

    def to_dict(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


@dataclass(frozen=True)
class Patience:
    """How often and how long something is tried."""

    tries: int
    """At least 1, without anything proved between them."""
    pause: float
    """Seconds before the second try; doubled each time, up to LONGEST_PAUSE, with chance so that ranks spread."""

    def wait(self, failures: int, stop: threading.Event) -> None:
        longest = min(self.pause * 2 ** min(failures - 1, 30), LONGEST_PAUSE)
        if stop.wait(longest * (0.5 + random.random() / 2)):
            raise Stopped


class _Wrong(Exception):
    """Bytes came that are not what the manifest says."""


@dataclass
class _Tries:
    """The tries for one file."""

    where: str
    patience: Patience
    stop: threading.Event
    tally: Tally
    failures: int = 0
    _failed: tuple[str, bool, bool] | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """A try. An error in it is kept for `again`, and nothing of it beyond its cleaned text."""
        self._failed = None
        try:
            yield
        except Stopped:
            raise
        except Exception as error:  # storage clients raise of every kind
            said = str(error) if isinstance(error, _Wrong) else clean(error)
            self._failed = (said, is_final(error), isinstance(error, _Wrong))

    def again(self) -> bool:
        """Did the last try fail? Then, after a pause, it is time for another one; DatasetError when it is not."""
        if self._failed is None:
            return False
        problem, final, wrong = self._failed
        self.failures += 1
        self.tally.add(failed_tries=1)
        if final or self.failures >= self.patience.tries:
            tries = "1 try" if self.failures == 1 else f"{self.failures} tries"
            what = "cannot be fetched whole" if wrong else "cannot be fetched"
            do = (
                "copy the dataset there again"
                if wrong
                else "is the URI right, and may this machine read it?"
                if final
                else "is the storage up, and reachable from here? Run again: what was fetched stays in the cache"
            )
            raise (DatasetError if wrong or final else Unreachable)(f"{self.where}: {what} ({tries}): {problem}; {do}")
        self.patience.wait(self.failures, self.stop)
        return True


def fetch_small(
    storage: Storage, location: Location, name: str, limit: int, patience: Patience, stop: threading.Event,
    tally: Tally, check: Callable[[bytes], str | None] = lambda data: None,
) -> bytes:  # fmt: skip
    """A whole file of at most `limit` bytes of which `check` says no problem. DatasetError (Unreachable when time may
    help), naming it and how often it was tried."""
    tries = _Tries(f"{location.uri}/{name}", patience, stop, tally)
    data = b""
    while True:
        with tries.one(), storage.open(name) as file:
            size = file.size()
            if size > limit:
                raise _Wrong(f"it has {size} bytes, more than {limit}")
            data = file.read(0, size)
            problem = f"{len(data)} of {size} bytes came" if len(data) != size else check(data)
            if problem is not None:
                raise _Wrong(problem)
        if not tries.again():
            return bytes(data)


def fetch_shard(
    storage: Storage, location: Location, shard: Shard, descriptor: int, patience: Patience, stop: threading.Event,
    tally: Tally,
) -> None:  # fmt: skip
    """Fills a file of shard.size bytes; proved regions that it begins with are kept. At the end every region and the
    SHA-256 are those of the manifest. DatasetError as for fetch_small; OSError of the local file; Stopped."""
    total, sha256 = len(shard.regions) // 16, hashlib.sha256()
    region = 0
    while region < total and _is_region(shard, region, data := os.pread(descriptor, REGION_SIZE, region * REGION_SIZE)):
        sha256.update(data)
        region += 1
    tries = _Tries(f"{location.uri}/{shard.name}", patience, stop, tally)
    step, written = RANGE, OSError()
    while region < total:
        local = False
        with tries.one(), storage.open(shard.name) as file:
            while region < total:
                if stop.is_set():
                    raise Stopped
                begin = region * REGION_SIZE
                data = file.read(begin, min(step, shard.size - begin))
                for at in range(0, max(len(data), 1), REGION_SIZE):
                    piece = data[at : at + REGION_SIZE]
                    if not _is_region(shard, region, piece):
                        raise _Wrong(_what_is_wrong(shard, region, piece))
                    try:
                        _pwrite(descriptor, piece, region * REGION_SIZE)
                    except OSError as error:
                        local, written = True, error
                        raise
                    sha256.update(piece)
                    region += 1
                    tries.failures = 0
                    tally.add(bytes_fetched=len(piece))
        if local:
            raise OSError(written.errno, written.strerror)
        if tries.again():
            step = max(REGION_SIZE, step // 2)
    if sha256.hexdigest() != shard.sha256:
        raise DatasetError(
            f"{location.uri}/{shard.name}: its regions are what the manifest says, its SHA-256 is not: the manifest "
            "contradicts itself; copy the dataset there again"
        )
    tally.add(shards_fetched=1)


def starts_right(shard: Shard, descriptor: int) -> bool:
    """Is there anything proved in an unfinished file, so that it is worth keeping?"""
    return _is_region(shard, 0, os.pread(descriptor, REGION_SIZE, 0))


def _is_region(shard: Shard, region: int, data: bytes) -> bool:
    size = min(REGION_SIZE, shard.size - region * REGION_SIZE)
    return len(data) == size and xxhash.xxh3_64_hexdigest(data) == shard.region_hash(region)


def _what_is_wrong(shard: Shard, region: int, data: bytes) -> str:
    begin = region * REGION_SIZE
    size = min(REGION_SIZE, shard.size - begin)
    if len(data) < size:
        return f"it ended at byte {begin + len(data)} of {shard.size}"
    return f"region {region} (bytes {begin} to {begin + size - 1}) that came is not what the manifest says"


def _pwrite(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        n = os.pwrite(descriptor, view, offset)
        view, offset = view[n:], offset + n
