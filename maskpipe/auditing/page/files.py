"""A page as a file: whole or absent, and never in the place of a file that is no such page."""

from __future__ import annotations

import os
from pathlib import Path

from maskpipe.durable import sync_directory, temporary, write_all
from maskpipe.errors import UsageError

GENERATOR = "maskpipe audit"
"""What a page says of itself near its beginning, by which it may be written anew."""


def refuse(path: Path) -> None:
    """UsageError when `path` cannot be written: no such directory, or something else is there."""
    directory = path.absolute().parent
    if not directory.is_dir():
        raise UsageError(f"{path}: there is no directory {directory}")
    if not os.path.lexists(path):
        return
    if path.is_file() and not path.is_symlink():
        with open(path, "rb") as present:
            if f'content="{GENERATOR}"'.encode() in present.read(2048):
                return
    raise UsageError(f"{path} is already there and is no report; nothing is overwritten: choose another name")


def write(path: Path, page: str) -> None:
    """Writes a page, in the place of an earlier one. UsageError as `refuse` says."""
    refuse(path)
    directory = path.absolute().parent
    with temporary(directory) as (name, descriptor):
        write_all(descriptor, page.encode())
        os.fsync(descriptor)
        os.replace(directory / name, directory / path.name)
    sync_directory(directory)
