"""The Jinja2 sandbox for chat templates, set up exactly as transformers does it, with and without origin tracking.

The plain environment is the reference (and what shadow rendering uses); the tracking one prints the same text. Three
kinds of place would lose a str subclass or its origin, and are re-routed here:

1. C code that joins strings: `{{ }}`, `~`, macros, set, call and filter blocks (the code generator and `concat`);
2. methods of an exact str with tracked arguments: "sep".join(...), "...".replace(a, tracked), "...".format(tracked);
3. filters and tests that ask for exact types, or build new strings.

The syntax tree gets one addition: `enter` calls at the head of loop bodies, so that literal text knows which message
the template's loop stood on when it was printed. They print nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn
from urllib.parse import quote

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.tests
import jinja2.utils
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment

from maskpipe.template import origin
from maskpipe.template.origin import Tracked, TrackedBool, TrackedFloat, TrackedInt, concat, make, origins_of, to_text


class _Generation(jinja2.ext.Extension):
    """transformers' `{% generation %}` block: accepted, and without any effect here."""

    tags = {"generation"}  # noqa: RUF012 (Jinja2's own way)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _TemplateDict:
    """`dict` for templates, as transformers limits it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(jinja2.utils.Namespace):
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


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"chat templates cannot store the underscore attribute {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _refuse_chance(*args: Any, **kwargs: Any) -> NoReturn:
    raise jinja2.exceptions.TemplateError("the template draws at random, so no two renders would be the same")


def _plain_tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _set_up(environment: ImmutableSandboxedEnvironment, clock: str) -> None:
    moment = datetime.fromisoformat(clock)

    def strftime_now(format: str) -> str:
        return moment.strftime(format)

    environment.filters["random"] = _refuse_chance
    environment.globals.update(
        lipsum=_refuse_chance,
        raise_exception=_raise_exception,
        strftime_now=strftime_now,
        dict=_TemplateDict(),
        namespace=_TemplateNamespace,
    )


def plain_environment(clock: str) -> ImmutableSandboxedEnvironment:
    """What transformers renders with; `strftime_now` shows `clock` (ISO 8601)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    _set_up(environment, clock)
    environment.filters["tojson"] = _plain_tojson
    return environment


class TrackedMessage(dict[str, Any]):
    """A message as the template sees it: a dict that knows its index."""

    index: int


class _TrackingCodeGenerator(CodeGenerator):
    """Generates code whose output and `~` go through the environment instead of `str` and C joins."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.literal({''.join(str(part) for part in group)!r})"

    def _output_child_pre(self, node: nodes.Expr, frame: Any, finalize: Any) -> None:
        self.write("environment.printed(")

    def _output_child_post(self, node: nodes.Expr, frame: Any, finalize: Any) -> None:
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")


class TrackingEnvironment(ImmutableSandboxedEnvironment):
    """Renders tracked input into tracked text. Holds the state of one render at a time: not for several threads."""

    code_generator_class = _TrackingCodeGenerator
    intercepted_binops = frozenset(("%",))
    concat = staticmethod(concat)

    message: int = -1
    """Index of the message that the innermost loop over messages stands on, -1 for none."""
    reprs: list[tuple[int, str]]
    """What was printed as Python repr: (message, what)."""

    def __init__(self, clock: str) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.begin()
        _set_up(self, clock)
        self.filters.update(_filters(dict(self.filters)))
        self.tests.update(_TESTS)

    def load(self, source: str) -> jinja2.Template:
        """The template, compiled for tracking. Raises jinja2.TemplateSyntaxError."""
        tree = self.parse(source)
        _add_enters(tree)
        return self.from_string(tree)

    # -- called by the generated code

    def literal(self, text: str) -> str:
        return make(text, ((0, len(text), origin.scaffold(self.message), 0, len(text)),)) if text else text

    def printed(self, value: Any) -> str:
        if not isinstance(value, str):
            self._note_repr(value)
            value = to_text(value)
        return self._fill(value) if value else value

    def joined(self, values: Iterable[Any]) -> str:
        parts = []
        for value in values:
            if not isinstance(value, str):
                self._note_repr(value)
                value = to_text(value)
            parts.append(value)
        return concat(parts)

    def enter(self, value: Any) -> str:
        if type(value) is TrackedMessage:
            self.message = value.index
        return ""

    def remember(self) -> str:
        self._before_loops.append(self.message)
        return ""

    def restore(self) -> str:
        self.message = self._before_loops.pop()
        return ""

    def begin(self) -> None:
        """Forgets what an earlier render left behind."""
        self.message = -1
        self.reprs = []
        self._before_loops: list[int] = []

    def _fill(self, text: str) -> str:
        """Tags the characters without origin as literal text printed now."""
        source = origin.scaffold(self.message)
        filled: list[origin.Origin] = []
        at = 0
        for entry in origins_of(text):
            if entry[0] > at:
                filled.append((at, entry[0], source, 0, entry[0] - at))
            filled.append(entry)
            at = entry[1]
        if at < len(text):
            filled.append((at, len(text), source, 0, len(text) - at))
        return make(text, tuple(filled))

    def _note_repr(self, value: Any) -> None:
        if value is None:
            self.reprs.append((self.message, "null printed as None"))
        elif isinstance(value, list | dict | tuple) and origin.has_origin(value):
            kind = "an object" if isinstance(value, dict) else "a list"
            self.reprs.append((self.message, f"{kind} printed as Python repr"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if type(left) is str and origin.has_origin(right):
            return make(left, ()) % right
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if type(owner) is str and getattr(__obj, "__name__", "") in ("join", "replace"):
            __obj = getattr(make(owner, ()), __obj.__name__)
            if __obj.__name__ == "join":
                args = (list(args[0]), *args[1:])
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`format` methods, which the sandbox replaces where they are looked up by ones that follow its rules (no
        attribute tricks): their text, with the origins put back."""
        if super().wrap_str_format(value) is None:
            return None
        owner = value.__self__ if isinstance(value.__self__, Tracked) else make(value.__self__, ())
        return lambda *args, **kwargs: _sandboxed_format(self, getattr(owner, value.__name__), args, kwargs)


def _sandboxed_format(environment: TrackingEnvironment, method: Any, args: Any, kwargs: Any) -> str:
    def run(text: str, given: Any) -> str:
        safe = super(TrackingEnvironment, environment).wrap_str_format(getattr(text, method.__name__))
        assert safe is not None
        return str(safe(*given[0], **given[1]))

    if isinstance(method.__self__, origin.Safe):
        given = origin.escaped_arguments((args, kwargs), 2)
        return origin.safe(origin.formatted(run, method.__self__, given, 2))
    return origin.formatted(run, method.__self__, (args, kwargs), 2)


def _add_enters(tree: nodes.Node) -> None:
    """Every loop body begins by saying which value the loop stands on; after a loop, what was before it holds again."""
    for name in tree.fields:
        value = getattr(tree, name)
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, nodes.Node):
                _add_enters(child)
        if isinstance(value, list) and any(isinstance(child, nodes.For) for child in value):
            out: list[nodes.Node] = []
            for child in value:
                if not isinstance(child, nodes.For):
                    out.append(child)
                    continue
                names = (
                    [child.target] if isinstance(child.target, nodes.Name) else list(child.target.find_all(nodes.Name))
                )
                child.body[:0] = [_call("enter", child.lineno, nodes.Name(node.name, "load")) for node in names]
                _enter_indexed(child, [node.name for node in names])
                out += (_call("remember", child.lineno), child, _call("restore", child.lineno))
            setattr(tree, name, out)


def _call(method: str, line: int, *arguments: nodes.Expr) -> nodes.ExprStmt:
    call = nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)
    statement = nodes.ExprStmt(call)
    for node in (statement, call, call.node, *arguments):
        node.set_lineno(line)
    return statement


def _enter_indexed(loop: nodes.For, names: list[str]) -> None:
    """`for i in range(...)` with `set message = messages[i]` also says which message it stands on."""
    out: list[nodes.Node] = []
    for child in loop.body:
        out.append(child)
        if (
            isinstance(child, nodes.Assign)
            and isinstance(child.target, nodes.Name)
            and isinstance(child.node, nodes.Getitem)
            and isinstance(child.node.arg, nodes.Name)
            and child.node.arg.name in names
        ):
            out.append(_call("enter", child.lineno, nodes.Name(child.target.name, "load")))
    loop.body = out


def _filters(base: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The filters of Jinja2 that build new strings, keeping origins; `base` has the originals."""

    def text_first(name: str) -> Callable[..., Any]:
        original = base[name]
        return lambda value, *args, **kwargs: original(to_text(value), *args, **kwargs)

    @jinja2.pass_eval_context
    def join(context: Any, value: Any, d: str = "", attribute: Any = None) -> str:
        if attribute is not None:
            value = map(jinja2.filters.make_attrgetter(context.environment, attribute), value)
        return origin.join(to_text(d), [to_text(entry) for entry in value])

    def replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
        text = to_text(s)
        return make(text, origins_of(text)).replace(to_text(old), to_text(new), -1 if count is None else count)

    def indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        by = width if isinstance(width, str) else " " * width
        lines = make(s + "\n", origins_of(s)).splitlines()
        out: list[str] = [lines[0]]
        for line in lines[1:]:
            out += ("\n", by, line) if line or blank else ("\n", line)
        text = concat([by, *out] if first else out)
        return origin.safe(text) if isinstance(s, origin.Safe) else text

    def title(s: Any) -> str:
        return origin.mapped(make(to_text(s), origins_of(to_text(s))), base["title"])

    def format(value: str, *args: Any, **kwargs: Any) -> str:
        if isinstance(value, origin.Safe):
            return value % (kwargs or args)
        return origin.formatted(lambda text, given: text % given, to_text(value), kwargs or args)

    def safe(value: Any) -> str:
        return origin.safe(to_text(value))

    def forceescape(value: Any) -> str:
        return safe(origin.escaped(origin.make(to_text(value), origins_of(to_text(value)))))

    def urlencode(value: Any) -> str:
        if isinstance(value, Tracked):
            return origin.mapped(value, lambda part: quote(part.encode("utf-8"), safe="/"))
        return str(base["urlencode"](value))

    def realigned(name: str) -> Callable[..., Any]:
        original = base[name]
        passes = getattr(original, "jinja_pass_arg", None)

        def run(*args: Any, **kwargs: Any) -> Any:
            at = 0 if passes is None else 1
            text = to_text(args[at])
            result = original(*args[:at], origin.plain(text), *args[at + 1 :], **kwargs)
            return origin.aligned(str(result), text)

        if passes is not None:
            run.jinja_pass_arg = passes  # type: ignore[attr-defined]
        return run

    return {
        **{name: text_first(name) for name in ("upper", "lower", "capitalize", "trim")},
        **{name: realigned(name) for name in ("center", "wordwrap", "striptags", "truncate")},
        "tojson": origin.to_json,
        "string": to_text,
        "join": join,
        "replace": replace,
        "indent": indent,
        "title": title,
        "format": format,
        "safe": safe,
        "escape": lambda value: safe(origin.escaped(value)),
        "e": lambda value: safe(origin.escaped(value)),
        "forceescape": forceescape,
        "urlencode": urlencode,
    }


def _is_boolean(value: Any) -> bool:
    return value is True or value is False or type(value) is TrackedBool


_TESTS: dict[str, Callable[..., bool]] = {
    "boolean": _is_boolean,
    "true": lambda value: value is True or (type(value) is TrackedBool and bool(value)),
    "false": lambda value: value is False or (type(value) is TrackedBool and not value),
    "integer": lambda value: isinstance(value, int) and not _is_boolean(value),
    "float": lambda value: isinstance(value, float),
    "sameas": lambda value, other: (
        value is other or (_is_boolean(value) and _is_boolean(other) and bool(value) == bool(other))
    ),
}

__all__ = ["TrackedBool", "TrackedFloat", "TrackedInt", "TrackedMessage", "TrackingEnvironment", "plain_environment"]
