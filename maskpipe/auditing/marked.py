"""A chat template whose own text is other characters than it writes, and that says which message its loops stand on.

    source   {{ '<u>' + message.content.replace('\\n', ' ') }}
    marked   {{ OWN('<u>') + replaced(message.content, '\\n', OWN(' ')) }}

OWN(c) is c moved to plane 15. Where a macro or a block gathers text, what it prints moves on to plane 16, to characters
that say which message the loop stood on: where that text is printed later says nothing of it. A template that reads
its own text again (compares it, looks for something in it) prints something else then, which shows; less is marked
after that. `replace` and `strip` look through the marks, as templates do this with text that they gathered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jinja2 import nodes

from maskpipe.auditing.exchange import BLANKS, MARKUP, Alike, Bool, Int32, UInt32
from maskpipe.auditing.plain import Plain

OWN = 0xF0000
"""Added to a character that the template writes by itself."""
TAGGED = 0x100000
"""From here on characters of the template say which message they were gathered for."""
_END = 0x10FFFE
NO_TEXT, PRINTED_TEXT, JOINED_TEXT, ANY_TEXT = range(4)
"""Which of the template's own texts are marked: none, those that it prints, those that it joins to others too, and
those that it keeps, puts in place of others, or gathers."""
_KEPT = 4096
"""Gathered texts that are remembered."""
_STRIPS = ("strip", "lstrip", "rstrip")
_GATHER = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)


class Marked(Plain):
    """Stock Jinja2 in transformers' setting, whose templates call the methods below."""

    message = -1
    """The message that the innermost loop over messages stands on, -1 for none."""

    def __init__(self, clock: str) -> None:
        super().__init__(clock)
        self.tags: UInt32 = np.arange(128, dtype=np.uint32)
        """The characters that can be tagged: those of the template's own texts, and ASCII."""
        self._index = np.zeros(0x10000, np.uint32)
        self._gathered: dict[tuple[int, str], str] = {}
        self._source = ""

    def compiled(self, source: str, marks: int) -> tuple[Any, int]:
        """The template with these of its texts marked, and how many those are."""
        self._source = source
        tree = self.parse(source)
        marker = _Marker(marks)
        if marks:
            marker.mark(tree, False)
        if marks == ANY_TEXT:
            _see_through(tree)
            _gather(tree, False)
        _say_where_loops_stand(tree)
        self.tags = np.union1d(self.tags, np.array(sorted(marker.characters), np.uint32)).astype(np.uint32)
        self._index[self.tags] = np.arange(len(self.tags), dtype=np.uint32)
        return self.from_string(tree), marker.count

    def begin(self, messages: Sequence[Any]) -> None:
        self.message = -1
        self._numbers = {id(message): k for k, message in enumerate(messages)}
        self._outside: list[int] = []
        self._macros = 0
        self.moved_in_macro = False

    def meant(self, codes: UInt32) -> tuple[UInt32, Bool, Bool, Int32]:
        """[n] the characters that these stand for; which of them the template wrote; which are tagged, and with which
        message."""
        own = codes >= OWN
        if not own.any():
            return codes, own, own, np.full(len(codes), -1, np.int32)
        tagged = codes >= TAGGED
        out = np.where(own, codes - np.uint32(OWN), codes)
        messages = np.full(len(codes), -1, np.int32)
        if tagged.any():
            number = codes[tagged] - np.uint32(TAGGED)
            out[tagged] = self.tags[number % len(self.tags)]
            number //= len(self.tags)
            own[tagged] = number % 2 > 0
            messages[tagged] = (number // 2).astype(np.int32) - 1
        return out, own, tagged, messages

    # -- called by marked templates

    def on(self, value: Any) -> str:
        message = self._numbers.get(id(value), self.message)
        self.moved_in_macro |= self._macros > 0 and message != self.message
        self.message = message
        return ""

    def before_macro(self) -> str:
        self._macros += 1
        return ""

    def after_macro(self) -> str:
        self._macros -= 1
        return ""

    def before_loop(self) -> str:
        self._outside.append(self.message)
        return ""

    def after_loop(self) -> str:
        self.message = self._outside.pop()
        return ""

    def gathered(self, value: Any) -> str:
        """What a macro or block prints, tagged with the message that the loop stands on. Data keeps its stand-ins."""
        text = without_escapes(str(value))
        known = self._gathered.get((self.message, text))
        if known is not None or not text:
            return known or ""
        codes = _codes(text)
        own = (codes >= OWN) & (codes < TAGGED)
        here = own | (codes < 128)
        for found in MARKUP.finditer(text):  # templates look for it in what they gathered
            if found.group() in self._source:
                here[found.start() : found.end()] = False
        first = TAGGED + 2 * (self.message + 1) * len(self.tags)
        if first + 2 * len(self.tags) > _END:
            raise ValueError("more messages than there are code points to tag text with")
        which = self._index[np.where(own, codes - np.uint32(OWN), codes)[here]]
        codes = codes.copy()
        codes[here] = which + np.uint32(first) + own[here] * np.uint32(len(self.tags))
        made = _text(codes)
        if here.all():
            if len(self._gathered) >= _KEPT:
                self._gathered.clear()
            self._gathered[self.message, text] = made
        return made

    def kept(self, marked: str, plain: str) -> str:
        return Alike.of(marked, plain)

    def replaced(self, value: Any, old: Any, new: Any, count: Any = None) -> str:
        """The `replace` of filters and of str, which finds marked text too."""
        text, old, new = str(value), _plain(old), str(new)
        seen, wanted = self._seen(text), self._seen(old)
        count = -1 if count is None else count
        if seen is text or not wanted:
            return text.replace(wanted, new, count)
        out = []
        at = 0
        while count and (found := seen.find(wanted, at)) >= 0:
            out += [text[at:found], new]
            at = found + len(wanted)
            count -= 1
        return "".join([*out, text[at:]])

    def stripped(self, value: Any, method: str, *given: Any) -> Any:
        """`strip` and its kind, which strip marked text too."""
        if not isinstance(value, str):
            return getattr(value, method)(*given)
        seen = self._seen(value)
        ends = [None if entry is None else self._seen(_plain(entry)) for entry in given]
        start = 0 if method == "rstrip" else len(seen) - len(seen.lstrip(*ends))
        stop = len(seen) if method == "lstrip" else len(seen.rstrip(*ends))
        return value[start : max(start, stop)]

    def _seen(self, text: str) -> str:
        return text if text.isascii() or max(text) < chr(OWN) else _text(self.meant(_codes(text))[0])


_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPES = re.compile(rf"(?:{_PAIR}|\\u[23]0[0-9a-f]{{2}}|\\U000[0-9a-f]{{5}})+")


def without_escapes(text: str) -> str:
    """The text, with stand-ins that JSON or repr wrote as escapes as themselves: what they stand for may need none."""
    return _ESCAPES.sub(lambda found: _unescaped(found.group()), text) if "\\" in text else text


def _unescaped(text: str) -> str:
    made = text.encode("ascii").decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16")
    return made if all(char >= "\U00020000" or char in BLANKS for char in made) else text


def _codes(text: str) -> UInt32:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _text(codes: UInt32) -> str:
    return codes.tobytes().decode("utf-32-le", "surrogatepass")


def _plain(value: Any) -> str:
    return value.plain if isinstance(value, Alike) else str(value)


class _Marker:
    """Turns texts of a syntax tree into their marked form."""

    def __init__(self, marks: int) -> None:
        self.marks = marks
        self.count = 0
        self.characters: set[int] = set()

    def mark(self, node: nodes.Node, printed: bool) -> None:
        """`printed`: is what the node says printed as it stands?"""
        if isinstance(node, nodes.TemplateData):
            node.data = self._marked(node.data)
        elif isinstance(node, nodes.Const):
            if printed and isinstance(node.value, str):
                node.value = self._marked(node.value)
        else:
            for name, place, child in list(_children(node)):
                if isinstance(child, nodes.Const) and self._is_kept(node, name):
                    if isinstance(child.value, str) and child.value:
                        kept = (nodes.Const(self._marked(child.value)), nodes.Const(child.value))
                        _put(node, name, place, _call("kept", child.lineno, *kept))
                else:
                    self.mark(child, self._is_printed(node, printed, name, place))

    def _is_kept(self, node: nodes.Node, name: str) -> bool:
        """Does the template give a name to the text, by which it may compare it?"""
        return self.marks == ANY_TEXT and (
            (isinstance(node, nodes.Assign) and name == "node") or (isinstance(node, nodes.Keyword) and name == "value")
        )

    def _is_printed(self, node: nodes.Node, printed: bool, name: str, place: int | None) -> bool:
        if isinstance(node, nodes.Output):
            return True
        if isinstance(node, nodes.CondExpr):
            return printed and name != "test"
        if isinstance(node, nodes.Add | nodes.Concat):
            return printed or self.marks >= JOINED_TEXT
        if self.marks < ANY_TEXT:
            return False
        if isinstance(node, nodes.Assign):
            return name == "node"
        if isinstance(node, nodes.Filter):
            first = name == "node" and node.name in ("trim", "replace")
            return (printed and first) or (name == "args" and (node.name, place) in (("replace", 1), ("join", 0)))
        if isinstance(node, nodes.Call):
            if isinstance(node.node, nodes.Getattr):
                return name == "args" and node.node.attr == "replace" and place == 1
            return False
        return isinstance(node, nodes.Getattr) and node.attr == "join" and name == "node"

    def _marked(self, text: str) -> str:
        if any(char >= "\uffff" for char in text):
            return text
        self.count += bool(text)
        codes = list(map(ord, text))
        self.characters.update(codes)
        return "".join(chr(code + OWN) for code in codes)


def _children(node: nodes.Node) -> Iterator[tuple[str, int | None, nodes.Node]]:
    for name in node.fields:
        value = getattr(node, name)
        if isinstance(value, list):
            yield from ((name, k, child) for k, child in enumerate(value) if isinstance(child, nodes.Node))
        elif isinstance(value, nodes.Node):
            yield name, None, value


def _put(node: nodes.Node, name: str, place: int | None, child: nodes.Node) -> None:
    if place is None:
        setattr(node, name, child)
    else:
        getattr(node, name)[place] = child


def _see_through(node: nodes.Node) -> None:
    """`replace` and `strip` become calls of the environment."""
    for name, place, child in list(_children(node)):
        _see_through(child)
        made: nodes.Node | None = None
        if isinstance(child, nodes.Filter) and child.node is not None and not child.kwargs and child.dyn_args is None:
            if child.name == "replace":
                made = _call("replaced", child.lineno, child.node, *child.args)
            elif child.name == "trim":
                made = _call("stripped", child.lineno, child.node, nodes.Const("strip"), *child.args)
        elif isinstance(child, nodes.Call) and isinstance(child.node, nodes.Getattr) and not child.kwargs:
            method = child.node.attr
            if method == "replace":
                made = _call("replaced", child.lineno, child.node.node, *child.args)
            elif method in _STRIPS:
                made = _call("stripped", child.lineno, child.node.node, nodes.Const(method), *child.args)
        if made is not None:
            _put(node, name, place, made)


def _gather(node: nodes.Node, gathers: bool) -> None:
    """What macros and blocks print goes through `gathered`."""
    if gathers and isinstance(node, nodes.Output):
        node.nodes = [
            _call("gathered", child.lineno, nodes.Const(child.data) if isinstance(child, nodes.TemplateData) else child)
            for child in node.nodes
        ]
        return
    for name, _, child in list(_children(node)):
        _gather(child, gathers or (isinstance(node, _GATHER) and name == "body"))


def _say_where_loops_stand(tree: nodes.Node) -> None:
    for loop in list(tree.find_all(nodes.For)):
        names = [name.name for name in ([loop.target] if isinstance(loop.target, nodes.Name) else _names(loop.target))]
        body: list[nodes.Node] = [_say("on", loop.lineno, name) for name in names]
        for child in loop.body:
            body.append(child)
            # for i in range(…): set message = messages[i]
            if (
                isinstance(child, nodes.Assign)
                and isinstance(child.target, nodes.Name)
                and isinstance(child.node, nodes.Getitem)
                and isinstance(child.node.arg, nodes.Name)
                and child.node.arg.name in names
            ):
                body.append(_say("on", child.lineno, child.target.name))
        loop.body = body
    for macro in list(tree.find_all(nodes.Macro)):
        macro.body = [_say("before_macro", macro.lineno), *macro.body, _say("after_macro", macro.lineno)]
    _wrap_loops(tree)


def _names(target: nodes.Node) -> Iterator[nodes.Name]:
    return target.find_all(nodes.Name)


def _wrap_loops(node: nodes.Node) -> None:
    for name in node.fields:
        value = getattr(node, name)
        if isinstance(value, list):
            out: list[Any] = []
            for child in value:
                if isinstance(child, nodes.Node):
                    _wrap_loops(child)
                if isinstance(child, nodes.For):
                    out += [_say("before_loop", child.lineno), child, _say("after_loop", child.lineno)]
                else:
                    out.append(child)
            setattr(node, name, out)
        elif isinstance(value, nodes.Node):
            _wrap_loops(value)


def _say(method: str, line: int, name: str | None = None) -> nodes.ExprStmt:
    return nodes.ExprStmt(_call(method, line, *([] if name is None else [nodes.Name(name, "load")])), lineno=line)


def _call(method: str, line: int, *arguments: nodes.Expr) -> nodes.Call:
    made = nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)
    for node in (made, made.node, *arguments):
        node.set_lineno(line)
    return made
