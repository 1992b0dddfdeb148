"""Every shape that people keep chats in becomes one Conversation, and nothing that a message says is changed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpipe.chat import Conversation, Text, read_record
from maskpipe.errors import RecordError, UsageError
from maskpipe.recipe import Recipe
from tests.chats import chat, refusal

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


# --- the shapes


@pytest.mark.parametrize(
    "record",
    [
        {"messages": HI},
        {"conversations": HI},
        {"conversation": HI},
        {"messages": json.dumps(HI)},
        {"messages": [json.dumps(message) for message in HI]},
        HI,
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"messages": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Hello"}]},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": "Hi", "response": "Hello"},
        {"prompt": HI[:1], "completion": HI[1:]},
        {"prompt": HI[:1], "completion": "Hello"},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "output": "Hello", "input": None, "history": []},
        {"instruction": "Hi", "response": "Hello"},
        {"question": "Hi", "answer": "Hello", "id": 7},
        {"messages": HI, "prompt": "Hi", "text": "Hi Hello", "label": 1, "images": []},
    ],
    ids=lambda record: ",".join(record) if isinstance(record, dict) else "list",
)
def test_every_shape_becomes_the_same_messages(record: Any) -> None:
    before = copy.deepcopy(record)
    read = chat(record)
    assert read.messages == HI
    assert read.weights == [None, None]
    assert record == before, "the record itself must not change"


def test_alpaca_joins_instruction_and_input_with_one_newline_and_history_stands_before() -> None:
    read = chat(
        {
            "instruction": "Sort.",
            "input": "3 1 2",
            "output": "1 2 3",
            "system": "Be brief.",
            "history": [["Hi", "Hello"]],
        }
    )
    assert [(message["role"], message["content"]) for message in read.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Sort.\n3 1 2"),
        ("assistant", "1 2 3"),
    ]
    assert read.paths == [("system",), ("history", 0, 0), ("history", 0, 1), ("instruction",), ("output",)]


def test_question_and_answer_need_no_map_only_when_nothing_else_could_be_the_prompt() -> None:
    assert chat({"question": "Q", "answer": "A", "source": "x"}).messages[0]["content"] == "Q"
    assert refusal({"question": "Q", "answer": "A", "context": "read this"}).reason == "unknown_shape"
    assert refusal({"question": "Q", "answer": 2, "choices": ["a", "b"]}).reason == "unknown_shape"
    mapped = chat(
        {"question": "Q", "answer": "A", "difficulty": "hard"}, columns={"question": "prompt", "answer": "completion"}
    )
    assert mapped.messages[1] == {"role": "assistant", "content": "A"}


def test_paths_lead_back_to_each_message_in_the_record() -> None:
    record = {"answer": {"turns": [[], HI]}, "x": 1}
    read = chat(record, columns={"answer.turns.-1": "messages"})
    assert read.paths == [("answer", "turns", 1, 0), ("answer", "turns", 1, 1)]
    for path, message in zip(read.paths, read.messages, strict=True):
        here: Any = record
        for step in path:
            here = here[step]
        assert here == message


def test_plain_text_is_for_pretraining_and_chats_are_too() -> None:
    assert read_record({"text": "Once"}, Recipe(objective="pretrain"), source=2, row=9) == Text("Once", ("text",), 2, 9)
    assert refusal({"text": "Once"}).reason == "text_needs_pretrain"
    assert refusal({"text": ""}, objective="pretrain").reason == "empty_text"
    assert chat({"messages": HI}, objective="pretrain").messages == HI


# --- nothing is changed


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
untouched = st.dictionaries(
    st.text(max_size=6).filter(
        lambda key: (
            key
            not in (
                "role",
                "from",
                "content",
                "tool_calls",
                "function_call",
                "reasoning",
                "thinking",
                "train",
                "weight",
            )
        )
    ),
    json_values,
    max_size=3,
)
arguments = st.dictionaries(st.text(max_size=4), json_values, max_size=4)


@given(
    extra=untouched,
    content=st.text() | st.none(),
    given_arguments=arguments | arguments.map(json.dumps),
    order=st.permutations(["role", "content", "tool_calls", "extra"]),
)
def test_key_order_nulls_and_number_spelling_survive(
    extra: dict[str, Any], content: str | None, given_arguments: Any, order: list[str]
) -> None:
    parts: dict[str, dict[str, Any]] = {
        "role": {"role": "assistant"},
        "content": {"content": content},
        "tool_calls": {"tool_calls": [{"id": None, "function": {"name": "f", "arguments": given_arguments}}]},
        "extra": extra,
    }
    message = {key: value for name in order for key, value in parts[name].items()}
    read = chat({"messages": [message]})
    assert json.dumps(read.messages[0]) == json.dumps(message)


def test_null_content_beside_tool_calls_stays_null() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    assert chat({"messages": [message]}).messages == [message]
    missing = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"b": 1, "a": 2}}]}
    assert list(chat({"messages": [missing]}).messages[0]["tool_calls"][0]["arguments"]) == ["b", "a"]
    assert "content" not in chat({"messages": [missing]}).messages[0]


def test_same_roles_in_a_row_and_empty_answers_are_the_datas_own_business() -> None:
    messages = [*HI[:1], *HI[:1], {"role": "assistant", "content": ""}, *HI[1:]]
    assert chat({"messages": messages}).messages == messages


def test_think_tags_in_content_are_left_alone() -> None:
    messages = [{"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes"}]
    assert chat({"messages": messages}).messages == messages


def test_lists_of_text_parts_stay_lists() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, HI[1]]
    assert chat({"messages": messages}).messages == messages


# --- older spellings


@pytest.mark.parametrize("key", ["reasoning", "thinking"])
def test_reasoning_goes_by_one_name_in_its_place(key: str) -> None:
    read = chat({"messages": [{"role": "assistant", key: "hm", "content": "Yes"}]})
    assert list(read.messages[0].items()) == [("role", "assistant"), ("reasoning_content", "hm"), ("content", "Yes")]
    both = {"role": "assistant", key: "hm", "reasoning_content": "so", "content": "Yes"}
    assert chat({"messages": [both]}).messages == [both]
    kept = chat({"messages": [{"role": "assistant", key: "hm", "content": ""}]}, columns={f"messages[].{key}": key})
    assert kept.messages[0][key] == "hm"


def test_function_call_becomes_tool_calls_and_its_result_a_tool_message() -> None:
    old = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{ }"}},
        {"role": "function", "name": "f", "content": "1"},
    ]
    assert chat({"messages": old, "functions": [{"name": "f"}]}) == Conversation(
        messages=[
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{ }"}}],
            },
            {"role": "tool", "name": "f", "content": "1"},
        ],
        tools=[{"type": "function", "function": {"name": "f"}}],
        weights=[None, None],
        paths=[("messages", 0), ("messages", 1)],
    )
    assert "tool_calls" not in chat({"messages": [{**HI[1], "function_call": None}]}).messages[0]


def test_sharegpt_tool_turns() -> None:
    read = chat(
        {
            "system": "S",
            "tools": '[{"name": "f"}]',
            "conversations": [
                {"from": "human", "value": "go"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"b": 1, "a": null}}', "weight": 0.5},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "one"},
            ],
        }
    )
    assert [message["role"] for message in read.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert read.messages[2] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": None}}}],
    }
    assert read.tools == [{"name": "f"}]
    assert read.weights == [None, None, 0.5, None, None]
    assert read.paths[0] == ("system",) and read.paths[2] == ("conversations", 1)


def test_parts_with_a_value_become_content_reasoning_and_calls() -> None:
    parts = [
        {"type": "reasoning", "value": "hm"},
        {"type": "tool_call", "value": '{"name": "f", "arguments": {}}'},
        {"type": "tool_call", "value": '{"name": "g", "arguments": {"x": 1.0}}'},
    ]
    read = chat({"messages": [{"role": "assistant", "content": parts}, {"role": "user", "content": [TEXT]}]})
    assert read.messages[0]["content"] == ""
    assert read.messages[0]["reasoning_content"] == "hm"
    assert [call["function"]["name"] for call in read.messages[0]["tool_calls"]] == ["f", "g"]
    assert read.messages[1] == {"role": "user", "content": "t"}


TEXT = {"type": "text", "value": "t"}


# --- what stands beside the messages


def test_tools_documents_and_template_arguments_of_the_record() -> None:
    read = chat(
        {
            "messages": HI,
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "documents": '[{"text": "d"}]',
            "chat_template_kwargs": {"enable_thinking": False},
        },
    )
    assert read.tools == [{"type": "function", "function": {"name": "f"}}]
    assert read.documents == [{"text": "d"}]
    assert read.chat_template_kwargs == {"enable_thinking": False}
    assert chat({"messages": HI, "tools": "", "documents": None}).tools is None
    assert refusal({"messages": HI, "chat_template_kwargs": {"messages": []}}).reason == "bad_kwargs"
    assert "$.tools[0]" in str(refusal({"messages": HI, "tools": [7]}))


def test_a_system_column_becomes_the_first_message_unless_there_is_another() -> None:
    system = {"role": "system", "content": "S"}
    assert chat({"messages": HI, "system": "S"}).messages == [system, *HI]
    assert chat({"messages": HI, "system": ""}).messages == HI
    assert chat({"messages": [system, *HI], "system": "S"}).messages == [system, *HI]
    assert refusal({"messages": [system, *HI], "system": "T"}).reason == "two_system_prompts"
    assert chat({"messages": [system, *HI], "system": "T"}, columns={"system": "ignore"}).messages == [system, *HI]


@pytest.mark.parametrize(
    ("said", "weight"),
    [
        ({}, None),
        ({"train": False}, 0.0),
        ({"train": True}, 1.0),
        ({"train": 0}, 0.0),
        ({"train": None}, None),
        ({"weight": 0}, 0.0),
        ({"loss_weight": 0.25}, 0.25),
        ({"train": True, "weight": 0.5}, 0.5),
        ({"train": False, "weight": 0.5}, 0.0),
    ],
)
def test_weights_are_taken_out_of_the_message(said: dict[str, Any], weight: float | None) -> None:
    read = chat({"messages": [HI[0], {**HI[1], **said}]})
    assert read.messages == HI
    assert read.weights == [None, weight]


# --- maps


def test_columns_and_message_keys_can_be_renamed() -> None:
    record = {"dialog": [{"speaker": "A", "text": "Hi", "junk": 1}, {"speaker": "B", "text": "Hello", "junk": 2}]}
    read = chat(
        record,
        columns={
            "dialog": "messages",
            "messages[].speaker": "role",
            "messages[].text": "content",
            "messages[].junk": "ignore",
        },
        roles={"A": "user", "B": "assistant"},
    )
    assert read.messages == HI
    assert read.paths == [("dialog", 0), ("dialog", 1)]


def test_a_mapped_column_goes_before_every_other() -> None:
    other = [{"role": "user", "content": "other"}]
    assert chat({"messages": other, "chat": HI}, columns={"chat": "messages"}).messages == HI
    assert chat({"messages": other, "q": "Hi", "a": "Hello"}, columns={"q": "prompt", "a": "completion"}).messages == HI
    assert read_record({"messages": other, "raw": "T"}, Recipe(objective="pretrain", columns={"raw": "text"})) == Text(
        "T", ("raw",)
    )
    assert chat({"messages": HI, "fns": []}, columns={"fns": "tools"}).tools == []


def test_a_pair_can_be_read_as_its_chosen_chat_and_the_error_says_how() -> None:
    record = {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "No"},
    }
    error = refusal(record)
    assert error.reason == "preference_pair"
    assert "--map conversations=prompt --map chosen=completion" in str(error)
    assert chat(record, columns={"conversations": "prompt", "chosen": "completion"}).messages == HI


def test_a_map_to_an_unknown_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--map dialog=mesages: no such column name"):
        read_record({"dialog": HI}, Recipe(columns={"dialog": "mesages"}))


def test_roles_can_be_renamed_and_a_templates_own_role_kept_on_purpose() -> None:
    messages = [{"role": "ipython", "content": "1"}]
    assert chat({"messages": messages}, roles={"ipython": "tool"}).messages[0]["role"] == "tool"
    assert chat({"messages": messages}, roles={"ipython": "ipython"}).messages[0]["role"] == "ipython"
    error = refusal({"messages": messages}, roles={"ipython": "tol"})
    assert error.reason == "unknown_role" and "mapped to 'tol'" in str(error)


# --- refusals say what, where, what to do


@pytest.mark.parametrize(
    ("record", "reason", "says"),
    [
        ({"messages": [{"role": "bard", "content": ""}]}, "unknown_role", "message 0 has role 'bard'; expected one of"),
        ({"messages": [{"role": "bard", "content": ""}]}, "unknown_role", "--map-role bard=user"),
        ({"a": 1, "b": 2}, "unknown_shape", "the record has the columns a, b; accepted: messages: [{role, content}"),
        ({"x": {"y": [HI]}}, "unknown_shape", "--map x.y.0=messages"),
        ({"chosen": HI, "rejected": HI}, "preference_pair", "--map chosen=messages"),
        ({"messages": HI, "label": False}, "preference_label", "--map label=ignore"),
        ({"messages": HI, "images": ["a.png"]}, "multimodal_content", "--map images=ignore"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "multimodal_content",
            "$.messages[0].content[0]: part 0 of message 0 is of type 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "blob"}]}]}, "unknown_part", "'blob'"),
        ({"messages": [{"role": "user", "content": 5}]}, "bad_field", "$.messages[0].content is the number 5"),
        ({"messages": [*HI, {"role": "user"}]}, "missing_content", "$.messages[2].content is missing"),
        ({"messages": [{"role": "tool", "content": None}]}, "missing_content", "is null"),
        ({"messages": [{"role": "assistant", "content": None}]}, "empty_message", "message 0 has neither content"),
        ({"messages": [{"content": "x"}]}, "missing_role", "$.messages[0] has no role; its keys: content"),
        ({"messages": [{"role": 3, "content": "x"}]}, "bad_field", "$.messages[0].role is the number 3"),
        ({"messages": []}, "empty_conversation", "no messages"),
        ({"messages": "no json"}, "bad_json_column", "$.messages is a string, so it must be the JSON text"),
        ({"messages": ["x"]}, "bad_json_column", "$.messages[0]"),
        ({"messages": [None]}, "bad_field", "$.messages[0] is null"),
        ({"messages": 4}, "bad_field", "$.messages is the number 4; expected a list of messages"),
        ({"messages": [{**HI[1], "tool_calls": [{}]}]}, "bad_tool_calls", "$.messages[0].tool_calls[0] names no"),
        ({"messages": [{**HI[1], "tool_calls": {"a": 1}}]}, "bad_tool_calls", "$.messages[0].tool_calls is an object"),
        ({"messages": [{**HI[1], "function_call": "f"}]}, "bad_tool_calls", "$.messages[0].function_call"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "bad_tool_calls", "$.conversations[0].value"),
        ({"messages": [{**HI[1], "weight": -1}]}, "bad_weight", "$.messages[0].weight is the number -1"),
        ({"messages": [{**HI[1], "weight": True}]}, "bad_weight", "is true"),
        ({"messages": [{**HI[1], "train": "no"}]}, "bad_weight", "$.messages[0].train"),
        ({"messages": [{**HI[1], "weight": 1, "loss_weight": 2}]}, "bad_weight", "differ"),
        ({"messages": HI, "tools": "nonsense"}, "bad_json_column", "$.tools"),
        ({"messages": HI, "tools": {}}, "bad_field", "$.tools is an object"),
        ({"messages": HI, "chat_template_kwargs": []}, "bad_field", "$.chat_template_kwargs is a list"),
        ({"prompt": 1, "completion": "x"}, "bad_field", "$.prompt is the number 1"),
        ({"instruction": "x", "output": None}, "unknown_shape", "instruction"),
        ("just a string", "not_an_object", "a record is a JSON object, got the string 'just a string'"),
        (None, "not_an_object", "null"),
        ({}, "unknown_shape", "(none)"),
    ],
)
def test_a_refusal_says_what_and_where(record: Any, reason: str, says: str) -> None:
    error = refusal(record)
    assert error.reason == reason
    assert says in str(error)


def test_a_tools_result_may_be_any_json_value_but_nothing_else() -> None:
    messages = [{"role": "tool", "content": {"rows": [1, 2.5, None]}}, {"role": "tool", "content": [{"a": 1}]}]
    assert chat({"messages": messages}).messages == messages
    error = refusal({"messages": [{"role": "tool", "content": {"at": object()}}]})
    assert error.reason == "not_json" and "$.messages[0].content.at is a builtins.object" in str(error)


@given(
    record=json_values
    | st.dictionaries(st.sampled_from(["messages", "text", "prompt", "tools", "chosen"]), json_values)
)
def test_any_json_value_is_read_or_refused_and_never_crashes(record: Any) -> None:
    try:
        read = read_record(record, Recipe(objective="pretrain"))
    except RecordError as error:
        assert error.reason != "bad_record"
    else:
        assert isinstance(read, Conversation | Text)


def test_a_sharegpt_call_has_empty_content_since_that_format_knows_no_null() -> None:
    """Templates that look for text inside the content take an empty text; many fail on null."""
    record = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "f"}'}]}
    conversation = read_record(record, Recipe())
    assert isinstance(conversation, Conversation)
    assert conversation.messages[1]["content"] == ""
