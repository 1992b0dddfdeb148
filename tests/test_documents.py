"""Whole conversations become documents: ids as inference feeds them, no control token from data, every token accounted
for whatever the length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import demo_data
from maskpipe.chat import Conversation, read_record
from maskpipe.document import Document
from maskpipe.encoder import Encoded, Encoder, encode
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role
from maskpipe.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
DEMO = [json.loads(line) for line in demo_data.chats().read_text(encoding="utf-8").strip().split("\n")]
LONG = Recipe(sequence_length=1 << 20)


def encoded(record: Any, recipe: Recipe = LONG, tokenizer: Tokenizer = TOKENIZER) -> Encoded:
    return Encoder(tokenizer, recipe).encode(read_record(record, recipe))


def trained(document: Document, tokenizer: Tokenizer = TOKENIZER) -> str:
    return tokenizer.decode(document.input_ids[document.loss_mask == 1])


# -- ids


def hf_chat(directory: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(str(directory))


def check_against_transformers(tokenizer: Tokenizer, theirs: Any, records: list[Any]) -> tuple[int, int]:
    """(documents equal to apply_chat_template, documents cut): a whole document without a cut has its ids; one with a
    cut, and a split one, begins with the ids of the turn's own prompt."""
    equal = cut = 0
    encoder = Encoder(tokenizer, LONG)
    for record in records:
        conversation = read_record(record, LONG)
        assert isinstance(conversation, Conversation)
        context = {
            "tools": conversation.tools,
            "documents": conversation.documents,
            **conversation.chat_template_kwargs,
        }

        def ids(messages: list[Any], prompt: bool, context: dict[str, Any] = context) -> list[int]:
            out = theirs.apply_chat_template(
                messages, add_generation_prompt=prompt, tokenize=True, return_dict=False, **context
            )
            return [int(token) for token in out]

        for document in encoder.encode(conversation).documents:
            targets = np.flatnonzero(document.loss_mask & (document.role_ids == Role.ASSISTANT))
            for message in sorted({int(number) for number in document.message_ids[targets]}):
                sampled = np.flatnonzero((document.message_ids == message) & (document.flags & Flag.SAMPLED > 0))
                prompt = ids(conversation.messages[:message], True)
                assert document.input_ids[: sampled[0]].tolist() == prompt, "context is not what inference feeds"
            if document.turn >= 0 or (document.flags & Flag.CUT_BEFORE).any():
                cut += 1
            else:
                assert document.input_ids.tolist() == ids(conversation.messages, False)
                equal += 1
    return equal, cut


def is_clean(record: Any, tokenizer: Tokenizer) -> bool:
    return not any(token in json.dumps(record, ensure_ascii=False) for token in tokenizer.control)


def test_ids_of_the_demo_chats_are_what_transformers_feeds() -> None:
    records = [record for record in DEMO if is_clean(record, TOKENIZER)]
    equal, cut = check_against_transformers(TOKENIZER, hf_chat(demo_data.tokenizer()), records)
    print(f"{equal} documents equal, {cut} split or cut, all contexts as at inference")
    assert equal > 50
    assert cut > 5


@pytest.mark.shared
@pytest.mark.parametrize("name", ["qwen3", "llama-3.1", "gemma-3", "deepseek-v3"])
def test_ids_on_real_tokenizers_are_what_transformers_feeds(shared_data: Path, name: str) -> None:
    directory = shared_data / "tokenizers" / name
    tokenizer = Tokenizer.load(directory)
    chats = [
        {
            "messages": [
                {"role": "user", "content": "  edges \n\n"},
                {"role": "assistant", "content": "\n\n as\n well  "},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "naïve — 日本語 😀"},
                {"role": "assistant", "content": "é e\u0301 ﬁ"},
            ]
        },
    ]
    path = shared_data / "chats" / "tinker-cookbook" / "conversations.jsonl"
    chats += [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")[:60]]
    clean = [record for record in chats if is_clean(record, tokenizer)]
    equal, cut = check_against_transformers(tokenizer, hf_chat(directory), clean)
    print(f"{name}: {equal} documents equal, {cut} split or cut, all contexts as at inference")
    assert equal + cut >= len(clean)
    assert equal > 20


# -- control tokens

CONTROL = sorted(TOKENIZER.control)
PIECES = st.one_of(
    st.sampled_from(CONTROL),
    st.sampled_from([token[:cut] for token in CONTROL for cut in range(1, len(token))]),
    st.sampled_from([token[cut:] for token in CONTROL for cut in range(1, len(token))]),
    st.sampled_from(["\U0010f000", "\U00020000", "\x00", "\ue000", "{{ bos_token }}", "{% endfor %}", "<key>", "\n"]),
    st.text(max_size=6),
)
HOSTILE = st.lists(PIECES, min_size=1, max_size=8).map("".join)


def everywhere(texts: list[str]) -> Any:
    """A record with these eight texts in every field that data can fill."""
    system, question, reasoning, answer, name, value, result, described = texts
    tool = {"type": "function", "function": {"name": "f" + name, "description": described, "parameters": {}}}
    call = {"type": "function", "function": {"name": "f" + name, "arguments": {"k" + name: value}}}
    return {
        "messages": [
            {"role": "system", "content": "s" + system},
            {"role": "user", "content": "u" + question},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "t" + result},
            {"role": "assistant", "reasoning_content": "r" + reasoning, "content": "a" + answer},
        ],
        "tools": [tool],
    }


CLEAN = encoded(everywhere(["x"] * 8))


@settings(max_examples=1250)
@given(st.lists(HOSTILE, min_size=8, max_size=8))
def test_ten_thousand_hostile_contents_make_no_control_token(texts: list[str]) -> None:
    """1,250 conversations with eight hostile texts each: the control tokens are those of a harmless conversation, in
    the same order, and none of them is data."""
    out = encoded(everywhere(texts), LONG.replace(on_content_lost="count"))
    assert out.refused is None
    control = {TOKENIZER.added_tokens[token] for token in CONTROL}
    for document, clean in zip(out.documents, CLEAN.documents, strict=True):
        found, expected = ([int(i) for i in d.input_ids if int(i) in control] for d in (document, clean))
        assert found == expected
        data = (document.part_ids != Part.SCAFFOLD) & (document.part_ids != Part.STOP)
        assert not control & set(document.input_ids[data].tolist())


# -- length


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DEMO), st.integers(8, 400))
def test_every_token_is_kept_cut_or_dropped_and_no_document_is_too_long(record: Any, length: int) -> None:
    whole = encoded(record)
    out = encoded(record, Recipe(sequence_length=length))
    gone = sum(
        count for name, count in out.counts.items() if name == "tokens_truncated" or name.startswith("tokens_dropped_")
    )
    assert sum(map(len, out.documents)) + gone == out.counts["tokens"] == whole.counts["tokens"]
    for document in out.documents:
        assert len(document) <= length
        twin = next(d for d in whole.documents if d.turn == document.turn)
        assert document.input_ids.tolist() == twin.input_ids[: len(document)].tolist()
        assert document.flags.tolist() == twin.flags[: len(document)].tolist()
        if len(document) < len(twin):  # cut after a whole turn: its own stop token, none that was not there
            assert document.part_ids[-1] == Part.STOP
            assert document.flags[-1] & Flag.SAMPLED


def test_a_document_of_exactly_the_sequence_length_is_not_cut() -> None:
    size = len(encoded(DEMO[0]).documents[0])
    assert len(encoded(DEMO[0], Recipe(sequence_length=size)).documents[0]) == size
    assert encoded(DEMO[0], Recipe(sequence_length=size)).counts["tokens_truncated"] == 0


# -- policies

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Two and two?"},
        {
            "role": "assistant",
            "reasoning_content": "Use the tool.",
            "content": "Let me see.",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}],
        },
        {"role": "tool", "content": "4"},
        {"role": "assistant", "reasoning_content": "Four then.", "content": "Four."},
    ]
}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 2}}</tool_call>'
FIRST = f"<think>\nUse the tool.\n</think>\n\nLet me see.{CALL}"


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("assistant", FIRST + "<|done|><think>\nFour then.\n</think>\n\nFour.<|done|>"),
        ("assistant+last_turn", "<think>\nFour then.\n</think>\n\nFour.<|done|>"),
        ("assistant+turns:0", FIRST + "<|done|>"),
        ("assistant+-assistant.stop", FIRST + "<think>\nFour then.\n</think>\n\nFour."),
        (
            "assistant+-assistant.reasoning",
            'Let me see.<tool_call>{"name": "add", "arguments": {"a": 2, "b": 2}}</tool_call><|done|>Four.<|done|>',
        ),
        (
            "assistant+-assistant.tool_call",
            "<think>\nUse the tool.\n</think>\n\nLet me see.<|done|><think>\nFour then.\n</think>\n\nFour.<|done|>",
        ),
        ("assistant.content", "Let me see.Four."),
        ("tool.content", "4"),
        ("user", "Two and two?"),
        ("system+user", "Be brief.Two and two?"),
    ],
)
def test_each_policy_trains_exactly_what_it_says(train_on: str, expected: str) -> None:
    out = encoded(CHAT, LONG.replace(train_on=train_on))
    assert "".join(trained(document) for document in out.documents) == expected


def test_a_policy_can_be_asked_again_of_stored_facts() -> None:
    """Loss under another policy, from the facts alone, is what encoding under that policy gives."""
    recipes = [
        LONG.replace(train_on=words) for words in ("assistant", "assistant+-assistant.reasoning", "assistant.stop")
    ]
    for record in DEMO:
        made = [encoded(record, recipe) for recipe in recipes]
        if any(out.refused for out in made):
            continue
        for out in made[1:]:
            for document, first in zip(out.documents, made[0].documents, strict=True):
                recipe = recipes[made.index(out)]
                assert Policy.of(recipe).loss(first).tolist() == document.loss_mask.tolist()


def test_a_source_weight_of_zero_takes_a_message_out_and_others_are_kept() -> None:
    record = {
        "messages": [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "First.", "train": False},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "Second.", "weight": 0.5},
        ]
    }
    (document,) = encode(read_record(record, LONG), TOKENIZER, LONG)
    assert trained(document) == "Second.<|done|>"
    assert document.weights is not None
    assert set(document.weights[document.loss_mask == 1].tolist()) == {0.5}
    assert set(document.weights[document.message_ids == 1].tolist()) == {0.0}
