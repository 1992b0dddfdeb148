"""Traces of tools in use, as two benchmarks write them → Chat.

    {"role": "assistant", "text": "Done.", "apis": [{"request": {"api_name": "f", "parameters": {…}}, "response": {…}}]}
      → {"role": "assistant", "content": "", "tool_calls": [f]}, {"role": "tool", "name": "f", "content": "{…}"},
        {"role": "assistant", "content": "Done."}                                               the text comes last
    {"answer_generation": {"train_messages": [[…], […], …], "function": […]}}
      → one chat for each list that is not the beginning of a later one; `function` are the tools

A response that is no string is shown as its JSON text; where the call failed, its `exception` is what the tool said.
"""

from __future__ import annotations

import json
from typing import Any

from maskpipe.chat.columns import Column, wrong_type
from maskpipe.chat.conversation import Chat, Json
from maskpipe.chat.fields import OPENAI_ROLES, message_weight, role_named
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import Path, json_path, refuse_foreign


def has_apis(message: dict[str, Json]) -> bool:
    """Does this message list the calls that were made before it was said?"""
    return isinstance(message.get("apis"), list) and "role" in message and "text" in message


def add_apis(chat: Chat, raw: dict[str, Json], path: Path, recipe: Recipe) -> None:
    """Adds a call and its result for each api, and then the text."""
    role, text = raw["role"], raw["text"]
    if not isinstance(role, str) or role_named(role, OPENAI_ROLES, path, recipe) != "assistant":
        raise RecordError(
            f"{json_path(path)} has apis, which only an assistant can call, and its role is {role!r}",
            reason="bad_tool_calls",
        )
    if not isinstance(text, str):
        raise wrong_type(text, (*path, "text"), "a string")
    weight = message_weight(raw, path)
    for number, api in enumerate(raw["apis"]):
        here = (*path, "apis", number)
        request = api.get("request") if isinstance(api, dict) else None
        if not isinstance(request, dict) or not isinstance(request.get("api_name"), str):
            raise wrong_type(api, here, 'a call {"request": {"api_name", "parameters"}, "response"}', "bad_tool_calls")
        refuse_foreign(api, here)
        name = request["api_name"]
        call = {"name": name, "arguments": request.get("parameters", {})}
        chat.add(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            (*here, "request"),
            weight,
        )
        response, failed = api.get("response"), api.get("exception")
        if (response is None) == (failed is None):
            raise RecordError(
                f"{json_path(here)} has {'neither' if response is None else 'both'} response and exception, so what "
                "the tool said is not clear",
                reason="bad_tool_calls",
            )
        said = failed if response is None else response
        chat.add(
            {"role": "tool", "name": name, "content": said if isinstance(said, str) else _json(said)},
            (*here, "exception" if response is None else "response"),
        )
    chat.add({"role": "assistant", "content": text}, path, weight)


def _json(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def is_generation(value: Json) -> bool:
    """{"train_messages", "function", …}, or the same of a search that found no answer."""
    return isinstance(value, dict) and isinstance(value.get("function"), list) and "valid_data" in value


def contexts_of(column: Column) -> tuple[list[Column], list[Json]]:
    """The lists of messages to read, and the tools."""
    value: dict[str, Any] = column.value
    lists = value.get("train_messages")
    path = (*column.path, "train_messages")
    if lists is None:
        raise RecordError(
            f"{json_path(column.path)} has no train_messages: the search found no answer, so there is no chat. Leave "
            "such records out with --on-bad-record reject",
            reason="no_answer_found",
        )
    if not isinstance(lists, list) or not all(isinstance(messages, list) for messages in lists):
        raise wrong_type(lists, path, "a list of lists of messages")
    wholes = [
        Column(messages, (*path, number))
        for number, messages in enumerate(lists)
        if not any(later[: len(messages)] == messages for later in lists[number + 1 :])
    ]
    return wholes, [{"type": "function", "function": entry} for entry in value["function"]]
