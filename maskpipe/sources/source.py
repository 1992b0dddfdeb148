"""Source: something that can be read into chunks; Reading: one pass over it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from maskpipe.sources.chunk import Chunk


@dataclass
class Reading:
    """One pass over one source: where it stands, and what is known at its end."""

    source: int
    name: str
    rows: int = 0
    blank_lines: int = 0
    hash: Any = field(default_factory=hashlib.sha256)

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
