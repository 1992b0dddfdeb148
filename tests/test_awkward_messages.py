"""Messages that many templates cannot take: the error says what helps, and what helps is a named choice."""

from __future__ import annotations

import pytest

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
