"""Joints: the tokens that a chat template writes between contents, learnt by rendering probe conversations with it.

    probe      system "…", user "…", assistant "…"
    document   [<|im_start|> system \\n] … [<|im_end|> \\n <|im_start|> user \\n] … [… assistant \\n] … [<|im_end|> \\n]
    joints     start→system              system→user                                user→assistant     assistant→end

Each token of a joint has the facts that the tracker found: whose it is, whether the model samples it, which one is the
stop token. Nothing is known of a model or a template by name. Where turns are not told apart by control tokens, the
reason is kept in words and no joint.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.foreign.rows import Ids
from maskpipe.chat import Conversation
from maskpipe.document import Document
from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role, Verdict
from maskpipe.tokenizer import Tokenizer

START, END, ANY = 252, 253, 254
"""Places that are no role, as in csrc/turns.h."""
SAMPLED, STOP, HEADER, AFTER, OPEN, STRAY, EMPTY, JOINT = (1 << bit for bit in range(8))
"""Mark of csrc/turns.h."""
LONG = 8
"""So many ordinary tokens in a row are text of the template (a default system prompt, a date), not part of a joint."""

_SYSTEM = (-2, Role.CONTEXT, Role.TEMPLATE)
"""Text that stands in the system's turn, or would if there were one."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Joint:
    """What stands between two contents."""

    before: int
    """Role of the content before it, START or ANY."""
    after: int
    """Role of the content after it, or END."""
    ids: Tokens
    roles: Tokens
    marks: Tokens
    needed: int
    """How many of its ids must be there; those after them are white space that may merge with the content."""


@dataclass(frozen=True)
class Habits:
    """How conversations of one template look in ids of one tokenizer."""

    joints: tuple[Joint, ...]
    """Empty where turns cannot be located."""
    why: str
    """Why not, in words."""
    bos: int | None
    """The id that begins every document of the template, if it is the tokenizer's BOS."""
    bos_counts: frozenset[int]
    """How many BOS tokens documents of the template begin with."""
    empty: tuple[Tokens, ...]
    """Empty reasoning blocks that the template adds, longest first."""
    allowed: dict[int, int]
    """Control id → bits 1 << role of contents it stands in."""
    stops: frozenset[int]
    """Ids that end assistant turns."""
    probes: tuple[tuple[str, Document], ...] = ()
    """What was learnt from: the shape of each probe, and its document."""
    always_stops: bool = False
    """Did every probe that ended with an assistant turn end it with a stop token?"""


NOTHING = Habits((), "", None, frozenset(), (), {}, frozenset())


def ids_of(tokenizer: Tokenizer) -> Ids:
    """What the tokenizer's files say about ids."""
    pad = tokenizer.special_tokens.get("pad_token", "")
    return Ids(
        tokenizer.vocab_size,
        tokenizer.added_tokens.get(pad),
        frozenset(tokenizer.added_tokens[token] for token in tokenizer.stop_tokens if token in tokenizer.added_tokens),
    )


def bos_id(tokenizer: Tokenizer) -> int | None:
    """The id of the tokenizer's BOS token, where that tells a beginning from an end."""
    bos = tokenizer.bos_token
    return None if not bos or bos in tokenizer.stop_tokens else tokenizer.added_tokens.get(bos)


def learn(tokenizer: Tokenizer, chat_template: str | os.PathLike[str] | None = None) -> Habits:
    """The habits of the tokenizer's chat template, or of the one given."""
    return _learnt(tokenizer, None if chat_template is None else os.fspath(chat_template))


@lru_cache(maxsize=8)
def _learnt(tokenizer: Tokenizer, template: str | None) -> Habits:
    """Learning takes some tenths of a second, so the last few habits are kept."""
    if template is None and tokenizer.chat_template is None:
        return Habits((), "the tokenizer has no chat template", None, frozenset(), (), {}, frozenset())
    try:
        recipe = Recipe(
            chat_template=template, on_history_rewrite="accept", on_content_lost="count", tokenizer_backend="tokenizers"
        )
        encoder = Encoder(tokenizer, recipe)
    except MaskpipeError as error:
        return Habits((), f"the chat template cannot be used: {error}", None, frozenset(), (), {}, frozenset())
    return _Learner(encoder).habits()


# -- probes

_CALL = {"type": "function", "id": "call00000", "function": {"name": "look", "arguments": {"at": "sky"}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "Where."}}},
    },
}
_WORDS = (("First", "Other", "Third", "Great"), ("Some", "Ready", "Many", "Little"))
"""Contents of probes begin and end differently in its two versions, so that tokens which content shares with a joint
are told from the joint."""
_ENDS = (".", "!")
_SHAPES = (
    "ua", "uaua", "sua", "suaua", "u", "su", "uau", "uaa", "uua", "aua", "usua", "sduaua", "ucta", "uctaua", "sucta",
    "uccttau", "ucttaua", "ura", "urara", "suraua", "ucarua", "uxta",
)  # fmt: skip
"""One letter per message: system, developer, user, assistant, call, tool, reasoning, text with a call (x)."""


def _messages(shape: str, version: int) -> list[dict[str, Any]]:
    words, end = _WORDS[version], _ENDS[version]
    out: list[dict[str, Any]] = []
    for number, letter in enumerate(shape):
        text = f"{words[number % len(words)]} words of {number + version}{end}"
        call = {**_CALL, "id": f"call0000{number % 10}"}
        message: dict[str, Any]
        match letter:
            case "s":
                message = {"role": "system", "content": text}
            case "d":
                message = {"role": "developer", "content": text}
            case "u":
                message = {"role": "user", "content": text}
            case "t":
                message = {"role": "tool", "name": "look", "tool_call_id": call["id"], "content": text}
            case "c":
                message = {"role": "assistant", "content": "", "tool_calls": [call]}
            case "x":
                message = {"role": "assistant", "content": text, "tool_calls": [call]}
            case "r":
                message = {"role": "assistant", "content": text, "reasoning_content": f"{words[0]} thought{end}"}
            case _:
                message = {"role": "assistant", "content": text}
        out.append(message)
    return out


@dataclass(frozen=True)
class _Piece:
    """A run of tokens of a probe: content of a role, or a joint (role -1)."""

    role: int
    start: int
    end: int


class _Learner:
    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.tokenizer = encoder, encoder.tokenizer
        self.control = {self.tokenizer.added_tokens[text] for text in self.tokenizer.control}
        self.bos = bos_id(self.tokenizer)
        self.why = ""
        self.unclear = False
        """Does text of the template stand between content and control tokens, so that tokens may hold both?"""
        self.marks = self._marks_of_turns()

    def habits(self) -> Habits:
        found: dict[Joint, None] = {}
        empty: set[Tokens] = set()
        allowed: Counter[int] = Counter()
        counts: set[int] = set()
        probes: list[tuple[str, Document]] = []
        for kwargs in self._switches():
            for shape in _SHAPES:
                for tools in self._tools(shape, kwargs):
                    pair = [self._document(shape, version, tools, kwargs) for version in (0, 1)]
                    documents = [document for document in pair if document is not None]
                    read = [pieces for document in documents if (pieces := self._read(document)) is not None]
                    if len(read) < 2:
                        continue
                    counts.add(self._leading_bos(documents[0].input_ids))
                    probes += [(shape, document) for document in documents]
                    found.update(dict.fromkeys(self._joints(documents[0], read[0], documents[1], read[1])))
                    for document, pieces in zip(documents, read, strict=True):
                        empty |= _empty(document)
                        for id, bit in self._allowed(document, pieces):
                            allowed[id] |= bit
        if self.unclear or not any(joint.after == Role.ASSISTANT for joint in found):
            reason = self.why or "the chat template refused every probe conversation"
            return Habits((), reason, None, frozenset(), (), {}, frozenset())
        for text, id in self.tokenizer.added_tokens.items():  # what a template writes about tools depends on the tools
            if id in self.control - self.marks and text in self.encoder.template.source:
                allowed[id] |= 1 << Role.SYSTEM
        always = all(
            any(mark & STOP for mark in joint.marks)
            for joint in found
            if joint.before == Role.ASSISTANT and joint.after == END
        )
        joints = [
            joint
            for joint in found
            if (joint.before == START or any(id in self.marks for id in joint.ids))
            and not (joint.after == Role.ASSISTANT and any(joint.ids[-len(block) :] == block for block in empty))
            and not (joint.before != Role.ASSISTANT and any(mark & STOP for mark in joint.marks))  # an empty turn in it
        ]
        joints += self._completed(joints)
        alike = {(joint.before, joint.after, joint.ids): joint for joint in reversed(joints)}
        ordered = sorted(  # where nothing tells an assistant's turn from others, it is taken for one: less is claimed
            alike.values(),
            key=lambda joint: (joint.before, -len(joint.ids), joint.after != Role.ASSISTANT, joint.after, joint.ids),
        )
        stops = {id for joint in joints for id, mark in zip(joint.ids, joint.marks, strict=True) if mark & STOP}
        return Habits(
            tuple(ordered), "", self.bos if counts - {0} else None, frozenset(counts),
            tuple(sorted(empty, key=lambda ids: (-len(ids), ids))), dict(allowed), frozenset(stops),
            tuple(probes), always,
        )  # fmt: skip

    def _tools(self, shape: str, kwargs: dict[str, Any]) -> list[list[Any] | None]:
        """The tool definitions with which a shape is probed; nothing where it is not."""
        if kwargs and shape not in ("uaua", "suaua"):
            return []
        if any(letter in "ctx" for letter in shape):
            return [[_TOOL]]
        return [None, [_TOOL]] if shape in ("uaua", "suaua") else [None]

    def _marks_of_turns(self) -> set[int]:
        """The control ids with which the template tells plain turns apart. Others may stand in its text."""
        found: set[int] = set()
        for shape in ("ua", "uaua", "sua", "suaua", "uau"):
            document = self._document(shape, 0, None, {})
            if document is not None:
                ids = document.input_ids.tolist()
                first = self._leading_bos(document.input_ids)
                found |= {ids[at] for at in range(first, len(ids)) if self._kind(document, at) < 0} & self.control
        return found

    def _switches(self) -> list[dict[str, Any]]:
        """Keyword arguments with which the template is probed: none, and each switch that it reads, on and off."""
        known = {"messages", "tools", "documents", "add_generation_prompt", *self.tokenizer.special_tokens}
        names = sorted(name for name in self.encoder.template.engine.variables - known if "think" in name)
        return [{}, *({name: value} for name in names[:2] for value in (True, False))]

    def _document(self, shape: str, version: int, tools: list[Any] | None, kwargs: dict[str, Any]) -> Document | None:
        record = Conversation(messages=_messages(shape, version), tools=tools, chat_template_kwargs=kwargs)
        try:
            encoded = self.encoder.encode(record)
        except MaskpipeError as error:
            self.why = self.why or str(error)
            return None
        if encoded.refused is not None or len(encoded.documents) != 1:
            if encoded.refused is not None and encoded.refused.reason != "nothing_to_train":
                self.why = self.why or str(encoded.refused)
            return None
        if any(turn.verdict & Verdict.REFUSED for turn in encoded.turns):
            return None
        return encoded.documents[0]

    def _leading_bos(self, ids: npt.NDArray[np.int32]) -> int:
        at = 0
        while at < len(ids) and int(ids[at]) == self.bos:
            at += 1
        return at

    def _read(self, document: Document) -> list[_Piece] | None:
        """Contents and joints in turn, the latter also where they are empty; None where contents of an assistant and
        of others have no control token between them."""
        ids = document.input_ids.tolist()
        kinds = [self._kind(document, at) for at in range(len(ids))]
        first = self._leading_bos(document.input_ids)
        runs = [_Piece(*run) for run in _runs(kinds, first)]
        runs = [part for run in runs for part in self._long(run, ids)]
        pieces: list[_Piece] = []
        for run in runs:
            if run.role < 0 and not any(id in self.marks for id in ids[run.start : run.end]):
                run = _Piece(-2, run.start, run.end)  # literal text beside content: of no joint
            pieces.append(run)
        return self._merged(pieces, first)

    def _merged(self, pieces: list[_Piece], first: int) -> list[_Piece] | None:
        """Contents without a joint between them are one: of the last of them that is a message's."""
        out: list[_Piece] = [_Piece(-1, first, first)] if not pieces or pieces[0].role != -1 else []
        for piece in pieces:
            last = out[-1] if out else None
            if piece.role == -1 or last is None or last.role == -1:
                out.append(piece)
                continue
            roles = {last.role, piece.role} - {-2}
            if Role.ASSISTANT in roles and len(roles) > 1:
                self.why = "the template does not tell turns apart by control tokens of this tokenizer"
                return None
            role = piece.role if piece.role not in (-2, Role.TEMPLATE) or last.role == -2 else last.role
            out[-1] = _Piece(role, last.start, piece.end)
        return [_Piece(Role.SYSTEM if p.role in _SYSTEM else p.role, p.start, p.end) for p in out]

    def _kind(self, document: Document, at: int) -> int:
        """The role of content at a token, or -1."""
        role, part, flags = int(document.role_ids[at]), int(document.part_ids[at]), int(document.flags[at])
        if role == Role.ASSISTANT:
            return role if flags & Flag.SAMPLED and part != Part.STOP else -1
        return role if part in (Part.CONTENT, Part.REASONING, Part.TOOL_CALL, Part.TOOL_SCHEMA) else -1

    def _long(self, run: _Piece, ids: list[int]) -> Iterator[_Piece]:
        """The run; a joint without the long stretches of ordinary tokens in it, which are the template's text."""
        at = begin = run.start
        while run.role < 0 and at < run.end:
            end = at
            while end < run.end and ids[end] not in self.marks:
                end += 1
            if end - at >= LONG:
                at += self._name(ids[at : at + 4]) if at > begin else 0
                if at > begin:
                    yield _Piece(-1, begin, at)
                yield _Piece(Role.TEMPLATE, at, end)
                begin = end
            at = end + 1
        if begin < run.end:
            yield _Piece(run.role, begin, run.end)

    def _name(self, ids: list[int]) -> int:
        """How many of the tokens behind a control token are the name of a role: up to the first white space."""
        for size, id in enumerate(ids, 1):
            if not self.tokenizer.token_bytes(id).strip():
                return size
        return 0

    def _joints(
        self, document: Document, pieces: list[_Piece], other: Document, other_pieces: list[_Piece]
    ) -> Iterator[Joint]:
        """The joints of a probe, as far as both versions have them alike."""
        if [p.role for p in pieces] != [p.role for p in other_pieces]:
            return
        for number, (piece, twin) in enumerate(zip(pieces, other_pieces, strict=True)):
            if piece.role != -1:
                continue
            before = pieces[number - 1].role if number else START
            after = pieces[number + 1].role if number + 1 < len(pieces) else END
            ids = document.input_ids[piece.start : piece.end].tolist()
            theirs = other.input_ids[twin.start : twin.end].tolist()
            while ids and theirs and ids[0] != theirs[0] and ids[0] not in self.marks:
                ids, theirs = ids[1:], theirs[1:]  # shared with the content before it
                piece = _Piece(-1, piece.start + 1, piece.end)
            common = _common(ids, theirs)
            if common < len(ids) and after == END:
                continue
            start = piece.start
            while start < piece.start + common and before != START and int(document.input_ids[start]) not in self.marks:
                if before == Role.ASSISTANT and not document.flags[start] & Flag.SAMPLED:
                    self.why = self.why or "the template ends assistant turns with text that is no control token"
                    self.unclear = True
                start += 1  # text of the content's turn: it may merge with the content
            if after != END and not self._ends_certainly(ids[:common]):
                self.why = self.why or "the template begins turns with text that may merge with their content"
                self.unclear = True
            yield self._joint(document, start, piece.start + common, before, after, pieces[number + 1 :])
        if pieces and pieces[-1].role >= 0:
            yield Joint(pieces[-1].role, END, (), (), (), 0)

    def _joint(
        self, document: Document, start: int, end: int, before: int, after: int, following: Sequence[_Piece]
    ) -> Joint:
        ids = document.input_ids[start:end].tolist()
        message = int(document.message_ids[following[0].start]) if following and after == Role.ASSISTANT else -2
        marks = []
        stopped = False
        for at in range(start, end):
            flags, part = int(document.flags[at]), int(document.part_ids[at])
            mark = 0
            if part == Part.STOP:
                mark, stopped = STOP | SAMPLED * bool(flags & Flag.SAMPLED), True
            elif flags & Flag.STRADDLES:
                mark = OPEN
            elif (
                after == Role.ASSISTANT
                and document.role_ids[at] in (Role.ASSISTANT, Role.TEMPLATE)
                and (int(document.message_ids[at]) in (message, -1))
            ):
                mark = HEADER
            elif stopped and before == Role.ASSISTANT and document.role_ids[at] in (Role.ASSISTANT, Role.TEMPLATE):
                mark = AFTER
            marks.append(mark)
        roles = document.role_ids[start:end].tolist()
        return Joint(before, after, tuple(ids), tuple(roles), tuple(marks), self._needed(ids))

    def _ends_certainly(self, ids: Sequence[int]) -> bool:
        """Does it end with a control token, or with white space of its own behind one and the name of a role?"""
        return not ids or ids[-1] in self.control or not self.tokenizer.token_bytes(ids[-1]).strip()

    def _needed(self, ids: Sequence[int]) -> int:
        """How many ids there are without white space at the end."""
        needed = len(ids)
        while (
            needed and ids[needed - 1] not in self.control and not self.tokenizer.token_bytes(ids[needed - 1]).strip()
        ):
            needed -= 1
        return needed

    def _allowed(self, document: Document, pieces: list[_Piece]) -> Iterator[tuple[int, int]]:
        for piece in pieces:
            if 0 <= piece.role <= Role.TEMPLATE:
                for id in set(document.input_ids[piece.start : piece.end].tolist()) & self.control:
                    yield id, 1 << piece.role

    # -- joints that no probe had

    def _completed(self, joints: list[Joint]) -> list[Joint]:
        """Where those that were seen say how they look: what begins a role is a joint into it without what ends the
        role before it, and what ends one is what is left of the joints out of it."""
        openings = [begin for joint in joints for begin in self._opening(joint, joints)]
        openings = list({(begin.after, begin.ids): begin for begin in reversed(openings)}.values())
        out = [replace(begin, before=ANY) for begin in openings]
        seen = {(j.before, j.after) for j in joints}
        for before in sorted({j.before for j in joints} - {START}):
            end = _closing(before, joints, openings)
            if end is None:
                continue
            for begin in openings:
                if (before, begin.after) not in seen:
                    needed = len(end.ids) + begin.needed
                    glued = (end.ids + begin.ids, end.roles + begin.roles, end.marks + begin.marks)
                    out.append(Joint(before, begin.after, *glued, needed))
            if (before, END) not in seen and end.ids:
                out.append(replace(end, after=END, needed=self._needed(end.ids)))
        return out

    def _opening(self, joint: Joint, joints: list[Joint]) -> list[Joint]:
        """What of a joint begins the role behind it: from its first control token on that is not of what ends the role
        before it. None where that is nothing, or begins an assistant turn and others alike."""
        if joint.after == END or not joint.ids:
            return []
        start = max((at + 1 for at, mark in enumerate(joint.marks) if mark & STOP), default=0)
        for end in sorted({j.ids for j in joints if j.after == END and j.ids}, key=len, reverse=True):
            if (
                joint.before != START
                and joint.ids[start : start + len(end)] == end
                and len(joint.ids) > start + len(end)
            ):
                start += len(end)
                break
        while start < len(joint.ids) and joint.ids[start] not in self.marks:
            start += 1
        if joint.needed <= start:
            return []
        begin = _cut(joint, start, len(joint.ids))
        for other in joints:
            alike = other.after == END or (other.after == Role.ASSISTANT) == (joint.after == Role.ASSISTANT)
            if not alike and other.ids[-len(begin.ids) :] == begin.ids:
                return []
        return [begin]


def _runs(kinds: list[int], first: int) -> Iterator[tuple[int, int, int]]:
    start = first
    for at in range(first + 1, len(kinds) + 1):
        if at == len(kinds) or kinds[at] != kinds[start]:
            yield kinds[start], start, at
            start = at


def _common(first: list[int], second: list[int]) -> int:
    """How many ids both begin with."""
    size = min(len(first), len(second))
    return next((at for at in range(size) if first[at] != second[at]), size)


def _empty(document: Document) -> set[Tokens]:
    marked = np.flatnonzero(document.flags & Flag.EMPTY_REASONING)
    if not len(marked):
        return set()
    return {
        tuple(document.input_ids[run].tolist()) for run in np.split(marked, np.flatnonzero(np.diff(marked) > 1) + 1)
    }


def _closing(role: int, joints: list[Joint], openings: list[Joint]) -> Joint | None:
    """What joints out of a role hold before what begins the next one, the same in all of them; else None."""
    found: dict[Tokens, Joint] = {}
    for joint in joints:
        if joint.before != role or joint.after == END:
            continue
        ends = [begin for begin in openings if begin.after == joint.after and joint.ids[-len(begin.ids) :] == begin.ids]
        if not ends:
            return None
        longest = max(len(begin.ids) for begin in ends)
        end = _cut(joint, 0, len(joint.ids) - longest)
        found[end.ids] = end
    return next(iter(found.values())) if len(found) == 1 else None


def _cut(joint: Joint, start: int, end: int) -> Joint:
    part = slice(start, end)
    needed = min(max(joint.needed - start, 0), end - start)
    return replace(joint, ids=joint.ids[part], roles=joint.roles[part], marks=joint.marks[part], needed=needed)
