"""Jinja2's sandbox for chat templates, set up exactly as transformers does it.

`plain_environment` is stock Jinja2: the reference, and what shadow rendering uses. `ShortcutEnvironment` prints the
same with less work: where the type of an object is exactly one that the sandbox has no say about (a dict of the data,
a str, the template's own namespace or loop), the generated code does at once what the sandbox would do after its
checks, and every other object takes the sandbox's way. So it forbids what the sandbox forbids:

    message.role         message['role'] if it is a dict with that key, and dict has no attribute of that name
    text.strip()         the method of str itself, for methods that only read, never format or format_map
    loop.first, ns.x     the attribute itself, never one that begins with an underscore
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, ClassVar, NoReturn

import jinja2
import jinja2.ext
import jinja2.utils
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, optimizeconst
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    """transformers' `{% generation %}` block: accepted, and without any effect here."""

    tags = {"generation"}  # noqa: RUF012 (Jinja2's own way)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class TemplateDict:
    """`dict` for templates, as transformers limits it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(jinja2.utils.Namespace):
    """`namespace` for templates: no underscore attributes, as transformers limits it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        attrs = dict(*rest, **kwargs)
        for name in attrs:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, attrs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def attributes_of(namespace: jinja2.utils.Namespace) -> dict[str, Any]:
    """What a template's namespace holds."""
    held: dict[str, Any] = object.__getattribute__(namespace, "_Namespace__attrs")
    return held


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"chat templates cannot store the underscore attribute {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _refuse_chance(*args: Any, **kwargs: Any) -> NoReturn:
    raise jinja2.exceptions.TemplateError("the template draws at random, so no two renders would be the same")


def plain_tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The `tojson` filter as transformers defines it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


OPTIONS: dict[str, Any] = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "extensions": [Generation, jinja2.ext.loopcontrols],
}


MAX_MADE = 10_000_000
"""Characters, entries or bits that one operator or filter may make out of nothing."""


def check_size(made: int) -> None:
    """TemplateError for more than MAX_MADE: a number in a template is no reason to fill the memory."""
    if made > MAX_MADE:
        raise jinja2.exceptions.TemplateError(f"one operation would make {made:,} characters, entries or bits")


def _times(left: Any, right: Any) -> Any:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(count, int):
            check_size(len(sequence) * count)
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        check_size(left.bit_length() * right)
    return left**right


_SIZED = {"center": "width", "indent": "width", "slice": "slices", "batch": "linecount"}
"""Filter → its first argument after the value: how much it makes of whatever it is given."""


def _bounded(filter: Callable[..., Any], argument: str) -> Callable[..., Any]:
    def bounded(value: Any, *args: Any, **kwargs: Any) -> Any:
        size = args[0] if args else kwargs.get(argument, 0)
        if isinstance(size, int):
            check_size(size)
        return filter(value, *args, **kwargs)

    return bounded


def set_up(environment: ImmutableSandboxedEnvironment, clock: str) -> None:
    """Adds what transformers adds; `strftime_now` shows `clock` (ISO 8601). ValueError for another form of clock."""
    moment = datetime.fromisoformat(clock)

    def strftime_now(format: str) -> str:
        return moment.strftime(format)

    environment.binop_table = {**environment.binop_table, "*": _times, "**": _power}
    environment.filters.update(
        {name: _bounded(environment.filters[name], argument) for name, argument in _SIZED.items()}
    )
    environment.filters["random"] = _refuse_chance
    environment.filters["tojson"] = plain_tojson
    environment.globals.update(
        lipsum=_refuse_chance,
        raise_exception=_raise_exception,
        strftime_now=strftime_now,
        dict=TemplateDict(),
        namespace=TemplateNamespace,
    )


COMPUTED_LATE = frozenset(("%", "*", "**"))
"""Operators that Jinja must not compute while it compiles, where nothing would limit `{{ 9 ** (9 ** 9) }}`: constants
are left to the render, which gives the same."""


def plain_environment(clock: str) -> ImmutableSandboxedEnvironment:
    """What transformers renders with: stock Jinja2."""
    environment = ImmutableSandboxedEnvironment(**OPTIONS)
    environment.intercepted_binops = COMPUTED_LATE
    set_up(environment, clock)
    return environment


_TEXT_METHODS = frozenset(
    (
        *("startswith", "endswith", "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition"),
        *("rpartition", "removeprefix", "removesuffix", "upper", "lower", "title", "capitalize", "find", "rfind"),
        *("index", "count", "isdigit", "isspace", "isalpha", "isalnum", "islower", "isupper"),
    )
)
"""Methods of str that only read it. What they return holds nothing of their arguments."""
_OBJECT_METHODS = frozenset(("get", "items", "keys", "values"))
_LOOP_ATTRIBUTES = frozenset(
    (
        *("index", "index0", "revindex", "revindex0", "first", "last"),
        *("length", "depth", "depth0", "previtem", "nextitem"),
    )
)


class ShortcutGenerator(CodeGenerator):
    """Generates the shortcuts; `shortcut_texts`, `shortcut_loop`, … are names that `ShortcutEnvironment.load` gives
    to the generated code."""

    @optimizeconst
    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:
        name = node.attr
        if name in _LOOP_ATTRIBUTES and isinstance(node.node, nodes.Name) and node.node.name == "loop":
            self._if_type(node.node, frame, "is shortcut_loop", f"it.{name}")
        elif hasattr(dict, name):
            CodeGenerator.visit_Getattr(self, node, frame)
            return
        else:
            self._if_type(node.node, frame, f"is dict and {name!r} in it", f"it[{name!r}]")
        self.write(f" else environment.attribute(it, {name!r}))")

    @optimizeconst
    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Const) or not isinstance(node.arg.value, str):
            CodeGenerator.visit_Getitem(self, node, frame)
            return
        name = node.arg.value
        self._if_type(node.node, frame, f"is dict and {name!r} in it", f"it[{name!r}]")
        self.write(f" else environment.getitem(it, {name!r}))")

    @optimizeconst
    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        if isinstance(node.node, nodes.EnvironmentAttribute):  # called by ourselves, see environment.py
            self.visit(node.node, frame)
            self.write("(")
            for argument in node.args:
                self.visit(argument, frame)
            self.write(")")
            return
        method = node.node
        simple = not (node.kwargs or node.dyn_args or node.dyn_kwargs or forward_caller)
        if (
            not simple
            or not isinstance(method, nodes.Getattr)
            or method.attr not in _TEXT_METHODS | _OBJECT_METHODS
            or not all(isinstance(argument, nodes.Const | nodes.Name) for argument in node.args)
        ):
            self._call(node, frame, forward_caller)
            return
        kinds = "in shortcut_texts" if method.attr in _TEXT_METHODS else "is dict"
        self.write(f"(it.{method.attr}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(") if type(it := ")
        self.visit(method.node, frame)
        self.write(f") {kinds} else environment.call(context, environment.getattr(it, {method.attr!r})")
        kept = {name: name for name, frames in _SCOPES.items() if getattr(frame, frames)}
        self.signature(node, frame, kept)
        self.write("))")

    def _call(self, node: nodes.Call, frame: Frame, forward_caller: bool) -> None:
        CodeGenerator.visit_Call(self, node, frame, forward_caller=forward_caller)

    def _if_type(self, node: nodes.Expr, frame: Frame, condition: str, value: str) -> None:
        """Writes `(value if type(it := node) condition`, for an `else` to follow."""
        self.write(f"({value} if type(it := ")
        self.visit(node, frame)
        self.write(f") {condition}")


_SCOPES = {"_loop_vars": "loop_frame", "_block_vars": "block_frame"}


class ShortcutEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with shortcuts that change nothing it prints or forbids."""

    intercepted_binops = COMPUTED_LATE
    code_generator_class = ShortcutGenerator
    shortcuts: ClassVar[dict[str, Any]] = {"shortcut_loop": LoopContext, "shortcut_texts": (str,)}
    """Names the generated code knows: the type of `loop`, and those of text whose methods may be called at once."""
    inert: ClassVar[frozenset[type]] = frozenset((str, int, float, bool, type(None), list, dict))
    """Types of values in a namespace that the sandbox hands out as they are."""

    def __init__(self, clock: str) -> None:
        super().__init__(**OPTIONS)
        set_up(self, clock)

    def load(self, source: str) -> Program:
        """The template, compiled. Raises jinja2.TemplateSyntaxError."""
        template = self.from_string(self.prepare(source))
        root = template.root_render_func
        root.__globals__.update(self.shortcuts)
        return Program(self, template)

    def prepare(self, source: str) -> nodes.Template:
        return self.parse(source)

    # -- called by the generated code

    def attribute(self, value: Any, name: str) -> Any:
        """`value.name`, where value is no dict that has it; `name` is no attribute of dict."""
        kind = type(value)
        if kind is dict:
            return self.undefined(obj=value, name=name)
        if kind is TemplateNamespace and name[:1] != "_":
            found = attributes_of(value).get(name, self)
            if type(found) in self.inert:
                return found
        return self.getattr(value, name)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if __obj is TemplateNamespace:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __obj(*args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


class Program:
    """A compiled template."""

    def __init__(self, environment: ShortcutEnvironment, template: jinja2.Template) -> None:
        self._environment = environment
        self._template = template
        self._globals = dict(template.globals)

    def pieces(self, variables: dict[str, Any]) -> Iterator[Any]:
        """What the template prints, piece by piece."""
        context = self._environment.context_class(
            self._environment, {**self._globals, **variables}, self._template.name, self._template.blocks
        )
        pieces: Iterator[Any] = self._template.root_render_func(context)
        return pieces
