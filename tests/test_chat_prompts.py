"""Prompts with answers beside them, and records that can be read in two ways."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chats import at, chat, chats, refusal, turns

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    "answers",
    [
        ["Hello", "Hey"],
        [{"completion": "Hello", "model": "x"}, {"response": "Hey"}],
        [[HI[1]], [{"role": "assistant", "content": "Hey"}]],
        [HI[1], {"role": "assistant", "content": "Hey"}],
    ],
)
@pytest.mark.parametrize("name", ["completions", "responses"])
def test_each_completion_is_a_chat_of_its_own(answers: list[Any], name: str) -> None:
    record = {"prompt": "Hi", name: answers}
    read = chats(record)
    assert [turns(one) for one in read] == [
        [("user", "Hi"), ("assistant", "Hello")],
        [("user", "Hi"), ("assistant", "Hey")],
    ]
    for one in read:
        there = at(record, one.paths[1])
        assert there == one.messages[1]["content"] or there == one.messages[1]


def test_completions_that_are_ranked_or_unclear_are_refused() -> None:
    ranked = refusal({"prompt": "Hi", "completions": [{"response": "a", "overall_score": 3}]})
    assert ranked.reason == "ranked_completions"
    assert "overall_score may say that this answer is not wanted" in str(ranked)
    assert "--map completions.0.response=completion" in str(ranked)
    assert refusal({"prompt": "Hi", "completions": [{"text": "a", "response": "b"}]}).reason == "bad_field"
    assert refusal({"prompt": "Hi", "completions": []}).reason == "empty_conversation"
    assert refusal({"prompt": "Hi", "completions": "no list"}).reason == "bad_json_column"
    assert turns(chat({"prompt": "Hi", "c": [{"x": "a"}]}, columns={"c.0.x": "completion"}))[1] == ("assistant", "a")


def test_two_readings_are_refused_only_where_they_say_different_things() -> None:
    same = {"messages": HI, "conversations": HI, "prompt": "Hi", "completion": "Hello"}
    assert chat(same).messages == HI
    other = {"messages": HI, "prompt": "Hi", "completion": "Bye"}
    error = refusal(other)
    assert error.reason == "ambiguous_shape"
    assert "a chat in messages, and another in prompt + completion" in str(error)
    assert chat(other, columns={"messages": "ignore"}).messages[1]["content"] == "Bye"
    assert chat(other, columns={"messages": "messages"}).messages == HI
    assert refusal({"messages": HI, "conversation": HI[:1] * 2 + [{"role": "user", "content": "x"}]}).reason == (
        "ambiguous_shape"
    )


def test_tokenized_data_is_refused_by_name() -> None:
    assert refusal({"input_ids": [1, 2], "labels": [-100, 2]}).reason == "already_tokenized"


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        ({"question": "q", "response_j": "a", "response_k": "b"}, "--map question=prompt --map response_j=completion"),
        (
            {"input": {"messages": HI[:1]}, "preferred_output": HI[1:], "non_preferred_output": HI[1:]},
            "--map input.messages=prompt --map preferred_output=completion",
        ),
    ],
)
def test_every_kind_of_pair_says_how_to_train_its_better_branch(record: dict[str, Any], hint: str) -> None:
    error = refusal(record)
    assert error.reason == "preference_pair" and hint in str(error)
    columns = dict(word.split("=") for word in hint.split() if "=" in word)
    assert len(chat(record, columns=columns).messages) == 2


@pytest.mark.parametrize(
    ("record", "reason", "says"),
    [
        ({"instruction": "i", "output": "o", "response": "r"}, "ambiguous_shape", "output and response"),
        ({"instruction": "i", "input": "x", "context": "y", "output": "o"}, "ambiguous_shape", "input and context"),
        ({"prompt": "p", "completion": "c", "response": "r"}, "ambiguous_shape", "completion and response"),
        ({"prompt": "p", "completion": "c", "system": "a", "system_prompt": "b"}, "ambiguous_shape", "system"),
        (
            {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g", "content": "other"}]},
            "duplicate_key",
            "value and a content",
        ),
    ],
)
def test_two_fields_for_one_thing_that_differ_are_refused(record: Any, reason: str, says: str) -> None:
    error = refusal(record)
    assert error.reason == reason and says in str(error)


def test_two_columns_for_one_thing_are_fine_where_one_says_nothing_or_is_mapped() -> None:
    assert turns(chat({"instruction": "i", "input": "", "context": "y", "output": "o"}))[0] == ("user", "i\ny")
    both = {"instruction": "i", "output": "o", "response": "r"}
    assert turns(chat(both, columns={"response": "response"}))[1] == ("assistant", "r")
    assert turns(chat({"instruction": "i", "output": "o", "response": "o"}))[1] == ("assistant", "o")
