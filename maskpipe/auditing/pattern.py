"""What the renders of conversations of one shape have in common, learnt from two of them and filled with others' data.

    shape      user content, assistant content; nothing at their ends
    whole      "<u>" 0 "</u><a>" 1 "</a>"        0, 1: the texts of the data
    prompt     "<u>" 0 "</u><a>"
    facts      one row per piece: role, part, message, sampled, loss

A shape is all of a conversation that stands in its dark data unchanged: roles, keys, and the white space at both ends
of each text; no text holds markup that the template looks for, or a control token. What the template prints for two
conversations of one shape was shown with stand-ins, and was the same. A third one is rendered as it is, by stock
Jinja2: the whole, each prompt, and each turn as the last one. Where every one of these texts is exactly the pattern
filled with the third one's data, the turns lie where the pattern has them. Where one is not, or anything differs from
the dataset, the conversation goes the long way; and every so often one goes the long way all the same (`together.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.exchange import MARKUP, REASONING, CannotProveError
from maskpipe.auditing.expectation import INLINE_END, Begun, Expectation, View
from maskpipe.auditing.renders import Renders
from maskpipe.auditing.shown import Shown
from maskpipe.auditing.stored import fact_codes
from maskpipe.chat import Conversation
from maskpipe.roles import Flag
from maskpipe.shards.format import VERDICT_DTYPE

Shape = tuple[Any, ...]

_MOST = 1 << 17
"""Characters of a conversation as JSON, from which on there are too few stand-ins."""
_KEYS = frozenset(("content", *REASONING))


class Piece(NamedTuple):
    """A stretch of a text: literal, or a text of the data without its first and last characters."""

    literal: str
    text: int
    """Number of the text, -1 for a literal."""
    front: int = 0
    back: int = 0

    def of(self, texts: Sequence[str]) -> str:
        if self.text < 0:
            return self.literal
        text = texts[self.text]
        return text[self.front : len(text) - self.back] if self.front or self.back else text


class Cut(NamedTuple):
    """A prompt's end inside a document."""

    piece: int
    """It lies where this piece begins."""
    behind: int
    """So many characters behind a control token."""
    ids: tuple[int, ...]
    """What the prompt has between the two."""


@dataclass(frozen=True)
class Document:
    """A document of a pattern: its text in pieces of which each has the same facts throughout."""

    turn: int
    pieces: tuple[Piece, ...]
    codes: tuple[int, ...]
    """Per piece `fact_codes` of its tokens, with loss."""
    cuts: tuple[Cut, ...]
    verdicts: bytes

    def sizes(self, lengths: Sequence[int]) -> list[int]:
        """[pieces] characters of each, from those of the texts."""
        return [
            len(piece.literal) if piece.text < 0 else lengths[piece.text] - piece.front - piece.back
            for piece in self.pieces
        ]


@dataclass(frozen=True)
class Pattern:
    """What conversations of one shape become."""

    renders: tuple[tuple[int, bool, tuple[Piece, ...]], ...]
    """(messages, whether with generation prompt, text) of each render that the turns were decided by."""
    documents: tuple[Document, ...]

    def filled(self, renders: Renders, texts: Sequence[str]) -> list[str] | None:
        """The text of each document; None where stock Jinja2 prints another text than the pattern has."""
        for count, prompt, pieces in self.renders:
            if renders.plain(count, prompt) != _filled(pieces, texts):
                return None
        return [_filled(document.pieces, texts) for document in self.documents]


def _filled(pieces: Sequence[Piece], texts: Sequence[str]) -> str:
    return "".join([piece.of(texts) for piece in pieces])


class Patterns:
    """Knows shapes, and makes patterns, for one dataset."""

    def __init__(self, expectation: Expectation) -> None:
        self.expectation = expectation
        self.possible = expectation.rule is not None and all(part < 0 for _, _, part in expectation.selection.words)
        """Loss of single parts depends on what stands beside a token, which no pattern says."""

    def shape(self, chat: Any) -> tuple[Shape, list[str]] | None:
        """The shape of a conversation as the template gets it, and its texts; None for one that has none."""
        if not self.possible or type(chat) is not Conversation or chat.side is not None:
            return None
        if chat.tools is not None or chat.documents is not None or chat.chat_template_kwargs:
            return None
        if any(weight not in (None, 1) for weight in chat.weights):
            return None
        shape: list[Any] = []
        texts: list[str] = []
        for message in chat.messages:
            if len(message) > 2 and sum(key in message for key in REASONING) > 1:
                return None
            for key, value in message.items():
                if type(value) is not str:
                    return None
                if key == "role":
                    shape.append(value)
                    continue
                if key not in _KEYS:
                    return None
                inner = value.strip()
                front = value.find(inner) if inner else len(value)
                shape.append((key, bool(value), value[:front], value[front + len(inner) :]))
                texts.append(value)
            shape.append(None)
        return None if self._is_hard("\n".join(texts), chat.messages) else (tuple(shape), texts)

    def _is_hard(self, text: str, messages: list[dict[str, Any]]) -> bool:
        """Is there markup that the template looks for, a control token, or a character that cannot be exchanged?"""
        if not text.isascii() and (max(text) >= "\U00020000" or _is_lone(text)):
            return True
        if INLINE_END in text or self.expectation.speller.holds_control(text):
            return True
        assert self.expectation.rule is not None
        source = self.expectation.rule.template.source
        if any(found in source for found in MARKUP.findall(text)):
            return True
        return len(text) > _MOST // 8 and len(json.dumps(messages, ensure_ascii=False)) > _MOST

    def learn(self, begun: Begun, texts: Sequence[str]) -> Pattern | None:
        """The pattern of a conversation of a shape; None where it has none."""
        renders = begun.renders
        if renders is None or begun.told or not begun.views:
            return None
        number: dict[tuple[str | int, ...], int] = {}
        fields = [(k, key) for k, message in enumerate(renders.messages) for key in message if key != "role"]
        for at, (k, field) in enumerate(fields):
            for key in REASONING if field in REASONING else (field,):  # which goes by several names
                number["messages", k, key] = at
        try:
            made = [(count, prompt, renders.shown(count, prompt)) for count, prompt in renders.rendered]
            lines = [(count, prompt, _pieces(shown, (), number, texts)) for count, prompt, shown in made]
            documents = [self._document(begun, view, number, texts) for view in begun.views]
        except (CannotProveError, _NoPatternError):
            return None
        return Pattern(tuple(sorted(lines)), tuple(documents))

    def _document(
        self, begun: Begun, view: View, number: Mapping[tuple[str | int, ...], int], texts: Sequence[str]
    ) -> Document:
        shown, expectation = view.shown, self.expectation
        assert begun.renders is not None
        if shown.doubtful.any() or not np.all((shown.leaf >= 0) | shown.written):
            raise _NoPatternError
        facts = expectation.characters(shown, view.turns, begun.renders)
        roles, parts, messages, sampled, empty = facts
        flags = np.where(sampled, np.uint8(Flag.SAMPLED), np.uint8(0))
        flags |= np.where(sampled & empty, np.uint8(Flag.EMPTY_REASONING), np.uint8(0))
        cuts = [cut for cut in expectation.cuts(view) if cut < len(shown)]
        edges = [*cuts, *(np.flatnonzero(_changes(*facts)) + 1).tolist()]
        pieces = _pieces(shown, edges, number, texts)
        starts = np.cumsum([0, *(len(piece.of(texts)) for piece in pieces[:-1])])
        verdicts = expectation.verdicts(begun, view)
        first = np.zeros(1, np.uint8)  # stands for the first token, which never has loss
        loss = expectation.selection.loss(
            np.concatenate((first, roles[starts])), np.concatenate((first, parts[starts])),
            np.concatenate((first, flags[starts])), np.concatenate((np.full(1, -1, np.int32), messages[starts])),
            None, view.own, verdicts,
        )[1:]  # fmt: skip
        codes = fact_codes(
            roles[starts], parts[starts], flags[starts] | np.where(loss, np.uint8(Flag.LOSS), np.uint8(0)),
            messages[starts],
        )  # fmt: skip
        said = np.array(sorted(verdicts.items()), VERDICT_DTYPE).tobytes()
        places = starts.tolist()
        return Document(
            view.own, pieces, tuple(codes.tolist()),
            tuple(self._cut(shown, cut, places.index(cut)) for cut in cuts), said,
        )  # fmt: skip

    def _cut(self, shown: Shown, cut: int, piece: int) -> Cut:
        begin = self.expectation.speller.behind_control(shown.text[:cut])
        if begin < 0 or np.any(shown.leaf[begin:cut] >= 0):
            raise _NoPatternError
        ids = self.expectation.speller.window(shown.text[begin:cut])
        if ids is None:
            raise _NoPatternError
        return Cut(piece, cut - begin, ids)


class _NoPatternError(Exception):
    """The texts of a conversation are no literals and whole texts of the data."""


def _changes(*values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """[n - 1] where one of these is not what it is one place before."""
    out = np.zeros(max(0, len(values[0]) - 1), bool)
    for entry in values:
        out |= entry[1:] != entry[:-1]
    return out


def _pieces(
    shown: Shown, edges: Sequence[int], number: Mapping[tuple[str | int, ...], int], texts: Sequence[str]
) -> tuple[Piece, ...]:
    """The text in pieces, with borders at `edges` too."""
    leaf, offset = shown.leaf, shown.offset
    border = _changes(leaf)
    border |= (leaf[1:] >= 0) & (offset[1:] != offset[:-1] + 1)
    places = sorted({0, *edges, *(np.flatnonzero(border) + 1).tolist(), len(shown)})
    out = []
    for start, stop in pairwise(places):
        if leaf[start] < 0:
            out.append(Piece(shown.text[start:stop], -1))
            continue
        which = number.get(shown.data.leaves[leaf[start]].path, -1)
        if which < 0:
            raise _NoPatternError
        text = texts[which]
        front, back = int(offset[start]), len(text) - 1 - int(offset[stop - 1])
        if (
            text[:front].strip()
            or text[len(text) - back :].strip()
            or shown.text[start:stop] != Piece("", which, front, back).of(texts)
        ):
            raise _NoPatternError
        out.append(Piece("", which, front, back))
    return tuple(out)


def _is_lone(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
