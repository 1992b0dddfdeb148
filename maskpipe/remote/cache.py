"""The shards of remote datasets on this machine: whole, proved, within a bound, shared by all processes.

    CACHE/CACHEDIR.TAG                     this directory is a cache of maskpipe
          lock                             held while room is made, or a shard gets its name
          pressure                         its time changes when somebody finds no room: idle leases are given back
          uris/KEY                         which manifest a URI had when it was last asked
          <SHA-256 of the manifest>/manifest.json, manifest.sha256
                                   /part-NNNNN-….arrow               whole and proved; read under a shared lock
                                   /.part-NNNNN-….arrow.fetching     on its way; under an exclusive lock

Locks are flock on the files themselves, so they end with their process, however that ends. A shard is fetched into its
hidden file, by whoever has its lock, and renamed once every region and the SHA-256 are those of the manifest; what a
killed download left is proved and goes on. Only files whose exclusive lock is free are removed, least recently used
first, and only such names as stand above.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from maskpipe.durable import TEMPORARY, make_directory, sync_directory, write_file
from maskpipe.errors import DatasetError, UsageError
from maskpipe.remote.storage import Location, Storage
from maskpipe.remote.transfer import Patience, Stopped, Tally, fetch_shard, starts_right
from maskpipe.shards.format import MANIFEST, MANIFEST_HASH, SHARD_NAME
from maskpipe.shards.manifest import Shard

TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n# Shards of remote datasets, fetched by maskpipe. May be deleted.\n"
)
_DIRECTORY = re.compile("[0-9a-f]{64}")
_FETCHING = re.compile(rf"\.{SHARD_NAME.pattern}\.fetching", re.ASCII)
_DAY = 86_400
_POLL = 0.05  # seconds


@dataclass
class Lease:
    """A whole shard that stays while this is held."""

    path: Path
    size: int
    _descriptor: int

    @property
    def deleted(self) -> bool:
        """Does its file lie under no name any more?"""
        return self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink == 0

    def release(self) -> None:
        """It may be evicted from now on; when it was used is kept by its time."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.utime(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    used: int
    inode: int


class ShardCache:
    """Where shards of remote datasets are kept on this machine, and how they are fetched.

    path: a directory of a local file system; None takes MASKPIPE_CACHE, else maskpipe below XDG_CACHE_HOME or
        ~/.cache. It must be new, empty or such a cache already. Any number of processes may share it.
    max_bytes: bound for all that lies in it, unfinished downloads included. Processes that share it give the same.
    tries: for one range or file before it is an error; pause: seconds before the second, doubled each time up to 16.
    timeout: seconds that a connection may be silent.
    downloads: shards fetched at the same time by one loader.
    room_wait: seconds to wait until other processes give room back.
    offline: ask nobody; what is not here is an error.

    UsageError for arguments that do not fit, or a directory that holds something else.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        max_bytes: int = 64 << 30,
        tries: int = 6,
        pause: float = 0.5,
        timeout: float = 30.0,
        downloads: int = 4,
        room_wait: float = 120.0,
        offline: bool = False,
    ) -> None:
        for name, number, least in (("max_bytes", max_bytes, 1), ("tries", tries, 1), ("downloads", downloads, 1)):
            if type(number) is not int or number < least:
                raise UsageError(f"{name} must be a whole number of at least {least}, got {number!r}")
        for name, seconds in (("pause", pause), ("timeout", timeout), ("room_wait", room_wait)):
            if not 0 <= seconds < 86_400 or (name == "timeout" and seconds == 0):
                raise UsageError(f"{name} must be seconds from 0 to a day, got {seconds!r}")
        self.path = Path(path) if path is not None else _default_path()
        self.max_bytes = max_bytes
        self.patience = Patience(tries, pause)
        self.timeout, self.downloads, self.room_wait, self.offline = timeout, downloads, room_wait, offline
        self.tally = Tally()
        self._prepare()

    def _prepare(self, anew: bool = False) -> None:
        """anew: it was here, and what is left of it is no reason to refuse the directory."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tag = self.path / "CACHEDIR.TAG"
            if not tag.is_file():
                left = {"uris", "lock", "pressure"} if anew else set()
                names = {name for name in os.listdir(self.path) if not (anew and _DIRECTORY.fullmatch(name))}
                if any(not TEMPORARY.fullmatch(name) for name in names - left - {tag.name}):
                    raise UsageError(f"{self.path}: is not empty and no cache of maskpipe; give another directory")
                write_file(tag, TAG)
            elif tag.read_bytes() != TAG:
                raise UsageError(f"{self.path}: is a cache of another program; give another directory")
            make_directory(self.path / "uris")
            for name in ("lock", "pressure"):
                os.close(os.open(self.path / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666))
        except OSError as error:
            raise UsageError(f"{self.path}: no directory for a cache: {error.strerror}") from None

    # Manifests

    def directory(self, digest: str) -> Path:
        """Of the dataset whose manifest has this SHA-256."""
        return self.path / digest

    def known(self, location: Location) -> str | None:
        """The manifest's SHA-256 when the URI was last asked, if that manifest is here."""
        if location.key is None:
            return None
        try:
            digest = (self.path / "uris" / location.key).read_text("ascii")
        except (OSError, ValueError):
            return None
        return digest if _DIRECTORY.fullmatch(digest) and self.manifest(digest) is not None else None

    def manifest(self, digest: str) -> bytes | None:
        """The manifest with this SHA-256, if it is here and whole."""
        try:
            data = (self.directory(digest) / MANIFEST).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def keep_manifest(self, location: Location, manifest: bytes | None, digest: str) -> None:
        """Remembers that the URI has this manifest; None when it is here already."""
        try:
            if manifest is not None:
                make_directory(self.directory(digest))
                write_file(self.directory(digest) / MANIFEST, manifest)
                write_file(self.directory(digest) / MANIFEST_HASH, f"{digest}  {MANIFEST}\n".encode())
            if location.key is not None and self.known(location) != digest:
                write_file(self.path / "uris" / location.key, digest.encode())
        except OSError as error:
            raise DatasetError(f"{self.path}: the cache cannot be written: {error.strerror}") from None

    # Shards

    def lease(self, digest: str, shard: Shard) -> Lease | None:
        """The shard, if it is here."""
        path = self.directory(digest) / shard.name
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise DatasetError(f"{path}: cannot be opened: {error.strerror}; remove it from the cache") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                status = os.fstat(descriptor)
                if status.st_nlink and stat.S_ISREG(status.st_mode) and status.st_size == shard.size:
                    os.utime(descriptor)
                    lease, descriptor = Lease(path, shard.size, descriptor), -1
                    return lease
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
            if status.st_nlink and not self._remove(path):  # cut by somebody: it is not whole
                raise DatasetError(
                    f"{path}: has {status.st_size} bytes, expected {shard.size}; remove it from the cache"
                )

    def get(
        self,
        digest: str,
        shard: Shard,
        location: Location,
        storage: Callable[[], Storage],
        *,
        stop: threading.Event | None = None,
        wait_for_room: bool = True,
        give_back: Callable[[], bool] = lambda: False,
    ) -> Lease | None:
        """The shard, fetched unless it is here; None when there is no room and wait_for_room is False.

        give_back: called when there is no room; gives idle leases of this process back, True when there were some.
        DatasetError, naming the URI, what went wrong and how often it was tried; Stopped when `stop` is set.
        """
        stop = stop or threading.Event()
        deadline = time.monotonic() + self.room_wait
        if shard.size > self.max_bytes:
            raise DatasetError(
                f"{location.uri}/{shard.name}: has {shard.size:,} bytes, the cache {self.path} may hold "
                f"{self.max_bytes:,}; raise max_bytes"
            )
        problem = ""
        for made_anew in (False, True):
            try:
                if made_anew:  # somebody deleted it while it is used, which its tag allows
                    self._prepare(anew=True)
                    make_directory(self.directory(digest))
                return self._get(digest, shard, location, storage, stop, deadline if wait_for_room else None, give_back)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not made_anew:
                    continue
                what = f"{error.strerror} ({error.filename})" if error.filename else f"{error.strerror}"
                problem = (
                    f"{location.uri}/{shard.name}: the cache {self.path} failed: {what}; free space there, or give "
                    "another"
                )
                break
        raise DatasetError(problem)

    def _get(
        self,
        digest: str,
        shard: Shard,
        location: Location,
        storage: Callable[[], Storage],
        stop: threading.Event,
        deadline: float | None,
        give_back: Callable[[], bool],
    ) -> Lease | None:
        """As get. deadline: when waiting for room ends; None does not wait."""
        while True:
            lease = self.lease(digest, shard)
            if lease is not None:
                self.tally.add(shards_found=1)
                return lease
            if self.offline:
                raise DatasetError(
                    f"{location.uri}/{shard.name}: is not in the cache {self.path}, and offline=True; run once "
                    "with the network, and a bound that holds all"
                )
            if stop.is_set():
                raise Stopped
            with self._fetching(digest, shard) as descriptor:
                if descriptor is None:  # another thread or process is fetching it
                    if stop.wait(_POLL):
                        raise Stopped
                    continue
                if os.path.lexists(self.directory(digest) / shard.name):
                    continue
                free = self._reserve(descriptor, shard.size) or (give_back() and self._reserve(descriptor, shard.size))
                if free:
                    lease = self._fetch(digest, shard, location, storage(), descriptor, stop)
                    if lease is not None:
                        return lease
                    continue
            if deadline is None:
                return None
            if time.monotonic() > deadline:
                raise DatasetError(
                    f"{location.uri}/{shard.name}: no room in the cache {self.path}: of {self.max_bytes:,} bytes, "
                    f"{self._bytes_in_use():,} are in use by running processes, {shard.size:,} are needed; raise "
                    "max_bytes, or read with shuffle=False or a window, a smaller batch or less prefetch"
                )
            os.utime(self.path / "pressure")
            if stop.wait(_POLL):
                raise Stopped

    def pressure(self) -> int:
        """A number that changes when somebody finds no room; 0 where the cache was deleted."""
        try:
            return os.stat(self.path / "pressure").st_mtime_ns
        except FileNotFoundError:
            return 0

    def recheck(self, digest: str, shard: Shard) -> bool:
        """Was the shard here not what the manifest says? Then it is removed, and fetched anew when it is needed."""
        path = self.directory(digest) / shard.name
        try:
            with open(path, "rb") as file:
                wrong = hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256
        except OSError:
            wrong = True
        return wrong and self._remove(path)

    @contextmanager
    def _fetching(self, digest: str, shard: Shard) -> Iterator[int | None]:
        """The shard's hidden file under its exclusive lock; None when somebody else has that."""
        path = self.directory(digest) / f".{shard.name}.fetching"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            if not _is_at(descriptor, path):  # its owner renamed or removed it between our open and our lock
                yield None
                return
            try:
                yield descriptor
            finally:
                if os.fstat(descriptor).st_size == 0 and _is_at(descriptor, path):
                    os.unlink(path)
        finally:
            os.close(descriptor)

    def _fetch(
        self, digest: str, shard: Shard, location: Location, storage: Storage, descriptor: int, stop: threading.Event
    ) -> Lease | None:
        """None when it was evicted in the moment in which it was there and not yet leased."""
        directory = self.directory(digest)
        try:
            fetch_shard(storage, location, shard, descriptor, self.patience, stop, self.tally)
        except BaseException:
            if not starts_right(shard, descriptor):
                os.ftruncate(descriptor, 0)
            raise
        os.fsync(descriptor)
        with self._locked():  # who counts must see one of the two names
            os.rename(directory / f".{shard.name}.fetching", directory / shard.name)
        sync_directory(directory)
        own = os.dup(descriptor)  # the same lock, which goes on when _fetching closes its own
        fcntl.flock(own, fcntl.LOCK_SH)
        if os.fstat(own).st_nlink == 0:
            os.close(own)
            return None
        return Lease(directory / shard.name, shard.size, own)

    def _reserve(self, descriptor: int, size: int) -> bool:
        """Room on the disk and within the bound for a file that we are fetching; False when all else is in use."""
        with self._locked():
            inode = os.fstat(descriptor).st_ino
            total, entries = self._list()
            others = sorted((entry for entry in entries if entry.inode != inode), key=lambda entry: entry.used)
            total += sum(entry.size for entry in others)
            while True:
                full = total + size > self.max_bytes
                if not full:
                    try:
                        if os.fstat(descriptor).st_size != size:
                            os.ftruncate(descriptor, 0)
                            _allocate(descriptor, size)
                        os.utime(descriptor)
                        return True
                    except OSError as error:
                        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not others:
                            raise
                        os.ftruncate(descriptor, 0)
                if not others:
                    return False
                entry = others.pop(0)
                if self._remove(entry.path):
                    total -= entry.size
                    self.tally.add(shards_evicted=SHARD_NAME.fullmatch(entry.path.name) is not None)

    def _list(self) -> tuple[int, list[_Entry]]:
        """Bytes of what stays, and the shards, finished or not."""
        stays, entries = 0, []
        now = time.time()
        with os.scandir(self.path) as datasets:
            directories = [
                Path(d.path) for d in datasets if _DIRECTORY.fullmatch(d.name) and d.is_dir(follow_symlinks=False)
            ]
        for directory in directories:
            with os.scandir(directory) as files:
                for file in files:
                    try:
                        status = file.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    shard = SHARD_NAME.fullmatch(file.name) or _FETCHING.fullmatch(file.name)
                    if shard and stat.S_ISREG(status.st_mode):
                        entries.append(_Entry(Path(file.path), status.st_size, status.st_mtime_ns, status.st_ino))
                    elif (
                        TEMPORARY.fullmatch(file.name) and now - status.st_mtime > _DAY
                    ):  # of a manifest, by a killed run
                        with suppress(OSError):
                            os.unlink(file.path)
                    else:
                        stays += status.st_size
        return stays, entries

    def _remove(self, path: Path) -> bool:
        """Removes a file unless it is in use. True when it is gone."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                os.unlink(path)
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def _bytes_in_use(self) -> int:
        with self._locked():
            stays, entries = self._list()
            for entry in entries:
                with suppress(OSError):
                    descriptor = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except OSError:
                        stays += entry.size
                    finally:
                        os.close(descriptor)
        return stays

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def __repr__(self) -> str:
        return f"ShardCache({str(self.path)!r}, max_bytes={self.max_bytes:,})"


def _default_path() -> Path:
    given = os.environ.get("MASKPIPE_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskpipe"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
