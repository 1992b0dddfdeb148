"""What may stand in a message's content and tool_calls, and what is refused there."""

from __future__ import annotations

from maskpipe.chat.columns import Column, as_string, parsed, wrong_type
from maskpipe.chat.conversation import Json
from maskpipe.errors import RecordError
from maskpipe.strict_json import Path, json_path, refuse_foreign

REASONING_KEYS = ("reasoning", "thinking")
TEXT_PARTS = ("text", "thinking", "reasoning")
MEDIA_PARTS = ("image", "audio", "video", "file", "document")


def json_calls(value: Json, path: Path) -> list[Json]:
    calls = parsed(Column(value, path), "a call", "bad_tool_calls")
    calls = calls if isinstance(calls, list) else [calls]
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise wrong_type(call, path, "a call {name, arguments}, or a list of them", "bad_tool_calls")
    return [{"type": "function", "function": call} for call in calls]


def check_calls(message: dict[str, Json], path: Path) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    path = (*path, "tool_calls")
    if isinstance(calls, str):
        calls = message["tool_calls"] = parsed(Column(calls, path), "the tool calls", "bad_tool_calls")
    if not isinstance(calls, list):
        raise wrong_type(calls, path, "a list of calls", "bad_tool_calls")
    for number, call in enumerate(calls):
        if not isinstance(call, dict):
            raise wrong_type(call, (*path, number), "a call, which is an object", "bad_tool_calls")
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RecordError(
                f"{json_path((*path, number))} names no function; its keys: {', '.join(call) or 'none'}. "
                'A call is {"function": {"name", "arguments"}} or {"name", "arguments"}',
                reason="bad_tool_calls",
            )
    refuse_foreign(calls, path)


def check_content(message: dict[str, Json], path: Path, number: int, key: str) -> None:
    content = message.get("content")
    role = message["role"]
    path = (*path, key)
    if isinstance(content, str):
        return
    if content is None:
        if role == "assistant":
            if any(message.get(name) for name in ("tool_calls", "reasoning_content", *REASONING_KEYS)):
                return
            raise RecordError(
                f"{json_path(path)}: assistant message {number} has neither content nor tool calls: it says nothing. "
                'Write "" if an empty answer is meant',
                reason="empty_message",
            )
        missing = "is null" if "content" in message else "is missing"
        raise RecordError(
            f"{json_path(path)} {missing}: message {number} ({role}) has the keys {', '.join(message)}. If another key "
            "holds its text, rename it with --map 'messages[].KEY=content'",
            reason="missing_content",
        )
    if isinstance(content, list) and not (role == "tool" and not any(_is_part(part) for part in content)):
        _check_parts(message, content, path, number)
    elif role == "tool" and isinstance(content, dict | list):
        refuse_foreign(content, path)  # a tool's result may be any JSON value
    else:
        raise wrong_type(content, path, "a string, null or a list of parts")


def _is_part(value: Json) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _check_parts(message: dict[str, Json], parts: list[Json], path: Path, number: int) -> None:
    """Refuse what is not text, and bring {"type", "value"} parts into the usual form."""
    for index, part in enumerate(parts):
        here = (*path, index)
        if isinstance(part, str):
            continue
        if not _is_part(part):
            raise wrong_type(part, here, 'a part {"type": "text", "text": ...}')
        kind = part["type"]
        if kind in TEXT_PARTS or (kind == "tool_call" and "value" in part and message["role"] == "assistant"):
            if kind == "text" and not isinstance(part.get("text", part.get("value")), str):
                raise wrong_type(part.get("text", part.get("value")), (*here, "text"), "a string")
            refuse_foreign(part, here)
        elif kind.removeprefix("input_").startswith(MEDIA_PARTS):
            raise RecordError(
                f"{json_path(here)}: part {index} of message {number} is of type {kind!r}, and only text can be "
                "prepared. Leave such records out with --on-bad-record reject",
                reason="multimodal_content",
            )
        else:
            raise RecordError(
                f"{json_path(here)}: part {index} of message {number} is of the unknown type {kind!r}; known: "
                f"{', '.join(TEXT_PARTS)}",
                reason="unknown_part",
            )
    if any(isinstance(part, dict) and "value" in part and "text" not in part for part in parts):
        _unwrap_parts(message, parts, path)


def _unwrap_parts(message: dict[str, Json], parts: list[Json], path: Path) -> None:
    """{"type": "text" | "reasoning" | "tool_call", "value": ...} parts → content, reasoning_content, tool_calls."""
    texts: list[Json] = []
    reasoning: list[str] = []
    calls: list[Json] = []
    for index, part in enumerate(parts):
        if isinstance(part, str) or "value" not in part:
            texts.append(part)
        elif part["type"] == "text":
            texts.append({"type": "text", "text": part["value"]})
        elif part["type"] == "tool_call":
            calls += json_calls(part["value"], (*path, index, "value"))
        else:
            reasoning.append(as_string(Column(part["value"], (*path, index, "value")), "the reasoning"))
    if len(reasoning) > 1 or (reasoning and message.get("reasoning_content") is not None):
        raise RecordError(f"{json_path(path)} holds more than one reasoning text", reason="bad_content")
    if calls and message.get("tool_calls"):
        raise RecordError(f"{json_path(path)} holds tool calls beside tool_calls. Keep one", reason="bad_tool_calls")
    if len(texts) == 1 and isinstance(texts[0], dict):
        message["content"] = texts[0]["text"]
    else:
        message["content"] = texts or ""
    if reasoning:
        message["reasoning_content"] = reasoning[0]
    if calls:
        message["tool_calls"] = calls
