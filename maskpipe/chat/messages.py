"""A list of messages, {"role", "content"} as OpenAI writes them or {"from", "value"} as ShareGPT does → Chat.

    {"role": "assistant", "content": null, "function_call": {...}}  →  ... "tool_calls": [{"type": "function", ...}]
    {"from": "function_call", "value": '{"name": ...}'}              →  {"role": "assistant", "tool_calls": [...]}
    {"role": "function", "name": "f", "content": "1"}               →  {"role": "tool", "name": "f", "content": "1"}

`train`, `weight` and `loss_weight` are taken out of the message and kept as its weight.
"""

from __future__ import annotations

from collections.abc import Mapping

from maskpipe.chat import anthropic, tool_traces, transcripts
from maskpipe.chat.columns import IGNORE, KNOWN_COLUMNS, Column, parsed, wrong_type
from maskpipe.chat.content import REASONING_KEYS, check_calls, check_content, json_calls
from maskpipe.chat.conversation import MAX_MESSAGES, Chat, Json
from maskpipe.chat.fields import OPENAI_ROLES, SHAREGPT_ROLES, WEIGHT_KEYS, message_weight, role_named
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.roles import ROLE_NAMES
from maskpipe.strict_json import Path, json_path

OTHER_COLUMNS = frozenset(KNOWN_COLUMNS) - {"messages"}
"""Whatever has another name says nothing about a chat."""


def read_usual(record: Json, recipe: Recipe) -> Chat | None:
    """The chat of a record that holds messages of a known role and a text each, and beside them only columns that mean
    nothing here; None for any other. What the whole way makes of such a record, without asking of each thing whether it
    is there."""
    if type(record) is not dict or recipe.columns or recipe.objective == "preference":
        return None
    entries = record.get("messages")
    if type(entries) is not list or not 0 < len(entries) <= MAX_MESSAGES:
        return None
    if len(record) != 1 and not record.keys().isdisjoint(OTHER_COLUMNS):
        return None
    renamed = recipe.roles
    for entry in entries:
        if type(entry) is not dict or len(entry) != 2:
            return None
        role = entry.get("role")
        if type(role) is not str or role not in ROLE_NAMES or role in renamed or type(entry.get("content")) is not str:
            return None
    size = len(entries)
    return Chat([dict(entry) for entry in entries], [None] * size, [("messages", number) for number in range(size)])


def read_messages(column: Column, recipe: Recipe, *, blocks: bool = False) -> Chat:
    """The chat in a column: a list of messages, one message, the JSON text of these, or a transcript. `blocks`: content
    is in Anthropic's blocks, which something beside the messages says."""
    if isinstance(column.value, str) and transcripts.is_transcript(column.value, recipe):
        return transcripts.read_transcript(column.value, column.path, recipe)
    raw = parsed(column, "messages")
    if isinstance(raw, dict) and ("role" in raw or "from" in raw):  # one message that is not in a list
        raw, paths = [raw], [column.path]
    elif isinstance(raw, list):
        paths = [(*column.path, number) for number in range(len(raw))]
    else:
        raise wrong_type(raw, column.path, "a list of messages")
    entries: list[dict[str, Json]] = []
    for entry, path in zip(raw, paths, strict=True):
        if isinstance(entry, str):  # how Parquet keeps messages of different shapes
            entry = parsed(Column(entry, path), "a message")
        if not isinstance(entry, dict):
            raise wrong_type(entry, path, "a message, which is an object with role and content")
        entries.append(entry)
    blocks = blocks or anthropic.has_blocks(entries)
    renamed = message_keys(recipe)
    chat = Chat()
    for number, (entry, path) in enumerate(zip(entries, paths, strict=True)):
        if "apis" in entry and tool_traces.has_apis(entry):
            tool_traces.add_apis(chat, entry, path, recipe)
        elif blocks and isinstance(entry.get("content"), list):
            anthropic.add_blocks(chat, entry, path, number, message_weight(entry, path))
        else:
            message, weight = read_message(entry, path, number, renamed, recipe)
            chat.add(message, path, weight)
    return chat


def read_message(
    raw: dict[str, Json], path: Path, number: int, renamed: Mapping[str, str], recipe: Recipe
) -> tuple[dict[str, Json], float | None]:
    """One message and its weight."""
    if renamed:
        raw = _rename_keys(raw, renamed, path)
    sharegpt = "role" not in raw and "from" in raw
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    if not sharegpt and "content" not in raw and isinstance(raw.get("text"), str):
        content_key = "text"
    if role_key not in raw:
        raise RecordError(
            f"{json_path(path)} has no role; its keys: {', '.join(map(str, raw)) or 'none'}. If another key holds it, "
            "rename it with --map 'messages[].KEY=role'",
            reason="missing_role",
        )
    if sharegpt and raw.get("content") is not None and raw["content"] != raw.get("value"):
        raise RecordError(
            f"{json_path(path)} has a value and a content, and they differ. Take one away, such as with "
            "--map 'messages[].content=ignore'",
            reason="duplicate_key",
        )
    said = raw[role_key]
    if not isinstance(said, str):
        raise wrong_type(said, (*path, role_key), "a role name")
    calls = sharegpt and said == "function_call" and said not in recipe.roles
    role = "assistant" if calls else role_named(said, SHAREGPT_ROLES if sharegpt else OPENAI_ROLES, path, recipe)
    weight = message_weight(raw, path)
    message: dict[str, Json] = {}
    for key, value in raw.items():
        if key == role_key:
            message["role"] = role
        elif key == content_key and not calls:
            message["content"] = value
        elif key == content_key:
            message["content"] = ""
            message["tool_calls"] = json_calls(value, (*path, key))
        elif key == "function_call" and role == "assistant":
            if value is None:
                continue
            if raw.get("tool_calls"):
                raise RecordError(
                    f"{json_path(path)} has both function_call and tool_calls. Keep one", reason="bad_tool_calls"
                )
            if not isinstance(value, dict) or not isinstance(value.get("name"), str):
                raise wrong_type(value, (*path, key), "a call {name, arguments}", "bad_tool_calls")
            message["tool_calls"] = [{"type": "function", "function": value}]
        elif key == "tool_calls" and "tool_calls" in message:
            continue  # null or empty beside function_call
        elif key not in WEIGHT_KEYS:
            message[key] = value
    for key in REASONING_KEYS:
        if key not in message or key in renamed.values() or message.get("reasoning_content") is not None:
            continue
        if isinstance(message.get(key), str):
            message.pop("reasoning_content", None)
            message = {"reasoning_content" if name == key else name: value for name, value in message.items()}
    check_calls(message, path)
    check_content(message, path, number, content_key)
    return message, weight


def message_keys(recipe: Recipe) -> dict[str, str]:
    """What `messages[].KEY` is mapped to, per key."""
    return {name.partition("[].")[2]: known for name, known in recipe.columns.items() if "[]." in name}


def _rename_keys(raw: dict[str, Json], renamed: Mapping[str, str], path: Path) -> dict[str, Json]:
    message: dict[str, Json] = {}
    for key, value in raw.items():
        known = renamed.get(key, key)
        if known == IGNORE and key in renamed:
            continue
        if known in message or (known != key and known in raw and known not in renamed):
            raise RecordError(
                f"{json_path(path)} would have {known!r} twice: its own and the one renamed from {key!r}",
                reason="duplicate_key",
            )
        message[known] = value
    return message
