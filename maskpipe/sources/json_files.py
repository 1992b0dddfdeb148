"""JSON Lines, a JSON array, or objects one after another → chunks of unparsed texts; told apart by content."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

from maskpipe.errors import UsageError
from maskpipe.sources import limits
from maskpipe.sources.chunk import Chunk
from maskpipe.sources.source import Reading
from maskpipe.sources.unpack import unpacked_blocks


def read_json(path: Path, reading: Reading, named_lines: bool) -> Iterator[Chunk]:
    blocks = unpacked_blocks(path, reading.hash)
    head = b""
    ended = True
    for block in blocks:
        head += block
        if len(head) >= limits.READ_BYTES:
            ended = False
            break
    head = head.removeprefix(b"\xef\xbb\xbf")
    whole = _with_head(head, blocks)
    refuse_utf16(head, path)
    if _is_lines(head, ended, named_lines):
        yield from _cut_lines(whole, reading)
    else:
        yield from _cut_document(b"".join(whole), reading)


def _with_head(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from blocks


def refuse_utf16(head: bytes, path: Path) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{path} looks like UTF-16. Convert it to UTF-8")


def _is_lines(head: bytes, ended: bool, named_lines: bool) -> bool:
    """JSON Lines, or one JSON text over many lines? Decided from the first bytes; the name only breaks a tie."""
    lines = head.split(b"\n")
    if not ended:
        lines.pop()  # cut off
    lines = [line for line in lines if line.strip()]
    if not lines:
        return not head.lstrip().startswith(b"[")  # the first line alone fills the head
    first = lines[0].strip()
    if first in (b"[", b"{") or (len(lines) == 1 and ended and first.startswith(b"[")):
        return False
    if first.startswith(b"[") and not _is_json(first):
        return False
    whole = [line[:1] in b"{[" and _is_json(line) for line in lines[:32]]
    if 2 * sum(whole) >= len(whole):  # in an object over many lines a few can be whole by chance
        return True
    return named_lines or not first.startswith((b"[", b"{"))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _cut_lines(blocks: Iterator[bytes], reading: Reading) -> Iterator[Chunk]:
    """Chunks of whole lines: each ends with the first line that reaches limits.CHUNK_BYTES."""
    buffer = bytearray()
    line = 1
    searched = limits.CHUNK_BYTES - 1
    skipped = 0  # bytes of an overlong line that are gone already

    def lines_up_to(end: int) -> Chunk | None:
        nonlocal line
        payload = bytes(buffer[:end])
        del buffer[:end]
        count = 0 if payload.isspace() else sum(1 for entry in payload.split(b"\n") if entry.strip())
        newlines = payload.count(b"\n")
        reading.blank_lines += newlines + (not payload.endswith(b"\n") and bool(payload)) - count
        chunk = reading.chunk("lines", payload, count, first_line=line) if count else None
        line += newlines
        return chunk

    def overlong(size: int) -> Chunk:
        return reading.bad(
            f"{reading.name}:{line}: this line has {size:,} bytes, more than {limits.MAX_LINE_BYTES:,}. "
            "Is the file JSON Lines, one record a line?",
            "too_long_line",
        )

    for block in blocks:
        buffer += block
        while True:
            if skipped:
                end = buffer.find(b"\n")
                if end < 0:
                    skipped += len(buffer)
                    buffer.clear()
                    break
                del buffer[: end + 1]
                yield overlong(skipped + end)
                line += 1
                skipped = 0
                continue
            end = buffer.find(b"\n", searched) if len(buffer) > searched else -1
            start = buffer.rfind(b"\n", 0, limits.CHUNK_BYTES - 1) + 1  # of the line that reaches the border
            if (end if end >= 0 else len(buffer)) - start > limits.MAX_LINE_BYTES:
                chunk = lines_up_to(start)
                skipped, searched = 0, limits.CHUNK_BYTES - 1
                if chunk:
                    yield chunk
                skipped = min(len(buffer), limits.MAX_LINE_BYTES)
                del buffer[:skipped]
                continue
            if end < 0:
                searched = max(limits.CHUNK_BYTES - 1, len(buffer))
                break
            chunk = lines_up_to(end + 1)
            searched = limits.CHUNK_BYTES - 1
            if chunk:
                yield chunk
    if skipped:
        yield overlong(skipped)
    elif buffer:
        chunk = lines_up_to(len(buffer))
        if chunk:
            yield chunk


_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SCALAR = re.compile(r"[^\s,\]}]+")


def _cut_document(raw: bytes, reading: Reading) -> Iterator[Chunk]:
    """The elements of a JSON array, or JSON objects one after another, as chunks of unparsed texts.

    The whole text is held in memory, but never all its values. A broken element costs only itself while its end can be
    found; otherwise the rest of the file is one bad record.
    """
    text = raw.decode("utf-8", "surrogateescape")  # invalid bytes survive, so that only their own record is refused
    position = _SPACE.match(text).end()  # type: ignore[union-attr]
    inside = text.startswith("[", position)
    position += inside
    payload = bytearray()
    ends = array("q")
    first = True
    while True:
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        problem = ""
        if inside and text.startswith("]", position):
            rest = text[position + 1 :].strip()
            problem = f"text after the end of the array: {rest[:40]!r}" if rest else ""
            position = len(text)
        elif inside and not first:
            if text.startswith(",", position):
                position = _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]
            else:
                problem = f"expected , or ] at character {position}, found {text[position : position + 20]!r}"
        if position == len(text) and inside and not text.rstrip().endswith("]"):
            problem = "the array has no end: the file is cut off"
        end = -1 if problem or position == len(text) else _value_end(text, position)
        if end < 0 or len(payload) >= limits.CHUNK_BYTES:
            if ends:
                yield reading.chunk("array", bytes(payload), len(ends), ends=ends.tobytes())
            payload, ends = bytearray(), array("q")
        if end < 0:
            if not problem and position < len(text):
                problem = f"not JSON at character {position}: {text[position : position + 40]!r}"
            if problem:
                problem = problem.encode(errors="replace").decode()
                yield reading.bad(
                    f"{reading.name}: record {reading.rows}: {problem}. Nothing after it can be read", "not_json"
                )
            return
        element = text[position:end].encode("utf-8", "surrogateescape")
        if len(element) > limits.MAX_LINE_BYTES:
            if ends:
                yield reading.chunk("array", bytes(payload), len(ends), ends=ends.tobytes())
            payload, ends = bytearray(), array("q")
            yield reading.bad(
                f"{reading.name}: record {reading.rows} has {len(element):,} bytes, "
                f"more than {limits.MAX_LINE_BYTES:,}",
                "too_long_line",
            )
        else:
            payload += element
            ends.append(len(payload))
        position = end
        first = False


def _value_end(text: str, start: int) -> int:
    """Where the JSON value that begins at `start` ends, -1 if nowhere. A broken value ends with its last bracket."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        pass
    if text[start] not in "[{":
        found = _TOKEN.match(text, start) if text[start] == '"' else _SCALAR.match(text, start)
        return found.end() if found else -1
    level = 0
    for token in _TOKEN.finditer(text, start):
        mark = text[token.start()]
        if mark in "[{":
            level += 1
        elif mark in "]}":
            level -= 1
            if level == 0:
                return token.end()
    return -1
