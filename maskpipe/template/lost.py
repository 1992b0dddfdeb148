"""What of the input never reached the output: the template dropped it, or printed it as Python repr.

Provenance gives this for free: a leaf's characters that no origin points to were lost. White space around a text is
trimmed by many templates and is not reported; markup that the template reads and writes anew (the `<think>` around
reasoning) was not lost, so a lost piece that stands in the literal text of the same render does not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import escape

from maskpipe.errors import TemplateError
from maskpipe.roles import Part, Role
from maskpipe.template.environment import NULL_PRINTED
from maskpipe.template.render import (
    KEY,
    Engine,
    Leaf,
    Path,
    Trace,
    Wrapped,
    end_of_inline_reasoning,
    shown_range,
    wrap,
)

_NOT_TEXT = ("role", "name", "tool_call_id", "id", "type", "index")


@dataclass(frozen=True)
class Lost:
    """One field of the input that was not shown in full."""

    path: Path
    message: int
    role: Role
    part: Part
    what: str
    """In words: "dropped", "shown only in part", "a list printed as Python repr"."""
    text: str
    """The lost text, shortened."""
    leaf: int = -1
    """The number of its leaf; -1 for what was printed as Python repr."""

    def __str__(self) -> str:
        field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")
        return f"{field}: {self.what}" + (f": {self.text!r}" if self.text else "")


def find_lost(trace: Trace, messages: int | None = None) -> list[Lost]:
    """What the render lost of the first `messages` messages (None: all), the tools and the documents."""
    if trace.core is not None and trace.core.shows_all():
        return []
    shown = _shown(trace)
    out = []
    for number, leaf in enumerate(trace.leaves):
        ranges = shown[number]
        if messages is not None and leaf.message >= messages:
            continue
        if len(ranges) == 1 and ranges[0][1] - ranges[0][0] == len(leaf.text):
            continue  # all of it, once: the usual case
        if not _counts(leaf) or not (missing := _uncovered(leaf.text, ranges)):
            continue
        lost = _lost(trace, number, missing)
        if lost is not None:
            out.append(lost)
    for message, what in trace.reprs:
        if messages is None or message < messages:
            out.append(Lost(_place(message), message, Role.TEMPLATE, Part.SCAFFOLD, what, ""))
    return out


def printed_as_python(messages: Sequence[Mapping[str, Any]], text: str) -> list[tuple[int, str]]:
    """(message, what) where content that is no text seems to stand in `text` as Python prints it, whichever filter or
    method printed it. What a null is said of may be another None: find_printed knows."""
    out = []
    low = ""
    for number, message in enumerate(messages):
        content = message.get("content", "")
        if isinstance(content, str):
            continue
        low = low or text.casefold()
        if content is None:
            if "none" in low:
                out.append((number, NULL_PRINTED))
            continue
        entries = content if isinstance(content, list) else ()
        for value in (content, *entries):
            if not isinstance(value, list | dict) or not value:
                continue
            form = repr(value)
            if form != json.dumps(value, ensure_ascii=False, default=repr) and (
                form.casefold() in low or str(escape(form)).casefold() in low
            ):
                kind = "an object" if isinstance(content, dict) else "a list"
                out.append((number, f"{kind} printed as Python repr"))
                break
    return out


def find_printed(engine: Engine, wrapped: Wrapped, trace: Trace) -> list[Lost]:
    """The content that the render prints as Python does, and that find_lost does not know of."""
    messages = wrapped.raw["messages"]
    out = []
    for number, what in printed_as_python(messages, trace.text):
        if (number, what) in trace.reprs:
            continue
        if what == NULL_PRINTED:
            emptied = [{**message, "content": ""} if k == number else message for k, message in enumerate(messages)]
            given = {name: wrapped.raw[name] for name in ("tools", "documents", "kwargs")}
            try:
                without = engine.trace(wrap(emptied, **given)).text
            except TemplateError:
                without = ""
            if without.casefold().count("none") >= trace.text.casefold().count("none"):
                continue  # it is not this null that prints it
        out.append(Lost(_place(number), number, Role.TEMPLATE, Part.SCAFFOLD, what, ""))
    return out


def is_lost(trace: Trace, lost: Lost) -> bool:
    """Does this render of the same conversation lose something of that field too?"""
    if lost.leaf < 0:
        return any(_place(message) == lost.path for message, _ in trace.reprs)
    leaf = trace.leaves[lost.leaf]
    first, last = trace.layout.own.get(leaf.message, (0, -1))
    shown = [shown_range(entry) for entry in trace.origins[first : last + 1] if entry[2] == lost.leaf]
    missing = _uncovered(leaf.text, shown)
    return bool(missing) and _lost(trace, lost.leaf, missing) is not None


def _place(message: int) -> Path:
    return ("messages", message) if message >= 0 else ()


def _shown(trace: Trace) -> list[list[tuple[int, int]]]:
    """The ranges of each leaf's text that the render shows."""
    shown: list[list[tuple[int, int]]] = [[] for _ in trace.leaves]
    for entry in trace.origins:
        if entry[2] >= 0:
            shown[entry[2]].append(shown_range(entry))
    return shown


def _lost(trace: Trace, number: int, missing: list[tuple[int, int]]) -> Lost | None:
    """What is said of a leaf whose pieces `missing` no origin points to; None where the template writes them itself."""
    leaf = trace.leaves[number]
    pieces = [leaf.text[start:stop] for start, stop in missing if not _written(leaf.text[start:stop], trace)]
    if not pieces:
        return None
    reasoning = leaf.part is Part.REASONING or missing[-1][1] <= end_of_inline_reasoning(leaf)
    whole = sum(map(len, pieces)) >= len(leaf.text.strip())
    text = " … ".join(piece.strip() for piece in pieces)
    return Lost(
        leaf.path,
        leaf.message,
        leaf.role,
        Part.REASONING if reasoning else leaf.part,
        "dropped by the template" if whole else "shown only in part",
        text if len(text) <= 60 else text[:57] + "...",
        number,
    )


def _written(piece: str, trace: Trace) -> bool:
    """Does the template write the same by itself? Many write `true` where a condition finds a value true."""
    piece = piece.strip()
    said = (piece, piece.lower()) if piece in ("True", "False") else (piece,)
    return any(words in trace.text and words in trace.literal_text for words in said)


def _counts(leaf: Leaf) -> bool:
    """Is this a field whose text a reader of the rendered chat must see?"""
    if leaf.is_role_name or not leaf.text.strip():
        return False
    path = leaf.path
    if path[0] == "messages":
        field = path[2]
        if field in ("content", "reasoning_content", "thinking", "reasoning"):
            return path[-1] != KEY and not (len(path) > 4 and path[4] not in ("text", "thinking", "reasoning"))
        if field == "tool_calls":
            inside = path[:-2] if path[-1] == KEY else path  # the word "arguments" itself is no argument
            return path[-1] == "name" or "arguments" in inside
        return False
    if path[0] == "tools":
        return path[-1] == "name" and len(path) <= 4
    return path[0] == "documents" and path[-1] != KEY and path[-1] not in _NOT_TEXT


def _uncovered(text: str, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pieces of `text`, those of white space aside, that no range covers."""
    out = []
    at = 0
    for start, stop in sorted(ranges):
        if start > at and text[at:start].strip():
            out.append((at, start))
        at = max(at, stop)
    if text[at:].strip():
        out.append((at, len(text)))
    return out
