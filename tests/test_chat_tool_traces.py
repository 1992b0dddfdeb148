"""Traces of tools in use: calls beside the text, and the contexts of a search."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chats import at, chat, chats, refusal, turns

API: dict[str, Any] = {
    "request": {"api_name": "AddAlarm", "parameters": {"time": "18:30", "n": 1.0}},
    "response": {"alarm_id": "5b", "ok": None},
    "exception": None,
}
FAILED = {"request": {"api_name": "Login", "parameters": {}}, "response": None, "exception": "wrong password"}


def test_calls_and_results_come_before_the_text() -> None:
    record = {
        "name": "x",
        "conversation": [
            {"index": 0, "role": "user", "text": "Set it"},
            {"index": 1, "role": "assistant", "text": "Done", "apis": [API, FAILED], "weight": 0.5},
        ],
    }
    read = chat(record)
    assert turns(read) == [
        ("user", "Set it"),
        ("assistant", ""),
        ("tool", '{"alarm_id": "5b", "ok": null}'),
        ("assistant", ""),
        ("tool", "wrong password"),
        ("assistant", "Done"),
    ]
    assert read.messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "AddAlarm", "arguments": {"time": "18:30", "n": 1.0}}}
    ]
    assert [message.get("name") for message in read.messages] == [None, None, "AddAlarm", None, "Login", None]
    assert read.weights == [None, 0.5, None, 0.5, None, 0.5]
    assert at(record, read.paths[2]) == API["response"] and at(record, read.paths[4]) == "wrong password"


@pytest.mark.parametrize(
    ("apis", "reason", "says"),
    [
        ([{**API, "exception": "x"}], "bad_tool_calls", "both response and exception"),
        ([{**API, "response": None}], "bad_tool_calls", "neither response and exception"),
        ([{"response": 1}], "bad_tool_calls", "$.messages[0].apis[0]"),
    ],
)
def test_an_unclear_call_is_refused(apis: list[Any], reason: str, says: str) -> None:
    error = refusal({"messages": [{"role": "assistant", "text": "x", "apis": apis}]})
    assert error.reason == reason and says in str(error)
    assert refusal({"messages": [{"role": "user", "text": "x", "apis": apis}]}).reason == "bad_tool_calls"


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_every_context_that_no_later_one_continues_is_a_chat() -> None:
    start = [message("user", "go")]
    one, two = [*start, message("assistant", "a")], [*start, message("assistant", "b")]
    longer = [*two, message("function", "r"), message("assistant", "c")]
    record = {
        "answer_generation": {"valid_data": True, "train_messages": [one, two, longer], "function": [{"name": "f"}]},
        "tree": {"tree": {}},
    }
    read = chats(record)
    assert [[content for _, content in turns(each)] for each in read] == [["go", "a"], ["go", "b", "r", "c"]]
    assert read[1].messages[2]["role"] == "tool"
    assert all(each.tools == [{"type": "function", "function": {"name": "f"}}] for each in read)
    assert at(record, read[1].paths[3]) == longer[3]
    error = refusal({"answer_generation": {"valid_data": False, "function": []}})
    assert error.reason == "no_answer_found"
