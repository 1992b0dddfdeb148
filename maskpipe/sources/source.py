"""Source: something that can be read into chunks; Reading: one pass over it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskpipe.sources.chunk import Chunk


class RawDigest:
    """SHA-256 of what is read, and how much that is."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()

    def update(self, data: bytes) -> None:
        self.size += len(data)
        self._sha256.update(data)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


@dataclass
class Reading:
    """One pass over one source: where it stands, and what is known at its end."""

    source: int
    name: str
    rows: int = 0
    blank_lines: int = 0
    hash: RawDigest = field(default_factory=RawDigest)

    def chunk(self, kind: Any, payload: bytes, count: int, **more: Any) -> Chunk:
        chunk = Chunk(self.source, self.name, self.rows, count, kind, payload, **more)
        self.rows += count
        return chunk

    def bad(self, message: str, reason: str) -> Chunk:
        return self.chunk("bad", message.encode(errors="replace"), 1, reason=reason)


@dataclass(frozen=True)
class Source:
    name: str
    """Of the file, or another one that a person recognises."""
    read: Callable[[Reading], Iterator[Chunk]]
    given: str = ""
    """What the user named, such as a directory or a pattern that this file belongs to; "" for an object."""
    size: int | None = None
    """Bytes of the file, None for what is no file."""
    file: Path | None = None
