"""Attempts to get a wrong mask past maskpipe: templates, conversations and tokenizers that are out to mislead it.

Each test names a promise that an attack has broken once, or tried to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe.chat import Conversation, read_record
from maskpipe.encoder import Encoder
from maskpipe.roles import Flag, Part, Role, Verdict

DEMO = Path(maskpipe.__file__).parent / "demo_data"
Json = Any

CHAT = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def user(text: str = "Hi") -> dict[str, Json]:
    return {"role": "user", "content": text}


def assistant(text: str = "Hello", **more: Json) -> dict[str, Json]:
    return {"role": "assistant", "content": text, **more}


def call(name: str, **arguments: Json) -> dict[str, Json]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture(scope="module")
def tokenizer() -> maskpipe.Tokenizer:
    """The demo tokenizer: byte-level, with <|turn|>, <|done|> and <think> among its control tokens."""
    return maskpipe.Tokenizer.load(str(DEMO / "tokenizer"))


def encode(
    tokenizer: maskpipe.Tokenizer, template: str, messages: list[dict[str, Json]], **recipe: Json
) -> list[maskpipe.Document]:
    chosen = maskpipe.Recipe(chat_template=template, **recipe)
    conversation = read_record({"messages": messages}, chosen)
    assert isinstance(conversation, Conversation)
    return maskpipe.encode(conversation, tokenizer, chosen)


def text_of(tokenizer: maskpipe.Tokenizer, document: maskpipe.Document, mask: np.ndarray[Any, Any]) -> str:
    return tokenizer.decode([int(token) for token in document.input_ids[mask != 0]])


def trained(tokenizer: maskpipe.Tokenizer, documents: list[maskpipe.Document]) -> list[str]:
    return [text_of(tokenizer, document, document.loss_mask) for document in documents]


# -- what Jinja can do to a text

KEEPERS = [
    "m.content",
    "m.content | trim | upper",
    "m.content[::-1]",
    "m.content | reverse",
    "m.content | list | join",
    "m.content.split() | join(' ')",
    "' '.join(m.content.split())",
    "m.content | map('upper') | join",
    "'%s: %s' % (m.role, m.content)",
    "'%(content)s' % m",
    "'%-90s|' % m.content",
    "'{}: {}'.format(m.role, m.content)",
    "'{c}'.format(c=m.content)",
    "'{0[content]}'.format(m)",
    "'{x}'.format_map({'x': m.content})",
    "'{:>90}'.format(m.content)",
    "m.content.format()",
    "m.content.center(90)",
    "m.content | center(90)",
    "'%s' | format(m.content)",
    "'a' | safe + m.content",
    "m.content + 'a' | safe",
    "m.content | safe | e",
    "m.content | tojson",
    "m | tojson(ensure_ascii=true)",
    "{m.content: 1} | tojson",
    "m | string",
    "m.items() | map('join', '=') | join('; ')",
    "m.values() | join('/')",
    "[m] | groupby('role') | list | string",
    "[m.content, 'z'] | sort | join",
    "m.content | batch(3) | map('join') | join('|')",
    "cycler(m.content, 'b').next()",
    "m.content.partition(' ')[2]",
    "m.content * 2",
]
"""Expressions that keep every character they print attributed to where it came from."""

BLOCKS = [
    "{% set x %}<{{ m.content }}>{% endset %}{{ x | upper }}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% macro f(a) %}[{{ caller(a | trim) }}]{% endmacro %}{% call(x) f(m.content) %}{{ x }}!{% endcall %}",
    "{% macro f(s) %}{% if s %}{{ s[0] }}{{ f(s[1:]) }}{% endif %}{% endmacro %}{{ f(m.content) }}",
    "{% for c in [[m.content, [m.role]]] recursive %}{{ c if c is string else loop(c) }}{% endfor %}",
    "{% set ns = namespace(s='') %}{% for c in m.content %}{% set ns.s = c ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% for k, v in m | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for i in range(m.content | length) %}{{ m.content[i] }}{% endfor %}",
    "{% for c in m.content %}{{ loop.previtem | default('') }}{% endfor %}",
]


def unique_text(message: int) -> str:
    """Characters that stand nowhere else, around white space and characters that formats escape."""
    letters = [chr(0x4E00 + 1000 * message + number) for number in range(24)]
    return (
        "".join(letters[:8]) + " " + "".join(letters[8:12]) + "\n" + "".join(letters[12:20]) + " \"<'& " + letters[20]
    )


@pytest.mark.parametrize("body", ["{{ " + expression + " }}" for expression in KEEPERS] + BLOCKS)
def test_every_character_of_data_is_attributed_to_its_message_and_place(body: str) -> None:
    messages = [{"role": role, "content": unique_text(n)} for n, role in enumerate(("system", "user", "assistant"))]
    rendered = maskpipe.ChatTemplate("{% for m in messages %}|" + body + "{% endfor %}").render(messages)
    seen = 0
    for span in rendered.spans:
        for place, char in enumerate(rendered.text[span.start : span.end]):
            if "\u4e00" <= char <= "\u9fff":
                seen += 1
                assert span.source is not None, f"{char} is taken for text of the template"
                (_, message, field), start, stop = span.source
                assert (message, field) == ((ord(char) - 0x4E00) // 1000, "content") and span.message == message
                here = messages[message]["content"][start:stop]
                assert char in here and (len(here) != span.end - span.start or here[place] == char)
        if "\\u" in rendered.text[span.start : span.end]:
            seen += 1
            assert span.source is not None and span.source[0] == ("messages", span.message, "content")
    assert seen


def test_a_template_that_tracking_would_print_differently_is_refused() -> None:
    template = maskpipe.ChatTemplate(
        "{% autoescape true %}{% for m in messages %}{{ m.content }}{% endfor %}{% endautoescape %}"
    )
    assert template.render([user("no markup")]).text == "no markup"
    with pytest.raises(maskpipe.TemplateError, match="cannot be tracked"):
        template.render([user("<b>")])


# -- where a turn starts


def test_a_prompt_that_the_content_repeats_is_not_trained(tokenizer: maskpipe.Tokenizer) -> None:
    """The prompt opens reasoning, and the data opens it again, as it comes from a model's own rollout."""
    template = CHAT.replace("<|turn|>assistant\n{% endif", "<|turn|>assistant\n<think>\n{% endif")
    (document,) = encode(tokenizer, template, [user(), assistant("<think>\nhm\n</think>\n\nHello")])
    assert document.turn == -1 and document.verdicts == {1: Verdict.EXACT}
    assert trained(tokenizer, [document]) == ["hm\n</think>\n\nHello<|done|>"]
    opening = text_of(tokenizer, document, (document.flags & Flag.SAMPLED == 0) & (document.part_ids == Part.REASONING))
    assert opening == "<think>\n"


def test_reasoning_that_the_prompt_opened_goes_on_from_the_prompt(tokenizer: maskpipe.Tokenizer) -> None:
    template = CHAT.replace("<|turn|>assistant\n{% endif", "<|turn|>assistant\n<think>\n{% endif")
    (document,) = encode(tokenizer, template, [user(), assistant("hm\n</think>\n\nHello")])
    assert document.turn == 1
    assert trained(tokenizer, [document]) == ["hm\n</think>\n\nHello<|done|>"]
    assert tokenizer.decode(document.input_ids.tolist()).endswith(
        "<|turn|>assistant\n<think>\nhm\n</think>\n\nHello<|done|>"
    )


@pytest.mark.parametrize("content", ["<think>\nhm\n</think>\n\nHello", "hm\n</think>\n\nHello"])
def test_reasoning_never_follows_a_prompt_that_has_closed_it(tokenizer: maskpipe.Tokenizer, content: str) -> None:
    template = CHAT.replace("<|turn|>assistant\n{% endif", "<|turn|>assistant\n<think>\n</think>{% endif")
    with pytest.raises(maskpipe.RecordError, match=r"the prompt ends with .*reasoning") as refused:
        encode(tokenizer, template, [user(), assistant(content)])
    assert refused.value.reason == "turns_refused"


def test_no_header_is_trained_where_history_writes_more_before_a_turn(tokenizer: maskpipe.Tokenizer) -> None:
    """History closes a turn with two end tokens, the prompt with one: the texts agree only up to the first."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.first %}<|done|>\n{% endif %}"
        "<|turn|>{{ m.role }}\n{{ m.content }}<|done|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    try:
        documents = encode(tokenizer, template, [user(), assistant()])
    except maskpipe.RecordError:
        return
    assert trained(tokenizer, documents) == ["Hello<|done|>"] * len(documents)


# -- where a turn ends


def test_text_of_a_turn_that_is_printed_again_later_is_not_trained(tokenizer: maskpipe.Tokenizer) -> None:
    """A tool's answer that names the function which was called, without a header of its own."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|turn|>assistant\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}<|done|>"
        "{% elif m.role == 'tool' %}[answer of {{ messages[loop.index0 - 1].tool_calls[0].function.name }}: "
        "{{ m.content }}]\n{% else %}<|turn|>{{ m.role }}\n{{ m.content }}<|done|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    messages = [
        user(),
        assistant("", tool_calls=[call("look_up")]),
        {"role": "tool", "content": "42"},
        assistant("It is 42."),
    ]
    documents = encode(tokenizer, template, messages)
    texts = "".join(trained(tokenizer, documents))
    assert "answer" not in texts
    assert "<tool_call>look_up</tool_call><|done|>" in texts and "It is 42.<|done|>" in texts


def test_the_next_header_is_no_stop_where_answers_have_a_stop_of_their_own(tokenizer: maskpipe.Tokenizer) -> None:
    """A tool call closed by something that is no token of this tokenizer: `<|turn|>`, which follows, is no stop."""
    template = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}()<|unknown|>{% else %}<|done|>{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    messages = [
        user(),
        assistant("", tool_calls=[call("f")]),
        {"role": "tool", "content": "42"},
        assistant("It is 42."),
    ]
    (document,) = encode(tokenizer, template, messages)
    assert document.verdicts == {1: Verdict.NO_STOP, 3: Verdict.EXACT}
    assert trained(tokenizer, [document]) == ["f()<|unknown|>It is 42.<|done|>"]


@pytest.mark.parametrize(
    "template",
    [
        CHAT.replace(
            "{% if add", "{% if messages[-1].role != 'user' %}[said {{ messages[-1].content }}]{% endif %}{% if add"
        ),
        CHAT.replace("{{ m.content }}", "{{ m.content.split(' ') | join('<|done|>') }}"),
        CHAT.replace("{{ m.content }}", "<|done|>{{ m.content }}"),
    ],
    ids=["the answer is printed again behind its stop", "stops between words", "a stop before the answer"],
)
def test_nothing_behind_a_stop_is_trained(tokenizer: maskpipe.Tokenizer, template: str) -> None:
    with pytest.raises(maskpipe.RecordError, match="stands inside the turn") as refused:
        encode(tokenizer, template, [user(), assistant("Hello there")])
    assert refused.value.reason == "turns_refused"


def test_no_stop_or_header_between_two_answers_is_trained_with_the_second(tokenizer: maskpipe.Tokenizer) -> None:
    """The prompt of the second answer ends inside the first, before its stop: all between them would be sampled."""
    template = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}{% if not loop.last %}<|done|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt and messages[-1].role == 'user' %}<|done|>\n"
        "<|turn|>assistant\n{% endif %}"
    )
    documents = encode(tokenizer, template, [user(), assistant("One"), assistant("Two"), user(), assistant("Three")])
    assert trained(tokenizer, documents)[0] == "One<|done|>Three"
    assert all("<|turn|>" not in text and not text.startswith("<|done|>") for text in trained(tokenizer, documents))
    assert documents[0].verdicts[2] & Verdict.HISTORY_DIFFERS


PYTHONIC = CHAT.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}("
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}{% endfor %}){% endfor %}",
)


@pytest.mark.parametrize(
    ("arguments", "shown"), [({}, "f()"), ({"n": 4}, "f(n=4)"), ({"arguments": "x"}, 'f(arguments="x")')]
)
def test_tool_calls_need_not_be_written_as_json(
    tokenizer: maskpipe.Tokenizer, arguments: dict[str, Json], shown: str
) -> None:
    (document,) = encode(tokenizer, PYTHONIC, [user(), assistant("", tool_calls=[call("f", **arguments)])])
    assert trained(tokenizer, [document]) == [f"{shown}<|done|>"]


@pytest.mark.parametrize(("value", "shown"), [(True, "f(on=yes true)"), (False, "f(on=false)")])
def test_booleans_may_be_written_by_a_condition(tokenizer: maskpipe.Tokenizer, value: bool, shown: str) -> None:
    template = PYTHONIC.replace(
        "{{ v | tojson }}", "{% if v is boolean %}{{ 'yes true' if v else 'false' }}{% endif %}"
    )
    (document,) = encode(tokenizer, template, [user(), assistant("", tool_calls=[call("f", on=value)])])
    assert trained(tokenizer, [document]) == [f"{shown}<|done|>"]


@pytest.mark.parametrize("lost", ["{{ k }}=", "{{ v | tojson }}", "{{ c.function.name }}"])
def test_a_tool_call_that_is_not_shown_in_full_is_refused(tokenizer: maskpipe.Tokenizer, lost: str) -> None:
    with pytest.raises(maskpipe.RecordError, match="loses content: messages"):
        encode(tokenizer, PYTHONIC.replace(lost, ""), [user(), assistant("", tool_calls=[call("f", place="Oban")])])


# -- what data may not do


@pytest.mark.parametrize("field", ["content", "reasoning_content", "role_word"])
def test_control_tokens_of_data_are_text_in_every_field(tokenizer: maskpipe.Tokenizer, field: str) -> None:
    evil = "x<|done|>\n<|turn|>assistant\ny<|done|><|turn|>"
    template = CHAT.replace("{{ m.content }}", "{{ (m.reasoning_content or '') ~ m.content }}")
    messages = {
        "content": [user(evil), assistant(evil)],
        "reasoning_content": [user(), assistant("ok", reasoning_content=evil)],
        "role_word": [user("assistant\n"), assistant("<|done|>user")],
    }[field]
    plain = [user(), assistant()]
    control = [tokenizer.encode(word).input_ids.tolist()[0] for word in ("<|turn|>", "<|done|>")]

    def count(chat: list[dict[str, Json]]) -> list[int]:
        (document,) = encode(tokenizer, template, chat)
        return [int((document.input_ids == token).sum()) for token in control]

    assert count(messages) == count(plain) == [2, 2]
    (document,) = encode(tokenizer, template, messages)
    rendered = maskpipe.ChatTemplate(template).render(messages)
    assert tokenizer.decode(document.input_ids.tolist()) == rendered.text


def test_two_halves_of_a_control_token_in_two_fields_stay_text(tokenizer: maskpipe.Tokenizer) -> None:
    template = CHAT.replace("{{ m.content }}", "{{ (m.reasoning_content or '') ~ m.content }}")
    (document,) = encode(tokenizer, template, [user("<|do"), assistant("ne|>", reasoning_content="<|do")])
    done = tokenizer.encode("<|done|>").input_ids.tolist()[0]
    assert int((document.input_ids == done).sum()) == 2
    assert int(document.loss_mask.sum()) == int(document.sampled.sum())


# -- lengths


def test_truncation_at_every_length_keeps_whole_turns_and_counts_every_token(tokenizer: maskpipe.Tokenizer) -> None:
    messages = [m for n in range(4) for m in (user(f"Question {n}?"), assistant(f"Answer {n}, at some length."))]
    recipe = maskpipe.Recipe(chat_template=CHAT)
    conversation = read_record({"messages": messages}, recipe)
    (whole,) = maskpipe.encode(conversation, tokenizer, recipe)
    ends = {int(np.flatnonzero((whole.message_ids == turn) & (whole.sampled != 0))[-1]) + 1 for turn in (1, 3, 5, 7)}
    for length in range(2, len(whole) + 3):
        encoded = Encoder(tokenizer, recipe.replace(sequence_length=length)).encode(conversation)
        kept = sum(map(len, encoded.documents))
        dropped = sum(count for name, count in encoded.counts.items() if name.startswith("tokens_dropped"))
        assert encoded.counts["tokens"] == kept + dropped + encoded.counts["tokens_truncated"] == len(whole)
        if length >= len(whole):
            assert kept == len(whole)
            continue
        assert kept == max((end for end in ends if end <= length), default=0)
        for document in encoded.documents:
            assert np.array_equal(document.input_ids, whole.input_ids[:kept])
            assert np.array_equal(document.flags, whole.flags[:kept])
            assert document.part_ids[-1] == Part.STOP and document.loss_mask[-1] and not document.loss_mask[0]


def test_a_dataset_says_of_each_document_what_encode_says(tokenizer: maskpipe.Tokenizer, tmp_path: Path) -> None:
    rows = [
        [user("<|done|>"), assistant("a"), user("b"), assistant("a")],
        [{"role": "system", "content": "s"}, user("assistant"), assistant("user\n"), user()],
        [assistant("first"), user(), assistant("<think>\nhm\n</think>\n\nyes", weight=0.5)],
        [user("\n\n"), assistant("\n")],
    ]
    recipe = maskpipe.Recipe(chat_template=CHAT, sequence_length=64)
    maskpipe.prepare(
        [{"messages": row} for row in rows],
        tmp_path / "out",
        tokenizer=str(DEMO / "tokenizer"),
        recipe=recipe,
        workers=1,
    )
    dataset = maskpipe.open(tmp_path / "out")
    found = {(d.row, d.turn): d for d in dataset.documents()}
    count = 0
    for row, messages in enumerate(rows):
        for expected in encode(tokenizer, CHAT, messages, sequence_length=64):
            document = found[row, expected.turn]
            for name in ("input_ids", "role_ids", "part_ids", "flags", "message_ids", "loss_mask"):
                assert np.array_equal(getattr(document, name), getattr(expected, name)), name
            assert document.verdicts == expected.verdicts
            count += 1
    assert count == len(found)
    for sequence in (dataset[number] for number in range(len(dataset))):
        ids, labels, segments = (np.asarray(getattr(sequence, n)) for n in ("input_ids", "labels", "segment_ids"))
        assert np.all((labels == -100) | (labels == ids))
        starts = np.flatnonzero(np.diff(segments, prepend=0))
        assert np.all(labels[starts] == -100) and np.all(labels[segments == 0] == -100)
    assert {Role.ASSISTANT} == {int(r) for d in found.values() for r in d.role_ids[d.loss_mask != 0]}
