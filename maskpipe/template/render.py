"""Renders a conversation through its unmodified chat template and says where every character comes from.

    messages ─wrap─▶ tracked input + table of leaves ─Jinja2─▶ Trace: text, and origins that cover it without a gap

A leaf is one string, number or boolean of the input; its field decides the role and part of the characters it becomes.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jinja2
from jinja2 import meta

from maskpipe import _core
from maskpipe.errors import MaskpipeError, TemplateError
from maskpipe.roles import Part, Role, role_of
from maskpipe.template import origin
from maskpipe.template.environment import NULL_PRINTED, TrackingEnvironment
from maskpipe.template.origin import TrackedBool, TrackedFloat, TrackedInt
from maskpipe.template.program import compiled
from maskpipe.template.sandbox import ShortcutEnvironment, plain_environment

Path = tuple[str | int, ...]

DEFAULT_CLOCK = "2026-01-01T00:00:00"
ENGINE = "MASKPIPE_TEMPLATE_ENGINE"
"""An environment variable: with "python" every render is made by the Python tracker."""
COMPARED_ONE_IN = 256
"""Of the renders of the core, this share is made by the Python tracker too; chosen by a hash of the text."""
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


UNKNOWN_PATH: Path = ("unknown",)
"""The path of text that several fields went into, nobody knows how (a filter that builds its text anew)."""


class Leaf(NamedTuple):
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


class Values:
    """What of one conversation is shown to templates, in each form that a render wants.

    `raw` is what was given: messages, tools, documents and kwargs. The other forms are made when they are asked for:
    where the core renders, nobody asks for the tracked ones.
    """

    def __init__(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[Any] | None,
        documents: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> None:
        self.raw: dict[str, Any] = {"messages": messages, "tools": tools, "documents": documents, "kwargs": kwargs}

    def __getattr__(self, name: str) -> Any:
        if name not in _MADE:
            raise AttributeError(name)
        _MADE[name](self)
        return self.__dict__[name]

    if TYPE_CHECKING:
        messages: list[dict[str, Any]]
        numbers: dict[int, int]
        """Index of each of these messages by its identity."""
        tools: list[Any] | None
        documents: list[Any] | None
        kwargs: dict[str, Any]
        leaves: list[Leaf]
        roles: tuple[Role, ...]
        shown: list[dict[str, Any]]
        """The messages as they are shown to templates, without tracking."""
        input: _core.TemplateInput
        """The same for the core."""

    def _make_tracked(self) -> None:
        wrapper = _Wrapper()
        tracked = [
            _alias_reasoning(wrapper.message(message, index, role))
            for index, (message, role) in enumerate(zip(self.raw["messages"], self.roles, strict=True))
        ]
        tools, documents, kwargs = self.raw["tools"], self.raw["documents"], self.raw["kwargs"] or {}
        self.messages = tracked
        self.numbers = {id(message): index for index, message in enumerate(tracked)}
        self.tools = None
        if tools is not None:
            self.tools = wrapper.data(list(tools), ("tools",), -1, Role.CONTEXT, Part.TOOL_SCHEMA)
        self.documents = None
        if documents is not None:
            self.documents = wrapper.data(list(documents), ("documents",), -1, Role.CONTEXT, Part.CONTENT)
        self.kwargs = {
            name: wrapper.data(value, ("chat_template_kwargs", name), -1, Role.CONTEXT, Part.CONTENT)
            if isinstance(value, str | list | dict)
            else value
            for name, value in kwargs.items()
        }
        self.leaves = wrapper.leaves

    def _make_roles(self) -> None:
        names = [message.get("role") for message in self.raw["messages"]]
        self.roles = tuple([role_of(name) if isinstance(name, str) else Role.OTHER for name in names])

    def _make_shown(self) -> None:
        self.shown = [_alias_reasoning(dict(message)) for message in self.raw["messages"]]

    def _make_input(self) -> None:
        self.input = _core.TemplateInput(*self.raw.values())


_MADE: dict[str, Callable[[Values], None]] = {
    **dict.fromkeys(("messages", "numbers", "tools", "documents", "kwargs", "leaves"), Values._make_tracked),
    "roles": Values._make_roles,
    "shown": Values._make_shown,
    "input": Values._make_input,
}


class Wrapped:
    """A conversation ready to be rendered with tracking, whole or its first messages, and its renders so far.

    These refer to the values, not to this: reference counts free a conversation, without a wait for the collector.
    """

    def __init__(self, values: Values) -> None:
        self.values = values
        self.traces: dict[tuple[int, bool], Trace] = {}
        """(messages, with generation prompt) → Trace. Turns of one conversation share them."""

    @property
    def raw(self) -> dict[str, Any]:
        return self.values.raw

    @property
    def kwargs(self) -> dict[str, Any]:
        return self.values.kwargs

    @property
    def leaves(self) -> list[Leaf]:
        return self.values.leaves

    @property
    def input(self) -> _core.TemplateInput:
        return self.values.input


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

    core: ClassVar[_core.Shown | None] = None
    """The same in the core, where it was rendered there."""

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
        first = self.first_at(start)
        last = bisect.bisect_left(self.origins, stop, first, key=lambda entry: entry[0])
        return origin.cut(origin.make(self.text, self.origins[first:last]), start, stop)._origins

    @cached_property
    def literal_text(self) -> str:
        """What the template wrote by itself, with a NUL wherever data stands between."""
        return "\0".join([self.text[entry[0] : entry[1]] for entry in self.origins if entry[2] < 0])

    @cached_property
    def layout(self) -> Layout:
        """Where each message's own text stands."""
        return _layout(self.origins, self.leaves)


class CoreTrace(Trace):
    """A Trace that the core made; what Python wants of it is made when it is asked for."""

    @staticmethod
    def of(core: _core.Shown, values: Values) -> CoreTrace:
        trace = object.__new__(CoreTrace)
        trace.__dict__.update(core=core, _values=values)
        return trace

    def __getattr__(self, name: str) -> Any:
        if self.core is None:
            raise AttributeError(name)
        made: Any
        if name == "text":
            made = self.core.text()
        elif name == "origins":
            made = self.core.origins()
        elif name == "leaves":
            made = self._values.leaves
        elif name == "reprs":
            made = [(message, NULL_PRINTED) for message in self.core.nulls()]
        elif name == "roles":
            made = self._values.roles
        else:
            raise AttributeError(name)
        self.__dict__[name] = made
        return made


class Layout(NamedTuple):
    """Where data stands in a trace, found once; numbers are those of its origins."""

    own: dict[int, tuple[int, int]]
    """Message (-1: of none) → its first and its last own text."""
    data: list[int]
    """All own text of any message."""
    peaks: list[int]
    """For each of these, the highest message up to it."""
    literal: set[int]
    """Sources of literal text."""


def _layout(origins: tuple[origin.Origin, ...], leaves: list[Leaf]) -> Layout:
    own: dict[int, tuple[int, int]] = {}
    data: list[int] = []
    peaks: list[int] = []
    literal: set[int] = set()
    peak = -1
    for number, entry in enumerate(origins):
        source = entry[2]
        if source < 0:
            literal.add(source)
            continue
        _, _, message, _, part = leaves[source]
        if part is Part.SCAFFOLD:
            continue
        own[message] = (own[message][0] if message in own else number, number)
        if message > peak:
            peak = message
        data.append(number)
        peaks.append(peak)
    return Layout(own, data, peaks, literal)


def shown_range(entry: origin.Origin) -> tuple[int, int]:
    """The characters of the source that an origin shows, or stands for: half an escape stands for one character, text
    of unknown characters for none."""
    start, stop = entry[3], entry[4]
    if start < 0:
        return 0, 0
    return start, max(stop, start + 1)


MAX_TEMPLATE = 1_000_000
"""Characters; the longest of some 500 real templates has 40,000."""


class Engine:
    """One chat template, compiled for plain and for tracked rendering.

    Raises TemplateError when the source cannot be compiled; a render that fails raises TemplateError with the
    template's own message.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], clock: str = DEFAULT_CLOCK) -> None:
        if len(source) > MAX_TEMPLATE:
            raise TemplateError(
                f"the chat template has {len(source):,} characters, more than {MAX_TEMPLATE:,}. Is it a template?"
            )
        self.source = source
        self._clock = clock
        self.special_tokens = dict(special_tokens)
        try:
            self._tracking_environment = TrackingEnvironment(clock)
            plain = ShortcutEnvironment(clock)
        except ValueError:
            raise TemplateError(f"clock must be an ISO 8601 date and time, got {clock!r}") from None
        try:
            self._plain = plain.load(source)
            self._tracking = self._tracking_environment.load(source)
            self.tree = tree = plain.parse(source)
        except jinja2.TemplateSyntaxError as error:
            said = _shortened(error.message or "")
            raise TemplateError(f"the chat template does not parse: line {error.lineno}: {said}") from None
        except (RecursionError, SyntaxError, MemoryError) as error:  # of Python's compiler: nested beyond its bounds
            raise TemplateError(f"the chat template does not compile: {_shortened(str(error))}") from None
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
        self._program: _core.TemplateProgram | None = None
        if os.environ.get(ENGINE, "") != "python":
            self._program = compiled(self._tracking_environment, source, self.special_tokens)

    @property
    def program(self) -> _core.TemplateProgram | None:
        """The template for the core; None where that has nothing to do."""
        return self._program

    def plain(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text as transformers renders it, by stock Jinja2: the reference."""
        given = {**self.special_tokens, **(kwargs or {})}
        try:
            return self._stock.render(
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

    @cached_property
    def _stock(self) -> jinja2.Template:
        return plain_environment(self._clock).from_string(self.source)

    def plain_of(self, wrapped: Wrapped, count: int | None = None, *, add_generation_prompt: bool = False) -> str:
        """The text of the first `count` messages of a wrapped conversation, without tracking: what `plain` gives."""
        raw = wrapped.raw
        variables = {
            **self.special_tokens,
            **(raw["kwargs"] or {}),
            "messages": wrapped.values.shown[:count],
            "tools": raw["tools"],
            "documents": raw["documents"],
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return "".join(self._plain.pieces(variables))
        except RecursionError:
            raise TemplateError("the template recurses too deeply") from None
        except Exception as error:
            raise _render_error(error) from None

    def trace(self, wrapped: Wrapped, count: int | None = None, *, add_generation_prompt: bool = False) -> Trace:
        """Renders the first `count` messages (None: all) with tracking."""
        size = len(wrapped.raw["messages"]) if count is None else count
        known = wrapped.traces.get((size, add_generation_prompt))
        if known is None:
            known = wrapped.traces[size, add_generation_prompt] = self._trace(wrapped, size, add_generation_prompt)
        return known

    def core(self, wrapped: Wrapped, count: int, add_generation_prompt: bool) -> _core.Shown | None:
        """The same by the core; None where that does not do what the template does.

        Each node of the template is compared with the Python tracker the first times that it is run, and so is one
        render in COMPARED_ONE_IN: MaskpipeError where they differ.
        """
        program = self._program
        if program is None:
            return None
        shown = program.render(wrapped.input, count, add_generation_prompt)
        if shown is None:
            return None
        if shown.needs_comparison(COMPARED_ONE_IN):
            self._compare(wrapped, count, add_generation_prompt, shown)
            program.agree(shown)
        return shown

    def _compare(self, wrapped: Wrapped, count: int, add_generation_prompt: bool, shown: _core.Shown) -> None:
        try:
            trace = self._tracked(wrapped, count, add_generation_prompt)
            same = (trace.text, trace.origins) == (shown.text(), shown.origins())
            same = same and trace.reprs == [(message, NULL_PRINTED) for message in shown.nulls()]
            same = same and trace.leaves == wrapped.leaves
            said = "another text or other origins"
        except TemplateError as error:
            same, said = False, str(error)
        if not same:
            raise MaskpipeError(
                f"the core renders this chat template otherwise than Jinja2, which gives {said}; nothing it made can "
                f"be trusted. Set {ENGINE}=python in the environment, and please report the template"
            )

    def _trace(self, wrapped: Wrapped, count: int, add_generation_prompt: bool) -> Trace:
        shown = self.core(wrapped, count, add_generation_prompt)
        if shown is not None:
            return CoreTrace.of(shown, wrapped.values)
        return self._tracked(wrapped, count, add_generation_prompt)

    def _tracked(self, wrapped: Wrapped, count: int, add_generation_prompt: bool) -> Trace:
        """A render by the Python tracker: the reference of the core."""
        environment, values = self._tracking_environment, wrapped.values
        environment.begin(values.numbers)
        variables = {
            **self.special_tokens,
            **values.kwargs,
            "messages": values.messages[:count],
            "tools": values.tools,
            "documents": values.documents,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text, origins = environment.printed(self._tracking.pieces(variables))
        except RecursionError:
            raise TemplateError("the template recurses too deeply") from None
        except MemoryError:
            raise
        except Exception as error:
            raise _render_error(error) from None
        if text != self.plain_of(wrapped, count, add_generation_prompt=add_generation_prompt):
            raise TemplateError(
                "the template uses Jinja in a way that cannot be tracked (it prints another text); take out unusual "
                "constructs such as autoescape blocks"
            )
        whole = _coalesced(origins)
        layout = _layout(whole, values.leaves)
        if origin.UNKNOWN in layout.literal:
            whole = _coalesced(_with_unknown_leaf(origins, values.leaves))
            layout = _layout(whole, values.leaves)
        trace = Trace(text, whole, values.leaves, environment.reprs, values.roles)
        trace.__dict__["layout"] = layout  # what the cached property would find, without its lock
        return trace


def _with_unknown_leaf(origins: Iterable[origin.Origin], leaves: list[Leaf]) -> list[origin.Origin]:
    """Text of UNKNOWN source as text of a leaf that belongs to no message."""
    unknown = Leaf(UNKNOWN_PATH, "", -1, Role.CONTEXT, Part.CONTENT)
    if unknown not in leaves:
        leaves.append(unknown)
    number = leaves.index(unknown)
    return [(a, b, number if source == origin.UNKNOWN else source, c, d) for a, b, source, c, d in origins]


def _render_error(error: Exception) -> TemplateError:
    kind = "" if type(error) is jinja2.exceptions.TemplateError else f"{type(error).__name__}: "
    return TemplateError(f"the chat template refused the messages: {kind}{_shortened(str(error))}")


def _shortened(text: str) -> str:
    return text if len(text) <= 1000 else f"{text[:1000]}… ({len(text):,} characters)"


def _coalesced(origins: Iterable[origin.Origin]) -> tuple[origin.Origin, ...]:
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
    if "reasoning_content" not in message and "thinking" not in message and "reasoning" not in message:
        return message
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
    return Wrapped(Values(list(messages), tools, documents, kwargs))  # type: ignore[arg-type]


class _Wrapper:
    """Makes values tracked and numbers their leaves."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []

    def message(self, message: Mapping[str, Any], index: int, role: Role) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in message.items():
            path: Path = ("messages", index, key)
            if key == "content" and type(value) is str:
                out[key] = self.scalar(value, path, index, role, Part.CONTENT)
            elif key == "role" and role is not Role.OTHER:
                out[key] = self.scalar(value, path, index, role, Part.SCAFFOLD)
            elif key in REASONING_FIELDS:
                out[key] = self.data(value, path, index, role, Part.REASONING)
            elif key in ("tool_calls", "function_call"):
                out[key] = self.data(value, path, index, role, Part.TOOL_CALL)
            else:
                own = key if key in _STANDARD_KEYS else self.scalar(key, (*path, KEY), index, role, Part.CONTENT)
                out[own] = self.data(value, path, index, role, Part.CONTENT)
        return out

    def data(self, value: Any, path: Path, message: int, role: Role, part: Part) -> Any:
        if isinstance(value, str):
            return self.scalar(value, path, message, role, part)
        if isinstance(value, Mapping):
            return {
                key
                if key in _STANDARD_KEYS and part is not Part.TOOL_CALL
                else self.scalar(key, (*path, key, KEY), message, role, part): self.data(
                    entry, (*path, key), message, role, part
                )
                for key, entry in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.data(entry, (*path, number), message, role, part) for number, entry in enumerate(value)]
        return self.scalar(value, path, message, role, part)

    def scalar(self, value: Any, path: Path, message: int, role: Role, part: Part) -> Any:
        leaf = len(self.leaves)
        if isinstance(value, str):
            if not value:
                return value
            self.leaves.append(Leaf(path, value, message, role, part))
            return origin.track(value, leaf)
        if value is None or not isinstance(value, int | float):
            return value
        number: TrackedBool | TrackedInt | TrackedFloat
        if isinstance(value, bool):
            number = TrackedBool(value)
        else:
            number = TrackedInt(value) if isinstance(value, int) else TrackedFloat(value)
        number._origin = leaf
        self.leaves.append(Leaf(path, str(value), message, role, part))
        return number
