"""Specimen: one packed row made ready to look at: each token's text, facts and reason, documents, findings.

    Sequence of our own ─of_sequence─▶ Specimen ◀─of_arrays─ ids and a loss mask of anybody's

Which rows are worth it, shortlist.py decides; page/ draws them, and a terminal can.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskpipe.document import Document, Float32, Int32, UInt8
from maskpipe.explain import Why, reasons, verdict_words
from maskpipe.findings import Finding
from maskpipe.policy import Policy
from maskpipe.roles import Flag, Part, Role
from maskpipe.shards.documents import verdict_map
from maskpipe.shards.format import Branch
from maskpipe.shards.reader import Sequence as Row

if TYPE_CHECKING:
    from maskpipe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Bounds:
    """One document of a row: the tokens before `end` that belong to none before it."""

    end: int
    """Token position in the row."""
    title: str
    """Where it came from: "chats.jsonl record 7"; "" when nothing says so."""
    notes: tuple[str, ...] = ()
    """What else is known of it: "messages[4] alone", "chosen of pair 3", "tokens 100-200 of 400"."""
    verdicts: tuple[tuple[int, str], ...] = ()
    """Message index and verdict, in words, of each assistant turn."""


@dataclass(frozen=True)
class Mark:
    """Tokens [start, end) that a finding speaks of."""

    start: int
    end: int
    code: str
    text: str


@dataclass(frozen=True, eq=False)
class Specimen:
    """Tokens [first, first + n) of one row. All arrays and `texts` have n entries; positions in Bounds and Mark count
    from the row's first token."""

    row: int
    """0-based row of the dataset, or number of the row among all that were looked at."""
    input_ids: Int32  # [n]
    texts: Sequence[str]  # [n] what stands in the text; a character of several tokens stands at the first, "" follow
    role_ids: UInt8  # [n] roles.Role; UNKNOWN where nothing says whose a token is
    part_ids: UInt8  # [n] roles.Part
    flags: UInt8  # [n] bits of roles.Flag; LOSS is what the data says
    message_ids: Int32  # [n] -1 for none
    why: UInt8  # [n] explain.Why
    documents: tuple[Bounds, ...]
    file: str = ""
    """The shard or file that holds the row."""
    chosen: tuple[str, ...] = ()
    """Why a person should look at it."""
    marks: tuple[Mark, ...] = ()
    weights: Float32 | None = None  # [n] source weight; None: 1 everywhere
    first: int = 0
    length: int = -1
    """Tokens of the whole row, padding included; -1: all of them are here."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def loss_mask(self) -> npt.NDArray[np.bool_]:
        """[n] is this token a target with loss?"""
        return self.flags & Flag.LOSS > 0

    @property
    def tokens(self) -> int:
        """Tokens of documents among these."""
        return int(np.count_nonzero(self.role_ids != Role.PADDING))

    @property
    def title(self) -> str:
        return f"row {self.row:,}"

    def part(self, start: int, stop: int) -> Specimen:
        """Tokens [start, stop) of the row, as far as they are here."""
        a, b = max(0, start - self.first), min(len(self), stop - self.first)
        return replace(
            self,
            input_ids=self.input_ids[a:b],
            texts=self.texts[a:b],
            role_ids=self.role_ids[a:b],
            part_ids=self.part_ids[a:b],
            flags=self.flags[a:b],
            message_ids=self.message_ids[a:b],
            why=self.why[a:b],
            weights=None if self.weights is None else self.weights[a:b],
            first=self.first + a,
            length=self.first + len(self) if self.length < 0 else self.length,
        )


def of_sequence(
    sequence: Row,
    row: int,
    *,
    tokenizer: Tokenizer | None,
    policy: Policy,
    file: str = "",
    sources: Sequence[str] = (),
    chosen: tuple[str, ...] = (),
    findings: Iterable[Finding] = (),
) -> Specimen:
    """Row `row` of a dataset of ours. `policy`: its recipe's, for the reasons; `sources`: names by Document.source."""
    why = np.full(len(sequence), Why.PADDING, np.uint8)
    start = 0
    for document in documents(sequence):
        why[start : start + len(document)] = reasons(document, policy)
        start += len(document)
    return Specimen(
        row=row,
        input_ids=sequence.input_ids,
        texts=texts(sequence.input_ids, tokenizer),
        role_ids=sequence.role_ids,
        part_ids=sequence.part_ids,
        flags=sequence.flags,
        message_ids=sequence.message_ids,
        why=why,
        documents=bounds(sequence, sources),
        file=file,
        chosen=chosen,
        marks=marks(findings, row, len(sequence)),
        weights=sequence.weights if len(sequence.weight_ranges) else None,
    )


def documents(sequence: Row) -> list[Document]:
    """The documents of a row of ours, fragments as they are."""
    out = []
    for k, (start, end) in enumerate(itertools.pairwise(sequence.cu_seqlens.tolist())):
        facts = sequence.documents[k]
        weights = sequence.weights[start:end] if len(sequence.weight_ranges) else None
        out.append(
            Document(
                input_ids=sequence.input_ids[start:end],
                role_ids=sequence.role_ids[start:end],
                part_ids=sequence.part_ids[start:end],
                flags=sequence.flags[start:end],
                message_ids=sequence.message_ids[start:end],
                weights=weights if weights is not None and np.any(weights != 1) else None,
                source=int(facts["source"]),
                row=int(facts["row"]),
                turn=int(facts["turn"]),
                verdicts=verdict_map(sequence.verdicts[k]),
            )
        )
    return out


def bounds(sequence: Row, sources: Sequence[str]) -> tuple[Bounds, ...]:
    """Borders and origins of the documents of a row of ours. `sources`: names by Document.source."""
    out = []
    start = 0
    for facts, verdicts in zip(sequence.documents, sequence.verdicts, strict=True):
        source, end = int(facts["source"]), int(facts["end"])
        name = sources[source] if 0 <= source < len(sources) else f"source {source}"
        words = tuple((message, verdict_words(verdict)) for message, verdict in sorted(verdict_map(verdicts).items()))
        out.append(Bounds(end, f"{name} record {int(facts['row'])}", _notes(facts, end - start), words))
        start = end
    return tuple(out)


def of_arrays(
    input_ids: npt.NDArray[np.integer],
    loss_mask: npt.NDArray[np.integer] | npt.NDArray[np.bool_],
    row: int,
    *,
    tokenizer: Tokenizer | None = None,
    role_ids: UInt8 | None = None,
    part_ids: UInt8 | None = None,
    message_ids: Int32 | None = None,
    document_ends: Sequence[int] | None = None,
    file: str = "",
    title: str = "",
    chosen: tuple[str, ...] = (),
    findings: Iterable[Finding] = (),
) -> Specimen:
    """A row that maskpipe did not prepare. `loss_mask` [n]: this token itself (not the next one) is a target with loss.

    Roles are UNKNOWN and every reason is that the data says so, unless the caller learnt more. `document_ends`: the
    tokens after the last one are padding; None: one document. Without a tokenizer the texts are the ids.
    ValueError when the arrays differ in length.
    """
    n = len(input_ids)
    loss = np.asarray(loss_mask) != 0
    ends = [n] if document_ends is None else [int(end) for end in document_ends]
    roles = np.full(n, Role.UNKNOWN, np.uint8) if role_ids is None else role_ids.astype(np.uint8)
    parts = np.full(n, Part.NONE, np.uint8) if part_ids is None else part_ids.astype(np.uint8)
    messages = np.full(n, -1, np.int32) if message_ids is None else message_ids.astype(np.int32)
    if len({n, len(loss), len(roles), len(parts), len(messages)}) > 1:
        raise ValueError(f"row {row}: {n} ids, {len(loss)} of a loss mask, {len(roles)} roles")
    why = np.where(loss, Why.GIVEN, Why.GIVEN_NONE).astype(np.uint8)
    padding = np.arange(n) >= (ends[-1] if ends else 0)
    roles, why = np.where(padding, Role.PADDING, roles), np.where(padding & ~loss, Why.PADDING, why)
    return Specimen(
        row=row,
        input_ids=np.asarray(input_ids).astype(np.int32),
        texts=texts(input_ids, tokenizer),
        role_ids=roles.astype(np.uint8),
        part_ids=parts,
        flags=np.where(loss, int(Flag.LOSS), 0).astype(np.uint8),
        message_ids=messages,
        why=why.astype(np.uint8),
        documents=tuple(Bounds(end, title) for end in ends),
        file=file,
        chosen=chosen,
        marks=marks(findings, row, n),
    )


def marks(findings: Iterable[Finding], row: int, length: int) -> tuple[Mark, ...]:
    """Where findings speak of tokens of this row, in its order. One that names the row alone marks all of it."""
    out = []
    for finding in findings:
        for place in finding.places:
            if place.row == row:
                start = max(0, place.start)
                end = min(length, place.end if place.end > start else start + 1 if place.start >= 0 else length)
                if start < length:
                    out.append(Mark(start, end, finding.code, finding.text))
    return tuple(sorted(out, key=lambda mark: (mark.start, mark.end, mark.code)))


def texts(ids: npt.NDArray[np.integer], tokenizer: Tokenizer | None) -> list[str]:
    """[n] the text of each token. A character that several tokens make up stands at the first of them, and the others
    have ""; U+FFFD for bytes that are no UTF-8. An id without a token is shown as such; all are without a tokenizer."""
    values = [int(id) for id in ids]
    if tokenizer is None:
        return [f"⟨{id}⟩" for id in values]
    alone: dict[int, str | None] = {}
    for id in set(values):
        raw = tokenizer.token_bytes(id) if 0 <= id < tokenizer.vocab_size else b""
        try:
            alone[id] = raw.decode() if raw else f"⟨no token {id}⟩"
        except UnicodeDecodeError:
            alone[id] = None
    out: list[str] = []
    while len(out) < len(values):
        text = alone[values[len(out)]]
        if text is not None:
            out.append(text)
            continue
        out += _character(values[len(out) : len(out) + _MOST], tokenizer, alone)
    return out


_MOST = 8
"""Tokens that one stretch of bytes without a whole character may have; a character has 4 bytes at most."""


def _character(ids: list[int], tokenizer: Tokenizer, alone: dict[int, str | None]) -> list[str]:
    """The texts of the fewest tokens, from the first, that are whole characters; U+FFFD for the first if none are."""
    raw = b""
    for size, id in enumerate(ids, 1):
        if alone[id] is not None:
            break
        raw += tokenizer.token_bytes(id)
        try:
            return [raw.decode(), *[""] * (size - 1)]
        except UnicodeDecodeError:
            continue
    return [tokenizer.decode(ids[:1])]


def _notes(facts: np.void, tokens: int) -> tuple[str, ...]:
    out = []
    if facts["turn"] >= 0:
        out.append(f"messages[{int(facts['turn'])}] alone, after what inference would feed")
    if facts["branch"] != Branch.NONE:
        out.append(f"{Branch(int(facts['branch'])).name.lower()} of pair {int(facts['pair'])}")
    if not np.isnan(facts["score"]):
        out.append(f"score {float(facts['score']):g}")
    if facts["label"] >= 0:
        out.append("label desirable" if facts["label"] else "label undesirable")
    if tokens != facts["length"]:
        start = int(facts["start"])
        out.append(f"tokens {start:,} to {start + tokens:,} of {int(facts['length']):,}")
    return tuple(out)
