"""Many records beside what the dataset has of them, as arrays: those of which nothing at all differs from a pattern.

    conversations ─pattern.py─▶ texts and pieces ─ids.py─▶ tokens ─▶ facts per token ─┬─▶ records without a difference
    shards ─stored.py─▶ ids and facts per token ──────────────────────────────────────┘   and the others

It can only agree. A record of no shape, one that is not its pattern, and one of which anything differs go the long way,
which says what. So do the first two of each shape, from which the pattern is learnt, and every 256th after them, which
must give the pattern again; where it does not, the pattern is given up and all that was taken by it is redone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.expectation import Begun, Expectation
from maskpipe.auditing.ids import Int32, Speller
from maskpipe.auditing.pattern import Document, Pattern, Patterns, Shape
from maskpipe.auditing.stored import Found, Index
from maskpipe.chat import Read
from maskpipe.roles import Flag

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_LEARNT = 2
"""Conversations that must give one pattern before it is used."""
_AGAIN = 256
"""Of so many one goes the long way."""
_SHAPES = 4096
"""Shapes that are remembered."""
_LOSS = np.int64(Flag.LOSS) << 16


@dataclass
class Taken:
    """Records of which nothing differs."""

    keys: array[int]
    documents: int = 0
    tokens: int = 0

    def add(self, other: Taken) -> None:
        self.keys += other.keys
        self.documents += other.documents
        self.tokens += other.tokens


@dataclass
class _Known:
    """What is known of one shape."""

    pattern: Pattern | None = None
    learnt: int = 0
    """How often it was learnt; -1: it has no pattern."""
    used: int = 0
    taken: Taken = field(default_factory=lambda: Taken(array("q")))
    """By the pattern."""


class _Waiting(NamedTuple):
    """A record that is as its pattern says up to its tokens."""

    key: int
    known: _Known
    texts: list[str]
    lengths: list[int]
    found: list[Found]


class Together:
    """Takes the records of a dataset of which nothing differs."""

    def __init__(self, expectation: Expectation, index: Index) -> None:
        self.expectation, self.index = expectation, index
        self.patterns = Patterns(expectation)
        self._known: dict[Shape, _Known] = {}
        self._shapes: dict[int, tuple[Shape, list[str]]] = {}
        self._found: dict[int, list[Found] | None] = {}
        self._due: set[int] = set()
        self.again: list[Taken] = []
        """Records that were taken by a pattern that was given up afterwards: to be looked at once more."""

    def begin(self, records: Sequence[tuple[int, Read]]) -> list[int]:
        """Begins with these records, each with its key. The keys of those that patterns should be learnt from before
        the others are taken."""
        self._shapes.clear()
        self._due.clear()
        if not self.patterns.possible:
            return []
        self._found = self.index.found(np.array([key for key, _ in records], np.int64))
        first = []
        missing: dict[Shape, int] = {}
        for key, read in records:
            shaped = self.patterns.shape(read.items[0]) if len(read.items) == 1 and self._found[key] else None
            if shaped is None:
                continue
            self._shapes[key] = shaped
            known = self._known.get(shaped[0])
            left = missing.setdefault(shaped[0], _LEARNT - (0 if known is None else known.learnt))
            if left > 0 and (known is None or known.learnt >= 0) and len(self._known) + len(missing) <= _SHAPES:
                missing[shaped[0]] -= 1
                first.append(key)
        return first

    def learn(self, key: int, begun: Sequence[Begun | str]) -> None:
        """From a record that goes the long way."""
        shaped = self._shapes.get(key)
        if shaped is None:
            return
        shape, texts = shaped
        known = self._known.setdefault(shape, _Known()) if len(self._known) < _SHAPES else self._known.get(shape)
        if known is None or known.learnt < 0 or (known.learnt >= _LEARNT and key not in self._due):
            return
        made = None if isinstance(begun[0], str) else self.patterns.learn(begun[0], texts)
        if made is None or (known.pattern is not None and known.pattern != made):
            self.again.append(known.taken)
            self._known[shape] = _Known(learnt=-1)
            return
        known.pattern, known.learnt = made, known.learnt + 1

    def take(self, records: Sequence[tuple[int, Read]]) -> Taken:
        """Those of these records of which nothing differs."""
        waiting = [one for key, read in records if (one := self._waiting(key, read)) is not None]
        out = Taken(array("q"))
        for one, good in zip(waiting, self._agree(waiting) if waiting else (), strict=True):
            if good:
                tokens = sum(document.length for document in one.found)
                taken = Taken(array("q", [one.key]), len(one.found), tokens)
                one.known.taken.add(taken)
                out.add(taken)
        return out

    def _waiting(self, key: int, read: Read) -> _Waiting | None:
        shaped, found = self._shapes.get(key), self._found.get(key)
        known = None if shaped is None else self._known.get(shaped[0])
        if shaped is None or not found or known is None or known.pattern is None or known.learnt < _LEARNT:
            return None
        known.used += 1
        if known.used % _AGAIN == 0:
            self._due.add(key)
            return None
        pattern, texts = known.pattern, shaped[1]
        by_turn = {document.turn: document for document in found}
        if len(by_turn) < len(found) or len(found) != len(pattern.documents):
            return None
        limit = self.expectation.recipe.sequence_length
        for document in pattern.documents:
            stored = by_turn.get(document.turn)
            if stored is None or stored.verdicts != document.verdicts or not 0 < stored.length <= limit:
                return None
        made = pattern.filled(self.expectation.renders(read.items[0]), texts)  # type: ignore[arg-type]
        if made is None:
            return None
        in_order = [by_turn[document.turn] for document in pattern.documents]
        return _Waiting(key, known, made, list(map(len, texts)), in_order)

    def _agree(self, waiting: Sequence[_Waiting]) -> list[bool]:
        """Per record: are all tokens of all its documents as they must be?"""
        documents: list[tuple[Document, str, list[int], Found]] = []
        counts = []
        for one in waiting:
            assert one.known.pattern is not None
            of = one.known.pattern.documents
            counts.append(len(of))
            documents += [
                (document, text, one.lengths, stored)
                for document, text, stored in zip(of, one.texts, one.found, strict=True)
            ]
        good = self._documents_agree(documents)
        ends = np.cumsum(counts)
        bad = np.concatenate(([0], np.cumsum(~good)))
        out: list[bool] = (bad[ends] == bad[ends - counts]).tolist()
        return out

    def _documents_agree(self, documents: Sequence[tuple[Document, str, list[int], Found]]) -> Bool:
        """[documents] whether every id and every fact of it is as it must be."""
        speller = self.expectation.speller
        ids, starts, ends, sizes = speller.spell_flat([text for _, text, _, _ in documents])
        pieces = _Pieces([(document, lengths) for document, _, lengths, _ in documents])
        size = np.array(sizes, np.int64)
        stored_ids, stored_codes = self.index.tokens([found for *_, found in documents])
        length = np.array([found.length for *_, found in documents], np.int64)
        good = (size == length) & (pieces.sizes == np.array([len(text) for _, text, _, _ in documents]))
        if not good.all():  # the others are looked at without these
            out = np.zeros(len(documents), bool)
            kept = np.flatnonzero(good)
            if len(kept):
                out[kept] = self._documents_agree([documents[k] for k in kept.tolist()])
            return out
        first = np.cumsum(size) - size
        base = np.repeat(pieces.starts, size)
        begin, end = starts + base, ends + base
        reached = np.maximum.accumulate(end)
        wrong = (stored_ids != ids) | (end < reached)
        before = np.concatenate(([0], end[:-1]))  # characters that no token claims go to the one behind them
        before[first] = pieces.starts
        last = end[first + size - 1]
        wrong[first] |= last != pieces.starts + pieces.sizes
        at = np.minimum(np.minimum(begin, before), base + np.repeat(pieces.sizes, size) - 1)
        one, other = pieces.holding(at), pieces.holding(np.maximum(end - 1, at))
        inside = pieces.sampled[other + 1] - pieces.sampled[one]
        wrong |= (inside > 0) & (inside <= other - one)  # straddles
        wrong |= speller.is_control(ids) & (pieces.data[other + 1] > pieces.data[one])
        codes = pieces.codes[one]
        codes[first] &= ~_LOSS
        wrong |= stored_codes != codes
        wrong[first] |= ~_cuts_hold(documents, pieces, first, ids, begin, reached, speller)
        return ~np.logical_or.reduceat(wrong, first)


class _Pieces:
    """The pieces of many texts, one text behind the other."""

    def __init__(self, documents: Sequence[tuple[Document, list[int]]]) -> None:
        lengths = np.array([size for document, texts in documents for size in document.sizes(texts)], np.int64)
        counts = np.array([len(document.pieces) for document, _ in documents])
        self.ends = np.cumsum(lengths)
        self.first = np.cumsum(counts) - counts
        """[texts] the first piece of each."""
        self.begins = self.ends - lengths
        self.starts = self.begins[self.first]
        """[texts] the first character of each."""
        self.sizes = np.add.reduceat(lengths, self.first)
        """[texts] characters of each."""
        self.codes = np.array([code for document, _ in documents for code in document.codes], np.int64)
        sampled = (self.codes >> 16) & Flag.SAMPLED > 0
        self.sampled = np.concatenate(([0], np.cumsum(sampled)))
        data = np.array([piece.text >= 0 for document, _ in documents for piece in document.pieces], bool)
        self.data = np.concatenate(([0], np.cumsum(data)))

    def holding(self, characters: Int64) -> Int64:
        """The piece in which each of these lies."""
        return np.searchsorted(self.ends, characters, "right")


def _cuts_hold(
    documents: Sequence[tuple[Document, str, list[int], Found]],
    pieces: _Pieces,
    first: Int64,
    ids: Int32,
    begin: Int64,
    end: Int64,
    speller: Speller,
) -> Bool:
    """[documents] whether the tokens before each prompt's end are the prompt's own."""
    out = np.ones(len(documents), bool)
    groups: dict[tuple[int, tuple[int, ...]], list[tuple[int, int]]] = {}
    for k, (document, *_) in enumerate(documents):
        for cut in document.cuts:
            groups.setdefault((cut.behind, cut.ids), []).append((k, cut.piece))
    for (behind, window), members in groups.items():
        of, piece = np.array(members, np.int64).T
        cut = pieces.begins[pieces.first[of] + piece]
        token = np.searchsorted(end, cut, "right")  # the first behind it
        control = token - len(window) - 1
        holds = (control >= first[of]) & (end[token - 1] == cut)
        holds &= (token == len(end)) | (begin[np.minimum(token, len(end) - 1)] >= cut)
        control = np.maximum(control, 0)
        holds &= speller.is_control(ids[control]) & (end[control] == cut - behind)
        for k, id in enumerate(window):
            holds &= ids[control + 1 + k] == id
        out[of[~holds]] = False
    return out
