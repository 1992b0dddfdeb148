"""The tracking environment: Jinja2's sandbox (sandbox.py) that prints the same text as a str with origins.

Three kinds of place would lose a str subclass or its origin, and are re-routed here:

1. C code that joins strings: `{{ }}`, `~`, macros, set, call and filter blocks (the code generator and `concat`);
2. methods of an exact str with tracked arguments: "sep".join(...), "...".replace(a, tracked), "...".format(tracked);
3. filters and tests that ask for exact types, or build new strings.

What else turns data into text without origins (pprint, urlize, encode, a format of the clock …) gives text that is
known to come from data, though not from which characters (origin.derived): it is never the template's own.

What the template prints at its top level reaches `printed` piece by piece: an exact str is literal text, to be tagged
with the message that the template's loop stands on at this moment. So constants cost nothing until the last join.
The syntax tree gets one addition: `enter` calls at the head of loop bodies, so that literal text knows which message
the template's loop stood on when it was printed. They print nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar
from urllib.parse import quote

import jinja2
import jinja2.filters
import jinja2.tests
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, optimizeconst
from jinja2.runtime import Context

from maskpipe.template import origin
from maskpipe.template.origin import Tracked, TrackedBool, TrackedFloat, TrackedInt, concat, make, origins_of, to_text
from maskpipe.template.sandbox import COMPUTED_LATE, ShortcutEnvironment, ShortcutGenerator, check_size

NULL_PRINTED = "null printed as None"
"""What is said of null that a template prints."""


class Sum(tuple[Any, ...]):
    """The terms of a `{{ a + b + c }}`, not added yet."""

    __slots__ = ()


class _TrackingGenerator(ShortcutGenerator):
    """Generates code whose output and `~` go through the environment instead of `str` and C joins. At the top level
    values are yielded as they are; inside macros and blocks, which gather text to go on with, it is tagged at once."""

    _gathers = False
    _printed: nodes.Expr | None = None

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        self._gathers = frame.buffer is not None
        CodeGenerator.visit_Output(self, node, frame)

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        text = repr("".join(str(part) for part in group))
        return f"environment.literal({text})" if self._gathers else text

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.tagged(" if frame.buffer is not None else "(")
        self._printed = node if frame.buffer is None else None

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")

    @optimizeconst
    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        printed, self._printed = node is self._printed, None
        terms: list[nodes.Expr] = [node.right]
        left: nodes.Expr = node.left
        while isinstance(left, nodes.Add):
            terms.append(left.right)
            left = left.left
        if len(terms) == 1 and not printed:
            self.write("(")
            self.visit(left, frame)
            self.write(" + ")
            self.visit(node.right, frame)
            self.write(")")
            return
        self.write("shortcut_sum((" if printed else "environment.added((")
        for term in (left, *reversed(terms)):
            self.visit(term, frame)
            self.write(", ")
        self.write("))")


_NUMBERS = (TrackedInt, TrackedFloat, TrackedBool)


class TrackingEnvironment(ShortcutEnvironment):
    """Renders tracked input into tracked text. Holds the state of one render at a time: not for several threads."""

    code_generator_class = _TrackingGenerator
    intercepted_binops = COMPUTED_LATE
    shortcuts: ClassVar[dict[str, Any]] = {
        **ShortcutEnvironment.shortcuts,
        "shortcut_texts": (str, Tracked),
        "shortcut_sum": Sum,
    }
    inert = ShortcutEnvironment.inert | {Tracked, TrackedInt, TrackedFloat, TrackedBool}

    message: int = -1
    """Index of the message that the innermost loop over messages stands on, -1 for none."""
    reprs: list[tuple[int, str]]
    """What was printed as Python repr: (message, what)."""

    def __init__(self, clock: str) -> None:
        super().__init__(clock)
        self.begin({})
        self.concat = self.gathered  # type: ignore[method-assign]
        self.filters.update(_filters(dict(self.filters)))
        self.tests.update(_TESTS)

    def prepare(self, source: str) -> nodes.Template:
        tree = self.parse(source)
        _add_enters(tree)
        return tree

    def begin(self, numbers: dict[int, int]) -> None:
        """Forgets what an earlier render left behind; `numbers` has the index of each message by its identity."""
        self.message = -1
        self.reprs = []
        self._numbers = numbers
        self._before_loops: list[int] = []

    def printed(self, pieces: Iterable[Any]) -> tuple[str, list[origin.Origin]]:
        """The text of what a template prints at its top level, and its origins, contiguous from 0 to the end."""
        texts: list[str] = []
        out: list[origin.Origin] = []
        at = literal = 0  # literal text from `literal` to `at`, not in `out` yet
        source = 0
        for piece in pieces:
            here = -2 - self.message
            if type(piece) is not Sum:
                terms: tuple[Any, ...] = (piece,)
            else:
                terms = piece
                for term in piece:
                    if type(term) is not str and type(term) is not Tracked:
                        terms = (_added_one_by_one(piece),)
                        break
            for term in terms:
                if not isinstance(term, str):
                    term = self._text(term)
                size = len(term)
                if not size:
                    continue
                texts.append(term)
                if here != source:
                    if at > literal:
                        out.append((literal, at, source, 0, at - literal))
                    source, literal = here, at
                if isinstance(term, Tracked):
                    for a, b, leaf, c, d in term._origins:
                        if at + a > literal:
                            out.append((literal, at + a, source, 0, at + a - literal))
                        literal = at + b
                        out.append((at + a, literal, leaf, c, d))
                at += size
        if at > literal:
            out.append((literal, at, source, 0, at - literal))
        return "".join(texts), out

    # -- called by the generated code

    def literal(self, text: str) -> str:
        return make(text, ((0, len(text), origin.scaffold(self.message), 0, len(text)),)) if text else text

    def tagged(self, value: Any) -> str:
        text = value if isinstance(value, str) else self._text(value)
        return self._fill(text) if text else text

    def joined(self, values: Iterable[Any]) -> str:
        return concat([value if isinstance(value, str) else self._text(value) for value in values])

    def added(self, terms: tuple[Any, ...]) -> Any:
        for term in terms:
            if type(term) is not str and type(term) is not Tracked:
                return _added_one_by_one(terms)
        return concat(terms)

    def gathered(self, parts: Iterable[Any]) -> str:
        """What a macro or block printed; the pieces of a block called by its name have no tags yet."""
        return concat([part if type(part) is Tracked else self.tagged(part) for part in parts])

    def enter(self, value: Any) -> str:
        if type(value) is dict:
            self.message = self._numbers.get(id(value), self.message)
        return ""

    def remember(self) -> str:
        self._before_loops.append(self.message)
        return ""

    def restore(self) -> str:
        self.message = self._before_loops.pop()
        return ""

    def _text(self, value: Any) -> str:
        """The text of any value, where the template prints it."""
        if value is None:
            self.reprs.append((self.message, NULL_PRINTED))
        elif isinstance(value, list | dict | tuple) and origin.has_origin(value):
            kind = "an object" if isinstance(value, dict) else "a list"
            self.reprs.append((self.message, f"{kind} printed as Python repr"))
        return to_text(value)

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

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and type(left) is str and origin.has_origin(right):
            return make(left, ()) % right
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if type(owner) is str and getattr(__obj, "__name__", "") in _TAKE_TEXT:
            __obj = getattr(make(owner, ()), __obj.__name__)
            if __obj.__name__ == "join":
                args = (list(args[0]), *args[1:])
        result = super().call(__context, __obj, *args, **kwargs)
        if type(result) is str and __obj is __self.globals["strftime_now"]:
            return origin.derived(result, args, kwargs.get("format"))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`format` methods, which the sandbox replaces where they are looked up by ones that follow its rules (no
        attribute tricks): their text, with the origins put back."""
        if super().wrap_str_format(value) is None:
            return None
        owner = value.__self__ if isinstance(value.__self__, Tracked) else make(value.__self__, ())
        return lambda *args, **kwargs: _sandboxed_format(self, getattr(owner, value.__name__), args, kwargs)


_TAKE_TEXT = frozenset(("join", "replace", "center", "ljust", "rjust", "translate"))
"""Methods of str whose result holds characters of their arguments."""


def _added_one_by_one(terms: tuple[Any, ...]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


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
        if isinstance(width, int):
            check_size(width)
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
        return str(origin.derived(base["urlencode"](value), value))

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
        **{name: _deriving(original) for name, original in base.items() if name not in _PASS_ON},
        **{name: text_first(name) for name in ("upper", "lower", "capitalize", "trim", "center")},
        **{name: realigned(name) for name in ("wordwrap", "striptags", "truncate")},
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


_PASS_ON = frozenset(
    (
        *("abs", "attr", "batch", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items"),
        *("last", "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "round"),
        *("select", "selectattr", "slice", "sort", "sum", "unique", "wordcount"),
    )
)
"""Filters that give back what they are given, parts of it, or numbers."""


def _deriving(original: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that builds its text anew: what it makes of data is known to come from data."""
    first = 0 if getattr(original, "jinja_pass_arg", None) is None else 1

    def run(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        return origin.derived(result, args[first:], kwargs)

    if first:
        run.jinja_pass_arg = original.jinja_pass_arg  # type: ignore[attr-defined]
    return run


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
