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

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2 import meta

from maskpipe.auditing.exchange import CALLS, LETTERS, REASONING, SPACES, CannotProveError, Data, Exchange
from maskpipe.auditing.marked import ANY_TEXT, JOINED_TEXT, NO_TEXT, PRINTED_TEXT, Marked, without_escapes
from maskpipe.auditing.plain import Plain
from maskpipe.auditing.shown import Shown, match
from maskpipe.chat import Conversation
from maskpipe.errors import MaskpipeError
from maskpipe.roles import Role, role_of
from maskpipe.template.sandbox import plain_environment


@dataclass
class Template:
    """A chat template for this proof: stock Jinja2, once as it is and once saying which message its loops stand on."""

    source: str
    special_tokens: Mapping[str, str]
    clock: str
    failed: dict[tuple[bool, ...], list[int]] = field(default_factory=dict)
    """Shape of a conversation → how often each way failed without ever succeeding, -1 once it did."""

    def __post_init__(self) -> None:
        self._plain = Plain(self.clock).from_string(self.source)
        self._globals = dict(self._plain.globals)
        self.marked = Marked(self.clock)
        self._dark = [self.marked.compiled(self.source, marks) for marks in range(NO_TEXT, ANY_TEXT + 1)]
        same = self._dark[PRINTED_TEXT][1] == self._dark[JOINED_TEXT][1]
        marks = (ANY_TEXT, JOINED_TEXT, NO_TEXT) if same else (ANY_TEXT, JOINED_TEXT, PRINTED_TEXT, NO_TEXT)
        self.ways = tuple((strength, way) for strength in range(SPACES, LETTERS + 1) for way in marks)
        """(how much of the data is exchanged, how much of the template is marked), most first."""
        usual = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
        self.switches = sorted(
            meta.find_undeclared_variables(plain_environment(self.clock).parse(self.source))
            - usual
            - set(self.special_tokens)
        )

    def plain(self, given: Mapping[str, Any], count: int, prompt: bool) -> str:
        """What stock Jinja2 prints of the first `count` messages."""
        program = self._plain
        variables = self._variables(given, count, prompt)
        return str(self._run(lambda: "".join(program.root_render_func(self._context(program, variables)))))

    def dark(self, data: Data, count: int, prompt: bool, marks: int) -> tuple[str, list[int], list[int]]:
        """The dark text, in which text of the template is another one too, as `marks` says; and where it was printed
        while the loop stood on which message: ends, messages."""
        standing = self.marked
        variables = self._variables(data.dark, count, prompt)
        standing.begin(variables["messages"])
        program = self._dark[marks][0]

        def pieces() -> tuple[str, list[int], list[int]]:
            context = self._context(program, variables)
            texts: list[str] = []
            ends: list[int] = []
            loops: list[int] = []
            at = 0
            for piece in program.root_render_func(context):
                piece = without_escapes(piece)
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

    def _context(self, program: Any, variables: dict[str, Any]) -> Any:
        """As `new_context` makes it, which goes through a chain of dicts each time."""
        environment = program.environment
        return environment.context_class(environment, {**self._globals, **variables}, program.name, program.blocks)

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

    def __init__(
        self,
        template: Template,
        conversation: Conversation,
        kwargs: Mapping[str, Any],
        messages: list[dict[str, Any]] | None = None,
    ) -> None:
        """`messages`: other ones than the conversation's, if it is not shown as it is."""
        self.template = template
        self.messages = conversation.messages if messages is None else messages
        messages = [_with_aliases(message) for message in self.messages]
        self.given: dict[str, Any] = {
            "messages": messages, "tools": conversation.tools, "documents": conversation.documents,
            "kwargs": dict(kwargs),
        }  # fmt: skip
        self.count = len(messages)
        self._plain: dict[tuple[int, bool], str | _RefusedError] = {}
        self._shown: dict[tuple[int, bool], Shown] = {}
        self._data: dict[int, Data] = {}

    @cached_property
    def roles(self) -> list[Role]:
        return [role_of(str(message.get("role"))) for message in self.messages]

    @property
    def rendered(self) -> list[tuple[int, bool]]:
        """What was rendered by now: (messages, whether with generation prompt)."""
        return list(self._plain)

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
        failed = self.template.failed.setdefault(shape, [0] * len(self.template.ways))
        for way, (strength, marks) in enumerate(self.template.ways):
            if failed[way] >= 8:
                continue
            data = self._data_of(strength)
            try:
                dark, ends, loops = self.template.dark(data, count, prompt, marks)
            except _RefusedError:
                dark, ends, loops = "", [], []
            shown = match(plain, dark, ends, loops, data, self.template.marked, marks)
            if shown is not None:
                failed[way] = -1
                return shown
            failed[way] += 1 if failed[way] >= 0 else 0
        raise CannotProveError("the template prints something else when characters of the data are exchanged")

    def _data_of(self, strength: int) -> Data:
        if strength not in self._data:
            self._data[strength] = Exchange(self.given, strength, self.template.source).data
        return self._data[strength]


def _with_aliases(message: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers shows reasoning to templates, whatever the data calls it."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
