"""Renders a conversation through its unmodified chat template and says where every character comes from.

    messages ─wrap─▶ tracked input + table of leaves ─Jinja2─▶ Trace: text, and origins that cover it without a gap

A leaf is one string, number or boolean of the input; its field decides the role and part of the characters it becomes.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta

from maskpipe.errors import TemplateError
from maskpipe.roles import Part, Role, role_of
from maskpipe.template import origin
from maskpipe.template.environment import TrackedMessage, TrackingEnvironment, plain_environment
from maskpipe.template.origin import TrackedBool, TrackedFloat, TrackedInt

Path = tuple[str | int, ...]

DEFAULT_CLOCK = "2026-01-01T00:00:00"
KEY = "<key>"
"""Last element of the path of an object's key."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names a message's reasoning goes by, the standard one first; transformers shows the first two to templates."""

_STANDARD_KEYS = frozenset(
    (
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "id",
        "type",
        "function",
        "arguments",
        "text",
        *REASONING_FIELDS,
    )
)


@dataclass(frozen=True)
class Leaf:
    """One scalar of the input."""

    path: Path
    """Where it stands, such as ("messages", 2, "content")."""
    text: str
    """Its text; for numbers and booleans, as Python prints them."""
    message: int
    role: Role
    part: Part

    @property
    def is_role_name(self) -> bool:
        return self.part is Part.SCAFFOLD


_INLINE_REASONING_END = "</think>"
"""How data marks the end of reasoning that stands inside a message's content."""


def end_of_inline_reasoning(leaf: Leaf) -> int:
    """Where reasoning inside an assistant's content ends, its closing tag included; 0 when there is none."""
    if leaf.part is not Part.CONTENT or leaf.role is not Role.ASSISTANT:
        return 0
    at = leaf.text.find(_INLINE_REASONING_END)
    return at + len(_INLINE_REASONING_END) if at >= 0 else 0


@dataclass(frozen=True)
class Wrapped:
    """A conversation ready to be rendered with tracking, whole or its first messages."""

    messages: list[TrackedMessage]
    tools: list[Any] | None
    documents: list[Any] | None
    kwargs: dict[str, Any]
    leaves: list[Leaf]
    roles: tuple[Role, ...]
    raw: dict[str, Any]
    """What was wrapped: messages, tools, documents and kwargs as given."""
    traces: dict[tuple[int, bool], Trace]
    """Renders made so far: (messages, with generation prompt) → Trace. Turns of one conversation share them."""


@dataclass(frozen=True)
class Trace:
    """What one render printed."""

    text: str
    origins: tuple[origin.Origin, ...]
    """Contiguous, covering `text` exactly; a source >= 0 is a leaf, a negative one literal text (origin.scaffold)."""
    leaves: list[Leaf]
    reprs: list[tuple[int, str]]
    """(message, what) printed as Python repr."""
    roles: tuple[Role, ...]
    """The role of each message."""

    def leaf(self, entry: origin.Origin) -> Leaf | None:
        """The leaf an origin points to when it is the data's own text: None for literal text and role names."""
        if entry[2] < 0 or self.leaves[entry[2]].is_role_name:
            return None
        return self.leaves[entry[2]]

    def message(self, entry: origin.Origin) -> int:
        """The message an origin belongs to, -1 for none."""
        return self.leaves[entry[2]].message if entry[2] >= 0 else origin.scaffold_message(entry[2])

    def first_at(self, position: int) -> int:
        """Number of the origin that covers a character position."""
        return bisect.bisect_right(self.origins, position, key=lambda entry: entry[1])

    def cut(self, start: int, stop: int) -> tuple[origin.Origin, ...]:
        """The origins of text[start:stop], shifted to begin at 0."""
        return origin.cut(origin.make(self.text, self.origins), start, stop)._origins


class Engine:
    """One chat template, compiled for plain and for tracked rendering.

    Raises TemplateError when the source cannot be compiled; a render that fails raises TemplateError with the
    template's own message.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], clock: str = DEFAULT_CLOCK) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        try:
            self._tracking_environment = TrackingEnvironment(clock)
            self._plain_environment = plain_environment(clock)
        except ValueError:
            raise TemplateError(f"clock must be an ISO 8601 date and time, got {clock!r}") from None
        try:
            self._plain = self._plain_environment.from_string(source)
            self._tracking = self._tracking_environment.load(source)
            self.tree = tree = self._plain_environment.parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template does not parse: line {error.lineno}: {error.message}") from None
        self.variables = frozenset(meta.find_undeclared_variables(tree)) - {
            "messages",
            "tools",
            "documents",
            "add_generation_prompt",
            "raise_exception",
            "strftime_now",
            *special_tokens,
        }
        """Names the template asks for beyond the standard ones: its switches."""

    def plain(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text as transformers renders it."""
        given = {**self.special_tokens, **(kwargs or {})}
        try:
            return self._plain.render(
                messages=[_alias_reasoning(dict(message)) for message in messages],
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **given,
            )
        except RecursionError:
            raise TemplateError("the template recurses too deeply") from None
        except MemoryError:
            raise
        except Exception as error:
            raise _render_error(error) from None

    def plain_of(self, wrapped: Wrapped, count: int | None = None, *, add_generation_prompt: bool = False) -> str:
        """The text of the first `count` messages of a wrapped conversation, without tracking."""
        raw = wrapped.raw
        return self.plain(
            raw["messages"][:count],
            tools=raw["tools"],
            documents=raw["documents"],
            add_generation_prompt=add_generation_prompt,
            kwargs=raw["kwargs"],
        )

    def trace(self, wrapped: Wrapped, count: int | None = None, *, add_generation_prompt: bool = False) -> Trace:
        """Renders the first `count` messages (None: all) with tracking."""
        size = len(wrapped.messages) if count is None else count
        known = wrapped.traces.get((size, add_generation_prompt))
        if known is None:
            known = wrapped.traces[size, add_generation_prompt] = self._trace(wrapped, size, add_generation_prompt)
        return known

    def _trace(self, wrapped: Wrapped, count: int, add_generation_prompt: bool) -> Trace:
        environment = self._tracking_environment
        environment.begin()
        context = self._tracking.new_context(
            {
                **self.special_tokens,
                **wrapped.kwargs,
                "messages": wrapped.messages[:count],
                "tools": wrapped.tools,
                "documents": wrapped.documents,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        try:
            text = origin.concat(self._tracking.root_render_func(context))
        except RecursionError:
            raise TemplateError("the template recurses too deeply") from None
        except MemoryError:
            raise
        except Exception as error:
            raise _render_error(error) from None
        if origin.plain(text) != self.plain_of(wrapped, count, add_generation_prompt=add_generation_prompt):
            raise TemplateError(
                "the template uses Jinja in a way that cannot be tracked (it prints another text); take out unusual "
                "constructs such as autoescape blocks"
            )
        return Trace(
            origin.plain(text), _coalesced(origin.origins_of(text)), wrapped.leaves, environment.reprs, wrapped.roles
        )


def _render_error(error: Exception) -> TemplateError:
    kind = "" if type(error) is jinja2.exceptions.TemplateError else f"{type(error).__name__}: "
    return TemplateError(f"the chat template refused the messages: {kind}{error}")


def _coalesced(origins: tuple[origin.Origin, ...]) -> tuple[origin.Origin, ...]:
    """Neighbouring one-to-one origins of one source that continue each other, or literal text, become one."""
    out: list[origin.Origin] = []
    for entry in origins:
        if out:
            a, b, source, c, d = out[-1]
            if source == entry[2]:
                if source < 0:
                    out[-1] = (a, entry[1], source, 0, entry[1] - a)
                    continue
                if b - a == d - c and entry[1] - entry[0] == entry[4] - entry[3] and entry[3] == d:
                    out[-1] = (a, entry[1], source, c, entry[4])
                    continue
        out.append(entry)
    return tuple(out)


def _alias_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """transformers shows reasoning to templates as `reasoning_content` and `thinking`, whatever the data calls it."""
    reasoning = next((message[key] for key in REASONING_FIELDS if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def wrap(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Wrapped:
    """Every string, number and boolean of the input becomes tracked; null and the containers stay what they are."""
    leaves: list[Leaf] = []

    def add(path: Path, text: str, message: int, role: Role, part: Part) -> int:
        leaves.append(Leaf(path, text, message, role, part))
        return len(leaves) - 1

    def scalar(value: Any, path: Path, message: int, role: Role, part: Part) -> Any:
        if isinstance(value, str):
            return origin.track(value, add(path, value, message, role, part)) if value else value
        if value is None or not isinstance(value, int | float):
            return value
        number: TrackedBool | TrackedInt | TrackedFloat
        if isinstance(value, bool):
            number = TrackedBool(value)
        else:
            number = TrackedInt(value) if isinstance(value, int) else TrackedFloat(value)
        number._origin = add(path, str(value), message, role, part)
        return number

    def data(value: Any, path: Path, message: int, role: Role, part: Part) -> Any:
        if isinstance(value, Mapping):
            return {
                key
                if key in _STANDARD_KEYS and part is not Part.TOOL_CALL
                else scalar(key, (*path, key, KEY), message, role, part): data(entry, (*path, key), message, role, part)
                for key, entry in value.items()
            }
        if isinstance(value, list | tuple):
            return [data(entry, (*path, number), message, role, part) for number, entry in enumerate(value)]
        return scalar(value, path, message, role, part)

    tracked: list[TrackedMessage] = []
    roles: list[Role] = []
    for index, message in enumerate(messages):
        name = message.get("role")
        role = role_of(name) if isinstance(name, str) else Role.OTHER
        roles.append(role)
        out = TrackedMessage()
        out.index = index
        for key, value in message.items():
            path: Path = ("messages", index, key)
            if key == "role" and role is not Role.OTHER:
                out[key] = scalar(value, path, index, role, Part.SCAFFOLD)
            elif key in REASONING_FIELDS:
                out[key] = data(value, path, index, role, Part.REASONING)
            elif key in ("tool_calls", "function_call"):
                out[key] = data(value, path, index, role, Part.TOOL_CALL)
            else:
                own = key if key in _STANDARD_KEYS else scalar(key, (*path, KEY), index, role, Part.CONTENT)
                out[own] = data(value, path, index, role, Part.CONTENT)
        aliased = TrackedMessage(_alias_reasoning(out))
        aliased.index = index
        tracked.append(aliased)
    return Wrapped(
        messages=tracked,
        tools=None if tools is None else data(list(tools), ("tools",), -1, Role.CONTEXT, Part.TOOL_SCHEMA),
        documents=None if documents is None else data(list(documents), ("documents",), -1, Role.CONTEXT, Part.CONTENT),
        kwargs={
            name: data(value, ("chat_template_kwargs", name), -1, Role.CONTEXT, Part.CONTENT)
            if isinstance(value, str | list | dict)
            else value
            for name, value in (kwargs or {}).items()
        },
        leaves=leaves,
        roles=tuple(roles),
        traces={},
        raw={"messages": list(messages), "tools": tools, "documents": documents, "kwargs": kwargs},
    )
