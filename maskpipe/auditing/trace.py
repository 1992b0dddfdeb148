"""Where a token of a dataset comes from, character by character, and which tokens a character became.

    shard, row, position ─trace─▶ source file, record, message, field, characters
    record, message, field, character ─locate─▶ rows and positions

It goes by the proof's renders and offsets, not by what prepare did, and by the source, whose hash must be the one that
the dataset keeps. Without the source the facts of the token are shown, and the record that it is attributed to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskpipe.auditing.exchange import CannotProveError
from maskpipe.auditing.expectation import Expectation, Expected
from maskpipe.auditing.proof import closest, expected_of, matched_sources
from maskpipe.auditing.stored import Index, Stored
from maskpipe.chat import Conversation, Read, read_all
from maskpipe.errors import DatasetError, RecordError, UsageError
from maskpipe.explain import visible
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role
from maskpipe.shards.reader import Dataset
from maskpipe.sources import open_sources
from maskpipe.strict_json import Path
from maskpipe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Origin:
    """Characters of the data that a token holds."""

    field: str
    """In the conversation as templates see it, such as messages[2].content."""
    start: int
    end: int
    text: str
    in_record: str
    """The same place in the raw record, such as conversations[2].value; "" where it is not one string of it."""
    record_start: int
    """First character there, -1 without one."""


@dataclass(frozen=True)
class TokenTrace:
    """One token of a dataset and what it came from."""

    file: str
    row: int
    position: int
    id: int
    text: str
    role: str
    part: str
    message: int
    sampled: bool
    loss: bool
    document: int
    """Number of the document in the row, -1 in padding."""
    document_position: int
    source: str
    record: int
    place: str
    """Where a person finds the record, such as chats.jsonl:18; "" without the source."""
    origins: tuple[Origin, ...]
    """In the order of the text; what the template wrote has none."""
    from_template: str
    """The characters of the token that the template wrote."""
    unknown: str
    """Why nothing is known of the characters, in words; "" when it is known."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what `--format json` prints. The keys are stable."""
        return {**vars(self), "origins": [vars(origin) for origin in self.origins]}

    def __str__(self) -> str:
        facts = [self.role, self.part, f"message {self.message}" if self.message >= 0 else "no message"]
        facts += ["sampled" if self.sampled else "not sampled", "loss" if self.loss else "no loss"]
        lines = [
            f"token     {self.id}  '{visible(self.text)}'   {self.file} row {self.row} position {self.position}",
            f"facts     {', '.join(facts)}",
        ]
        if self.document >= 0:
            lines.append(f"document  {self.document} of the row, its token {self.document_position}")
            lines.append(f"record    {self.source} record {self.record}" + (f" ({self.place})" if self.place else ""))
        for origin in self.origins:
            where = f"{origin.field}, characters {origin.start} to {origin.end}: '{visible(origin.text)}'"
            raw = (
                f"; in the record {origin.in_record}, from character {origin.record_start}" if origin.in_record else ""
            )
            lines.append(f"from      {where}{raw}")
        if self.from_template:
            lines.append(f"template  '{visible(self.from_template)}'")
        if self.unknown:
            lines.append(f"unknown   {self.unknown}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Located:
    """A token that holds a character of the data."""

    file: str
    row: int
    position: int
    id: int
    text: str
    loss: bool

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def __str__(self) -> str:
        loss = "loss" if self.loss else "no loss"
        return f"{self.file} row {self.row} position {self.position}: {self.id} '{visible(self.text)}', {loss}"


def trace(dataset: Dataset, row: int, position: int, *, source: Any = None, split: str | None = None) -> TokenTrace:
    """What token `position` of row `row` came from. `source`: what the dataset was prepared from; None: facts alone.

    UsageError: no such row or position, a source that is not the one that was prepared.
    """
    if not 0 <= row < len(dataset):
        raise UsageError(f"--row {row}: {dataset.name} has rows 0 to {len(dataset) - 1}")
    sequence = dataset[row]
    if not 0 <= position < len(sequence):
        raise UsageError(f"--pos {position}: a row has positions 0 to {len(sequence) - 1}")
    tokenizer = Tokenizer.load(dataset.path)
    bounds = sequence.cu_seqlens
    number = int(np.searchsorted(bounds, position, "right")) - 1
    padding = number >= len(sequence.documents)
    entry = None if padding else sequence.documents[number]
    record = -1 if entry is None else int(entry["row"])
    name = "" if entry is None else dataset.manifest.sources[int(entry["source"])].name
    within = -1 if entry is None else int(entry["start"]) + position - int(bounds[number])
    origins: tuple[Origin, ...] = ()
    literal = place = ""
    unknown = "padding comes from nothing" if padding else "give the source to see the characters: --source"
    if entry is not None and source is not None:
        with _Lookup(dataset, source, split, tokenizer) as lookup:
            key = int(entry["source"]) << 40 | record
            found = lookup.document(key, row, position)
            place = lookup.place
            if isinstance(found, str):
                unknown = found
            else:
                origins, literal = _origins(found, within, lookup)
                unknown = ""
    return TokenTrace(
        file=_file_of(dataset, row), row=row, position=position, id=int(sequence.input_ids[position]),
        text=tokenizer.decode([int(sequence.input_ids[position])]), role=Role(sequence.role_ids[position]).name.lower(),
        part=Part(sequence.part_ids[position]).name.lower(), message=int(sequence.message_ids[position]),
        sampled=bool(sequence.sampled[position]), loss=bool(sequence.loss_mask[position]),
        document=-1 if padding else number, document_position=within, source=name, record=record, place=place,
        origins=origins, from_template=literal, unknown=unknown,
    )  # fmt: skip


def locate(
    dataset: Dataset,
    record: int,
    message: int,
    field: str,
    character: int,
    *,
    source: Any,
    split: str | None = None,
    source_name: str | None = None,
) -> list[Located]:
    """The tokens that hold a character: of `field` (such as content, or tool_calls[0].function.name) of a message,
    numbered as in the dataset. Empty where none does: it was left out, cut off, or the template does not show it.

    UsageError: a source that is not the one that was prepared, or several sources and no `source_name`.
    """  # fmt: skip
    names = [known.name for known in dataset.manifest.sources]
    if source_name is None and len(names) > 1:
        raise UsageError(f"the dataset has {len(names)} sources ({', '.join(names[:6])}): say which one has the record")
    if source_name is not None and source_name not in names:
        raise UsageError(f"the dataset has no source {source_name}; it has {', '.join(names[:12])}")
    number = 0 if source_name is None else names.index(source_name)
    tokenizer = Tokenizer.load(dataset.path)
    out = []
    with _Lookup(dataset, source, split, tokenizer) as lookup:
        for stored, expected in lookup.documents(number << 40 | record):
            if expected.shown is None:
                at = np.arange(len(expected.text)) == character if field == "text" else np.zeros(0, bool)
            else:
                shown = expected.shown
                local = expected.local(message)
                wanted = [
                    k for k, leaf in enumerate(shown.data.leaves) if _words(leaf.path) == f"messages[{local}].{field}"
                ]
                at = np.isin(shown.leaf, wanted) & (shown.offset == character)
            for place in np.flatnonzero(at).tolist():
                for k in np.flatnonzero((expected.starts <= place) & (expected.ends > place)).tolist():
                    if k < len(stored):
                        piece = stored.piece_of(k)
                        id = int(stored.ids[k])
                        position = piece.start + k - piece.at
                        loss = bool(stored.flags[k] & Flag.LOSS)
                        out.append(Located(piece.file, piece.row, position, id, tokenizer.decode([id]), loss))
    return out


class _Lookup:
    """Records of the source, and their documents, as they are and as they must be."""

    def __init__(self, dataset: Dataset, source: Any, split: str | None, tokenizer: Tokenizer) -> None:
        if type(dataset) is not Dataset:
            raise UsageError(f"{dataset.name}: characters are traced in a dataset in a directory; copy it here first")
        self.dataset = dataset
        self.recipe = Recipe.from_dict(dataset.manifest.recipe)
        self._sources = open_sources(source, self.recipe.replace(source_caps={}, source_weights={}), split=split)
        self._numbers = matched_sources(self._sources.names, dataset.manifest.sources)
        self._expectation = Expectation(tokenizer, self.recipe)
        self._index = Index(dataset)
        self.place = ""
        self.record: Any = None
        self.read: Read | None = None

    def __enter__(self) -> _Lookup:
        return self

    def __exit__(self, *_: object) -> None:
        self._index.close()

    def document(self, key: int, row: int, position: int) -> Expected | str:
        """The document that must stand at this place, or why there is none."""
        for stored, expected in self.documents(key):
            for piece in stored.pieces:
                if piece.row == row and piece.start <= position < piece.end:
                    return expected
        return "the record does not become this document: `maskpipe audit` with --source says more"

    def documents(self, key: int) -> list[tuple[Stored, Expected]]:
        """The documents of a record, each beside what it must be; those that cannot be matched are left out. UsageError
        when the source is not the one that was prepared."""
        self._find(key)
        if self.read is None:
            return []
        stored = self._index.documents(np.array([key], np.int64))[key]
        try:
            expected, reasons = expected_of(self._expectation, self.read, stored)
        except CannotProveError as error:
            raise UsageError(f"the record cannot be rendered again by stand-ins: {error}") from None
        if reasons and not expected:
            raise UsageError(f"the record cannot be rendered again by stand-ins: {next(iter(reasons.values()))}")
        out = []
        for document in stored:
            number = closest(document, expected, self.read)
            if number is not None:
                out.append((document, expected[number]))
        return out

    def _find(self, key: int) -> None:
        number, row = key >> 40, key & ((1 << 40) - 1)
        self.read = None
        for chunk in self._sources.chunks():
            if self._numbers[chunk.source] != number or not chunk.first_row <= row < chunk.first_row + chunk.count:
                continue
            self.place = chunk.place(row)
            self.record = next(record for at, record in chunk.records() if at == row)
        for own, origin in zip(self._numbers, self._sources.origins, strict=True):
            known = self.dataset.manifest.sources[own]
            if own == number and origin.sha256 != known.sha256:
                raise UsageError(
                    f"{origin.name} is not the file that was prepared: its SHA-256 is {origin.sha256[:12]}…, the "
                    f"dataset was made from {known.sha256[:12]}…"
                )
        if self.record is None or isinstance(self.record, RecordError):
            raise UsageError(f"the source has no record {row} that can be read")
        try:
            self.read = read_all(self.record, self.recipe)
        except RecordError as error:
            raise UsageError(f"{self.place}: {error}") from None


def _origins(document: Expected, position: int, lookup: _Lookup) -> tuple[tuple[Origin, ...], str]:
    """The characters of a token that came from data, and those that the template wrote."""
    start, end = int(document.starts[position]), int(document.ends[position])
    assert lookup.read is not None
    item = lookup.read.items[document.item]
    if document.shown is None:
        path = _words(getattr(item, "path", ()))
        return (Origin("text", start, end, document.text[start:end], path, start),), ""
    shown = document.shown
    out: list[Origin] = []
    literal = ""
    at = start
    while at < end:
        leaf = int(shown.leaf[at])
        stop = at + 1
        while stop < end and shown.leaf[stop] == leaf:
            stop += 1
        if leaf < 0:
            literal += document.text[at:stop]
        else:
            own = shown.data.leaves[leaf]
            first, last = int(shown.offset[at]), int(shown.offset[stop - 1]) + 1
            path, shift = _in_record(lookup.record, item, own.path, own.text)
            place = first + shift if path else -1
            out.append(Origin(_words(own.path), first, last, document.text[at:stop], path, place))
        at = stop
    return tuple(out), literal


def _in_record(record: Any, item: Any, path: Path, text: str) -> tuple[str, int]:
    """(the place in the raw record of a text of the conversation, its first character there); ("", 0) for none."""
    if not isinstance(item, Conversation) or path[0] != "messages":
        return ("", 0) if _value(record, path) != text else (_words(path), 0)
    message = int(path[1])
    base = item.paths[message] if message < len(item.paths) else ()
    if len(base) >= 2 and isinstance(base[-1], int) and isinstance(base[-2], int):
        whole = _value(record, base[:-2])
        if isinstance(whole, str):  # a stretch of a longer string
            found = whole.find(text, base[-2], base[-1])
            return ("", 0) if found < 0 else (_words(base[:-2]), found)
    value = _value(record, base)
    if isinstance(value, str):
        found = value.find(text)
        return ("", 0) if found < 0 else (_words(base), found)
    inside = _value(record, (*base, *path[2:]))
    if isinstance(inside, str) and text in inside:
        return _words((*base, *path[2:])), inside.find(text)
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if isinstance(entry, str) and entry == text:
                return _words((*base, name)), 0
    return "", 0


def _value(value: Any, path: Sequence[str | int]) -> Any:
    """What stands at a path; None for nothing."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _words(path: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _file_of(dataset: Dataset, row: int) -> str:
    for shard in dataset.manifest.shards:
        if row < shard.rows:
            return shard.name
        row -= shard.rows
    raise DatasetError(f"{dataset.path}: its shards have fewer rows than it says")
