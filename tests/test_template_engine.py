"""The core's template engine renders what the Python tracker renders, text and origins, or leaves it to Python."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import _core
from maskpipe.errors import MaskpipeError, TemplateError
from maskpipe.template import ChatTemplate
from maskpipe.template.environment import NULL_PRINTED
from maskpipe.template.render import ENGINE, Engine, wrap
from tests.conversations import CHATS, Chat, assistant, user

OWN = sorted((Path(__file__).parent / "golden" / "templates").glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def differences(engine: Engine, chat: Chat) -> Counter[str]:
    """What became of every render of the first messages, with and without a prompt."""
    found: Counter[str] = Counter()
    wrapped = wrap(chat.messages, tools=chat.tools, documents=chat.documents, kwargs=chat.kwargs)
    assert [(leaf.role, leaf.part, leaf.message) for leaf in wrapped.leaves] == [
        tuple(entry[:3]) for entry in wrapped.input.leaves()
    ]
    assert engine._program is not None
    for count in range(1, len(chat.messages) + 1):
        for prompt in (False, True):
            shown = engine._program.render(wrapped.input, count, prompt)
            try:
                trace = engine._tracked(wrapped, count, prompt)
            except TemplateError:
                assert shown is None
                found["refused"] += 1
                continue
            if shown is None:
                found["left to Python"] += 1
                continue
            assert shown.text() == trace.text
            assert shown.origins() == trace.origins
            assert [(message, NULL_PRINTED) for message in shown.nulls()] == trace.reprs
            found["same"] += 1
    return found


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_it_renders_what_the_tracker_renders(path: Path) -> None:
    engine = Engine(path.read_text(encoding="utf-8"), special_tokens=SPECIAL)
    found = sum((differences(engine, chat) for chat in CHATS.values()), Counter[str]())
    print(path.stem, dict(found))
    assert found["same"]


PIECES = [
    "{{ m.content }}",
    "{{ m['content'] | trim }}",
    "{{ m.content.strip() ~ m.role }}",
    "{{ '<' + m.role + '>' }}",
    "{{ m.content.split('b')[-1] }}",
    "{{ m.content[1:] }}",
    "{{ m.content[:-1] }}",
    "{{ m.content | replace('a', m.role) }}",
    "{{ m | tojson }}",
    "{{ m.content | tojson(indent=2) }}",
    "{{ m.content | upper }}",
    "{{ m.missing }}",
    "{{ m.get('content') }}",
    "{{ m.content | length }}",
    "{{ loop.index }}{{ loop.last }}",
    "{{ (m.content ~ 'é').split() }}",
    "{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% set x = m.content %}{{ x + '!' }}",
    "{% if 'a' in m.content %}A{% elif m.content %}B{% else %}C{% endif %}",
    "{% set n.seen = n.seen + 1 %}{{ n.seen }}",
    "{% set x %}[{{ m.content }}]{% endset %}{{ x }}",
    "{{ f(m.content) }}",
    "{{ f(m, y='q') }}",
    "{{ loop.previtem.content }}",
    "{{ m.content if m.role == 'user' else none }}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
    "{% if loop.index0 > 2 %}{% break %}{% endif %}",
    "{{ m.n }}{{ m.n + 1 }}{{ -m.n }}",
    "{{ m.flag is true }}{{ m.flag }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ [m.role, '-'] | join('+') }}",
    "{{ m.content.replace('b', '') }}",
    "{{ ' x '.strip() + m.content.lstrip('a') }}",
    "{{ messages[::-1][0].content }}",
]

contents = st.text(alphabet='ab \n"<\\é\U0001f600', max_size=6)


@settings(max_examples=150)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=4),
    after=st.sampled_from(["", "{{ x }}", "{{ n.seen }}", "{{ messages | length }}"]),
    chats=st.lists(st.tuples(contents, contents, st.integers(-3, 12), st.booleans()), min_size=1, max_size=2),
)
def test_it_renders_pieces_of_templates_as_the_tracker_does(
    pieces: list[str], after: str, chats: list[tuple[str, str, int, bool]]
) -> None:
    source = (
        "{% set n = namespace(seen=0) %}{% macro f(x, y='z') %}({{ x }}{{ y }}){% endmacro %}"
        "{% for m in messages %}<{{ m.role }}>" + "".join(pieces) + "\n{% endfor %}" + after
    )
    engine = Engine(source, special_tokens=SPECIAL)
    messages: list[dict[str, Any]] = []
    for question, answer, number, flag in chats:
        messages += [user(question), assistant(answer, n=number, flag=flag)]
    differences(engine, Chat(messages))


SEARCH = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% WORD %}{% endif %}"
    "<{{ m.content }}>{% else %}none{% endfor %}"
)


@pytest.mark.parametrize("word", ["break", "continue"])
def test_a_loop_that_went_through_no_turn_has_its_else_as_in_jinja2(word: str) -> None:
    engine = Engine(SEARCH.replace("WORD", word), special_tokens={})
    for number in range(10):  # until every node but those of `else` is settled
        assert engine.trace(wrap([user(f"{number}"), assistant("A")])).text == f"<{number}>"
    wrapped = wrap([assistant("A"), user("later")])
    assert engine.trace(wrapped).text == engine.plain(wrapped.raw["messages"])
    assert differences(engine, Chat([assistant("A"), user("later"), assistant("B")]))["same"]


def test_a_filter_without_its_argument_is_left_to_python() -> None:
    engine = Engine("{{ messages | selectattr() | list | length }}", special_tokens={})
    with pytest.raises(TemplateError):
        engine.trace(wrap([{"role": "user", "content": "Hi"}]))


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MESSAGES = [user("Hi"), assistant("Hello"), user("Bye"), assistant("Go")]


def test_turns_and_losses_are_those_of_the_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in OWN:
        source = path.read_text(encoding="utf-8")
        for chat in CHATS.values():
            found = []
            for engine in ("core", "python"):
                monkeypatch.setenv(ENGINE, engine)
                template = ChatTemplate(source, **SPECIAL)
                given = {"tools": chat.tools, "documents": chat.documents, **chat.kwargs}
                try:
                    found.append(dataclasses.astuple(template.render(chat.messages, **given)))
                except TemplateError as error:
                    found.append((str(error),))
            assert found[0] == found[1]


def test_a_difference_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(CHAT, special_tokens={})
    other = Engine(CHAT.replace("<end>", "<END>"), special_tokens={})
    monkeypatch.setattr(engine, "_program", other._program)
    with pytest.raises(MaskpipeError, match=f"{ENGINE}=python"):
        engine.trace(wrap(MESSAGES))


def test_each_node_is_compared_until_it_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    source = CHAT.replace("{{ m.content }}", "{% if m.content == 'rare' %}!{% endif %}{{ m.content }}")
    engine = Engine(source, special_tokens={})
    compared: list[str] = []
    real = engine._compare
    monkeypatch.setattr(engine, "_compare", lambda *given: (compared.append(given[3].text()), real(*given)))
    monkeypatch.setattr("maskpipe.template.render.COMPARED_ONE_IN", 1 << 62)
    for number in range(20):
        engine.trace(wrap([user(f"usual {number}")]))
    assert len(compared) == 8
    engine.trace(wrap([user("rare")]))
    assert compared[8:] == ["<user>!rare<end>"]


def test_python_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = wrap(MESSAGES)
    assert Engine(CHAT, special_tokens={}).trace(wrapped).core is not None
    monkeypatch.setenv(ENGINE, "python")
    assert Engine(CHAT, special_tokens={}).trace(wrap(MESSAGES)).core is None


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages if m.role %}{{ m.content }}{% endfor %}",
        "{{ messages | dictsort }}",
        "{{ (messages | length) / 2 }}",
        "{{ messages }}",
    ],
)
def test_what_it_does_not_know_is_left_to_python(source: str) -> None:
    engine = Engine(source, special_tokens={})
    assert (
        engine._program is None
        or engine._program.render(_core.TemplateInput(MESSAGES, None, None, None), 4, False) is None
    )
