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
EVERYTHING, MARKUP_STAYS, BLANKS_STAY, LETTERS = range(4)
"""How much of the data is exchanged, from most to least."""
_PLANES = (0x20000, 0x40000, 0x60000, 0x80000, 0xA0000, 0xC0000)
_PLANE = 0x20000
_STANDARD = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "id", "type", "function", "arguments", "text", *REASONING)
)


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

    @cached_property
    def leaf_messages(self) -> Int32:
        return np.array([leaf.message for leaf in self.leaves] or [-1], np.int32)


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
        messages = given["messages"]
        self.counts = np.zeros(len(messages) + 1, np.int32)
        dark = {
            "messages": [self._message(number, message) for number, message in enumerate(messages)],
            "tools": self._any(given["tools"], ("tools",), -1, Role.CONTEXT, Part.TOOL_SCHEMA, strength == EVERYTHING),
            "documents": self._any(
                given["documents"], ("documents",), -1, Role.CONTEXT, Part.CONTENT, strength < LETTERS
            ),
            "kwargs": given["kwargs"],
        }
        for name, value in given["kwargs"].items():
            if isinstance(value, str | list | dict):
                self._any(value, ("chat_template_kwargs", name), -1, Role.CONTEXT, Part.CONTENT, False)
        sizes = [len(codes) for codes in self.codes]
        self.data = Data(
            given, dark, self.leaves, self.unexchanged, self.first,
            np.concatenate([np.zeros(0, np.uint32), *self.codes]),
            np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), np.array(self.starts, np.int32),
            self.counts, strength, strength <= MARKUP_STAYS,
        )  # fmt: skip

    def _message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        role = role_of(str(message.get("role")))
        names = self.strength <= MARKUP_STAYS
        out: dict[str, Any] = {}
        done: dict[int, Any] = {}  # reasoning goes by several names
        for key, value in message.items():
            path: Path = ("messages", index, key)
            if key == "role":
                out[key] = value
                self._keep(path, str(value), index, role, Part.CONTENT if role is Role.OTHER else Part.SCAFFOLD)
                continue
            part = Part.REASONING if key in REASONING else Part.TOOL_CALL if key in CALLS else Part.CONTENT
            if key in REASONING and id(value) in done:
                out[key] = done[id(value)]
                continue
            if key not in _STANDARD and part is Part.CONTENT:
                self._keep((*path, "<key>"), key, index, role, part)
            exchanged = key == "content" or key in REASONING or (names and key not in CALLS)
            out[key] = done[id(value)] = self._any(value, path, index, role, part, exchanged)
        return out

    def _any(self, value: Any, path: Path, message: int, role: int, part: int, exchanged: bool) -> Any:
        if isinstance(value, str):
            inside = exchanged and path[-1] not in ("type", "id", "tool_call_id")  # ids are compared with each other
            if path[-1] == "arguments" and part is Part.TOOL_CALL:
                inside = True
            if path[0] == "tools" and path[-1] == "description" and self.strength < LETTERS:
                inside = True
            return (
                self._text(value, path, message, role, part) if inside else self._keep(path, value, message, role, part)
            )
        if isinstance(value, Mapping):
            out = {}
            for key, entry in value.items():
                own: Any = key
                free = "arguments" in path[:-1] or path[-1] == "arguments"
                names = free and part is Part.TOOL_CALL and self.strength <= BLANKS_STAY
                names = names or (part is Part.TOOL_SCHEMA and self.strength == EVERYTHING and key not in _STANDARD)
                if names and isinstance(key, str) and key:
                    own = self._text(key, (*path, key, "<key>"), message, role, part)
                elif part is Part.TOOL_CALL or key not in _STANDARD:
                    self._keep((*path, key, "<key>"), str(key), message, role, part)
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
            for text in (str(value), str(value).lower()):
                self._keep(path, text, message, role, part)
        elif isinstance(value, int | float):
            for text in {str(value), json.dumps(value)}:
                self._keep(path, text, message, role, part)
        return value

    def _keep(self, path: Path, text: str, message: int, role: int, part: int) -> str:
        if text:
            self.unexchanged.append(Leaf(path, text, message, int(role), int(part)))
        return text

    def _text(self, text: str, path: Path, message: int, role: int, part: int) -> str:
        if not text:
            return text
        try:
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        except UnicodeEncodeError:
            raise CannotProveError("lone surrogates in the data") from None
        self.leaves.append(Leaf(path, text, message, int(role), int(part)))
        self.codes.append(codes)
        self.starts.append(self.at)
        table = _LETTERS if self.strength == LETTERS else _EXCHANGED
        change = table[np.minimum(codes, len(table) - 1)]
        if "<" in text or "[" in text or "{" in text or ">>" in text:
            for match in MARKUP.finditer(text):
                if self.strength != EVERYTHING or match.group() in self.watched:
                    change[match.start() : match.end()] = False
        size = len(codes)
        dark = np.where(change, np.arange(self.first + self.at, self.first + self.at + size, dtype=np.uint32), codes)
        if self.strength <= MARKUP_STAYS and (text[0].isspace() or text[-1].isspace()):
            front = size - len(text.lstrip())
            back = len(text.rstrip())
            if front < size:
                for k in (*range(front), *range(back, size)):
                    dark[k] = ord(BLANKS[k % len(BLANKS)])
        self.counts[message] += int(np.count_nonzero(change))
        self.at += size
        return dark.tobytes().decode("utf-32-le")


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
