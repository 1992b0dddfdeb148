"""A chat template as the core runs it (csrc/engine.h): Jinja2's syntax tree, translated node by node.

    tree of TrackingEnvironment.prepare ─translate─▶ (op, numbers, text, kids) ─▶ _core.TemplateProgram

Which variable a name means is decided by Jinja2's own analysis of scopes, the one that its code generator uses. What
the core does not do exactly as the Python tracker is the node `bail`: a render that comes to it is left to Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.compiler import Frame, find_undeclared
from jinja2.idtracking import VAR_LOAD_ALIAS, VAR_LOAD_PARAMETER, VAR_LOAD_RESOLVE, VAR_LOAD_UNDEFINED, Symbols
from jinja2.nodes import EvalContext

from maskpipe import _core
from maskpipe.template.environment import TrackingEnvironment
from maskpipe.template.origin import Tracked, TrackedBool, TrackedInt
from maskpipe.template.sandbox import Generation

Code = tuple[str, tuple[int, ...], str, tuple[Any, ...]]

_BAIL: Code = ("bail", (), "", ())
_EMPTY: Code = ("block", (), "", ())
_NONE, _BOOLEAN, _INTEGER, _TEXT = 2, 3, 4, 5
"""Kind of csrc/tracked.h."""
_NOTHING: Code = ("constant", (_NONE, 0), "", ())
_UNDEFINED: Code = ("constant", (1, 0), "", ())
_COMPARISONS = {"eq": "=", "ne": "!", "lt": "<", "gt": ">", "lteq": "l", "gteq": "g", "in": "i", "notin": "n"}
_ARITHMETIC = {nodes.Sub: "-", nodes.Mul: "*", nodes.FloorDiv: "/", nodes.Mod: "%"}
_OF_TEXTS = frozenset(name for kind in (str, list, tuple, int, Tracked, TrackedInt, TrackedBool) for name in dir(kind))
_OF_OBJECTS = frozenset(dir(dict))
_OTHER_TEMPLATES: tuple[type[nodes.Node], ...] = (
    nodes.Block,
    nodes.Extends,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
)
_FORMATS_AT_MOST = 16


def compiled(
    environment: TrackingEnvironment, source: str, special_tokens: Mapping[str, str]
) -> _core.TemplateProgram | None:
    """The template for the core; None where the core can do nothing with it."""
    try:
        tree = environment.prepare(source)
        translator = _Translator(environment)
        root = translator.root(tree)
    except RecursionError:
        return None
    if root is _BAIL:
        return None
    return _core.TemplateProgram(
        root, translator.root_slots, translator.clock(tree), [(name, text) for name, text in special_tokens.items()]
    )


class _Function:
    """The template itself, or a macro: what has slots of its own."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.slots: dict[str, int] = {}

    def slot(self, target: str) -> int:
        return self.slots.setdefault(target, len(self.slots))


class _Translator:
    def __init__(self, environment: TrackingEnvironment) -> None:
        self._environment = environment
        self._function = _Function(0)
        self._owners: dict[int, _Function] = {}
        """Per table of symbols, the function it belongs to."""
        self._kept: list[Frame] = []
        """So that no id of a table is used twice."""

    @property
    def root_slots(self) -> int:
        return len(self._function.slots)

    def root(self, tree: nodes.Template) -> Code:
        if any(tree.find(kind) is not None for kind in _OTHER_TEMPLATES):
            return _BAIL
        if "self" in find_undeclared(tree.body, ("self",)):
            return _BAIL
        frame = Frame(EvalContext(self._environment, None))
        self._own(frame)
        frame.symbols.analyze_node(tree)
        frame.toplevel = frame.rootlevel = True
        return self._block([*self._loads(frame), *self._statements(tree.body, frame)])

    def clock(self, tree: nodes.Template) -> list[tuple[str, str]]:
        """What strftime_now gives for each format that the template writes."""
        formats = {
            call.args[0].value
            for call in tree.find_all(nodes.Call)
            if isinstance(call.node, nodes.Name)
            and call.node.name == "strftime_now"
            and len(call.args) == 1
            and isinstance(call.args[0], nodes.Const)
            and isinstance(call.args[0].value, str)
        }
        now: Any = self._environment.globals["strftime_now"]
        return [(text, now(text)) for text in sorted(formats)[:_FORMATS_AT_MOST]]

    # -- scopes

    def _own(self, frame: Frame) -> None:
        self._owners[id(frame.symbols)] = self._function
        self._kept.append(frame)

    def _inner(self, frame: Frame) -> Frame:
        inner = frame.inner()
        self._own(inner)
        return inner

    def _place(self, target: str, frame: Frame) -> tuple[int, int]:
        """(functions outwards, slot) of one of Jinja2's targets."""
        symbols: Symbols | None = frame.symbols
        while symbols is not None:
            if target in symbols.loads or target in symbols.refs.values():
                owner = self._owners.get(id(symbols), self._function)
                return self._function.depth - owner.depth, owner.slot(target)
            symbols = symbols.parent
        raise AssertionError(f"no scope has {target}")

    def _loads(self, frame: Frame) -> Iterator[Code]:
        """What happens where a scope is entered."""
        for target, (action, parameter) in frame.symbols.loads.items():
            slot = self._function.slot(target)
            if action == VAR_LOAD_RESOLVE:
                yield ("resolve", (slot,), parameter, ())
            elif action == VAR_LOAD_ALIAS:
                assert frame.parent is not None
                yield ("alias", (slot, *self._place(parameter, frame.parent)), "", ())
            elif action == VAR_LOAD_UNDEFINED:
                yield ("forget", (slot,), "", ())
            else:
                assert action == VAR_LOAD_PARAMETER

    # -- statements

    @staticmethod
    def _block(codes: list[Code]) -> Code:
        return codes[0] if len(codes) == 1 else ("block", (), "", tuple(codes))

    def _statements(self, body: list[nodes.Node], frame: Frame) -> Iterator[Code]:
        for node in body:
            yield from self._statement(node, frame)

    def _body(self, body: list[nodes.Node], frame: Frame) -> Code:
        return self._block([*self._loads(frame), *self._statements(body, frame)])

    def _statement(self, node: nodes.Node, frame: Frame) -> Iterator[Code]:
        if isinstance(node, nodes.Output):
            yield from self._output(node, frame)
        elif isinstance(node, nodes.If):
            yield self._if(node, frame)
        elif isinstance(node, nodes.For):
            yield self._for(node, frame)
        elif isinstance(node, nodes.Assign):
            yield ("assign", (), "", (self._target(node.target, frame), self._expression(node.node, frame)))
        elif isinstance(node, nodes.AssignBlock):
            yield self._assign_block(node, frame)
        elif isinstance(node, nodes.Macro):
            yield self._macro(node, frame)
        elif isinstance(node, nodes.CallBlock):
            yield self._call_block(node, frame)
        elif isinstance(node, nodes.ExprStmt):
            yield self._expression_statement(node, frame)
        elif isinstance(node, nodes.Break):
            yield ("stop_loop", (), "", ())
        elif isinstance(node, nodes.Continue):
            yield ("next_turn", (), "", ())
        else:
            yield _BAIL

    def _output(self, node: nodes.Output, frame: Frame) -> Iterator[Code]:
        literal: list[str] = []
        for child in node.nodes:
            text = self._constant_text(child, frame)
            if text is not None:
                literal.append(text)
                continue
            if literal:
                yield ("data", (), "".join(literal), ())
                literal = []
            if isinstance(child, nodes.Add) and frame.buffer is None:
                yield ("print_sum", (), "", tuple(self._expression(term, frame) for term in _terms(child)))
            else:
                yield ("print", (), "", (self._expression(child, frame),))
        if literal:
            yield ("data", (), "".join(literal), ())

    @staticmethod
    def _constant_text(node: nodes.Expr, frame: Frame) -> str | None:
        """What Jinja2 prints of an expression that it can compute while it compiles."""
        try:
            return str(node.as_const(frame.eval_ctx))
        except Exception:  # nodes.Impossible, and any error that the render is to show
            return None

    def _if(self, node: nodes.If, frame: Frame) -> Code:
        soft = frame.soft()
        self._own(soft)
        rest = self._block(list(self._statements(node.else_, soft)))
        for branch in reversed([node, *node.elif_]):
            body = self._block(list(self._statements(branch.body, soft)))
            rest = ("branch", (), "", (self._expression(branch.test, soft), body, rest))
        return rest

    def _for(self, node: nodes.For, frame: Frame) -> Code:
        if node.recursive or node.test is not None:
            return _BAIL
        inside, other = self._inner(frame), self._inner(frame)
        inside.loop_frame = True
        slot = -1
        if "loop" in find_undeclared(node.iter_child_nodes(only=("body",)), ("loop",)):
            slot = self._function.slot(inside.symbols.declare_parameter("loop"))
        inside.symbols.analyze_node(node, for_branch="body")
        if node.else_:
            other.symbols.analyze_node(node, for_branch="else")
        over = self._expression(node.iter, frame)
        # Jinja2 assigns the target first and enters the scope then: its loads are never of the target.
        body = self._body(node.body, inside)
        rest = self._body(node.else_, other) if node.else_ else _EMPTY
        return ("loop", (slot,), "", (self._target(node.target, inside), over, body, rest))

    def _assign_block(self, node: nodes.AssignBlock, frame: Frame) -> Code:
        if node.filter is not None:
            return _BAIL
        inside = self._inner(frame)
        inside.symbols.analyze_node(node)
        inside.buffer = "gathered"
        body = self._body(node.body, inside)
        return ("capture", (), "", (self._target(node.target, frame), body))

    def _macro(self, node: nodes.Macro, frame: Frame) -> Code:
        if self._function.depth or find_undeclared(node.body, ("caller", "kwargs", "varargs")):
            return _BAIL
        outside, self._function = self._function, _Function(1)
        try:
            inside = self._inner(frame)
            inside.symbols.analyze_node(node)
            inside.buffer = "gathered"
            parameters: list[Code] = []
            without = len(node.args) - len(node.defaults)
            for number, argument in enumerate(node.args):
                slot = self._function.slot(inside.symbols.ref(argument.name))
                default = (self._expression(node.defaults[number - without], inside),) if number >= without else ()
                parameters.append(("keyword", (slot,), argument.name, default))
            loads = self._block(list(self._loads(inside)))
            body = self._block(list(self._statements(node.body, inside)))
            slots = len(self._function.slots)
        finally:
            self._function = outside
        _, slot = self._place(frame.symbols.ref(node.name), frame)
        return ("macro", (slot, slots, len(node.args)), "", (loads, *parameters, body))

    def _call_block(self, node: nodes.CallBlock, frame: Frame) -> Code:
        """`{% generation %}`, which prints what is inside."""
        method = node.call.node
        if (
            not isinstance(method, nodes.ExtensionAttribute)
            or (method.identifier, method.name) != (Generation.identifier, "_body")
            or node.args
            or find_undeclared(node.body, ("caller", "kwargs", "varargs"))
        ):
            return _BAIL
        inside = self._inner(frame)
        inside.symbols.analyze_node(node)
        inside.buffer = "gathered"
        return ("inline_body", (), "", (self._body(node.body, inside),))

    def _expression_statement(self, node: nodes.ExprStmt, frame: Frame) -> Code:
        call = node.node
        if isinstance(call, nodes.Call) and isinstance(call.node, nodes.EnvironmentAttribute):
            name = call.node.name
            if name in ("remember", "restore"):
                return (name, (), "", ())
            if name == "enter":
                return ("enter", (), "", (self._expression(call.args[0], frame),))
        return _BAIL

    def _target(self, node: nodes.Node, frame: Frame) -> Code:
        if isinstance(node, nodes.Name):
            hops, slot = self._place(frame.symbols.ref(node.name), frame)
            return _BAIL if hops else ("store", (slot,), "", ())
        if isinstance(node, nodes.NSRef):
            if node.attr.startswith("_"):
                return _BAIL
            return ("store_name", self._place(frame.symbols.ref(node.name), frame), node.attr, ())
        if isinstance(node, nodes.Tuple):
            return ("unpack", (), "", tuple(self._target(item, frame) for item in node.items))
        return _BAIL

    # -- expressions

    def _expression(self, node: nodes.Node, frame: Frame) -> Code:
        translate = _EXPRESSIONS.get(type(node))
        return _BAIL if translate is None else translate(self, node, frame)

    def _expressions(self, given: list[nodes.Expr], frame: Frame) -> tuple[Code, ...]:
        return tuple(self._expression(node, frame) for node in given)

    def _name(self, node: nodes.Name, frame: Frame) -> Code:
        return ("variable", self._place(frame.symbols.ref(node.name), frame), "", ())

    def _const(self, node: nodes.Const, frame: Frame) -> Code:
        value = node.value
        if value is None:
            return _NOTHING
        if isinstance(value, bool):
            return ("constant", (_BOOLEAN, int(value)), "", ())
        if isinstance(value, int) and value.bit_length() < 63:
            return ("constant", (_INTEGER, value), "", ())
        return ("constant", (_TEXT, 0), value, ()) if isinstance(value, str) else _BAIL

    def _several(self, node: nodes.List | nodes.Tuple, frame: Frame) -> Code:
        return ("list" if isinstance(node, nodes.List) else "tuple", (), "", self._expressions(node.items, frame))

    def _dict(self, node: nodes.Dict, frame: Frame) -> Code:
        return (
            "dict",
            (),
            "",
            self._expressions([part for pair in node.items for part in (pair.key, pair.value)], frame),
        )

    def _getattr(self, node: nodes.Getattr, frame: Frame) -> Code:
        value = self._expression(node.node, frame)
        if isinstance(node.node, nodes.Name) and node.node.name == "loop":
            return ("loop_field", (), node.attr, (value,))
        if node.attr.startswith("_"):
            return _BAIL
        return ("attribute", (int(node.attr in _OF_TEXTS), int(node.attr in _OF_OBJECTS)), node.attr, (value,))

    def _getitem(self, node: nodes.Getitem, frame: Frame) -> Code:
        value = self._expression(node.node, frame)
        if isinstance(node.arg, nodes.Slice):
            step = 1 if node.arg.step is None else node.arg.step.as_const() if _is_number(node.arg.step) else 0
            if step not in (1, -1):
                return _BAIL
            ends = [
                _NOTHING if end is None else self._expression(end, frame) for end in (node.arg.start, node.arg.stop)
            ]
            return ("slice", (step,), "", (value, *ends))
        index = node.arg.value if isinstance(node.arg, nodes.Const) else None
        hidden = not isinstance(index, str) or index.startswith("_") or index in _OF_TEXTS | _OF_OBJECTS
        return ("item", (int(hidden),), "", (value, self._expression(node.arg, frame)))

    def _call(self, node: nodes.Call, frame: Frame) -> Code:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            return _BAIL
        if isinstance(node.node, nodes.Getattr):
            if node.kwargs:
                return _BAIL
            arguments = self._expressions(node.args, frame)
            return ("method", (), node.node.attr, (self._expression(node.node.node, frame), *arguments))
        if not isinstance(node.node, nodes.Name):
            return _BAIL
        keywords = tuple(("keyword", (), pair.key, (self._expression(pair.value, frame),)) for pair in node.kwargs)
        if len({pair.key for pair in node.kwargs}) != len(keywords):
            return _BAIL
        function, arguments = self._expression(node.node, frame), self._expressions(node.args, frame)
        return ("call", (len(keywords),), "", (function, *arguments, *keywords))

    def _filter(self, node: nodes.Filter, frame: Frame) -> Code:
        if node.node is None or node.dyn_args is not None or node.dyn_kwargs is not None:
            return _BAIL
        value = self._expression(node.node, frame)
        named: dict[str, nodes.Node] = {str(pair.key): pair.value for pair in node.kwargs}
        if node.name == "tojson":
            return self._tojson(node, value, named)
        if node.name == "map" and not node.args and set(named) == {"attribute"}:
            attribute = named["attribute"]
            if not isinstance(attribute, nodes.Const) or not isinstance(attribute.value, str):
                return _BAIL
            if not attribute.value.isidentifier():
                return _BAIL
            return ("filter", (), "map attribute", (value, self._expression(attribute, frame)))
        if named:
            return _BAIL
        return ("filter", (), node.name, (value, *self._expressions(node.args, frame)))

    @staticmethod
    def _tojson(node: nodes.Filter, value: Code, named: dict[str, nodes.Node]) -> Code:
        given = {name: each.value for name, each in named.items() if isinstance(each, nodes.Const)}
        if node.args or len(given) != len(named) or set(given) - {"ensure_ascii", "indent"}:
            return _BAIL
        ascii, indent = given.get("ensure_ascii", False), given.get("indent")
        if not isinstance(ascii, bool) or not (indent is None or (type(indent) is int and 0 <= indent <= 16)):
            return _BAIL
        options = (
            ("constant", (_BOOLEAN, int(ascii)), "", ()),
            ("constant", (_INTEGER, -1 if indent is None else indent), "", ()),
        )
        return ("filter", (), "tojson", (value, *options))

    def _test(self, node: nodes.Test, frame: Frame) -> Code:
        if node.kwargs or node.dyn_args is not None or node.dyn_kwargs is not None:
            return _BAIL
        return ("test", (), node.name, (self._expression(node.node, frame), *self._expressions(node.args, frame)))

    def _add(self, node: nodes.Add, frame: Frame) -> Code:
        return ("add", (), "", self._expressions(_terms(node), frame))

    def _concat(self, node: nodes.Concat, frame: Frame) -> Code:
        return ("join", (), "", self._expressions(node.nodes, frame))

    def _compute(self, node: nodes.BinExpr, frame: Frame) -> Code:
        return ("arithmetic", (), _ARITHMETIC[type(node)], self._expressions([node.left, node.right], frame))

    def _neg(self, node: nodes.Neg, frame: Frame) -> Code:
        return ("negative", (), "", (self._expression(node.node, frame),))

    def _compare(self, node: nodes.Compare, frame: Frame) -> Code:
        letters = "".join(_COMPARISONS[operand.op] for operand in node.ops)
        return ("compare", (), letters, self._expressions([node.expr, *(operand.expr for operand in node.ops)], frame))

    def _and(self, node: nodes.And, frame: Frame) -> Code:
        return ("both", (), "", self._expressions([node.left, node.right], frame))

    def _or(self, node: nodes.Or, frame: Frame) -> Code:
        return ("either", (), "", self._expressions([node.left, node.right], frame))

    def _not(self, node: nodes.Not, frame: Frame) -> Code:
        return ("negate", (), "", (self._expression(node.node, frame),))

    def _cond(self, node: nodes.CondExpr, frame: Frame) -> Code:
        rest = _UNDEFINED if node.expr2 is None else self._expression(node.expr2, frame)
        return ("choose", (), "", (self._expression(node.test, frame), self._expression(node.expr1, frame), rest))


_EXPRESSIONS: dict[type[nodes.Node], Any] = {
    nodes.Name: _Translator._name,
    nodes.Const: _Translator._const,
    nodes.List: _Translator._several,
    nodes.Tuple: _Translator._several,
    nodes.Dict: _Translator._dict,
    nodes.Getattr: _Translator._getattr,
    nodes.Getitem: _Translator._getitem,
    nodes.Call: _Translator._call,
    nodes.Filter: _Translator._filter,
    nodes.Test: _Translator._test,
    nodes.Add: _Translator._add,
    nodes.Concat: _Translator._concat,
    nodes.Neg: _Translator._neg,
    nodes.Compare: _Translator._compare,
    nodes.And: _Translator._and,
    nodes.Or: _Translator._or,
    nodes.Not: _Translator._not,
    nodes.CondExpr: _Translator._cond,
    **dict.fromkeys(_ARITHMETIC, _Translator._compute),
}


def _is_number(node: nodes.Expr) -> bool:
    """A number as it is written, with a sign perhaps."""
    written = node.node if isinstance(node, nodes.Neg) else node
    return isinstance(written, nodes.Const) and type(written.value) is int


def _terms(node: nodes.Add) -> list[nodes.Expr]:
    """a + b + c as [a, b, c]."""
    terms = [node.right]
    left: nodes.Expr = node.left
    while isinstance(left, nodes.Add):
        terms.append(left.right)
        left = left.left
    return [left, *reversed(terms)]
