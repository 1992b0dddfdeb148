"""Anthropic's content blocks → messages as OpenAI writes them.

    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "…"},
                                      {"type": "text", "text": "Let me look."},
                                      {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}]}
      → {"role": "assistant", "reasoning_content": "hm", "content": "Let me look.",
         "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1"}, {"type": "text", …}]}
      → {"role": "tool", "tool_call_id": "a", "content": "1"}, {"role": "user", "content": …}
    {"name": "f", "description": "…", "input_schema": {…}}
      → {"type": "function", "function": {"name": "f", "description": "…", "parameters": {…}}}

Messages are in blocks when one of them holds a tool_use, tool_result or redacted_thinking block or a signed thinking
block, when a tool has an input_schema, or when `system` is a list of blocks. Signatures and cache marks are not text,
and are left out. A chat template writes reasoning, then text, then calls: an assistant message with another order is
refused, and so is reasoning that is hidden (redacted_thinking).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maskpipe.chat.columns import SYSTEM_COLUMNS as SYSTEM
from maskpipe.chat.columns import Columns, first, wrong_type
from maskpipe.chat.content import MEDIA_PARTS, REASONING_KEYS
from maskpipe.chat.conversation import Chat, Json
from maskpipe.chat.fields import WEIGHT_KEYS
from maskpipe.errors import RecordError
from maskpipe.strict_json import Path, json_path, refuse_foreign

_ORDER = {"thinking": 0, "text": 1, "tool_use": 2}
_OURS = ("tool_use", "tool_result", "redacted_thinking")
_NO_TEXT = ("type", "text", "cache_control", "citations")


def has_blocks(messages: Sequence[dict[str, Json]]) -> bool:
    """Does one of these messages hold a block that only Anthropic's format knows?"""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            for block in content:
                if isinstance(block, dict):
                    kind = block.get("type")
                    if kind in _OURS or (kind == "thinking" and "signature" in block):
                        return True
    return False


def says_blocks(columns: Columns) -> bool:
    """Does something beside the messages say so?"""
    system, tools = first(columns, SYSTEM), columns.get("tools")
    if system is not None and isinstance(system.value, list):
        return True
    return tools is not None and isinstance(tools.value, list) and any(map(is_tool, tools.value))


def is_tool(tool: Json) -> bool:
    """{"name", "input_schema"}, which no other format has."""
    return isinstance(tool, dict) and "input_schema" in tool and "function" not in tool and "parameters" not in tool


def tool_of(tool: dict[str, Json]) -> Json:
    """The tool as OpenAI writes it."""
    function = {
        "parameters" if key == "input_schema" else key: value
        for key, value in tool.items()
        if key not in ("type", "cache_control")
    }
    return {"type": "function", "function": function}


def system_text(blocks: list[Json], path: Path) -> Json:
    """The content of a system message that is given as text blocks."""
    for index, block in enumerate(blocks):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise wrong_type(block, (*path, index), 'a text block {"type": "text", "text": ...}')
        _text(block, (*path, index))
    return _content(blocks)


def add_blocks(chat: Chat, raw: dict[str, Json], path: Path, number: int, weight: float | None) -> None:
    """Adds the messages that a message in blocks stands for."""
    role, blocks = raw.get("role"), raw["content"]
    if role not in ("user", "assistant"):
        raise RecordError(
            f"{json_path(path)}: message {number} has role {role!r}; where content is in blocks (tool_use, "
            "tool_result), roles are user and assistant, and the system prompt is a column of its own",
            reason="unknown_role",
        )
    refuse_foreign(blocks, (*path, "content"))
    for index, block in enumerate(blocks):
        _check_block(block, role, (*path, "content", index), number)
    beside = {key: value for key, value in raw.items() if key not in ("role", "content", *WEIGHT_KEYS)}
    if role == "assistant":
        message = _assistant(blocks, path, number)
        twice = [
            key for key in ("reasoning_content", *REASONING_KEYS, "tool_calls", "function_call") if beside.get(key)
        ]
        if twice:
            raise RecordError(
                f"{json_path(path)}: message {number} has blocks and {twice[0]} beside them, so one would be lost. "
                "Keep one",
                reason="bad_content",
            )
        chat.add({**message, **beside}, path, weight)
        return
    texts: list[Json] = []
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            texts.append(block)
            continue
        if texts:
            chat.add({"role": "user", "content": _content(texts), **beside}, path, weight)
            texts = []
        chat.add(_result(block, (*path, "content", index), number), (*path, "content", index), weight)
    if texts or not blocks:
        chat.add({"role": "user", "content": _content(texts), **beside}, path, weight)


def _assistant(blocks: list[Any], path: Path, number: int) -> dict[str, Json]:
    order = [_ORDER[block["type"]] for block in blocks]
    if order != sorted(order) or order.count(0) > 1:
        raise RecordError(
            f"{json_path(path)}: message {number} has the blocks {', '.join(block['type'] for block in blocks)}. A "
            "chat template writes one reasoning, then text, then calls, so this order would be lost. Split the message "
            "where the order turns back",
            reason="block_order",
        )
    message: dict[str, Json] = {"role": "assistant"}
    if 0 in order:
        message["reasoning_content"] = blocks[0]["thinking"]
    message["content"] = _content([block for block in blocks if block["type"] == "text"])
    calls = [
        {"id": block.get("id"), "type": "function", "function": {"name": block["name"], "arguments": block["input"]}}
        for block in blocks
        if block["type"] == "tool_use"
    ]
    if calls:
        message["tool_calls"] = calls
    return message


def _result(block: dict[str, Json], path: Path, number: int) -> dict[str, Json]:
    content = block.get("content")
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_block(part, "tool_result", (*path, "content", index), number)
        content = _content(content)
    elif content is None:
        content = ""
    elif not isinstance(content, str):
        raise wrong_type(content, (*path, "content"), "a string or a list of text blocks")
    message = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
    if block.get("is_error"):
        message["is_error"] = True
    return message


_ALLOWED = {"assistant": ("thinking", "text", "tool_use"), "user": ("text", "tool_result"), "tool_result": ("text",)}


def _check_block(block: Json, role: str, path: Path, number: int) -> None:
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise wrong_type(block, path, 'a block {"type": "text", "text": ...}')
    kind = block["type"]
    if kind.startswith(MEDIA_PARTS):
        raise RecordError(
            f"{json_path(path)}: a block of message {number} is of type {kind!r}, and only text can be prepared. Leave "
            "such records out with --on-bad-record reject",
            reason="multimodal_content",
        )
    if kind == "redacted_thinking":
        raise RecordError(
            f"{json_path(path)}: message {number} holds redacted_thinking: what the model said there is hidden, and "
            "without it the message would teach another answer. Leave such records out with --on-bad-record reject",
            reason="redacted_thinking",
        )
    if kind not in _ALLOWED[role]:
        raise RecordError(
            f"{json_path(path)}: a block of message {number} is of the type {kind!r}; known in a {role} message: "
            f"{', '.join(_ALLOWED[role])}",
            reason="unknown_part",
        )
    if kind == "text":
        _text(block, path)
    elif kind == "thinking" and not isinstance(block.get("thinking"), str):
        raise wrong_type(block.get("thinking"), (*path, "thinking"), "a string")
    elif kind == "tool_use":
        if not isinstance(block.get("name"), str):
            raise wrong_type(block.get("name"), (*path, "name"), "the name of a tool", "bad_tool_calls")
        if not isinstance(block.get("input"), dict):
            raise wrong_type(block.get("input"), (*path, "input"), "an object of arguments", "bad_tool_calls")


def _text(block: dict[str, Json], path: Path) -> None:
    if not isinstance(block.get("text"), str):
        raise wrong_type(block.get("text"), (*path, "text"), "a string")


def _content(texts: list[Json]) -> Json:
    """One text as a string, several as a list of parts."""
    if not texts:
        return ""
    plain = [
        {key: value for key, value in block.items() if key != "cache_control" and (key in _NO_TEXT[:2] or value)}
        for block in texts
    ]
    if len(plain) == 1 and set(plain[0]) == {"type", "text"}:
        return plain[0]["text"]
    return plain
