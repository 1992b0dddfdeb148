"""Finished work stays finished: each task leaves one small commit record, and a task that finds its record is a no-op.

    name = identify(job, "map", chunk)      the same work has the same name, whoever does it and when
    found = find(directory, name)           what was committed for it, or None
    commit(directory, name, result)         after the files that `result` speaks of are durable

A record is `<name>.json`: {"task": name, "result": …, "sha256": of the two}. It says nothing of time, machine or
process, so two attempts at one task must write the same bytes. If they do not, that is an error that names both:
something that decides the result is not part of the task's name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.durable import place_once, temporary, write_all
from maskpipe.errors import DatasetError

NAME = re.compile(r"[a-z]+-[0-9a-f]{32}")
"""What identify returns: the kind of the task and half a SHA-256."""


def identify(job: str, kind: str, *parts: bytes | str | int | None) -> str:
    """The name of a task: `kind` (a-z) and a hash of the job and everything else that decides the task's result."""
    total = hashlib.sha256()
    for part in (job, kind, *parts):
        data = part if isinstance(part, bytes) else repr(part).encode()
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return f"{kind}-{total.hexdigest()[:32]}"


def find(directory: Path, name: str) -> Any | None:
    """The result that was committed for the task, None if none was. DatasetError for a record that is not as it was
    written."""
    path = directory / f"{name}.json"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        record = json.loads(raw)
        whole = record["sha256"] == _hash(record["task"], record["result"]) and record["task"] == name
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise DatasetError(f"{path}: this commit record is damaged. Remove the file and run the same command again")
    return record["result"]


def get(directory: Path, name: str) -> Any:
    """The same for a task that is finished. DatasetError when its record has gone."""
    found = find(directory, name)
    if found is None:
        raise DatasetError(f"{directory / name}.json: this commit record has gone. Run the same command again")
    return found


def commit(directory: Path, name: str, result: Any) -> Any:
    """Makes the result the task's, durably, and returns it. Any number of processes may commit the same result at once.
    DatasetError when another one was committed."""
    hashed = _hash(name, result)
    text = json.dumps({"task": name, "result": result, "sha256": hashed}, sort_keys=True, separators=(",", ":"))
    with temporary(directory) as (unfinished, descriptor):
        write_all(descriptor, text.encode())
        if place_once(directory, unfinished, descriptor, f"{name}.json"):
            return result
    there = find(directory, name)
    other = _hash(name, there)
    if other != hashed:
        raise DatasetError(
            f"{directory / name}.json: the same task gave two results, {other[:16]} before and {hashed[:16]} now: "
            "something decides the bytes that should not. Nothing was overwritten; please report this"
        )
    return there


def check_file(path: Path, size: int, sha256: str) -> None:
    """DatasetError unless the file that a commit record speaks of is there as it was written."""
    try:
        whole = not path.is_symlink() and os.stat(path).st_size == size
        if whole:
            with open(path, "rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        whole = False
    if not whole:
        raise DatasetError(
            f"{path}: this finished piece is missing or not as it was written. Take the directory {path.parent.parent} "
            "away (maskpipe gc --delete) and run the same command again"
        )


def pack_array(array: npt.NDArray[Any]) -> dict[str, str]:
    """A one-dimensional array of numbers as JSON."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {"dtype": array.dtype.name, "base64": base64.b64encode(little.tobytes()).decode()}


def unpack_array(value: dict[str, str]) -> npt.NDArray[Any]:
    dtype = np.dtype(value["dtype"])
    return np.frombuffer(base64.b64decode(value["base64"]), dtype.newbyteorder("<")).astype(dtype, copy=False)


def _hash(task: str, result: Any) -> str:
    return hashlib.sha256(json.dumps([task, result], sort_keys=True, separators=(",", ":")).encode()).hexdigest()
