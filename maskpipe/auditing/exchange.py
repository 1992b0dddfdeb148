"""The data of a conversation with stand-ins: code points that stand nowhere else, one per character."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from maskpipe.errors import MaskpipeError
from maskpipe.roles import Part, Role, role_of

Int32 = npt.NDArray[np.int32]
UInt32 = npt.NDArray[np.uint32]
Bool = npt.NDArray[np.bool_]
Path = tuple[str | int, ...]

REASONING = ("reasoning_content", "thinking", "reasoning")
CALLS = ("tool_calls", "function_call")
MARKUP = re.compile(r"<[^<>\n]{0,40}>|\{[%{].*?[%}]\}|\[/?[A-Z_]+\]|<<|>>")
BLANKS = "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2008\u2009\u200a\u205f\u3000"
"""White space that stands for other white space."""
BLANK_CODES = np.array(list(map(ord, BLANKS)), np.uint32)
_SPACE = 32
FENCE, FENCE_END = 0xE1000, 0xF0000
"""Characters that stand where a text begins (even) or ends (odd) that begins or ends with what must stay as it is. They
are taken out of what was printed."""
SPACES, ALIKE, EVERYTHING, MARKUP_STAYS, BLANKS_STAY, LETTERS = range(6)
"""How much of the data is exchanged, from most to least. Up to ALIKE names, types, ids, keys, roles and numbers too,
which templates compare; SPACES: spaces inside texts too."""
_PLANES = (0x20000, 0x40000, 0x60000, 0x80000, 0xA0000, 0xC0000)
_PLANE = 0x20000
_STANDARD = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "id", "type", "function", "arguments", "text", *REASONING)
)


class Alike(str):
    """A text that looks otherwise than the one it equals: templates may compare it, and print it."""

    __slots__ = ("plain",)
    plain: str

    @staticmethod
    def of(dark: str, plain: str) -> Alike:
        made = Alike(dark)
        made.plain = plain
        return made

    def __eq__(self, other: object) -> bool:
        return bool(self.plain == _plain(other))

    def __ne__(self, other: object) -> bool:
        return bool(self.plain != _plain(other))

    def __lt__(self, other: str) -> bool:
        return bool(self.plain < _plain(other))

    def __le__(self, other: str) -> bool:
        return bool(self.plain <= _plain(other))

    def __gt__(self, other: str) -> bool:
        return bool(self.plain > _plain(other))

    def __ge__(self, other: str) -> bool:
        return bool(self.plain >= _plain(other))

    def __hash__(self) -> int:
        return hash(self.plain)

    def __contains__(self, key: object) -> bool:
        return _plain(key) in self.plain

    def lower(self) -> str:
        return Alike.of(str(self), self.plain.lower())

    def upper(self) -> str:
        return Alike.of(str(self), self.plain.upper())

    def startswith(self, *given: Any) -> bool:
        return self.plain.startswith(*given)

    def endswith(self, *given: Any) -> bool:
        return self.plain.endswith(*given)


def _plain(value: Any) -> Any:
    return value.plain if type(value) is Alike else value


class CannotProveError(MaskpipeError):
    """A conversation about which this proof can say nothing; `str` is the reason, the same for all of its kind."""


class Leaf(NamedTuple):
    """One scalar of the data."""

    path: Path
    text: str
    message: int
    role: int
    part: int


@dataclass
class Data:
    """A conversation with and without stand-ins, at one strength."""

    given: dict[str, Any]
    dark: dict[str, Any]
    leaves: list[Leaf]
    unexchanged: list[Leaf]
    """Scalars that stand in the dark data as they are."""
    first: int
    """The first stand-in; the k-th character of all leaves together has the k-th."""
    characters: UInt32
    """[characters of all leaves] as the data has them."""
    of: Int32
    """[characters of all leaves] the leaf of each."""
    starts: Int32
    """[leaves] number of each leaf's first character."""
    exchanged: Int32
    """[messages + 1] how many characters of each message have stand-ins; the last is of no message."""
    strength: int
    blanks: bool
    """White space at the ends of texts became other white space, so that it is known again."""
    quiet: list[int]
    """The leaves that stand for what templates compare (roles, types, ids, keys), ascending; `exchanged` leaves them
    out."""
    numbers: list[tuple[int, str]]
    """(leaf, as the dark data writes it) of the numbers that became others."""
    switches: list[tuple[int, tuple[str, ...]]]
    """(leaf, how it may be written) of booleans, which stay as they are; the leaf before is that of their key."""
    fences: dict[int, tuple[int, int]]
    """Leaf → from where to where it has no white space at its ends, for leaves with fences."""
    spaces: list[int]
    """The leaves that are white space alone, which became other white space; which, depends on their number."""

    @cached_property
    def leaf_messages(self) -> Int32:
        return np.array([leaf.message for leaf in self.leaves] or [-1], np.int32)

    @cached_property
    def said_beside(self) -> dict[int, list[str]]:
        """Message → what it may show beside the characters that `exchanged` counts."""
        out: dict[int, list[str]] = {}
        for number in self.quiet:
            leaf = self.leaves[number]
            if leaf.part != Part.SCAFFOLD:
                out.setdefault(leaf.message, []).append(leaf.text)
        return out

    @cached_property
    def role_names(self) -> Bool:
        return np.array([leaf.part == Part.SCAFFOLD for leaf in self.leaves] or [False], bool)


class Exchange:
    """Makes the dark data of a conversation. Markup that stands in `watched`, the template's source, is never
    exchanged: a template that does not find it may print the very same text by another way."""

    def __init__(self, given: dict[str, Any], strength: int, watched: str) -> None:
        self.strength, self.watched = strength, watched
        everything = json.dumps(
            [given["messages"], given["tools"], given["documents"]], ensure_ascii=False, default=str
        )
        high = (
            {ord(char) // _PLANE * _PLANE for char in everything if char >= "\U00020000"} if _high(everything) else ()
        )
        self.first = next((plane for plane in _PLANES if plane not in high), 0)
        if not self.first or len(everything) > _PLANE:
            raise CannotProveError("more characters than there are code points to stand for them")
        self.leaves: list[Leaf] = []
        self.unexchanged: list[Leaf] = []
        self.codes: list[UInt32] = []
        self.starts: list[int] = []
        self.at = 0
        self.quiet: list[int] = []
        self.numbers: list[tuple[int, str]] = []
        self.switches: list[tuple[int, tuple[str, ...]]] = []
        self.fences: dict[int, tuple[int, int]] = {}
        self.spaces: list[int] = []
        messages = given["messages"]
        self.counts = np.zeros(len(messages) + 1, np.int32)
        dark = {
            "messages": [self._message(number, message) for number, message in enumerate(messages)],
            "tools": self._any(given["tools"], ("tools",), -1, Role.CONTEXT, Part.TOOL_SCHEMA, strength <= EVERYTHING),
            "documents": self._any(
                given["documents"], ("documents",), -1, Role.CONTEXT, Part.CONTENT, strength < LETTERS
            ),
            "kwargs": given["kwargs"],
        }
        for name, value in given["kwargs"].items():
            if isinstance(value, str | list | dict):
                self._any(value, ("chat_template_kwargs", name), -1, Role.CONTEXT, Part.CONTENT, False)
        if 2 * len(self.leaves) > FENCE_END - FENCE:
            raise CannotProveError("more characters than there are code points to stand for them")
        sizes = [len(codes) for codes in self.codes]
        self.data = Data(
            given, dark, self.leaves, self.unexchanged, self.first,
            np.concatenate([np.zeros(0, np.uint32), *self.codes]),
            np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), np.array(self.starts, np.int32),
            self.counts, strength, strength <= MARKUP_STAYS, self.quiet, self.numbers, self.switches, self.fences,
            self.spaces,
        )  # fmt: skip

    def _message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        role = role_of(str(message.get("role")))
        names = self.strength <= MARKUP_STAYS
        out: dict[str, Any] = {}
        done: dict[int, Any] = {}  # reasoning goes by several names
        for key, value in message.items():
            path: Path = ("messages", index, key)
            if key == "role":
                out[key] = self._keep(path, value, index, role, Part.CONTENT if role is Role.OTHER else Part.SCAFFOLD)
                continue
            part = Part.REASONING if key in REASONING else Part.TOOL_CALL if key in CALLS else Part.CONTENT
            if key in REASONING and id(value) in done:
                out[key] = done[id(value)]
                continue
            own = key
            if key not in _STANDARD and part is Part.CONTENT:
                own = self._keep((*path, "<key>"), key, index, role, part)
            exchanged = key == "content" or key in REASONING or (names and key not in CALLS)
            out[own] = done[id(value)] = self._any(value, path, index, role, part, exchanged)
        return out

    def _any(self, value: Any, path: Path, message: int, role: int, part: int, exchanged: bool) -> Any:
        if isinstance(value, str):
            inside = exchanged and path[-1] not in ("type", "id", "tool_call_id")  # ids are compared with each other
            if path[-1] == "arguments" and part is Part.TOOL_CALL:
                inside = True
            if path[0] == "tools" and path[-1] == "description" and self.strength < LETTERS:
                inside = True
            if not inside:
                return self._keep(path, value, message, role, part)
            dark = self._text(value, path, message, role, part)
            compared = self.strength <= ALIKE and (part in (Part.TOOL_CALL, Part.TOOL_SCHEMA) or path[-1] == "name")
            return Alike.of(dark, value) if compared else dark
        if isinstance(value, Mapping):
            out = {}
            for key, entry in value.items():
                own: Any = key
                free = "arguments" in path[:-1] or path[-1] == "arguments"
                names = free and part is Part.TOOL_CALL and self.strength <= BLANKS_STAY
                names = names or (part is Part.TOOL_SCHEMA and self.strength <= EVERYTHING and key not in _STANDARD)
                if names and isinstance(key, str) and key:
                    own = self._text(key, (*path, key, "<key>"), message, role, part)
                    own = Alike.of(own, key) if self.strength <= ALIKE else own
                elif part is Part.TOOL_CALL or key not in _STANDARD:
                    own = self._keep((*path, key, "<key>"), key, message, role, part)
                under = (
                    exchanged
                    or names
                    or (path[-1] == "function" and part is Part.TOOL_CALL and self.strength <= BLANKS_STAY)
                )
                under = under or free
                out[own] = self._any(entry, (*path, key), message, role, part, under)
            return out
        if isinstance(value, list | tuple):
            return [self._any(entry, (*path, k), message, role, part, exchanged) for k, entry in enumerate(value)]
        if isinstance(value, bool):
            ways = (str(value), str(value).lower())
            if self.strength <= ALIKE and path[:-1] and len(self.leaves) and self.leaves[-1].path == (*path, "<key>"):
                self.switches.append((len(self.leaves), ways))
                self._leaf(np.array(list(map(ord, ways[1])), np.uint32), ways[1], path, message, role, part)
            for text in ways:
                self._unexchanged(path, text, message, role, part)
        elif isinstance(value, int | float):
            text = str(value)
            other = self._number(value, text) if self.strength <= ALIKE and text == json.dumps(value) else value
            if other is not value:
                self.numbers.append((len(self.leaves), str(other)))
                self._leaf(np.array(list(map(ord, text)), np.uint32), text, path, message, role, part)
                return other
            for way in {text, json.dumps(value)}:
                self._unexchanged(path, way, message, role, part)
        return value

    def _number(self, value: int | float, text: str) -> int | float:
        """Another number of as many characters; the same one where there is none."""
        step = 1 + len(self.numbers) % 8
        head, mark, tail = text.partition("e")
        digits = [char for char in head if char.isdigit()]
        if not any(char != "0" for char in digits) or len(digits) > 12:
            return value
        changed = "".join(_other_digit(char, step) if char.isdigit() else char for char in head)
        other = type(value)(changed + mark + tail)
        return other if str(other) == json.dumps(other) == changed + mark + tail else value

    def _keep(self, path: Path, text: Any, message: int, role: int, part: int) -> Any:
        """A scalar that templates compare."""
        if self.strength <= ALIKE and isinstance(text, str) and text:
            seen = self.counts[message]
            self.quiet.append(len(self.leaves))
            dark = self._text(text, path, message, role, part)
            self.counts[message] = seen  # templates need not show it
            return Alike.of(dark, text)
        self._unexchanged(path, str(text), message, role, part)
        return text

    def _unexchanged(self, path: Path, text: str, message: int, role: int, part: int) -> None:
        if text:
            self.unexchanged.append(Leaf(path, text, message, int(role), int(part)))

    def _leaf(self, codes: UInt32, text: str, path: Path, message: int, role: int, part: int) -> None:
        self.leaves.append(Leaf(path, text, message, int(role), int(part)))
        self.codes.append(codes)
        self.starts.append(self.at)
        self.at += len(codes)

    def _text(self, text: str, path: Path, message: int, role: int, part: int) -> str:
        if not text:
            return text
        try:
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        except UnicodeEncodeError:
            raise CannotProveError("lone surrogates in the data") from None
        own = len(self.leaves)
        self.leaves.append(Leaf(path, text, message, int(role), int(part)))
        self.codes.append(codes)
        self.starts.append(self.at)
        table = _LETTERS if self.strength == LETTERS else _EXCHANGED
        change = table[np.minimum(codes, len(table) - 1)]
        spaces = codes == _SPACE if self.strength == SPACES and " " in text else change
        if "<" in text or "[" in text or "{" in text or ">>" in text:
            for match in MARKUP.finditer(text):
                if self.strength > EVERYTHING or match.group() in self.watched:
                    change[match.start() : match.end()] = False
                    spaces[match.start() : match.end()] = False
        size = len(codes)
        dark = np.where(change, np.arange(self.first + self.at, self.first + self.at + size, dtype=np.uint32), codes)
        if spaces is not change:
            at = np.flatnonzero(spaces)
            dark[at] = BLANK_CODES[at % len(BLANKS)]
        front, back = 0, size
        if text[0].isspace() or text[-1].isspace():
            front, back = size - len(text.lstrip()), len(text.rstrip())
            if self.strength <= MARKUP_STAYS:
                if front == size:
                    self.spaces.append(own)
                edges = np.r_[:front, max(front, back) : size]
                dark[edges] = BLANK_CODES[(edges + (own if front == size else 0)) % len(BLANKS)]
        self.counts[message] += int(np.count_nonzero(change))
        self.at += size
        made = dark.tobytes().decode("utf-32-le")
        if self.strength > ALIKE or front >= back or (change[front] and change[back - 1]):
            return made
        self.fences[own] = (front, back)
        begin = "" if change[front] else chr(FENCE + 2 * own)
        end = "" if change[back - 1] else chr(FENCE + 2 * own + 1)
        return made[:front] + begin + made[front:back] + end + made[back:]


def _other_digit(char: str, step: int) -> str:
    """Another digit, and no zero for one that is none."""
    return char if char == "0" else "123456789"[(int(char) - 1 + step) % 9]


def _high(text: str) -> bool:
    return max(text, default="") >= "\U00020000"


def _tables() -> tuple[Bool, Bool]:
    """Per code point below 0x20001: may it be exchanged, of all characters, and of letters and digits alone?"""
    everything, letters = np.ones(0x20001, bool), np.zeros(0x20001, bool)
    for code in range(0x20000):
        char = chr(code)
        if char.isspace() or code < 0x20 or code == 0x7F or char in "\"'\\" or 0xD800 <= code < 0xE000:
            everything[code] = False
        letters[code] = char.isalnum()
    everything[-1] = letters[-1] = True
    return everything, letters


_EXCHANGED, _LETTERS = _tables()
