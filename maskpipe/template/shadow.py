"""Shadow rendering: the independent proof of provenance. It shares no code with the tracker.

Render once as it is and once with every letter and digit of the data replaced by a code point that stands nowhere else;
where mapping back gives exactly the first text, the code points *are* the provenance, character by character. Plain
Jinja2 does both. Templates that look at single characters of the data may print something else for the shadow; mapping
back then fails, which is detected and said, never silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maskpipe.errors import TemplateError
from maskpipe.template.render import KEY, REASONING_FIELDS, Engine, Path, Trace

_MARKUP = re.compile(r"(<[^<>\n]{0,40}>|\{[%{].*?[%}]\}|\[/?[A-Z_]+\]|<<|>>)")
"""Left as it is, so that a template that looks for '</think>' takes the same path."""

_FIRST, _LAST = 0x20000, 0x10FFFF


@dataclass(frozen=True)
class Proof:
    """What shadow rendering says about one render."""

    outcome: Literal["proved", "cannot", "differs"]
    characters: int
    """How many characters of the output were compared."""
    detail: str = ""


def prove(
    engine: Engine,
    trace: Trace,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = False,
) -> Proof:
    """Compares the origins of `trace` with those that shadow rendering finds."""
    shadow = _Shadow(trace.text)
    given = {"tools": tools, "documents": documents, "kwargs": kwargs, "add_generation_prompt": add_generation_prompt}
    try:
        plain = engine.plain(messages, **given)  # type: ignore[arg-type]
        dark = engine.plain([shadow.message(number, message) for number, message in enumerate(messages)], **given)  # type: ignore[arg-type]
    except TemplateError as error:
        return Proof("cannot", 0, str(error))
    if plain != trace.text:
        return Proof("differs", 0, "the tracked text is not what plain Jinja2 prints")
    if shadow.exhausted:
        return Proof("cannot", 0, "more letters and digits than code points to stand for them")
    if "".join(shadow.char.get(char, char) for char in dark) != plain:
        return Proof("cannot", 0, "the template prints something else when letters change")
    said = _said_by_tracker(trace)
    compared = 0
    for at, char in enumerate(dark):
        where = shadow.where.get(char)
        if where is None:
            continue
        compared += 1
        if said.get(at) != where:
            return Proof(
                "differs",
                compared,
                f"character {at} ({plain[at]!r}) came from {where}, the tracker says {said.get(at)}",
            )
    return Proof("proved", compared)


def _said_by_tracker(trace: Trace) -> dict[int, tuple[Path, int]]:
    """Character position → (field, offset), as the trace has it."""
    said = {}
    for start, stop, source, first, last in trace.origins:
        if source >= 0 and stop - start == last - first:
            path = trace.leaves[source].path
            for at in range(start, stop):
                said[at] = (path, first + at - start)
    return said


class _Shadow:
    """Gives out code points and remembers what each stands for."""

    def __init__(self, text: str) -> None:
        self.char: dict[str, str] = {}
        self.where: dict[str, tuple[Path, int]] = {}
        self.exhausted = False
        self._free = self._unused(frozenset(text))

    def _unused(self, taken: frozenset[str]) -> Iterator[str]:
        for code in range(_FIRST, _LAST + 1):
            if chr(code) not in taken:
                yield chr(code)
        self.exhausted = True

    def message(self, number: int, message: Mapping[str, Any]) -> dict[str, Any]:
        out = {}
        for key, value in message.items():
            if key in ("content", *REASONING_FIELDS, "tool_calls"):
                out[key] = self._value(value, ("messages", number, key))
            else:
                out[key] = value
        return out

    def _value(self, value: Any, path: Path) -> Any:
        if isinstance(value, str):
            return self._text(value, path) if _is_free_text(path) else value
        if isinstance(value, Mapping):
            return {key: self._value(entry, (*path, key)) for key, entry in value.items()}
        if isinstance(value, list):
            return [self._value(entry, (*path, number)) for number, entry in enumerate(value)]
        return value

    def _text(self, text: str, path: Path) -> str:
        out = []
        at = 0
        for number, piece in enumerate(_MARKUP.split(text)):
            for char in piece:
                stand_in = next(self._free, None) if number % 2 == 0 and char.isalnum() else None
                if stand_in is not None:
                    self.char[stand_in] = char
                    self.where[stand_in] = (path, at)
                out.append(stand_in or char)
                at += 1
        return "".join(out)


def _is_free_text(path: Path) -> bool:
    """Content, reasoning, the text of parts, and the values of tool arguments given as an object."""
    field = path[2]
    if field == "tool_calls":
        return "arguments" in path[:-1] and path[-1] != KEY
    return len(path) == 3 or path[-1] == "text"
