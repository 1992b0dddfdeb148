"""Where every character of a rendered chat must have come from, found without tracking: the twin of template/origin.py.

Every letter and digit of the data is replaced by a code point that stands nowhere else, every number by a number that
stands nowhere else; plain Jinja2 then prints its own provenance. Booleans cannot be made unique, so each is flipped
alone and the first place where the text changes is its.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from maskpipe.template.render import KEY, REASONING_FIELDS, Engine, Path, Trace, wrap
from tests.conversations import Chat

MARKUP = re.compile(r"(<[^<>\n]{0,40}>|\{[%{].*?[%}]\}|\[/?[A-Z_]+\]|<<|>>)")
"""Left as it is, so that a template that looks for it takes the same path."""
SURROGATES = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")
SPELLS_BOOLEANS = re.compile(r"['\"][Tt]rue['\"]|%\}\s*true\s*\{%")
FIRST = 0x20000
FIRST_INT, FIRST_FLOAT = 70_000_01, 900_000.5


@dataclass
class Unique:
    """A conversation in which everything is unique, and what each unique thing stands for."""

    chat: Chat
    characters: dict[str, tuple[Path, int]] = field(default_factory=dict)
    numbers: dict[str, Path] = field(default_factory=dict)
    """The text of a number (as JSON and as Python print it) → its path."""
    booleans: list[Path] = field(default_factory=list)


def unique(chat: Chat) -> Unique:
    out = Unique(chat)
    points, ints, floats = itertools.count(FIRST), itertools.count(FIRST_INT), itertools.count()

    def text(value: str, path: Path) -> str:
        made = []
        at = 0
        for number, piece in enumerate(MARKUP.split(value)):
            for char in piece:
                if number % 2 == 0 and char.isalnum():
                    stand_in = chr(next(points))
                    out.characters[stand_in] = (path, at)
                    made.append(stand_in)
                else:
                    made.append(char)
                at += 1
        return "".join(made)

    def key(name: str, path: Path) -> str:
        start = next(points)
        made = "".join(chr(start if at == 0 else next(points)) for at in range(len(name)))
        for at, char in enumerate(made):
            out.characters[char] = ((*path, made, KEY), at)
        return made

    def everything(value: Any, path: Path) -> Any:
        """All of a value; object keys too."""
        if isinstance(value, bool):
            out.booleans.append(path)
            return value
        if isinstance(value, int):
            value = next(ints)
            out.numbers[str(value)] = path
            return value
        if isinstance(value, float):
            value = FIRST_FLOAT + next(floats)
            out.numbers[str(value)] = path
            return value
        if isinstance(value, str):
            return text(value, path)
        if isinstance(value, list):
            return [everything(entry, (*path, number)) for number, entry in enumerate(value)]
        if isinstance(value, dict):
            made = {}
            for name, entry in value.items():
                new = key(name, path)
                made[new] = everything(entry, (*path, new))
            return made
        return value

    def descriptions(value: Any, path: Path) -> Any:
        """A tool schema: its names and descriptions; the keywords of the schema stay."""
        if isinstance(value, dict):
            return {
                name: text(entry, (*path, name))
                if name == "description" and isinstance(entry, str)
                else descriptions(entry, (*path, name))
                for name, entry in value.items()
            }
        if isinstance(value, list):
            return [descriptions(entry, (*path, number)) for number, entry in enumerate(value)]
        return value

    messages = []
    for index, message in enumerate(chat.messages):
        made = copy.deepcopy(message)
        base: Path = ("messages", index)
        for name in ("content", *REASONING_FIELDS):
            value = made.get(name)
            if isinstance(value, str):
                made[name] = text(value, (*base, name))
            elif isinstance(value, list):
                for number, part in enumerate(value):
                    part["text"] = text(part["text"], (*base, name, number, "text"))
        for number, call in enumerate(made.get("tool_calls") or []):
            function, where = call["function"], (*base, "tool_calls", number, "function")
            function["name"] = text(function["name"], (*where, "name"))
            function["arguments"] = everything(function["arguments"], (*where, "arguments"))
        messages.append(made)
    documents = chat.documents and [
        {name: text(value, ("documents", number, name)) for name, value in document.items()}
        for number, document in enumerate(chat.documents)
    ]
    tools = chat.tools and descriptions(copy.deepcopy(chat.tools), ("tools",))
    out.chat = Chat(messages, tools, documents, chat.kwargs)
    return out


def wrong_text(trace: Trace, plain: str) -> str:
    """What is wrong with the text and the cover of a trace; "" for nothing."""
    if trace.text != plain:
        at = next((i for i, (a, b) in enumerate(zip(trace.text, plain, strict=False)) if a != b), -1)
        return f"tracked text differs from plain at {at}: {trace.text[at : at + 40]!r}, {plain[at : at + 40]!r}"
    end = 0
    for start, stop, *_ in trace.origins:
        if start != end or stop <= start:
            return f"origins do not tile the text at {end}: [{start}, {stop})"
        end = stop
    if end != len(plain):
        return f"origins end at {end} of {len(plain)}"
    for start, stop, source, first, last in trace.origins:
        if source >= 0 and stop - start == last - first:
            shown, given = trace.text[start:stop], trace.leaves[source].text[first:last]
            if shown != given and shown.casefold() != given.casefold():
                return f"[{start}, {stop}) shows {shown!r}, its source {trace.leaves[source].path} says {given!r}"
    return ""


def wrong_origins(known: Unique, trace: Trace) -> str:
    """What a trace of `known.chat` says of an origin that its unique characters and numbers contradict."""
    said: dict[int, tuple[Path, int, int]] = {}
    for start, stop, source, first, last in trace.origins:
        if source >= 0:
            one_to_one = stop - start == last - first
            for at in range(start, stop):
                offset = first + at - start if one_to_one else first
                said[at] = (trace.leaves[source].path, offset, offset + 1 if one_to_one else last)
    text = trace.text
    for at, char in enumerate(text):
        where = known.characters.get(char)
        if where is not None and said.get(at) != (*where, where[1] + 1):
            return f"character {at} came from {where}, the tracker says {said.get(at)}"
    for match in SURROGATES.finditer(text):
        char = chr(0x10000 + ((int(match[1], 16) - 0xD800) << 10) + int(match[2], 16) - 0xDC00)
        where = known.characters.get(char)
        if where is not None and any(said.get(at, (0,))[:2] != where for at in range(*match.span())):
            return f"the escape at {match.start()} stands for {where}, the tracker says {said.get(match.start())}"
    for number, path in known.numbers.items():
        for match in re.finditer(re.escape(number), text):
            if any(said.get(at, (None,))[0] != path for at in range(*match.span())):
                return f"the number {number} came from {path}, the tracker says {said.get(match.start())}"
    return ""


def wrong_booleans(known: Unique, engine: Engine, trace: Trace, prompt: bool) -> Iterator[str]:
    """What a trace of `known.chat` says of booleans that flipping each of them contradicts."""
    for path in known.booleans:
        flipped = copy.deepcopy(known.chat)
        target: Any = flipped.messages
        for step in path[1:-1]:
            target = target[step]
        target[path[-1]] = not target[path[-1]]
        other = plain(engine, flipped, prompt)
        shown = [
            trace.text[start:stop]
            for start, stop, source, *_ in trace.origins
            if source >= 0 and trace.leaves[source].path == path
        ]
        same = next((at for at, (a, b) in enumerate(zip(trace.text, other, strict=False)) if a != b), None)
        if same is None:
            if shown:
                yield f"{path} is said to show {shown} but does not change the text"
            continue
        source = trace.origins[trace.first_at(same)][2]
        if source < 0 and SPELLS_BOOLEANS.search(engine.source):
            continue  # `'true' if value else 'false'`: the template's own text, chosen by the data
        if source < 0 or trace.leaves[source].path != path:
            yield f"{path} changes the text at {same}, the tracker says {source}"
        value = not target[path[-1]]
        if any(piece.lower() != json.dumps(value) for piece in shown):
            yield f"{path} is {value} and is said to show {shown}"


def plain(engine: Engine, chat: Chat, prompt: bool) -> str:
    return engine.plain(
        chat.messages, tools=chat.tools, documents=chat.documents, add_generation_prompt=prompt, kwargs=chat.kwargs
    )


def trace(engine: Engine, chat: Chat, prompt: bool) -> Trace:
    wrapped = wrap(chat.messages, tools=chat.tools, documents=chat.documents, kwargs=chat.kwargs)
    return engine.trace(wrapped, add_generation_prompt=prompt)
