"""Which files a path, a directory, a saved dataset or a pattern names, and what kind of file each is."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from maskpipe.errors import UsageError
from maskpipe.sources import limits
from maskpipe.sources.arrow import read_arrow, read_parquet
from maskpipe.sources.chunk import Chunk
from maskpipe.sources.json_files import read_json, refuse_utf16
from maskpipe.sources.source import Reading, Source
from maskpipe.sources.unpack import unpacked_blocks

TEXT_SUFFIXES = (".txt", ".md", ".rst")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
ARROW_SUFFIXES = (".arrow", ".ipc", ".feather")
SUFFIXES = (*JSON_SUFFIXES, ".parquet", *ARROW_SUFFIXES, ".txt")
"""What a directory is searched for; .md and .rst only where they are named themselves."""
PACKED = (".gz", ".zst")


def is_known(name: str) -> bool:
    """Does a file of this name look like one that can be read, is it a pattern, or is it there?"""
    path = Path(name)
    known = (*SUFFIXES, *TEXT_SUFFIXES)
    return path.exists() or _suffix(path) in known or any(mark in name for mark in "*?[")


def from_path(given: str, split: str | None) -> tuple[list[Source], int]:
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
    raise UsageError(f"{given}: no such file or directory")


def _from_directory(path: Path, split: str | None) -> tuple[list[Source], int]:
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return _from_saved(path / choose_split(splits, split, str(path)), path)
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        if split is not None:
            raise UsageError(f"{path} is one saved dataset without splits; leave --split {split} away")
        return _from_saved(path, path)
    everything = [
        entry
        for entry in sorted(path.rglob("*"), key=lambda entry: entry.relative_to(path).parts)
        if entry.is_file() and not any(part.startswith((".", "_")) for part in entry.relative_to(path).parts)
    ]
    folders = {folder for entry in everything for folder in entry.relative_to(path).parents}
    ours = {folder for folder in folders if _is_made_here(path / folder)}  # such as an OUT among its sources
    known = [
        entry for entry in everything if _suffix(entry) in SUFFIXES and ours.isdisjoint(entry.relative_to(path).parents)
    ]
    if not known and ours:
        raise UsageError(
            f"{path} is a prepared dataset. Name what it was prepared from; `maskpipe repack`, append and merge take "
            "datasets"
        )
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


def _is_made_here(path: Path) -> bool:
    """A dataset that maskpipe prepared, or the unfinished work of a preparation."""
    if path.suffix == ".partial":
        return (path / "job.json").is_file()
    return (path / "manifest.sha256").is_file() and (path / "manifest.json").is_file()


def _from_saved(path: Path, root: Path) -> tuple[list[Source], int]:
    """A directory written by Dataset.save_to_disk."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.get("_indices_data_files"):
        raise UsageError(f"{path} is a selection of a larger dataset. Call flatten_indices() before save_to_disk")
    files = [path / entry["filename"] for entry in state["_data_files"]]
    return [_from_file(entry, entry.relative_to(root).as_posix()) for entry in files], 0


def choose_split(splits: Iterable[str], split: str | None, where: str) -> str:
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


def _from_file(path: Path, name: str) -> Source:
    return replace(_file_of_a_kind(path, name), size=path.stat().st_size, file=path)


def _file_of_a_kind(path: Path, name: str) -> Source:
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None
    suffix = _suffix(path)
    if magic.startswith(b"PAR1"):
        return Source(name, lambda reading: read_parquet(path, reading))
    if magic.startswith(b"ARROW1") or suffix in ARROW_SUFFIXES:
        return Source(name, lambda reading: read_arrow(path, reading))
    if suffix == ".parquet":
        raise UsageError(f"{path} is not a Parquet file: it does not begin with PAR1")
    if suffix in TEXT_SUFFIXES:
        return Source(name, lambda reading: _read_text(path, reading))
    if suffix in JSON_SUFFIXES:
        return Source(name, lambda reading: read_json(path, reading, named_lines=suffix != ".json"))
    known = ", ".join((*SUFFIXES, *TEXT_SUFFIXES[1:]))
    raise UsageError(
        f"{path}: unknown kind of file {suffix or '(no extension)'}; known: {known}, "
        "also with .gz or .zst. Rename it, or convert it to JSON Lines"
    )


def _read_text(path: Path, reading: Reading) -> Iterator[Chunk]:
    pieces = []
    size = 0
    for piece in unpacked_blocks(path, reading.hash):
        size += len(piece)
        if size <= limits.MAX_LINE_BYTES:
            pieces.append(piece)
    refuse_utf16(pieces[0] if pieces else b"", path)
    if size > limits.MAX_LINE_BYTES:
        yield reading.bad(
            f"{reading.name}: a text file is one text, and this one has {size:,} bytes, "
            f"more than {limits.MAX_LINE_BYTES:,}. "
            'Split it into documents: JSON Lines of {"text": ...}',
            "too_long_text",
        )
    elif size:
        yield reading.chunk("text", b"".join(pieces), 1)
