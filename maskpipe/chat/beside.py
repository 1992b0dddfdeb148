"""What stands beside a chat: its system prompt, tools, documents and arguments for the template."""

from __future__ import annotations

from maskpipe.chat import anthropic
from maskpipe.chat.columns import SYSTEM_COLUMNS, Column, Columns, as_list, as_string, first, parsed, wrong_type
from maskpipe.chat.conversation import Chat, Json
from maskpipe.errors import RecordError
from maskpipe.strict_json import json_path, refuse_foreign

RESERVED_KWARGS = ("messages", "tools", "documents", "add_generation_prompt")


def with_system(columns: Columns, chat: Chat) -> Chat:
    """The chat with the record's system prompt in front."""
    system = first(columns, SYSTEM_COLUMNS)
    if system is None or system.value == "":
        return chat
    if isinstance(system.value, list):
        text = anthropic.system_text(system.value, system.path)
    else:
        text = as_string(system, "the system prompt")
    if chat.messages and chat.messages[0]["role"] == "system":
        if chat.messages[0].get("content") == text:
            return chat
        raise RecordError(
            f"two system prompts: {json_path(system.path)} and {json_path(chat.paths[0])}. Take one away with "
            f"--map {system.path[-1]}=ignore",
            reason="two_system_prompts",
        )
    front = Chat()
    front.add({"role": "system", "content": text}, system.path)
    return front.then(chat)


def tools_of(columns: Columns) -> list[Json] | None:
    """The record's `tools`, or its old-style `functions`."""
    tools = as_list(columns, "tools")
    if tools is not None:
        if tools and all(isinstance(entry, str) for entry in tools):
            path = columns["tools"].path
            tools = [parsed(Column(entry, (*path, index)), "a tool") for index, entry in enumerate(tools)]
        for index, entry in enumerate(tools):
            if not isinstance(entry, dict):
                raise wrong_type(entry, (*columns["tools"].path, index), "a tool, which is an object", "bad_tools")
        return [anthropic.tool_of(entry) if anthropic.is_tool(entry) else entry for entry in tools]
    functions = as_list(columns, "functions")
    return None if functions is None else [{"type": "function", "function": entry} for entry in functions]


def kwargs_of(columns: Columns) -> dict[str, Json]:
    """The record's own keyword arguments for the template."""
    column = columns.get("chat_template_kwargs")
    if column is None or column.value == "":
        return {}
    value = parsed(column, "chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_type(value, column.path, "an object of keyword arguments")
    for key in RESERVED_KWARGS:
        if key in value:
            raise RecordError(
                f"{json_path((*column.path, key))}: {key} cannot be a keyword argument of the template, it has a "
                "meaning of its own",
                reason="bad_kwargs",
            )
    refuse_foreign(value, column.path)
    return value
