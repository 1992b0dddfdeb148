"""OUT.partial: where one preparation works until OUT appears, and what makes a rerun go on where the last one ended.

    OUT.partial/
      job.json     whose this is: the job, and everything that decides its bytes apart from the input's text
      lock         held by the run that works here
      stopped      there when the last run ended with an error of data or recipe: then another job may begin here
      stage/       map-<task>-<sha256>.arrow       documents of one chunk
      commits/     map-<task>.json, write-<task>.json    commit records
      dataset/     part-NNNNN-<sha256>.arrow, at the end also the manifest; becomes OUT by one rename

Only a directory that holds our job.json is ours, and in it only files whose names have these forms. What has another
name is foreign: it is named, never touched.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpipe.commit import NAME
from maskpipe.durable import TEMPORARY, make_directory, sync_directory, write_file
from maskpipe.errors import MaskpipeError, UsageError
from maskpipe.shards.format import SHARD_NAME

SUFFIX = ".partial"
JOB, LOCK, STOPPED = "job.json", "lock", "stopped"
_VERSION = 1
_OURS = {
    "": re.compile(rf"{re.escape(JOB)}|{LOCK}|{STOPPED}|(?:rejects|dropped|chunks|duplicates)\.jsonl"),
    "stage": re.compile(rf"{NAME.pattern}-[0-9a-f]{{16}}\.arrow"),
    "commits": re.compile(rf"{NAME.pattern}\.json"),
    "dataset": SHARD_NAME,
    "dataset/train": SHARD_NAME,
    "dataset/validation": SHARD_NAME,
}
"""Our files by folder. dataset/ and its sides also hold what publish writes: the files that job.json names."""


@dataclass(frozen=True)
class Contents:
    """What a partial directory holds, as paths."""

    ours: list[Path]
    foreign: list[Path]


class Partial:
    """A claimed OUT.partial. Use `claim`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.stage = path / "stage"
        self.commits = path / "commits"
        self.dataset = path / "dataset"
        self._lock = lock

    def sweep_temporary(self) -> None:
        """Takes away unfinished files. No other run works here: we hold the lock."""
        for path in list_contents(self.path).ours:
            if TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()

    def is_empty(self) -> bool:
        """No task is finished."""
        try:
            return not any(NAME.fullmatch(path.stem) for path in self.commits.iterdir())
        except FileNotFoundError:
            return True

    def clear_dataset(self, keep: set[str], side: str = "") -> None:
        """Takes away what a run that was killed while publishing, or that planned other shards, left in dataset/ or in
        one side of it."""
        for path in list_contents(self.path).ours:
            if path.parent == self.dataset / side and path.name not in keep:
                path.unlink()

    def stop(self, why: str) -> None:
        """Notes that the run ended with an error of the data or the recipe."""
        write_file(self.path / STOPPED, (why + "\n").encode(errors="replace"))

    def remove(self) -> None:
        """Takes away all that is ours, job.json last, and the directory if nothing else is in it. What cannot be taken
        away stays: `maskpipe gc` lists it."""
        with suppress(OSError):
            _remove_ours(self.path)
            (self.path / LOCK).unlink()
            self.path.rmdir()
        with suppress(OSError):
            sync_directory(self.path.parent)

    def close(self) -> None:
        os.close(self._lock)


@contextmanager
def new_directory(out: str | Path, identity: Mapping[str, Any], names: Iterable[str]) -> Iterator[Partial]:
    """OUT.partial, claimed and empty, to make `out` in: dataset/ gets that name when the block ends well. `names` are
    the files that dataset/ will hold beside shards. After an error nothing is left; what a killed run leaves
    `maskpipe gc` knows.

    UsageError when `out` is there, or another run or another job has OUT.partial.
    """
    final = Path(os.path.abspath(out))
    refuse_taken(out)
    job = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    partial = claim(final, job, identity, set(names))
    try:
        for path in list_contents(partial.path).ours:  # a killed run of the same job
            if path.parent in (partial.dataset, partial.stage):
                path.unlink()
        yield partial
        os.rename(partial.dataset, final)
        sync_directory(final.parent)
    finally:
        partial.remove()
        partial.close()


def refuse_taken(out: str | Path) -> None:
    """UsageError unless `out` is absent, or an empty directory."""
    final = Path(os.path.abspath(out))
    empty = final.is_dir() and not final.is_symlink() and not any(final.iterdir())
    if (final.exists() or final.is_symlink()) and not empty:
        raise UsageError(f"{out} is already there; nothing is overwritten: choose a new directory")


def partial_of(out: Path) -> Path:
    return out.with_name(out.name + SUFFIX)


def claim(out: Path, job: str, identity: Mapping[str, Any], files: Iterable[str]) -> Partial:
    """OUT.partial, new or as the last run of the same job left it; locked until close. `files` is what will be
    published beside the shards.

    UsageError: another run works there, it belongs to another job, or it is not ours. MaskpipeError: the disk is full
    or fails.
    """
    return _claim(partial_of(out), job, identity, files, shared=False)


def join(out: Path, job: str, identity: Mapping[str, Any], files: Iterable[str]) -> Partial:
    """The same for one of several ranks, which work there at the same time: nothing of the others is taken away."""
    return _claim(partial_of(out), job, identity, files, shared=True)


def _claim(path: Path, job: str, identity: Mapping[str, Any], files: Iterable[str], shared: bool) -> Partial:
    try:
        return _claim_locked(path, job, identity, files, shared)
    except OSError as error:
        if isinstance(error, MaskpipeError):
            raise
        raise MaskpipeError(f"{error.filename or path}: {error.strerror or error}. Nothing was begun") from None


def _claim_locked(path: Path, job: str, identity: Mapping[str, Any], files: Iterable[str], shared: bool) -> Partial:
    lock = _open_locked(path, shared)
    try:
        there = read_job(path)
        if there is None:
            _refuse_foreign(path)
            _write_job(path, job, identity, files)
        elif there["job"] != job:
            if shared or not (path / STOPPED).is_file():
                raise UsageError(_other_job(path, there["identity"], identity))
            _refuse_foreign(path)
            _remove_ours(path)
            _write_job(path, job, identity, files)
        for folder in ("stage", "commits", "dataset"):
            make_directory(path / folder)
        with suppress(FileNotFoundError):
            os.unlink(path / STOPPED)
        claimed = Partial(path, lock)
        if not shared:
            claimed.sweep_temporary()
        return claimed
    except BaseException:
        os.close(lock)
        raise


def read_job(path: Path) -> dict[str, Any] | None:
    """What job.json says, None when there is none. UsageError when it is not ours."""
    try:
        job = json.loads((path / JOB).read_bytes())
        if job["maskpipe_partial"] != _VERSION or not isinstance(job["identity"], dict):
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{path} is there, but its {JOB} is not one of ours: move the directory away or choose another OUT"
        ) from None
    return dict(job)


def list_contents(path: Path) -> Contents:
    """Everything in the directory, no symbolic link followed."""
    ours: list[Path] = []
    foreign: list[Path] = []
    try:
        published = frozenset((read_job(path) or {}).get("files", ()))
    except UsageError:
        published = frozenset()
    for folder in _OURS:
        inside = path / folder
        if folder and (inside.is_symlink() or not inside.is_dir()):
            continue
        for entry in sorted(os.scandir(inside), key=lambda entry: entry.name):
            if f"{folder}/{entry.name}".strip("/") in _OURS and entry.is_dir(follow_symlinks=False):
                continue
            known = bool(_OURS[folder].fullmatch(entry.name) or TEMPORARY.fullmatch(entry.name))
            known = known or (folder.startswith("dataset") and entry.name in published)
            (ours if known and entry.is_file(follow_symlinks=False) else foreign).append(Path(entry.path))
    return Contents(ours, foreign)


def is_locked(path: Path) -> bool:
    """Does a run work in the directory?"""
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(lock)
    finally:
        os.close(lock)


def take_over(path: Path) -> Partial:
    """A partial whose run has ended, locked, to be removed. UsageError when a run works in it."""
    return Partial(path, _open_locked(path))


def _open_locked(path: Path, shared: bool = False) -> int:
    """The locked lock file of the directory, which is made if it is absent. Ranks share the lock."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError(f"{path} is there and is no directory: move it away or choose another OUT")
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_directory(path)
        try:
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # a run that ended took the directory away
        except OSError as error:
            raise UsageError(f"{path / LOCK}: cannot open it: {error.strerror}") from None
        try:
            if not _try_lock(lock, shared):
                owner = os.pread(lock, 200, 0).decode(errors="replace").strip()
                raise UsageError(
                    f"{path}: another run works here{owner and f' ({owner})'}. Wait for it, or choose another OUT"
                )
            if _is_still(lock, path / LOCK):
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # the run that held it has taken it away


def _try_lock(lock: int, shared: bool = False) -> bool:
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        # This file system has no locks. Two runs at once then cost work, not correctness: files are named by content.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return True


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return stat.S_ISREG(here.st_mode) and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _write_job(path: Path, job: str, identity: Mapping[str, Any], files: Iterable[str]) -> None:
    value = {"maskpipe_partial": _VERSION, "job": job, "identity": identity, "files": sorted(files)}
    write_file(path / JOB, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def _refuse_foreign(path: Path) -> None:
    contents = list_contents(path)
    unmarked = [] if (path / JOB).is_file() else [p for p in contents.ours if p.name != LOCK and not _unfinished(p)]
    foreign = contents.foreign + unmarked
    if foreign:
        raise UsageError(
            f"{path} holds {foreign[0].relative_to(path)}, which no run of ours wrote there: move it away or choose "
            "another OUT"
        )


def _unfinished(path: Path) -> bool:
    return bool(TEMPORARY.fullmatch(path.name))


def _remove_ours(path: Path) -> None:
    """All of ours but the lock, job.json last."""
    last = [path / STOPPED, path / JOB]
    for file in list_contents(path).ours:
        if file not in last and file != path / LOCK:
            file.unlink(missing_ok=True)
    for folder in reversed(_OURS):
        with suppress(OSError):
            if folder:
                (path / folder).rmdir()
    for file in last:
        file.unlink(missing_ok=True)


def _other_job(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    shown = [f"{key}: {_short(a)} there, {_short(b)} now" for key, a, b in _differences(there, here)]
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return (
        f"{path} holds unfinished work of another job ({'; '.join(shown[:4])}{more}). Run that job's command again to "
        "finish it, take its work away with `maskpipe gc --delete`, or choose another OUT"
    )


def _differences(there: Any, here: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in dict.fromkeys([*there, *here]):
            yield from _differences(there.get(name), here.get(name), f"{key}.{name}" if key else name)
    elif there != here:
        yield key, there, here


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
