"""The renders of a conversation by stock Jinja2, and what they show of the data, found without tracking anything.

    data      H  i                 every character that may be exchanged becomes a code point that stands nowhere else
    stand-in  𠀀 𠀁
    plain     <u> H  i </u>        stock Jinja2, the data as it is: the text
    dark      <u> 𠀀 𠀁 </u>        stock Jinja2, the stand-ins in its place

Where every stand-in of the dark text, exchanged back, gives exactly the plain text, the stand-ins *are* the provenance.
What must stay as it is (white space, quotes, markup that templates look for) is placed by its neighbours, and the
template's own text becomes other characters too, so that neither is taken for the other. Templates that look at the
data may print something else then; less is exchanged, and at last it is said that nothing can be proved. Nothing here
shares code with the tracker of `template/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from maskpipe.auditing.exchange import CALLS, LETTERS, REASONING, CannotProveError, Data, Exchange
from maskpipe.auditing.shown import OWN, Shown, match
from maskpipe.chat import Conversation
from maskpipe.errors import MaskpipeError
from maskpipe.roles import role_of
from maskpipe.template.sandbox import COMPUTED_LATE, OPTIONS, plain_environment, set_up

_NO_TEXT, _PRINTED_TEXT, _JOINED_TEXT = range(3)
"""Which of the template's own texts are exchanged: none, those that it prints, those that it joins to others too."""
_WAYS = tuple((strength, marks) for strength in range(LETTERS + 1) for marks in (2, 1, 0))


@dataclass
class Template:
    """A chat template for this proof: stock Jinja2, once as it is and once saying which message its loops stand on."""

    source: str
    special_tokens: Mapping[str, str]
    clock: str
    failed: dict[tuple[bool, ...], list[int]] = field(default_factory=dict)
    """Shape of a conversation → how often each way failed without ever succeeding, -1 once it did."""

    def __post_init__(self) -> None:
        self._plain = plain_environment(self.clock).from_string(self.source)
        self._standing = _Standing(self.clock)
        self._dark = []
        for marks in (_NO_TEXT, _PRINTED_TEXT, _JOINED_TEXT):
            tree = self._standing.parse(self.source)
            if marks:
                _mark_own_text(tree, marks, printed=False)
            _say_where_loops_stand(tree)
            self._dark.append(self._standing.from_string(tree))
        usual = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
        self.switches = sorted(
            meta.find_undeclared_variables(plain_environment(self.clock).parse(self.source))
            - usual
            - set(self.special_tokens)
        )

    def plain(self, given: Mapping[str, Any], count: int, prompt: bool) -> str:
        """What stock Jinja2 prints of the first `count` messages."""
        return str(self._run(lambda: self._plain.render(self._variables(given, count, prompt))))

    def dark(self, data: Data, count: int, prompt: bool, marks: int) -> tuple[str, list[int], list[int]]:
        """The dark text, in which text of the template is another one too, as `marks` says; and where it was printed
        while the loop stood on which message: ends, messages."""
        standing = self._standing
        variables = self._variables(data.dark, count, prompt)
        standing.begin(variables["messages"])

        program = self._dark[marks]

        def pieces() -> tuple[str, list[int], list[int]]:
            context = program.new_context(variables)
            texts: list[str] = []
            ends: list[int] = []
            loops: list[int] = []
            at = 0
            for piece in program.root_render_func(context):
                texts.append(piece)
                at += len(piece)
                if loops and loops[-1] == standing.message:
                    ends[-1] = at
                else:
                    ends.append(at)
                    loops.append(standing.message)
            return "".join(texts), ends, loops

        out: tuple[str, list[int], list[int]] = self._run(pieces)
        return out

    @property
    def moved_in_macro(self) -> bool:
        """Did a macro of the last dark render go through the messages by itself? Which of them its text belongs to was
        decided where it was made, and is not seen where it is printed."""
        return self._standing.moved_in_macro

    def _variables(self, given: Mapping[str, Any], count: int, prompt: bool) -> dict[str, Any]:
        return {
            **self.special_tokens,
            **given["kwargs"],
            "messages": given["messages"][:count],
            "tools": given["tools"],
            "documents": given["documents"],
            "add_generation_prompt": prompt,
        }

    @staticmethod
    def _run(render: Any) -> Any:
        try:
            return render()
        except MemoryError:
            raise
        except Exception as error:
            raise _RefusedError(str(error)) from None


class _RefusedError(MaskpipeError):
    """The template raised."""


class Renders:
    """The renders of one conversation, each made once. CannotProveError where no exchange gives the plain text back."""

    def __init__(self, template: Template, conversation: Conversation, kwargs: Mapping[str, Any]) -> None:
        self.template = template
        messages = [_with_aliases(message) for message in conversation.messages]
        self.given: dict[str, Any] = {
            "messages": messages, "tools": conversation.tools, "documents": conversation.documents,
            "kwargs": dict(kwargs),
        }  # fmt: skip
        self.count = len(messages)
        self.roles = [role_of(str(message.get("role"))) for message in messages]
        self._plain: dict[tuple[int, bool], str | _RefusedError] = {}
        self._shown: dict[tuple[int, bool], Shown] = {}
        self._data: dict[int, Data] = {}

    def plain(self, count: int, prompt: bool = False) -> str | None:
        """The text; None where the template refuses."""
        key = (count, prompt)
        if key not in self._plain:
            try:
                self._plain[key] = self.template.plain(self.given, count, prompt)
            except _RefusedError as error:
                self._plain[key] = error
        found = self._plain[key]
        return found if isinstance(found, str) else None

    def shown(self, count: int, prompt: bool = False) -> Shown:
        """The text with its provenance."""
        key = (count, prompt)
        if key not in self._shown:
            plain = self.plain(count, prompt)
            if plain is None:
                raise CannotProveError("the template refuses the conversation")
            self._shown[key] = self._find(plain, count, prompt)
        return self._shown[key]

    def _find(self, plain: str, count: int, prompt: bool) -> Shown:
        shape = (self.given["tools"] is not None, any(CALLS[0] in m for m in self.given["messages"]), prompt)
        failed = self.template.failed.setdefault(shape, [0] * len(_WAYS))
        for way, (strength, marks) in enumerate(_WAYS):
            if failed[way] >= 8:
                continue
            data = self._data_of(strength)
            try:
                dark, ends, loops = self.template.dark(data, count, prompt, marks)
            except _RefusedError:
                dark, ends, loops = "", [], []
            shown = match(plain, dark, ends, loops, data)
            if shown is not None:
                shown.loops_are_known = not self.template.moved_in_macro
                failed[way] = -1
                return shown
            failed[way] += 1 if failed[way] >= 0 else 0
        raise CannotProveError("the template prints something else when characters of the data are exchanged")

    def _data_of(self, strength: int) -> Data:
        if strength not in self._data:
            self._data[strength] = Exchange(self.given, strength, self.template.source).data
        return self._data[strength]


# -- the template's loops


class _Standing(ImmutableSandboxedEnvironment):
    """Stock Jinja2 in transformers' setting that knows which message the innermost loop over messages stands on."""

    intercepted_binops = COMPUTED_LATE
    message = -1

    def __init__(self, clock: str) -> None:
        super().__init__(**OPTIONS)
        set_up(self, clock)

    def begin(self, messages: Sequence[Any]) -> None:
        self.message = -1
        self._numbers = {id(message): k for k, message in enumerate(messages)}
        self._outside: list[int] = []
        self._macros = 0
        self.moved_in_macro = False

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


def _mark_own_text(node: nodes.Node, marks: int, printed: bool) -> None:
    """Every text that the template prints as it stands becomes other characters: no data can be taken for it then."""
    if isinstance(node, nodes.TemplateData) or (printed and isinstance(node, nodes.Const)):
        text = node.data if isinstance(node, nodes.TemplateData) else node.value
        if isinstance(text, str) and all(char < "\uffff" for char in text):
            other = "".join(chr(ord(char) + OWN) for char in text)
            setattr(node, "data" if isinstance(node, nodes.TemplateData) else "value", other)
        return
    for name in node.fields:
        value = getattr(node, name)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nodes.Node):
                chain = (printed or marks == _JOINED_TEXT) and isinstance(node, nodes.Add | nodes.Concat)
                arm = printed and isinstance(node, nodes.CondExpr) and name != "test"
                _mark_own_text(child, marks, isinstance(node, nodes.Output) or chain or arm)


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
    arguments: list[nodes.Expr] = [] if name is None else [nodes.Name(name, "load", lineno=line)]
    call = nodes.Call(nodes.EnvironmentAttribute(method, lineno=line), arguments, [], None, None, lineno=line)
    return nodes.ExprStmt(call, lineno=line)


def _with_aliases(message: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers shows reasoning to templates, whatever the data calls it."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
