"""How files, datasets and iterables become chunks of raw records, and chunks become records.

    sources = open_sources(["chats.jsonl.zst", "more.parquet"], Recipe())
    for chunk in sources.chunks():              # in one process: reads, hashes, cuts; about 4 MiB each
        for row, record in chunk.records():     # in any process: parses; a bad record is a RecordError, not a crash
            ...
    sources.origins                             # name, SHA-256 and number of records of each file, after reading

Where a chunk ends depends on the bytes of its source alone, so any number of workers sees the same chunks. Every record
of a source has a row, 0-based; a record that cannot be read keeps its row, so records in = records out + RecordErrors.

JSON files are told apart by content, not by name: a .json file may hold JSON Lines, an array, or one object over many
lines. Lines end at \\n only: U+2028 inside a string is text. A .txt file is one record, {"text": ...}.
In Parquet, Arrow and HF datasets a struct has every key in every row, null where the record had none (C05): null struct
fields are taken away there and counted (`null_struct_fields_dropped`), except that an assistant message always has a
`content`. Nulls that come from JSON text, also from JSON columns of Arrow, are kept.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from maskpipe.errors import RecordError, UsageError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import parse, refuse_foreign, refuse_lone_surrogates

CHUNK_BYTES = 4 << 20
"""A chunk ends with the record that reaches this many bytes (Arrow: in memory; everything else: as JSON text)."""
MAX_LINE_BYTES = 64 << 20
"""A longer record is a RecordError, too_long_line."""
MAX_EXPANSION = 250
"""Compressed files may unpack to this many times their size; real chats stay below 60."""
EXPANSION_GRACE = 64 << 20
"""...but this many bytes are always allowed."""
_READ = 1 << 20
_ARROW_ROWS = 256

TEXT_SUFFIXES = (".txt", ".md", ".rst")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
ARROW_SUFFIXES = (".arrow", ".ipc", ".feather")
SUFFIXES = (*JSON_SUFFIXES, ".parquet", *ARROW_SUFFIXES, ".txt")
"""What a directory is searched for; .md and .rst only where they are named themselves."""
PACKED = (".gz", ".zst")


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
    counts: Counter[str] = field(default_factory=Counter, compare=False)
    """Filled by records(): null_struct_fields_dropped."""
    lines: list[int] = field(default_factory=list, compare=False, repr=False)
    """Filled by place(): 1-based line number of each record."""

    def records(self) -> Iterator[tuple[int, Any]]:
        """(row, record) in order; a record that cannot be read is a RecordError instead, and the others follow."""
        self.counts.clear()
        if self.kind == "bad":
            yield self.first_row, RecordError(self.payload.decode(), reason=self.reason)
        elif self.kind == "arrow":
            yield from self._arrow_records()
        elif self.kind == "text":
            yield self.first_row, self._text()
        else:
            for row, text in enumerate(self._texts(), self.first_row):
                try:
                    yield row, parse(text)
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

    def _arrow_records(self) -> Iterator[tuple[int, Any]]:
        table = pa.ipc.open_stream(self.payload).read_all()
        names = table.column_names
        columns = [_cells(table.column(name), name, self.counts) for name in names]
        for row, cells in enumerate(zip(*columns, strict=True), self.first_row):
            bad = next((cell for cell in cells if isinstance(cell, RecordError)), None)
            if bad is None:
                yield row, dict(zip(names, cells, strict=True))
            else:
                yield row, RecordError(f"{self.place(row)}: {bad}", reason=bad.reason)


class Sources:
    """Sources in the order given.

    `counts`: ignored_files; after chunks(), blank_lines; after records(), what the chunks counted.
    """

    def __init__(self, sources: list[_Source]) -> None:
        self._sources = sources
        self._origins: list[Origin] = []
        self.counts: Counter[str] = Counter()

    @property
    def names(self) -> list[str]:
        return [source.name for source in self._sources]

    @property
    def origins(self) -> list[Origin]:
        """One per source. UsageError before chunks() has been read to its end."""
        if len(self._origins) != len(self._sources):
            raise UsageError("origins are known after all chunks have been read")
        return list(self._origins)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks in order. UsageError: a file that cannot be read or unpacked, or no record in any source."""
        origins: list[Origin] = []
        blank_lines = 0
        for index, source in enumerate(self._sources):
            reading = _Reading(index, source.name)
            yield from source.read(reading)
            blank_lines += reading.blank_lines
            origins.append(Origin(source.name, reading.hash.hexdigest(), reading.rows))
        self._origins = origins
        self.counts["blank_lines"] = blank_lines
        if not any(origin.records for origin in origins):
            raise UsageError(f"no records in {', '.join(self.names)}: nothing to read")

    def records(self) -> Iterator[tuple[int, int, Any]]:
        """(source, row, record or RecordError), parsed in this process."""
        for chunk in self.chunks():
            for row, record in chunk.records():
                yield chunk.source, row, record
            self.counts.update(chunk.counts)


@dataclass
class _Reading:
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
class _Source:
    name: str
    read: Callable[[_Reading], Iterator[Chunk]]


def open_sources(source: Any, recipe: Recipe | None = None, *, split: str | None = None) -> Sources:
    """Sources from a path, directory or glob pattern, an HF Dataset, DatasetDict or IterableDataset, a pyarrow Table,
    an iterable of dicts, or a list of these. Nothing is read yet, except to see what a file is.

    `split` chooses one of a DatasetDict, or the files of a directory whose name or folder begins with it.
    UsageError: a path that is missing or unreadable, a file of unknown kind, a split that is not there.
    """
    many = isinstance(source, list | tuple) and bool(source) and not isinstance(source[0], Mapping | list)
    sources: list[_Source] = []
    ignored = 0
    for entry in source if many else [source]:
        if isinstance(entry, str | Path):
            found, skipped = _from_path(str(entry), split)
            sources += found
            ignored += skipped
        else:
            sources.append(_from_object(entry, split))
    if not sources:
        raise UsageError("no source given: pass a file, a directory, a dataset or an iterable of dicts")
    opened = Sources(sources)
    opened.counts["ignored_files"] = ignored
    return opened


# --- paths ---------------------------------------------------------------------------------------------------------


def _from_path(given: str, split: str | None) -> tuple[list[_Source], int]:
    path = Path(given)
    if path.is_dir():
        return _from_directory(path, split)
    if path.exists():
        if split is not None:
            raise UsageError(
                f"{given} is one file, so it has no split {split!r}. Leave --split away, or give the directory"
            )
        return [_from_file(path, path.name)], 0
    if any(mark in given for mark in "*?["):
        files = sorted(entry for entry in glob.glob(given, recursive=True) if Path(entry).is_file())
        if files:
            return [_from_file(Path(entry), Path(entry).name) for entry in files], 0
        raise UsageError(f"no file matches {given}")
    hint = ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        hint = ". A dataset on a hub: load it with datasets.load_dataset and pass the object, or download its files"
    raise UsageError(f"{given}: no such file or directory{hint}")


def _from_directory(path: Path, split: str | None) -> tuple[list[_Source], int]:
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return _from_saved(path / _choose_split(splits, split, str(path)), path)
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        if split is not None:
            raise UsageError(f"{path} is one saved dataset without splits; leave --split {split} away")
        return _from_saved(path, path)
    everything = [
        entry
        for entry in sorted(path.rglob("*"), key=lambda entry: entry.relative_to(path).parts)
        if entry.is_file() and not any(part.startswith((".", "_")) for part in entry.relative_to(path).parts)
    ]
    known = [entry for entry in everything if _suffix(entry) in SUFFIXES]
    if not known:
        raise UsageError(
            f"{path}: no file to read in this directory; looked for {', '.join(SUFFIXES)}, also with .gz or .zst"
        )
    files = known
    if split is not None:
        belongs = re.compile(re.escape(split) + r"(?![A-Za-z0-9])")
        files = [entry for entry in known if any(belongs.match(part) for part in entry.relative_to(path).parts)]
        if not files:
            names = ", ".join(entry.relative_to(path).as_posix() for entry in known[:8])
            raise UsageError(f"{path}: no file or folder name begins with the split {split!r}; it has {names}")
    return [_from_file(entry, entry.relative_to(path).as_posix()) for entry in files], len(everything) - len(known)


def _from_saved(path: Path, root: Path) -> tuple[list[_Source], int]:
    """A directory written by Dataset.save_to_disk."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.get("_indices_data_files"):
        raise UsageError(f"{path} is a selection of a larger dataset. Call flatten_indices() before save_to_disk")
    files = [path / entry["filename"] for entry in state["_data_files"]]
    return [_from_file(entry, entry.relative_to(root).as_posix()) for entry in files], 0


def _choose_split(splits: Iterable[str], split: str | None, where: str) -> str:
    names = list(splits)
    if split is None and len(names) == 1:
        return names[0]
    if split not in names:
        said = "choose one with --split" if split is None else f"{split!r} is not one of them"
        raise UsageError(f"{where} has the splits {', '.join(names)}: {said}")
    return split


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _from_file(path: Path, name: str) -> _Source:
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None
    suffix = _suffix(path)
    if magic.startswith(b"PAR1"):
        return _Source(name, lambda reading: _read_parquet(path, reading))
    if magic.startswith(b"ARROW1") or suffix in ARROW_SUFFIXES:
        return _Source(name, lambda reading: _read_arrow(path, reading))
    if suffix == ".parquet":
        raise UsageError(f"{path} is not a Parquet file: it does not begin with PAR1")
    if suffix in TEXT_SUFFIXES:
        return _Source(name, lambda reading: _read_text(path, reading))
    if suffix in JSON_SUFFIXES:
        return _Source(name, lambda reading: _read_json(path, reading))
    known = ", ".join((*SUFFIXES, *TEXT_SUFFIXES[1:]))
    raise UsageError(
        f"{path}: unknown kind of file {suffix or '(no extension)'}; known: {known}, "
        "also with .gz or .zst. Rename it, or convert it to JSON Lines"
    )


# --- bytes ---------------------------------------------------------------------------------------------------------


def _unpacked(path: Path, digest: Any) -> Iterator[bytes]:
    """The file's bytes in pieces, unpacked if it is gzip or zstd (by its first bytes); raw bytes go to `digest`."""
    packed = unpacked = 0
    try:
        with path.open("rb") as file:
            first = file.read(4)
            file.seek(0)
            raw = _hashed(file, digest)
            if first[:2] == b"\x1f\x8b":
                pieces = _gunzip(raw, path)
            elif first == b"\x28\xb5\x2f\xfd":
                pieces = _unzstd(raw, path)
            else:
                yield from raw
                return
            packed = path.stat().st_size
            for piece in pieces:
                unpacked += len(piece)
                if unpacked > EXPANSION_GRACE and unpacked > packed * MAX_EXPANSION:
                    raise UsageError(
                        f"{path}: compression bomb? Its {packed:,} bytes unpack to more than {MAX_EXPANSION} times as "
                        "many. If it is genuine, unpack it first"
                    )
                yield piece
    except (zlib.error, zstandard.ZstdError) as error:
        raise UsageError(f"{path}: damaged: cannot unpack after {unpacked:,} bytes: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None


def _hashed(file: BinaryIO, digest: Any) -> Iterator[bytes]:
    while block := file.read(_READ):
        digest.update(block)
        yield block


def _gunzip(raw: Iterable[bytes], path: Path) -> Iterator[bytes]:
    member = zlib.decompressobj(31)
    started = False
    for block in raw:
        while block:
            if not started:
                block = block.lstrip(b"\0")  # padding between members is allowed
                if not block:
                    break
            started = True
            piece = member.decompress(block, _READ)
            if piece:
                yield piece
            block = member.unconsumed_tail
            if member.eof:
                block = member.unused_data
                member = zlib.decompressobj(31)
                started = False
    while started and (piece := member.decompress(b"", _READ)):
        yield piece
        started = not member.eof
    if started:
        raise UsageError(f"{path}: damaged: the gzip data ends too early")


def _unzstd(raw: Iterable[bytes], path: Path) -> Iterator[bytes]:
    # 1 KiB at a time: it can unpack to at most 32 MiB, and the library has no bound of its own on a step.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame = unpacker.decompressobj()
    started = False
    for block in raw:
        for start in range(0, len(block), 1024):
            step = block[start : start + 1024]
            while step:
                started = True
                piece = frame.decompress(step)
                if piece:
                    yield piece
                step = b""
                if frame.eof:
                    step = frame.unused_data
                    frame = unpacker.decompressobj()
                    started = False
    if started:
        raise UsageError(f"{path}: damaged: the zstd data ends too early")


# --- text and JSON -------------------------------------------------------------------------------------------------


def _read_text(path: Path, reading: _Reading) -> Iterator[Chunk]:
    pieces = []
    size = 0
    for piece in _unpacked(path, reading.hash):
        size += len(piece)
        if size <= MAX_LINE_BYTES:
            pieces.append(piece)
    _refuse_utf16(pieces[0] if pieces else b"", path)
    if size > MAX_LINE_BYTES:
        yield reading.bad(
            f"{reading.name}: a text file is one text, and this one has {size:,} bytes, more than {MAX_LINE_BYTES:,}. "
            'Split it into documents: JSON Lines of {"text": ...}',
            "too_long_text",
        )
    elif size:
        yield reading.chunk("text", b"".join(pieces), 1)


def _read_json(path: Path, reading: _Reading) -> Iterator[Chunk]:
    blocks = _unpacked(path, reading.hash)
    head = b""
    ended = True
    for block in blocks:
        head += block
        if len(head) >= _READ:
            ended = False
            break
    head = head.removeprefix(b"\xef\xbb\xbf")
    whole = _with_head(head, blocks)
    _refuse_utf16(head, path)
    if _is_lines(head, ended, _suffix(path) != ".json"):
        yield from _cut_lines(whole, reading)
    else:
        yield from _cut_document(b"".join(whole), reading)


def _with_head(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from blocks


def _refuse_utf16(head: bytes, path: Path) -> None:
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


def _cut_lines(blocks: Iterator[bytes], reading: _Reading) -> Iterator[Chunk]:
    """Chunks of whole lines: each ends with the first line that reaches CHUNK_BYTES."""
    buffer = bytearray()
    line = 1
    searched = CHUNK_BYTES - 1
    skipped = 0  # bytes of an overlong line that are gone already

    def lines_up_to(end: int) -> Chunk | None:
        nonlocal line
        payload = bytes(buffer[:end])
        del buffer[:end]
        count = sum(1 for entry in payload.split(b"\n") if entry.strip())
        newlines = payload.count(b"\n")
        reading.blank_lines += newlines + (not payload.endswith(b"\n") and bool(payload)) - count
        chunk = reading.chunk("lines", payload, count, first_line=line) if count else None
        line += newlines
        return chunk

    def overlong(size: int) -> Chunk:
        return reading.bad(
            f"{reading.name}:{line}: this line has {size:,} bytes, more than {MAX_LINE_BYTES:,}. "
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
            start = buffer.rfind(b"\n", 0, CHUNK_BYTES - 1) + 1  # of the line that reaches the border
            if (end if end >= 0 else len(buffer)) - start > MAX_LINE_BYTES:
                chunk = lines_up_to(start)
                skipped, searched = 0, CHUNK_BYTES - 1
                if chunk:
                    yield chunk
                skipped = min(len(buffer), MAX_LINE_BYTES)
                del buffer[:skipped]
                continue
            if end < 0:
                searched = max(CHUNK_BYTES - 1, len(buffer))
                break
            chunk = lines_up_to(end + 1)
            searched = CHUNK_BYTES - 1
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


def _cut_document(raw: bytes, reading: _Reading) -> Iterator[Chunk]:
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
        if end < 0 or len(payload) >= CHUNK_BYTES:
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
        if len(element) > MAX_LINE_BYTES:
            if ends:
                yield reading.chunk("array", bytes(payload), len(ends), ends=ends.tobytes())
            payload, ends = bytearray(), array("q")
            yield reading.bad(
                f"{reading.name}: record {reading.rows} has {len(element):,} bytes, more than {MAX_LINE_BYTES:,}",
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


# --- Arrow ---------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, reading: _Reading) -> Iterator[Chunk]:
    try:
        with path.open("rb") as file:
            for _ in _hashed(file, reading.hash):
                pass
            with pq.ParquetFile(path) as parquet:
                yield from _cut_batches(parquet.iter_batches(batch_size=_ARROW_ROWS), reading)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: cannot read it as Parquet: {error}") from None


def _read_arrow(path: Path, reading: _Reading) -> Iterator[Chunk]:
    try:
        with path.open("rb") as file:
            magic = file.read(6)
            file.seek(0)
            for _ in _hashed(file, reading.hash):
                pass
            file.seek(0)
            if magic == b"ARROW1":
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
                yield from _cut_batches(batches, reading)
            else:
                yield from _cut_batches(pa.ipc.open_stream(file), reading)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: cannot read it as Arrow (IPC file or stream): {error}") from None


def _cut_batches(batches: Iterable[Any], reading: _Reading) -> Iterator[Chunk]:
    held: list[Any] = []
    size = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ARROW_ROWS):
            for piece in _halved(batch.slice(start, _ARROW_ROWS)):
                held.append(piece)
                size += piece.nbytes
                if size >= CHUNK_BYTES:
                    yield _arrow_chunk(held, reading)
                    held, size = [], 0
    if held:
        yield _arrow_chunk(held, reading)


def _halved(batch: Any) -> Iterator[Any]:
    if batch.nbytes <= CHUNK_BYTES or batch.num_rows <= 1:
        yield batch
    else:
        half = batch.num_rows // 2
        yield from _halved(batch.slice(0, half))
        yield from _halved(batch.slice(half))


def _arrow_chunk(batches: list[Any], reading: _Reading) -> Chunk:
    names = batches[0].schema.names
    if len(set(names)) != len(names):
        raise UsageError(f"{reading.name}: two columns have the same name; its columns: {', '.join(names)}")
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return reading.chunk("arrow", sink.getvalue(), sum(batch.num_rows for batch in batches))


def _cells(column: Any, name: str, counts: Counter[str]) -> list[Any]:
    """The column's values as JSON values, or a RecordError where one cannot be read."""
    convert = _converter(column.type, counts)
    try:
        values = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        values = [_cell(entry, name) for entry in column]
    if convert is None:
        return list(values)
    cells: list[Any] = []
    for value in values:
        try:
            cells.append(value if value is None or isinstance(value, RecordError) else convert(value))
        except RecordError as error:
            cells.append(RecordError(f"column {name}: {error}", reason=error.reason))
    return cells


def _cell(value: Any, name: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return RecordError(f"column {name}: invalid UTF-8 ({error.reason})", reason="invalid_utf8")
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return RecordError(f"column {name}: {error}", reason="bad_field")


def _converter(kind: Any, counts: Counter[str]) -> Callable[[Any], Any] | None:
    """What turns pyarrow's Python value of this type into a JSON value; None where it is one already."""
    if isinstance(kind, pa.BaseExtensionType):
        return parse if kind.extension_name == "arrow.json" else _converter(kind.storage_type, counts)
    if pa.types.is_dictionary(kind):
        return _converter(kind.value_type, counts)
    if pa.types.is_map(kind):
        item = _converter(kind.item_type, counts) or _same
        return lambda pairs: {key: None if value is None else item(value) for key, value in pairs}
    if pa.types.is_struct(kind):
        fields = {entry.name: _converter(entry.type, counts) or _same for entry in kind}

        def struct(value: dict[str, Any]) -> dict[str, Any]:
            keep = "content" if "role" in value else "value" if "from" in value else None
            record = {
                key: None if entry is None else fields[key](entry)
                for key, entry in value.items()
                if entry is not None or key == keep
            }
            counts["null_struct_fields_dropped"] += len(value) - len(record)
            return record

        return struct
    if hasattr(kind, "value_type"):  # every kind of list
        inner = _converter(kind.value_type, counts)
        if inner is not None:
            return lambda values: [None if value is None else inner(value) for value in values]
    return None


def _same(value: Any) -> Any:
    return value


# --- objects -------------------------------------------------------------------------------------------------------


def _from_object(source: Any, split: str | None) -> _Source:
    module = type(source).__module__.partition(".")[0]
    kind = type(source).__name__
    if module == "datasets" and kind in ("DatasetDict", "IterableDatasetDict"):
        return _from_object(source[_choose_split(source, split, f"this {kind}")], None)
    if split is not None and str(getattr(source, "split", None)) != split:
        raise UsageError(f"split={split!r} chooses from a DatasetDict or a directory; this is a {kind}")
    transformed = getattr(source, "format", {}).get("type") == "custom" if kind == "Dataset" else False
    if module == "datasets" and kind in ("Dataset", "IterableDataset") and source.features and not transformed:
        return _Source("dataset", lambda reading: _read_dataset(source, reading))
    if isinstance(source, pa.Table):
        return _Source("table", lambda reading: _hash_records(_cut_batches(source.to_batches(), reading), reading))
    if isinstance(source, Mapping | bytes) or hasattr(source, "iterrows") or not isinstance(source, Iterable):
        raise UsageError(
            f"cannot read records from a {type(source).__module__}.{kind}: pass a path, a dataset or an iterable of "
            "dicts (a data frame as df.to_dict('records'), one record as [record])"
        )
    left = [iter(source)] if iter(source) is source else None  # an iterator: one pass only

    def read(reading: _Reading) -> Iterator[Chunk]:
        if left is None:
            return _read_iterable(source, reading)
        if not left:
            raise UsageError(
                "this iterator has been read already: pass a list, or an object that can be iterated again"
            )
        return _read_iterable(left.pop(), reading)

    return _Source("iterable", read)


def _read_dataset(dataset: Any, reading: _Reading) -> Iterator[Chunk]:
    batches = (
        batch
        for table in dataset.with_format("arrow").iter(batch_size=_ARROW_ROWS)
        for batch in table.combine_chunks().to_batches()
    )
    yield from _hash_records(_cut_batches(batches, reading), reading)


def _hash_records(chunks: Iterator[Chunk], reading: _Reading) -> Iterator[Chunk]:
    for chunk in chunks:
        for _, record in chunk.records():
            reading.hash.update(json.dumps(record, ensure_ascii=True, default=_described).encode() + b"\n")
        yield chunk


def _described(value: Any) -> str:
    """A value that JSON cannot hold, for the hash only."""
    return f"{type(value).__name__} {bytes(value).hex() if isinstance(value, bytes) else value}"


def _read_iterable(records: Iterable[Any], reading: _Reading) -> Iterator[Chunk]:
    payload = bytearray()
    ends = array("q")
    for record in records:
        try:
            text = _json_text(record)
        except RecordError as error:
            if ends:
                yield reading.chunk("array", bytes(payload), len(ends), ends=ends.tobytes())
                payload, ends = bytearray(), array("q")
            message = f"{reading.name}: record {reading.rows}: {error}"
            reading.hash.update(message.encode(errors="replace") + b"\n")
            yield reading.bad(message, error.reason)
            continue
        reading.hash.update(text + b"\n")
        payload += text
        ends.append(len(payload))
        if len(payload) >= CHUNK_BYTES:
            yield reading.chunk("array", bytes(payload), len(ends), ends=ends.tobytes())
            payload, ends = bytearray(), array("q")
    if ends:
        yield reading.chunk("array", bytes(payload), len(ends), ends=ends.tobytes())


def _json_text(record: Any) -> bytes:
    """The record as JSON text that parses to the same value. RecordError names the first value for which none does."""
    refuse_foreign(record)
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        refuse_lone_surrogates(record)
        raise
