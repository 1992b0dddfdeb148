"""Chunk: consecutive records of one source, not parsed yet; any process can parse them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from maskpipe.errors import RecordError
from maskpipe.sources.cells import json_values
from maskpipe.strict_json import parse

Judge = Callable[[int, int], RecordError | None]


class Drafted(NamedTuple):
    """A record that `reader` of Chunk.records took instead of having it parsed."""

    made: Any
    text: bytes


@dataclass(frozen=True)
class Origin:
    """What one source was."""

    name: str
    """File name, or path inside the directory given, or "dataset", "iterable"."""
    sha256: str
    """Of the file's raw bytes; for objects, of their records as JSON lines."""
    records: int


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one source, not parsed yet. Cheap to send to another process."""

    source: int
    """Index of the source, in the order given."""
    name: str
    """The source's name, for messages."""
    first_row: int
    count: int
    """Number of records, the bad ones included."""
    kind: Literal["lines", "array", "arrow", "text", "bad"]
    payload: bytes
    """lines: JSON lines; array: JSON texts, one after another; arrow: an IPC stream; text: one text; bad: a message."""
    first_line: int = 0
    """lines: 1-based line number of the payload's first line."""
    ends: bytes = b""
    """array: end of each JSON text in the payload, int64."""
    reason: str = ""
    """bad: the RecordError's reason."""
    take: int = -1
    """How many of the records are taken, the first ones; -1: all. With 0 the payload is empty."""
    share: float = 1.0
    """Which share of the records is taken, chosen by what they say; from 0 to 1."""
    counts: Counter[str] = field(default_factory=Counter, compare=False)
    """Filled by records(): null_struct_fields_dropped."""
    lines: list[int] = field(default_factory=list, compare=False, repr=False)
    """Filled by place(): 1-based line number of each record."""

    def records(
        self, judge: Judge | None = None, reader: Callable[[bytes], Any | None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """(row, record) in order; a record that cannot be read is a RecordError instead, and the others follow.

        `judge` is asked with (row, bytes of the record) before each record is parsed; what it returns takes its place.
        `reader` is asked with each JSON text: what it makes of that comes as a Drafted; the text is parsed where that
        is None.
        """
        self.counts.clear()
        judge = judge or _accept
        if self.kind == "bad":
            yield self.first_row, RecordError(self.payload.decode(), reason=self.reason)
        elif self.kind == "arrow":
            yield from self._arrow_records(judge)
        elif self.kind == "text":
            yield self.first_row, judge(self.first_row, len(self.payload)) or self._text()
        else:
            for row, text in enumerate(self._texts(), self.first_row):
                try:
                    refused = judge(row, len(text))
                    if refused is not None:
                        yield row, refused
                        continue
                    made = None if reader is None else reader(text)
                    yield row, parse(text) if made is None else Drafted(made, text)
                except RecordError as error:
                    yield row, RecordError(f"{self.place(row)}: {error}", reason=error.reason)

    def place(self, row: int) -> str:
        """Where a person finds the record: file:line for JSON Lines, else the file and the row."""
        if self.kind != "lines":
            return self.name if self.kind == "text" else f"{self.name}: record {row}"
        if not self.lines:
            lines = enumerate(self.payload.split(b"\n"), self.first_line)
            self.lines.extend(number for number, line in lines if line.strip())
        return f"{self.name}:{self.lines[row - self.first_row]}"

    def _texts(self) -> Iterator[bytes]:
        if self.kind == "lines":
            for line in self.payload.split(b"\n"):
                if line.strip():
                    yield line
            return
        start = 0
        for end in array("q", self.ends):
            yield self.payload[start:end]
            start = end

    def _text(self) -> dict[str, str] | RecordError:
        try:
            return {"text": self.payload.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            return RecordError(
                f"{self.name}: invalid UTF-8 at byte {error.start} ({error.reason}). Convert the file to UTF-8",
                reason="invalid_utf8",
            )

    def _arrow_records(self, judge: Judge) -> Iterator[tuple[int, Any]]:
        table = pa.ipc.open_stream(self.payload).read_all()
        names = table.column_names
        columns = [json_values(table.column(name), name, self.counts) for name in names]
        for row, cells in enumerate(zip(*columns, strict=True), self.first_row):
            bad = next((cell for cell in cells if isinstance(cell, RecordError)), None)
            refused = judge(row, sum(map(_size, cells)))
            if refused is not None:
                yield row, refused
            elif bad is None:
                yield row, dict(zip(names, cells, strict=True))
            else:
                yield row, RecordError(f"{self.place(row)}: {bad}", reason=bad.reason)


def _accept(row: int, size: int) -> None:
    return None


def _size(value: Any) -> int:
    """About as many bytes as the value would have as JSON."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, dict):
        return sum(len(key) + 4 + _size(entry) for key, entry in value.items())
    return sum(map(_size, value)) + 2 if isinstance(value, list) else 4
