"""Templates: the tracked render prints what plain Jinja2 prints, and knows where every character came from.

The corpus test covers every chat template of ../shared/data/templates that plain Jinja2 can render; run it with -rP for
its figures. The hermetic tests hold the same on templates of our own.
"""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from maskpipe.errors import TemplateError
from maskpipe.roles import Part, Role
from maskpipe.template import ChatTemplate
from maskpipe.template.render import ENGINE, Engine, wrap
from maskpipe.template.shadow import prove
from maskpipe.template.spans import spans_of
from tests.conversations import CHATS, DOCUMENTS, TOOLS, Chat, assistant, call, tool, user
from tests.corpus import Entry, chat_templates
from tests.reference.provenance import (
    Unique,
    plain,
    trace,
    unique,
    wrong_booleans,
    wrong_origins,
    wrong_text,
)

OWN_TEMPLATES = sorted((Path(__file__).parent / "golden" / "templates").glob("*.jinja"))
DEMO_TEMPLATE = Path(__file__).parents[1] / "maskpipe" / "demo_data" / "chat_template.jinja"

SWITCHES: dict[str, tuple[Any, ...]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "reasoning_effort": ("high", "none"),
    "builtin_tools": (["browser", "python"],),
    "documents": (DOCUMENTS,),
    "clear_thinking": (False,),
    "preserve_thinking": (True,),
    "tools_in_user_message": (False,),
    "keep_past_thinking": (True,),
    "reasoning": ("on",),
    "model_identity": ("You are a lamp.",),
    "system_message": ("Be <brief> & kind.",),
    "custom_tools": (TOOLS,),
    "date_string": ("1 May 2031",),
}
"""Keyword arguments that templates ask for, and values to try. `documents` has its own parameter."""


@dataclass
class Figures:
    """What a run over templates found."""

    renders: int = 0
    variants: int = 0
    refused: int = 0
    characters: int = 0
    templates: set[str] = field(default_factory=set)
    wrong: Counter[str] = field(default_factory=Counter)

    def check(self, entry: str, engine: Engine, name: str, chat: Chat, known: Unique, prompt: bool) -> bool:
        """One render and its unique twin; False where the template refuses the chat."""
        try:
            text = plain(engine, chat, prompt)
        except TemplateError:
            self.refused += 1
            return False
        self.templates.add(entry)
        where = f"{entry}, {name}, {chat.kwargs}, prompt {prompt}: "
        wrong = wrong_text(trace(engine, chat, prompt), text)
        if wrong:
            self.wrong[where + wrong] += 1
        dark = trace(engine, known.chat, prompt)
        self.characters += len(dark.text)
        wrong = wrong_text(dark, plain(engine, known.chat, prompt)) or wrong_origins(known, dark)
        if not prompt:
            wrong = wrong or next(wrong_booleans(known, engine, dark, prompt), "")
        if wrong:
            self.wrong[where + wrong] += 1
        return True


def variants(engine: Engine, chat: Chat) -> Iterator[Chat]:
    """The chat with each switch that the template asks for."""
    for name, values in SWITCHES.items():
        if name == "documents" and "documents" not in engine.source:
            continue
        if name != "documents" and name not in engine.variables:
            continue
        for value in values:
            if name == "documents":
                yield dataclasses.replace(chat, documents=value)
            else:
                yield dataclasses.replace(chat, kwargs={name: value})


def run(templates: list[tuple[str, Engine]]) -> Figures:
    figures = Figures()
    known = {name: unique(chat) for name, chat in CHATS.items()}
    names = list(CHATS)
    for number, (entry, engine) in enumerate(templates):
        for index, (name, chat) in enumerate(CHATS.items()):
            for prompt in (False, True):
                figures.renders += figures.check(entry, engine, name, chat, known[name], prompt)
            if (number + index) % 3:  # a third of the chats for each template, all chats and templates in turn
                continue
            for variant in variants(engine, chat):
                twin = unique(variant)
                for prompt in (False, True):
                    figures.variants += figures.check(entry, engine, names[index], variant, twin, prompt)
    return figures


@pytest.mark.shared
def test_every_template_of_the_corpus_is_tracked_exactly(shared_data: Path) -> None:
    entries = chat_templates(shared_data)
    figures = run([(entry.name, entry.template.engine) for entry in entries])
    print(
        f"{figures.renders:,} renders and {figures.variants:,} with keyword variants of {len(figures.templates)} of "
        f"{len(entries)} templates x {len(CHATS)} chats; {figures.refused:,} refused by the template itself; "
        f"{figures.characters:,} characters traced; wrong: {sum(figures.wrong.values())}"
    )
    assert figures.wrong == {}
    assert len(figures.templates) >= 490
    assert figures.renders >= 16_000
    assert figures.variants >= 4_000


def test_templates_of_our_own_are_tracked_exactly() -> None:
    paths = [*OWN_TEMPLATES, DEMO_TEMPLATE]
    figures = run([(path.stem, ChatTemplate(str(path), bos_token="<s>", eos_token="</s>").engine) for path in paths])
    assert figures.wrong == {}
    assert len(figures.templates) == len(paths)
    assert figures.renders > 500


def test_the_oracle_finds_a_wrong_origin() -> None:
    """The twin must see what it is there for: an origin off by one, a lost one, a wrong field."""
    engine = Engine("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", special_tokens={})
    known = unique(CHATS["one_turn"])
    good = trace(engine, known.chat, False)
    assert wrong_origins(known, good) == ""
    own = next(at for at, entry in enumerate(good.origins) if good.leaf(entry) is not None)
    a, b, source, c, d = good.origins[own]
    for bad in ((a, b, source, c + 1, d + 1), (a, b, -2, 0, b - a), (a, b, source + 1, c, d)):
        origins = (*good.origins[:own], bad, *good.origins[own + 1 :])
        assert wrong_origins(known, dataclasses.replace(good, origins=origins)) != ""
    assert "tile" in wrong_text(dataclasses.replace(good, origins=good.origins[1:]), good.text)
    assert "differs" in wrong_text(dataclasses.replace(good, text=good.text + "x"), good.text)


@pytest.mark.shared
def test_plain_text_is_what_transformers_renders(shared_data: Path) -> None:
    """transformers' own function on every template that shows no clock, one chat each in turn."""
    from transformers.utils.chat_template_utils import render_jinja_template

    entries = chat_templates(shared_data)
    names = list(CHATS)
    compared = 0
    for number, entry in enumerate(entries):
        if "strftime_now" in entry.source:
            continue
        for name in (names[number % len(names)], names[(number * 7 + 3) % len(names)]):
            chat = CHATS[name]
            try:
                text = plain(entry.template.engine, chat, True)
            except TemplateError:
                continue
            theirs = render_jinja_template(
                conversations=[chat.messages],
                tools=chat.tools,
                documents=chat.documents,
                chat_template=entry.source,
                add_generation_prompt=True,
                bos_token=entry.bos_token,
                eos_token=entry.eos_token,
            )[0][0]
            assert text == theirs, (entry.name, name)
            compared += 1
    print(f"{compared} renders equal transformers' own")
    assert compared > 600


@pytest.mark.shared
def test_shadow_rendering_agrees_wherever_it_can_be_done(shared_data: Path) -> None:
    outcomes: Counter[str] = Counter()
    entries = chat_templates(shared_data)
    names = list(CHATS)
    for number, entry in enumerate(entries):
        for name in (names[number % len(names)], "parallel_calls", "inline_think"):
            chat = CHATS[name]
            try:
                traced = trace(entry.template.engine, chat, False)
            except TemplateError:
                continue
            proof = prove(entry.template.engine, traced, chat.messages, tools=chat.tools, documents=chat.documents)
            outcomes[proof.outcome] += 1
            assert proof.outcome != "differs", (entry.name, name, proof.detail)
    print(dict(outcomes))
    assert outcomes["proved"] > 1000
    assert outcomes["cannot"] < 20


# -- spans


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_spans_tile_the_text_and_name_their_source() -> None:
    chat = CHATS["parallel_calls"]
    rendered = ChatTemplate(CHATML).render(chat.messages, tools=chat.tools)
    assert "".join(rendered.text[span.start : span.end] for span in rendered.spans) == rendered.text
    assert all(span.start < span.end for span in rendered.spans)
    by_text = {rendered.text[span.start : span.end]: span for span in rendered.spans}
    number = by_text["3017"]
    assert number.source == (("messages", 1, "tool_calls", 0, "function", "arguments", "days"), 0, 4)
    assert (number.role, number.part, number.message, number.sampled) == (Role.ASSISTANT, Part.TOOL_CALL, 1, True)
    assert by_text["true"].source == (("messages", 1, "tool_calls", 1, "function", "arguments", "loud"), 0, 4)
    assert by_text["25.75"].source == (("messages", 1, "tool_calls", 1, "function", "arguments", "times"), 0, 5)
    assert by_text["Two calls are needed."].part is Part.REASONING
    assert by_text["high 05:40, low 11:52"].role is Role.TOOL
    assert by_text["<think>"].sampled


def test_inline_reasoning_is_reasoning_up_to_its_closing_tag() -> None:
    rendered = ChatTemplate(CHATML).render([user("3 + 4?"), assistant("<think>\nseven\n</think>\n\nIt is 7.")])
    parts = [
        (span.part, rendered.text[span.start : span.end]) for span in rendered.spans if span.source and span.message
    ]
    assert parts[-2:] == [(Part.REASONING, "<think>\nseven\n</think>"), (Part.CONTENT, "\n\nIt is 7.")]


def test_a_template_refusing_a_chat_says_its_own_words() -> None:
    template = ChatTemplate("{{ raise_exception('only ' ~ messages|length ~ ' messages') }}")
    with pytest.raises(TemplateError, match="only 2 messages"):
        template.render([user("a"), assistant("b")])


def test_what_a_template_drops_is_named() -> None:
    template = ChatTemplate("{% for m in messages if m.role != 'tool' %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    lost = template.render(
        [
            user("Weather?"),
            assistant("", tool_calls=[call("look", {"at": "sky"}, "c1")]),
            tool("look", "c1", "blue"),
            assistant("Blue."),
        ]
    ).lost
    said = [str(entry) for entry in lost]
    assert any("messages[2].content: dropped" in entry for entry in said)
    assert any("tool_calls[0].function.name" in entry for entry in said)
    assert any("tool_calls[0].function.arguments.at" in entry for entry in said)


def test_arguments_shown_one_by_one_are_not_lost() -> None:
    """Templates that loop over arguments never print the word "arguments" itself."""
    chat = CHATS["tool_call"]
    template = ChatTemplate(str(OWN_TEMPLATES[0].with_name("stop_is_next_header.jinja")))
    assert template.render(chat.messages).lost == []
    shorter = template.source.replace("<arg_key>' + k + '</arg_key>", "")
    lost = ChatTemplate(shorter).render(chat.messages).lost
    assert [entry.text for entry in lost] == ["harbour", "days"]


def test_a_list_printed_as_python_is_named() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    lost = template.render([user([{"type": "text", "text": "Hi"}]), assistant("Hello")]).lost
    assert any("Python repr" in entry.what for entry in lost)
    lost = template.render([user("Hi"), assistant(None)]).lost
    assert any("null printed as None" in entry.what for entry in lost)


def test_the_clock_is_a_setting() -> None:
    source = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    texts = {ChatTemplate(source, clock=day).render([user("a")]).text for day in ("2031-05-01T00:00:00",) * 2}
    assert texts == {"2031-05-01a"}


def test_every_kind_of_loop_says_which_message_it_stands_on() -> None:
    """Literal text belongs to the message the template's loop stands on, by item, by index, and after the loop."""
    for loop in (
        "{% for m in messages %}",
        "{% for i in range(messages|length) %}{% set m = messages[i] %}",
        "{% for m in messages %}{% for x in [1] %}{% endfor %}",
    ):
        template = ChatTemplate(loop + "[{{ m.role }}]{{ m.content }}<end>{% endfor %}<eos>")
        rendered = template.render([user("a"), assistant("b")])
        owners = {(rendered.text[span.start : span.end], span.message) for span in rendered.spans}
        assert {("a", 0), ("b", 1)} <= owners
        assert next(span.message for span in rendered.spans if span.end == len(rendered.text)) in (-1, 1)
        assert [span.message for span in rendered.spans if span.start == 0] == [0]


def test_generation_tags_change_nothing() -> None:
    bare = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tagged = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    chat = [user("a"), assistant("b")]
    assert ChatTemplate(bare).render(chat).text == ChatTemplate(tagged).render(chat).text
    assert [s.source for s in ChatTemplate(tagged).render(chat).spans] == [
        (("messages", 0, "content"), 0, 1),
        (("messages", 1, "content"), 0, 1),
    ]


def test_spans_of_a_render_without_turns() -> None:
    engine = Engine(CHATML, special_tokens={})
    spans = list(spans_of(engine.trace(wrap([user("only me")])), []))
    assert not any(span.sampled for span in spans)
    assert {span.role for span in spans} == {Role.USER}


def test_entries_of_the_corpus_are_hashable_sources() -> None:
    """The cache of compiled templates is keyed by all that decides a render."""
    one, other = Entry("a", "{{ bos_token }}", "<s>", "</s>"), Entry("a", "{{ bos_token }}", "<b>", "</s>")
    assert one.template.render([]).text == "<s>"
    assert other.template.render([]).text == "<b>"


@pytest.mark.parametrize("engine", ["core", "python"])
def test_a_rendered_conversation_is_freed_without_the_collector(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker renders millions of them: in a cycle each would stay, with its texts, until a collection."""
    if engine == "python":
        monkeypatch.setenv(ENGINE, "python")
    template = ChatTemplate("{% for m in messages %}{{ m | tojson(indent=1) }}{{ m.content }}{% endfor %}")
    gc.disable()
    try:
        wrapped = wrap([user("a"), assistant("b")])
        for count in (1, 2):
            trace = template.engine.trace(wrapped, count)
            assert (trace.core is None) is (engine == "python")
            assert trace.leaves and trace.roles and trace.layout.data
        seen = [weakref.ref(wrapped), weakref.ref(wrapped.values), weakref.ref(trace)]
        del wrapped, trace
        assert [one() for one in seen] == [None, None, None]
    finally:
        gc.enable()
