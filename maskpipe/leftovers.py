"""`maskpipe gc`: what killed runs left behind, and taking it away.

    for leftover in find("data"):        OUT.partial directories that no run works in; temporary files of dead processes
        remove(leftover)                 file by file what its name and job.json say we wrote, and nothing else

Looks into the directory given, one level deep. No symbolic link is followed, no directory is removed that is not empty.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from maskpipe.durable import TEMPORARY
from maskpipe.errors import UsageError
from maskpipe.partial import JOB, LOCK, SUFFIX, is_locked, list_contents, read_job, take_over
from maskpipe.shards.format import MANIFEST

LEASE_SECONDS = 3600.0
"""A temporary file younger than this may belong to a process on another machine that shares the disk."""


@dataclass(frozen=True)
class Leftover:
    """A partial directory, or one temporary file."""

    path: Path
    bytes: int
    files: int
    age: float
    """Seconds since something in it was written."""
    in_use: bool
    """A run works in it, or may: it is not removed."""
    foreign: tuple[str, ...]
    """Names in it that are not ours: then it is not removed."""

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path), "age": round(self.age), "foreign": list(self.foreign)}


def find(directory: str | Path) -> list[Leftover]:
    """Leftovers in the directory, sorted by path; the directory itself when it is one. UsageError: no directory."""
    path = Path(directory)
    if path.is_symlink() or not path.is_dir():
        raise UsageError(f"{directory}: no such directory (symbolic links are not followed)")
    if _is_partial(path):
        return [_of_partial(path)]
    out = list(_temporary_in(path))
    for child in _children(path):
        if _is_partial(child):
            out.append(_of_partial(child))
        elif (child / MANIFEST).is_file():
            out += _temporary_in(child)
    return sorted(out, key=lambda leftover: leftover.path)


def remove(leftover: Leftover) -> None:
    """Takes it away. UsageError when it is in use by now, or holds what is not ours."""
    path = leftover.path
    if leftover.foreign:
        raise UsageError(
            f"{path} holds {', '.join(leftover.foreign[:5])}, which no run of ours wrote: move that away first"
        )
    if leftover.in_use:
        raise UsageError(f"{path}: a run works here")
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    partial = take_over(path)
    try:
        foreign = list_contents(path).foreign  # it may have come since
        if foreign:
            raise UsageError(f"{path} holds {foreign[0].name}, which no run of ours wrote: move that away first")
        partial.remove()
    finally:
        partial.close()


def show(found: list[Leftover], removed: bool, problems: Mapping[Path, str], console: Console) -> None:
    """One line each: size, age, path, and why it stays."""
    for entry in found:
        stays = problems.get(entry.path) or ("in use" if entry.in_use else "")
        stays = stays or (f"holds {', '.join(entry.foreign[:3])}, which is not ours" if entry.foreign else "")
        done = "" if entry.path.exists() else "removed "
        age = f"{entry.age / 86400:.1f} d" if entry.age >= 86400 else f"{entry.age / 3600:.1f} h"
        console.print(
            f"{entry.bytes / 1e6:10,.1f} MB {age:>8}  {done}{entry.path}{stays and f' ({stays})'}", soft_wrap=True
        )
    if not found:
        console.print("no leftovers")
    elif not removed:
        console.print("nothing was removed; --delete takes away what is not in use")


def _is_partial(path: Path) -> bool:
    """Marked as ours, or killed before it could be: then it holds nothing but the lock and unfinished files."""
    if not path.name.endswith(SUFFIX):
        return False
    try:
        if read_job(path) is not None:
            return True
    except UsageError:
        return False
    names = [entry.name for entry in os.scandir(path)]
    return LOCK in names and JOB not in names and all(name == LOCK or TEMPORARY.fullmatch(name) for name in names)


def _of_partial(path: Path) -> Leftover:
    contents = list_contents(path)
    found = [file.lstat() for file in contents.ours]
    newest = max((entry.st_mtime for entry in found), default=path.lstat().st_mtime)
    return Leftover(
        path=path,
        bytes=sum(entry.st_size for entry in found),
        files=len(found),
        age=max(0.0, time.time() - newest),
        in_use=is_locked(path),
        foreign=tuple(str(entry.relative_to(path)) for entry in contents.foreign),
    )


def _temporary_in(directory: Path) -> Iterator[Leftover]:
    for entry in os.scandir(directory):
        match = TEMPORARY.fullmatch(entry.name)
        if match and entry.is_file(follow_symlinks=False):
            found = entry.stat(follow_symlinks=False)
            age = max(0.0, time.time() - found.st_mtime)
            in_use = age < LEASE_SECONDS or _lives(int(match[1]))
            yield Leftover(Path(entry.path), found.st_size, 1, age, in_use, ())


def _children(path: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
