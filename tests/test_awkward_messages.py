"""Messages that many templates cannot take: the error says what helps, and what helps is a named choice."""

from __future__ import annotations

from pathlib import Path

import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.chat import Conversation
from maskpipe.encoder import encode
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
FRAGILE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n"
    "{% if '<think>' in m.content %}!{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
QUESTION = {"role": "user", "content": "Hi"}


def test_null_content_that_a_template_cannot_take_is_refused_with_what_helps() -> None:
    chat = Conversation([QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}])
    with pytest.raises(RecordError, match="Message 1 has null content; --null-content empty") as caught:
        encode(chat, TOKENIZER, Recipe(chat_template=FRAGILE))
    assert caught.value.reason == "template_error"
    (document,) = encode(chat, TOKENIZER, Recipe(chat_template=FRAGILE, null_content="empty"))
    trained = TOKENIZER.decode(document.input_ids[document.loss_mask == 1])
    assert trained == '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><|done|>'


def test_parts_that_a_template_prints_as_repr_are_refused_with_what_helps() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    chat = Conversation([QUESTION, {"role": "assistant", "content": parts}])
    with pytest.raises(RecordError, match=r"printed as Python repr.*--content-parts join") as caught:
        encode(chat, TOKENIZER, Recipe(chat_template=FRAGILE))
    assert caught.value.reason == "content_lost"
    (document,) = encode(chat, TOKENIZER, Recipe(chat_template=FRAGILE, content_parts="join"))
    assert TOKENIZER.decode(document.input_ids[document.loss_mask == 1]) == "Hello<|done|>"


def test_null_printed_as_none_is_refused() -> None:
    template = "{% for m in messages %}<|turn|>{{ m.content }}<|done|>{% endfor %}"
    chat = Conversation([QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}])
    with pytest.raises(RecordError, match="loses content"):
        encode(chat, TOKENIZER, Recipe(chat_template=template))


PRINTED = [
    "{{ c | trim }}", "{{ '' + c | trim }}", "{{ c | string }}", "{{ c | upper }}", "{{ c | lower | title }}",
    "{{ c | replace('zz', 'y') }}", "{{ '%s' | format(c) }}", "{{ '%s' % c }}", "{{ '{}'.format(c) }}",
    "{{ [c] | join }}", "{{ c | e }}", "{{ c | safe }}", "{{ (c | string).strip() }}", "{% set d = c | trim %}{{ d }}",
]  # fmt: skip
PARTS = [{"type": "text", "text": "It's"}, {"type": "text", "text": "<b>"}]


ANSWER = {"role": "assistant", "content": "Yes"}


def shown(printed: str) -> Recipe:
    """A template that prints contents as `printed` says, c being the content."""
    template = FRAGILE.replace("{% if '<think>' in m.content %}!{% endif %}", "{% set c = m.content %}")
    return Recipe(chat_template=template.replace("{{ m.content }}", printed))


@pytest.mark.parametrize("printed", [*PRINTED, "{% for p in c %}{{ p if c is string else p | trim }}{% endfor %}"])
def test_parts_are_refused_whichever_filter_prints_them_as_python_does(printed: str) -> None:
    first = [{**QUESTION, "content": PARTS}, ANSWER]
    for chat in (first, [*first, QUESTION, ANSWER], [QUESTION, {**ANSWER, "content": PARTS}, QUESTION, ANSWER]):
        with pytest.raises(RecordError, match=r"a list printed as Python repr.*--content-parts join") as caught:
            encode(Conversation(chat), TOKENIZER, shown(printed))
        assert caught.value.reason == "content_lost"
    assert encode(Conversation([QUESTION, ANSWER]), TOKENIZER, shown(printed))


@pytest.mark.parametrize("printed", PRINTED)
def test_null_is_refused_whichever_filter_prints_it_as_python_does(printed: str) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    for chat in ([QUESTION, calls], [QUESTION, calls, {"role": "tool", "content": "None"}, ANSWER]):
        with pytest.raises(RecordError, match=r"null printed as None.*--null-content empty") as caught:
            encode(Conversation(chat), TOKENIZER, shown(printed))
        assert caught.value.reason == "content_lost"


def test_a_none_that_no_null_content_prints_is_fine() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "None"}}}
    calls = {"role": "assistant", "content": None, "tool_calls": [call]}
    chat = Conversation([{**QUESTION, "content": "None?"}, calls, {"role": "tool", "content": "None"}, ANSWER])
    (document,) = encode(chat, TOKENIZER, shown("{{ c or '' }}"))
    trained = TOKENIZER.decode(document.input_ids[document.loss_mask == 1])
    assert trained == '<tool_call>{"name": "f", "arguments": {"x": "None"}}</tool_call><|done|>Yes<|done|>'


def test_content_that_a_template_writes_as_json_is_what_it_writes() -> None:
    chat = Conversation([QUESTION, {**ANSWER, "content": PARTS}])
    (document,) = encode(chat, TOKENIZER, shown("{{ c | tojson }}"))
    trained = TOKENIZER.decode(document.input_ids[document.loss_mask == 1])
    assert trained.startswith('[{"type": "text", "text": "It')


def test_a_dataset_holds_no_content_printed_as_python_does(tmp_path: Path) -> None:
    """Also not on the way of usual records, which the core settles."""
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    records = [[QUESTION, ANSWER], [QUESTION, {**ANSWER, "content": PARTS}], [QUESTION, calls]]
    recipe = shown("{{ c | trim }}").replace(on_bad_record="reject")
    given = [{"messages": messages} for messages in records]
    made = maskpipe.prepare(given, tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=0)
    assert made.manifest.rejected == {"content_lost": 2}
