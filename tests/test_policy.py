"""Policies: each selector is a query over facts, so it can be asked again at any time and gives the same answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import Recipe, Tokenizer, demo_data
from maskpipe.chat import Conversation
from maskpipe.document import Document
from maskpipe.encoder import Encoder, with_loss
from maskpipe.errors import UsageError
from maskpipe.policy import Policy, kinds
from maskpipe.roles import Flag, Part, Role, Verdict
from tests.conversations import CHATS, assistant, call, system, tool, user

TOKENIZER = Tokenizer.load(demo_data.tokenizer())

CHAT = [
    system("Be brief."),
    user("Ring it."),
    assistant("Ringing.", reasoning_content="One call.", tool_calls=[call("ring", {"times": 2}, "call00001")]),
    tool("ring", "call00001", "rung"),
    assistant("Done.", reasoning_content="It rang."),
]


def documents(train_on: Any, messages: Any = CHAT, **recipe: Any) -> list[Document]:
    weights = recipe.pop("weights", [])
    out = Encoder(TOKENIZER, Recipe(train_on=train_on, **recipe)).encode(Conversation(messages, weights=weights))
    assert out.refused is None, out.refused
    return out.documents


def trained(train_on: Any, messages: Any = CHAT, **recipe: Any) -> str:
    """The trained text of the whole conversation, runs joined by a bar."""
    (document,) = documents(train_on, messages, **recipe)
    return text_of(document)


def text_of(document: Document) -> str:
    edges = np.flatnonzero(np.diff(document.loss_mask, prepend=0, append=0))
    return " | ".join(
        TOKENIZER.decode(document.input_ids[start:stop]) for start, stop in zip(edges[::2], edges[1::2], strict=True)
    )


CALL = '<tool_call>{"name": "ring", "arguments": {"times": 2}}</tool_call>'
FIRST = "<think>\nOne call.\n</think>\n\n"
SECOND = "<think>\nIt rang.\n</think>\n\n"


@pytest.mark.parametrize(
    ("train_on", "text"),
    [
        ("assistant", f"{FIRST}Ringing.{CALL}<|done|> | {SECOND}Done.<|done|>"),
        ("assistant+last_turn", f"{SECOND}Done.<|done|>"),
        ("assistant+turns:0", f"{FIRST}Ringing.{CALL}<|done|>"),
        ("assistant+turns:0,-1", f"{FIRST}Ringing.{CALL}<|done|> | {SECOND}Done.<|done|>"),
        ("assistant+turns:7,-2", f"{FIRST}Ringing.{CALL}<|done|>"),
        ("assistant.content", "Ringing. | Done."),
        ("assistant.reasoning", f"{FIRST} | {SECOND}"),
        ("assistant.tool_call", CALL),
        ("assistant.stop", "<|done|> | <|done|>"),
        ("assistant+-assistant.reasoning", f"Ringing.{CALL}<|done|> | Done.<|done|>"),
        ("-assistant.stop", f"{FIRST}Ringing.{CALL} | {SECOND}Done."),
        ("assistant+-assistant.tool_call", f"{FIRST}Ringing. | <|done|> | {SECOND}Done.<|done|>"),
        ("assistant.content+tool.content", "Ringing. | rung | Done."),
        ("tool.content", "rung"),
        ("tool", "rung"),
        ("user", "Ring it."),
        ("system+user", "Be brief. | Ring it."),
        ("assistant.reasoning+-assistant.reasoning+user", "Ring it."),
    ],
)
def test_each_selector(train_on: str, text: str) -> None:
    assert trained(train_on) == text


def test_tool_bodies_come_without_their_wrappers() -> None:
    """M32: `tool.content` is the body of the output, never the header around it; by default tools get no loss."""
    source = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n"
        "{% if m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>{% else %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endif %}<|done|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    messages = [{name: value for name, value in m.items() if name != "reasoning_content"} for m in CHAT]
    assert "rung" not in trained("assistant", messages, chat_template=source)
    assert trained("tool.content", messages, chat_template=source) == "rung"


def test_all_trains_every_token_but_the_first() -> None:
    (document,) = documents("all")
    assert document.loss_mask.tolist() == [0, *[1] * (len(document) - 1)]


def test_selectors_apply_from_left_to_right() -> None:
    assert trained("user+system+-user") == "Be brief."
    assert trained("-user+user+system") == "Be brief. | Ring it."
    assert trained("assistant+-assistant.content+assistant.content") == trained("assistant")


@pytest.mark.parametrize("word", ["assistent", "assistant.contents", "tool.", "padding", "turns:x", "turns:", "-robot"])
def test_what_is_no_selector_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="train_on"):
        Policy.of(Recipe(train_on=word))


def test_source_weights_of_zero_take_a_turn_away_and_others_stay_beside_it() -> None:
    (document,) = documents("assistant", weights=[None, None, 0.0, None, 0.5])
    assert text_of(document) == f"{SECOND}Done.<|done|>"
    assert document.weights is not None
    loss = document.loss_mask > 0
    assert set(document.weights[loss].tolist()) == {0.5}
    assert set(document.weights[document.message_ids == 2].tolist()) == {0.0}
    assert set(document.weights[document.message_ids == -1].tolist()) <= {1.0}
    (plain,) = documents("assistant", weights=[None, None, None, None, 1.0])
    assert plain.weights is None


def test_a_split_document_trains_only_its_own_turn_whatever_is_asked_later() -> None:
    whole, apart = sorted(documents("assistant", CHATS["reasoning"].messages), key=lambda document: document.turn)
    assert (whole.turn, apart.turn) == (-1, 1)
    for train_on in ("assistant", "assistant+user", "assistant.content+system", "-assistant.stop"):
        policy = Policy.of(Recipe(train_on=train_on))
        assert set(apart.message_ids[policy.loss(apart) > 0].tolist()) == {1}
        assert 1 not in set(whole.message_ids[policy.loss(whole) > 0].tolist())
    for chosen, parts in (("assistant+turns:0", (0, 1)), ("assistant+last_turn", (1, 0))):
        policy = Policy.of(Recipe(train_on=chosen))
        assert (int(policy.loss(whole).any()), int(policy.loss(apart).any())) == parts


def test_last_turn_of_a_split_chat_trains_nothing_of_earlier_turns() -> None:
    """M31: with the history masked, its stop tokens are masked too."""
    made = documents("assistant+last_turn", CHATS["reasoning"].messages)
    assert {text_of(document) for document in made} == {
        "<think>\n7 - 5 = 2\nSo two.\n</think>\n\nThat leaves 2.<|done|>"
    }


SELECTORS = (
    "assistant", "assistant.content", "assistant.reasoning", "assistant.tool_call", "assistant.stop", "user",
    "tool.content", "system", "-assistant.reasoning", "-assistant.stop", "-user", "last_turn", "turns:0", "turns:1,-1",
)  # fmt: skip

ENCODER = Encoder(TOKENIZER, Recipe(on_content_lost="count"))
MADE = {
    name: ENCODER.encode(Conversation(CHATS[name].messages, tools=CHATS[name].tools)).documents
    for name in ("system_three_turns", "reasoning", "tool_call", "parallel_calls", "two_assistants", "empty_answer")
}


@given(st.lists(st.sampled_from(SELECTORS), min_size=1, max_size=4), st.sampled_from(sorted(MADE)))
def test_loss_is_a_query_over_facts(words: list[str], name: str) -> None:
    """Deciding anew from a document's facts gives what encoding under that policy gives, whatever was decided before;
    and never is a token trained that no policy may train."""
    policy = Policy.of(Recipe(train_on=tuple(words)))
    for document in MADE[name]:
        fresh = with_loss(document, policy)
        again = with_loss(with_loss(fresh, Policy.of(Recipe(train_on="all"))), policy)
        assert fresh.loss_mask.tolist() == again.loss_mask.tolist() == policy.loss(document).tolist()
        loss = fresh.loss_mask > 0
        assert not loss[:1].any()
        assert not (loss & (document.flags & Flag.STRADDLES > 0)).any()
        assert not (loss & (document.flags & Flag.EMPTY_REASONING > 0)).any()
        assert not (loss & (document.role_ids == Role.ASSISTANT) & (document.flags & Flag.SAMPLED == 0)).any()
        for message in set(document.message_ids[loss & (document.role_ids == Role.ASSISTANT)].tolist()):
            assert document.turn == message or not document.verdicts[message] & Verdict.HISTORY_DIFFERS
            assert not document.verdicts[message] & Verdict.REFUSED


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(list(Part)), st.booleans(), st.integers(-1, 2)), max_size=30))
def test_a_wrapper_goes_with_what_it_wraps(tokens: list[tuple[Part, bool, int]]) -> None:
    """The slow twin: a run of sampled scaffold takes the part of its neighbour of the same message, the one after it
    first, when that is reasoning or a tool call."""
    parts = np.array([part for part, _, _ in tokens], np.uint8)
    flags = np.array([int(Flag.SAMPLED) * sampled for _, sampled, _ in tokens], np.uint8)
    messages = np.array([message for _, _, message in tokens], np.int32)
    expected = parts.tolist()
    at = 0
    while at < len(tokens):
        stop = at
        while stop < len(tokens) and parts[stop] == Part.SCAFFOLD and flags[stop]:
            stop += 1
        if stop == at:
            at += 1
            continue
        neighbours = []
        if stop < len(tokens) and messages[stop] == messages[at]:
            neighbours.append(parts[stop])
        if at and messages[at - 1] == messages[at]:
            neighbours.append(parts[at - 1])
        owner = next((part for part in neighbours if part in (Part.TOOL_CALL, Part.REASONING)), Part.SCAFFOLD)
        expected[at:stop] = [int(owner)] * (stop - at)
        at = stop
    assert kinds(parts, flags, messages).tolist() == expected
