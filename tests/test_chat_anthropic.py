"""Anthropic's blocks become the messages that a chat template knows, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chats import at, chat, refusal

USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"b": 1, "a": None}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "21 C"}
RECORD: dict[str, Any] = {
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "look", "signature": "x"},
                {"type": "text", "text": "One moment."},
                USE,
                {**USE, "id": "t2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                RESULT,
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no"}],
                },
                {"type": "text", "text": "And now?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Warm."}], "weight": 0},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
}


def test_blocks_become_reasoning_calls_and_tool_messages() -> None:
    read = chat(RECORD)
    assert read.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "reasoning_content": "look",
            "content": "One moment.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": None}}},
                {"id": "t2", "type": "function", "function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "21 C"},
        {"role": "tool", "tool_call_id": "t2", "content": "no", "is_error": True},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Warm."},
    ]
    assert read.tools == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    ]
    assert read.weights == [None] * 6 + [0.0]
    assert at(RECORD, read.paths[4]) == RECORD["messages"][2]["content"][1]
    assert read.paths[5] == ("messages", 2) and read.paths[6] == ("messages", 3)


def test_arguments_keep_their_order() -> None:
    (call,) = chat({"messages": [{"role": "assistant", "content": [USE]}]}).messages[0]["tool_calls"]
    assert list(call["function"]["arguments"]) == ["b", "a"]


def test_text_before_and_after_results_keeps_its_place() -> None:
    blocks = [{"type": "text", "text": "a"}, RESULT, {"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    read = chat({"messages": [{"role": "user", "content": blocks}]})
    assert [(m["role"], m["content"]) for m in read.messages] == [
        ("user", "a"),
        ("tool", "21 C"),
        ("user", [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]),
    ]


def test_a_system_string_and_text_blocks_alone_are_no_sign_of_this_format() -> None:
    parts = [{"type": "text", "text": "a"}]
    assert chat({"system": "S", "messages": [{"role": "user", "content": parts}]}).messages[1]["content"] == parts
    thinking = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]  # a template's own parts
    assert chat({"messages": [{"role": "assistant", "content": thinking}]}).messages[0]["content"] == thinking


@pytest.mark.parametrize(
    ("role", "blocks", "reason", "says"),
    [
        ("user", [RESULT, {"type": "image", "source": {}}], "multimodal_content", "content[1]: a block of message 0"),
        ("user", [{**RESULT, "content": [{"type": "image"}]}], "multimodal_content", "content[0].content[0]"),
        ("user", [{**RESULT, "content": 5}], "bad_field", "content[0].content is the number 5"),
        ("user", [USE], "unknown_part", "'tool_use'"),
        ("assistant", [RESULT], "unknown_part", "'tool_result'"),
        ("assistant", [USE, {"type": "text", "text": "after"}], "block_order", "tool_use, text"),
        ("assistant", [USE, {"type": "server_tool_use"}], "unknown_part", "'server_tool_use'"),
        ("assistant", [{"type": "redacted_thinking", "data": "x"}, USE], "redacted_thinking", "hidden"),
        ("assistant", [{**USE, "input": "{}"}], "bad_tool_calls", "content[0].input"),
        ("assistant", [{**USE, "name": None}], "bad_tool_calls", "content[0].name"),
        ("assistant", [USE, "text"], "bad_field", "content[1]"),
        ("tool", [RESULT], "unknown_role", "role 'tool'"),
    ],
)
def test_what_a_template_cannot_show_is_refused_by_name(role: str, blocks: list[Any], reason: str, says: str) -> None:
    error = refusal({"messages": [{"role": role, "content": blocks}]})
    assert error.reason == reason
    assert says in str(error)


def test_a_system_that_is_no_text_is_refused() -> None:
    error = refusal({**RECORD, "system": [{"type": "image"}]})
    assert error.reason == "bad_field" and "$.system[0]" in str(error)


@pytest.mark.parametrize("beside", [{"tool_calls": [{"name": "g", "arguments": {}}]}, {"reasoning_content": "x"}])
def test_what_stands_beside_blocks_and_in_them_is_refused(beside: dict[str, Any]) -> None:
    blocks = [
        {"type": "thinking", "thinking": "y", "signature": "s"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {}},
    ]
    error = refusal(
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": blocks, **beside}]}
    )
    assert error.reason == "bad_content" and next(iter(beside)) in str(error)
