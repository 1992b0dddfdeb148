"""Files that are whole or absent, also after a kill, a full disk or a power cut.

    with temporary(directory) as (name, descriptor):     a hidden name that no reader looks at
        write_all(descriptor, data)
        place(directory, name, descriptor, "part-….arrow", sha256)     sync, rename, sync the directory

The system calls are open, write, fsync, rename, link, unlink and mkdir, all below one directory.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from maskpipe.errors import DatasetError

TEMPORARY = re.compile(r"\.tmp-([0-9]+)-[0-9a-f]{16}")
"""Names of unfinished files: of which process, and chance."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


@contextmanager
def temporary(directory: Path) -> Iterator[tuple[str, int]]:
    """A new hidden file, as (name, descriptor); removed at the end unless it was renamed. OSErrors inside name it."""
    name = f".tmp-{os.getpid()}-{secrets.token_hex(8)}"
    descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield name, descriptor
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(directory / name)) from None
        raise
    finally:
        os.close(descriptor)
        with suppress(OSError):  # it was renamed, or the disk is ill: then it stays, and the next run sweeps it
            os.unlink(directory / name)


def place(directory: Path, temporary: str, descriptor: int, name: str, sha256: str) -> None:
    """Renames a finished temporary file to its content's name, unless that is there already with the same content.

    Any number of processes may place the same content at once. DatasetError when the name holds something else.
    """
    os.fsync(descriptor)
    if os.path.lexists(directory / name):
        if not (directory / name).is_file() or (directory / name).is_symlink():
            raise DatasetError(f"{directory}: {name} is there but is no regular file; move it away")
        with open(directory / name, "rb") as present:
            if hashlib.file_digest(present, "sha256").hexdigest() != sha256:
                raise DatasetError(f"{directory}: {name} is there with other content than its name says; move it away")
    else:
        os.rename(directory / temporary, directory / name)
    sync_directory(directory)


def place_once(directory: Path, temporary: str, descriptor: int, name: str) -> bool:
    """Gives a finished temporary file its name if nobody was faster: True for exactly one of any number of racers.
    Where the file system has no hard links, the last racer wins and all are told True."""
    os.fsync(descriptor)
    try:
        os.link(directory / temporary, directory / name)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(directory / name):
            return False
        os.rename(directory / temporary, directory / name)
    sync_directory(directory)
    return True


def write_file(path: Path, content: bytes) -> None:
    """A new file, or the old one replaced, at once."""
    with temporary(path.parent) as (name, descriptor):
        write_all(descriptor, content)
        os.fsync(descriptor)
        os.rename(path.parent / name, path)
        sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """The directory, if it was absent; lasting. Its parent must be there."""
    if not path.is_dir():
        with suppress(FileExistsError):
            path.mkdir()
        sync_directory(path.parent)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class HashingFile:
    """A file for Arrow to write to, that hashes what passes: SHA-256 over all, xxh3_64 per `region` bytes."""

    closed = False

    def __init__(self, descriptor: int, region: int) -> None:
        self.position = 0
        self._descriptor = descriptor
        self._region = region
        self._sha256 = hashlib.sha256()
        self._regions: list[str] = []
        self._pending = bytearray()

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as view:
            size = len(view)
            taken = 0
            while taken < size:
                piece = view[taken : taken + self._region - len(self._pending)]
                self._pending += piece
                taken += len(piece)
                if len(self._pending) == self._region:
                    self._end_region()
        self.position += size
        return size

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        """Nothing: a region is written when it is full, the last one by finish."""

    def close(self) -> None:
        """Nothing: the descriptor belongs to the caller."""

    def finish(self) -> tuple[str, str]:
        """SHA-256 of the file, and the hashes of its regions as the manifest lists them; all bytes are with the
        system."""
        if self._pending:
            self._end_region()
        return self._sha256.hexdigest(), "".join(self._regions)

    def _end_region(self) -> None:
        self._sha256.update(self._pending)
        self._regions.append(xxhash.xxh3_64_hexdigest(self._pending))
        write_all(self._descriptor, self._pending)
        self._pending = bytearray()
