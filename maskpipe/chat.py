"""How a raw record becomes a Conversation or a Text: every shape that people keep chats in, one shape out.

    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}      a record
    Conversation(messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
                 weights=[None, None], paths=[("conversations", 0), ("conversations", 1)], ...)

Shapes, in the order they are tried; the first that fits decides. A column that the recipe maps to one of these names
counts as that column and goes before all others, and `--map NAME=ignore` takes a column away.

    messages           `messages`, `conversations` or `conversation`: a list (or its JSON text) of {"role", "content"}
                       or {"from", "value"}. A bare list of messages is a record too.
    prompt, completion `prompt` with `completion` or `response`: strings, or lists of messages
    alpaca             `instruction` with `output` or `response`; `input` (or `context`), if not empty, is appended to
                       the instruction after one newline; `history`, pairs of [user, assistant], stands before
    question, answer   two strings, and no other column that could belong to the text (only names in QUESTION_EXTRAS)
    text               one string, for objective "pretrain"

Beside any chat: `tools` (or old-style `functions`), `documents`, `chat_template_kwargs`, and `system` (or
`system_prompt`), which becomes the first message.

What a message says is never changed: key order, nulls, unknown keys, object or string tool arguments stay as they are.
Only these are renamed, because they are older or other spellings of the same thing: ShareGPT's `from`, `value` and
role names; `function_call` to `tool_calls` and role `function` to `tool`; `reasoning` or `thinking` to
`reasoning_content` when the message has none; {"type": "text", "value": ...} parts. `train`, `weight` and
`loss_weight` are taken out of the message and kept as its weight.
Whatever cannot be read is a RecordError with a reason; nothing is guessed and nothing is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maskpipe.errors import RecordError, UsageError
from maskpipe.recipe import Recipe
from maskpipe.roles import ROLE_NAMES
from maskpipe.strict_json import Path, json_path, parse, refuse_foreign

Json = Any  # None, bool, int, float, str, list of Json or dict of str to Json


@dataclass(frozen=True)
class Conversation:
    """One chat. Messages are raw JSON values as a chat template wants them, never a unified struct (C05)."""

    messages: list[dict[str, Json]]
    tools: list[Json] | None = None
    documents: list[Json] | None = None
    chat_template_kwargs: dict[str, Json] = field(default_factory=dict)
    weights: list[float | None] = field(default_factory=list)
    """Per message, the data's own: `train` false is 0, true is 1, a number is that; None: the data said nothing."""
    paths: list[Path] = field(default_factory=list)
    """Per message, where it stands in the record, such as ("conversations", 3)."""
    source: int = 0
    """Index of the source, in the order given."""
    row: int = 0
    """0-based record number in its source."""


@dataclass(frozen=True)
class Text:
    """One plain text for pretraining."""

    text: str
    path: Path = ()
    source: int = 0
    row: int = 0


CHAT_COLUMNS = ("messages", "conversations", "conversation")
RESPONSE_COLUMNS = ("completion", "response")
OUTPUT_COLUMNS = ("output", "response")
INPUT_COLUMNS = ("input", "context")
SYSTEM_COLUMNS = ("system", "system_prompt")
MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
PAIR_COLUMNS = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))
QUESTION_EXTRAS = ("id", "idx", "index", "source", "split", "level", "type", "category", "subject", "problem_idx")
"""Columns that may stand beside question and answer without making it unclear what the prompt is."""
IGNORE = "ignore"
"""The name to which a column is mapped to take it away."""
KNOWN_COLUMNS = (
    *CHAT_COLUMNS, "prompt", *RESPONSE_COLUMNS, "instruction", "output", *INPUT_COLUMNS, "history",
    "question", "answer", "text", "tools", "functions", "documents", "chat_template_kwargs",
    *SYSTEM_COLUMNS, *MEDIA_COLUMNS, "chosen", "rejected", "chosen_messages", "rejected_messages", "label", IGNORE,
)  # fmt: skip
ACCEPTED = (
    "messages: [{role, content}, ...] | conversations: [{from, value}, ...] | prompt + completion | "
    "instruction (+ input) + output | question + answer | text"
)

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
REASONING_KEYS = ("reasoning", "thinking")
WEIGHT_KEYS = ("train", "weight", "loss_weight")
MAX_WEIGHT = 1e30
"""Weights are stored as float32, and products with a loss must stay finite."""
TEXT_PARTS = ("text", "thinking", "reasoning")
MEDIA_PARTS = ("image", "audio", "video", "file", "document")
RESERVED_KWARGS = ("messages", "tools", "documents", "add_generation_prompt")


def read_record(record: Json, recipe: Recipe, *, source: int = 0, row: int = 0) -> Conversation | Text:
    """The chat or text that a raw record holds.

    RecordError, with a reason and the field's path: a shape that is not known (unknown_shape), a role that is not known
    (unknown_role), a missing or mistyped field, images or sound (multimodal_content), a preference pair or label
    (preference_pair, preference_label), plain text where the objective needs a chat (text_needs_pretrain).
    UsageError: the recipe maps a column to a name that maskpipe does not know.
    """
    columns = _columns(record, recipe)
    _refuse_pair(columns)
    chat = _chat(columns, recipe)
    if chat is None:
        text = columns.get("text")
        if text is None:
            raise _unknown_shape(record, columns, recipe)
        if recipe.objective != "pretrain":
            raise RecordError(
                f"{json_path(text.path)} is plain text, which has no assistant to train for objective "
                f"{recipe.objective!r}. Use --objective pretrain to train on all of it",
                reason="text_needs_pretrain",
            )
        value = _string(text, "the text")
        if not value:
            raise RecordError(f"{json_path(text.path)} is empty", reason="empty_text")
        return Text(text=value, path=text.path, source=source, row=row)
    _refuse_label(columns)
    for name in MEDIA_COLUMNS:
        if name in columns and columns[name].value:
            raise RecordError(
                f"the record has {name} ({json_path(columns[name].path)}), and only text can be prepared: the text "
                "would speak of what is not there. Leave such records out with --on-bad-record reject, or say that the "
                f"column has nothing to do with the chat: --map {name}=ignore",
                reason="multimodal_content",
            )
    messages, weights, paths = chat
    if not messages:
        raise RecordError("the conversation has no messages", reason="empty_conversation")
    return Conversation(
        messages=messages,
        tools=_tools(columns),
        documents=_list(columns, "documents"),
        chat_template_kwargs=_kwargs(columns),
        weights=weights,
        paths=paths,
        source=source,
        row=row,
    )


@dataclass(frozen=True)
class _Column:
    value: Json
    path: Path
    mapped: bool = False


_Chat = tuple[list[dict[str, Json]], list[float | None], list[Path]]


def _columns(record: Json, recipe: Recipe) -> dict[str, _Column]:
    """The record's columns that are not null, under the names maskpipe knows, with the place where each stands."""
    if isinstance(record, list) and record and all(isinstance(entry, dict) for entry in record):
        return {"messages": _Column(record, ())}
    if not isinstance(record, dict):
        raise RecordError(
            f'a record is a JSON object, got {_kind(record)}. Write texts as {{"text": ...}}', reason="not_an_object"
        )
    columns = {str(name): _Column(value, (name,)) for name, value in record.items() if value is not None}
    moved: dict[str, _Column] = {}
    for name, known in recipe.columns.items():
        if "[]." in name:
            continue  # a key inside messages
        if known not in KNOWN_COLUMNS:
            raise UsageError(f"--map {name}={known}: no such column name; known: {', '.join(KNOWN_COLUMNS)}")
        if name in record:
            columns.pop(name, None)
            found: Json = record[name]
            path: Path = (name,)
        else:
            found, path = _dig(record, name)
        if found is not None and known != IGNORE:
            moved.setdefault(known, _Column(found, path, mapped=True))
    columns.update(moved)
    return columns


def _dig(record: dict[str, Json], dotted: str) -> tuple[Json, Path]:
    """What stands at a dotted path such as `answer.turns.-1`, and its path; None where there is nothing."""
    here: Json = record
    path: list[str | int] = []
    for step in dotted.split("."):
        if isinstance(here, dict) and step in here:
            here = here[step]
            path.append(step)
        elif isinstance(here, list) and step.lstrip("-").isdecimal() and -len(here) <= int(step) < len(here):
            path.append(int(step) % len(here))
            here = here[int(step)]
        else:
            return None, ()
    return here, tuple(path)


def _refuse_pair(columns: Mapping[str, _Column]) -> None:
    for chosen, rejected in PAIR_COLUMNS:
        if chosen in columns and rejected in columns:
            raise RecordError(
                f"the record is a preference pair (columns {chosen} and {rejected}), which is not a chat to imitate. "
                f"To train on the chosen branch as a chat: {_branch_hint(chosen, columns)}",
                reason="preference_pair",
            )


def _branch_hint(chosen: str, columns: Mapping[str, _Column]) -> str:
    value = columns[chosen].value
    if isinstance(value, list) and "prompt" not in columns:
        return f"--map {chosen}=messages"
    prompt = next((name for name in ("prompt", *CHAT_COLUMNS, "question", "instruction") if name in columns), None)
    if prompt is None:
        return "split its text into messages, and give them as a column messages"
    return f"--map {prompt}=prompt --map {chosen}=completion"


def _refuse_label(columns: Mapping[str, _Column]) -> None:
    label = columns.get("label")
    if label is not None and isinstance(label.value, bool):
        raise RecordError(
            f"$.label is {str(label.value).lower()}: the record says whether its answer is wanted (unpaired "
            "preference), so training on all of them would teach the unwanted ones. Keep the wanted records only, "
            "and say so with --map label=ignore",
            reason="preference_label",
        )


def _chat(columns: Mapping[str, _Column], recipe: Recipe) -> _Chat | None:
    """The messages of the first shape that fits; None if none does. A mapped column goes before all others."""
    shapes = (_from_messages, _from_prompt, _from_alpaca, _from_question)
    mapped = {name: column for name, column in columns.items() if column.mapped}
    if mapped:
        beside = {name: column for name, column in columns.items() if name not in CHAT_COLUMNS or column.mapped}
        for shape, names in zip(shapes, _SHAPE_NAMES, strict=True):
            if any(name in mapped for name in names):
                chat = shape(beside, recipe)
                if chat is not None:
                    return chat
        if "text" in mapped:
            return None
    for shape in shapes:
        chat = shape(columns, recipe)
        if chat is not None:
            return chat
    return None


_SHAPE_NAMES = (
    CHAT_COLUMNS,
    ("prompt", *RESPONSE_COLUMNS),
    ("instruction", *OUTPUT_COLUMNS, *INPUT_COLUMNS, "history"),
    ("question", "answer"),
)


def _from_messages(columns: Mapping[str, _Column], recipe: Recipe) -> _Chat | None:
    names = sorted((name for name in CHAT_COLUMNS if name in columns), key=lambda name: not columns[name].mapped)
    if not names:
        return None
    chat = _messages(columns[names[0]], recipe)
    return _with_system(columns, chat)


def _from_prompt(columns: Mapping[str, _Column], recipe: Recipe) -> _Chat | None:
    prompt = columns.get("prompt")
    completion = _first(columns, RESPONSE_COLUMNS)
    if prompt is None or completion is None:
        return None
    chat: _Chat = ([], [], [])
    for column, role in ((prompt, "user"), (completion, "assistant")):
        part: _Chat
        if isinstance(column.value, list | dict):
            part = _messages(column, recipe)
        else:
            part = ([{"role": role, "content": _string(column, f"the {role}'s text")}], [None], [column.path])
        chat[0].extend(part[0])
        chat[1].extend(part[1])
        chat[2].extend(part[2])
    return _with_system(columns, chat)


def _from_alpaca(columns: Mapping[str, _Column], recipe: Recipe) -> _Chat | None:
    instruction = columns.get("instruction")
    output = _first(columns, OUTPUT_COLUMNS)
    if instruction is None or output is None:
        return None
    messages: list[dict[str, Json]] = []
    paths: list[Path] = []
    history = columns.get("history")
    if history is not None:
        if not isinstance(history.value, list):
            raise _wrong_type(history.value, history.path, "a list of [user, assistant] pairs")
        for number, pair in enumerate(history.value):
            path = (*history.path, number)
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(entry, str) for entry in pair)):
                raise _wrong_type(pair, path, "a pair of strings [user, assistant]")
            messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
            paths += [(*path, 0), (*path, 1)]
    question = _string(instruction, "the instruction")
    extra = _first(columns, INPUT_COLUMNS)
    if extra is not None and _string(extra, "the input"):
        question += "\n" + extra.value
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": _string(output, "the output")}]
    paths += [instruction.path, output.path]
    return _with_system(columns, (messages, [None] * len(messages), paths))


def _from_question(columns: Mapping[str, _Column], recipe: Recipe) -> _Chat | None:
    question, answer = columns.get("question"), columns.get("answer")
    if question is None or answer is None:
        return None
    if not (isinstance(question.value, str) and isinstance(answer.value, str)):
        return None
    expected = {"question", "answer", *SYSTEM_COLUMNS, *QUESTION_EXTRAS}
    if not (question.mapped or answer.mapped) and any(name not in expected for name in columns):
        return None
    messages = [{"role": "user", "content": question.value}, {"role": "assistant", "content": answer.value}]
    return _with_system(columns, (messages, [None, None], [question.path, answer.path]))


def _with_system(columns: Mapping[str, _Column], chat: _Chat) -> _Chat:
    system = _first(columns, SYSTEM_COLUMNS)
    if system is None or system.value == "":
        return chat
    text = _string(system, "the system prompt")
    messages, weights, paths = chat
    if messages and messages[0]["role"] == "system":
        if messages[0].get("content") == text:
            return chat
        raise RecordError(
            f"two system prompts: {json_path(system.path)} and {json_path(paths[0])}. Take one away with "
            f"--map {system.path[-1]}=ignore",
            reason="two_system_prompts",
        )
    return [{"role": "system", "content": text}, *messages], [None, *weights], [system.path, *paths]


def _messages(column: _Column, recipe: Recipe) -> _Chat:
    raw = _parsed(column, "messages")
    if isinstance(raw, dict) and ("role" in raw or "from" in raw):  # one message that is not in a list
        message, weight = _message(raw, column.path, 0, _message_keys(recipe), recipe)
        return [message], [weight], [column.path]
    if not isinstance(raw, list):
        raise _wrong_type(raw, column.path, "a list of messages")
    renamed = _message_keys(recipe)
    messages: list[dict[str, Json]] = []
    weights: list[float | None] = []
    paths: list[Path] = []
    for number, entry in enumerate(raw):
        path = (*column.path, number)
        if isinstance(entry, str):  # how Parquet keeps messages of different shapes
            entry = _parsed(_Column(entry, path), "a message")
        if not isinstance(entry, dict):
            raise _wrong_type(entry, path, "a message, which is an object with role and content")
        message, weight = _message(entry, path, number, renamed, recipe)
        messages.append(message)
        weights.append(weight)
        paths.append(path)
    return messages, weights, paths


def _message(
    raw: dict[str, Json], path: Path, number: int, renamed: Mapping[str, str], recipe: Recipe
) -> tuple[dict[str, Json], float | None]:
    if renamed:
        raw = _rename_keys(raw, renamed, path)
    sharegpt = "role" not in raw and "from" in raw
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    if role_key not in raw:
        raise RecordError(
            f"{json_path(path)} has no role; its keys: {', '.join(map(str, raw)) or 'none'}. If another key holds it, "
            "rename it with --map 'messages[].KEY=role'",
            reason="missing_role",
        )
    said = raw[role_key]
    if not isinstance(said, str):
        raise _wrong_type(said, (*path, role_key), "a role name")
    calls = sharegpt and said == "function_call" and said not in recipe.roles
    role = "assistant" if calls else _role(said, sharegpt, path, number, recipe)
    weight = _weight(raw, path)
    message: dict[str, Json] = {}
    for key, value in raw.items():
        if key == role_key:
            message["role"] = role
        elif key == content_key and not calls:
            message["content"] = value
        elif key == content_key:
            message["content"] = ""
            message["tool_calls"] = _sharegpt_calls(value, (*path, key))
        elif key == "function_call" and role == "assistant":
            if value is None:
                continue
            if raw.get("tool_calls"):
                raise RecordError(
                    f"{json_path(path)} has both function_call and tool_calls. Keep one", reason="bad_tool_calls"
                )
            if not isinstance(value, dict) or not isinstance(value.get("name"), str):
                raise _wrong_type(value, (*path, key), "a call {name, arguments}", "bad_tool_calls")
            message["tool_calls"] = [{"type": "function", "function": value}]
        elif key == "tool_calls" and "tool_calls" in message:
            continue  # null or empty beside function_call
        elif key not in WEIGHT_KEYS:
            message[key] = value
    for key in REASONING_KEYS:
        if key in renamed.values() or message.get("reasoning_content") is not None:
            continue
        if isinstance(message.get(key), str):
            message.pop("reasoning_content", None)
            message = {"reasoning_content" if name == key else name: value for name, value in message.items()}
    _check_calls(message, path)
    _check_content(message, path, number, content_key)
    return message, weight


def _message_keys(recipe: Recipe) -> dict[str, str]:
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


def _role(said: str, sharegpt: bool, path: Path, number: int, recipe: Recipe) -> str:
    if said in recipe.roles:
        role = recipe.roles[said]
        if role in ROLE_NAMES or role == said:  # mapped to itself: the template knows it, and the user says so
            return role
    elif sharegpt:
        role = SHAREGPT_ROLES.get(said, said)
    else:
        role = "tool" if said == "function" else said  # OpenAI's older name
    if role not in ROLE_NAMES:
        raise RecordError(
            f"message {number} has role {said!r}{f' (mapped to {role!r})' if role != said else ''}; expected one of "
            f"system, developer, user, assistant, tool ({json_path(path)}). Rename it with --map-role {said}=user (or "
            f"another of these), keep it with --map-role {said}={said} if the template knows it, or leave such records "
            "out with --on-bad-record reject",
            reason="unknown_role",
        )
    return role


def _weight(raw: Mapping[str, Json], path: Path) -> float | None:
    weight: float | None = None
    for key in WEIGHT_KEYS[1:]:
        value = raw.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_WEIGHT:
            raise _wrong_type(value, (*path, key), f"a number from 0 to {MAX_WEIGHT:g}", "bad_weight")
        if weight is not None and weight != float(value):
            raise RecordError(
                f"{json_path(path)} has both weight and loss_weight, and they differ", reason="bad_weight"
            )
        weight = float(value)
    train = raw.get("train")
    if train is not None:
        if not isinstance(train, bool) and train not in (0, 1):
            raise _wrong_type(train, (*path, "train"), "true or false", "bad_weight")
        if not train:
            return 0.0
        return 1.0 if weight is None else weight
    return weight


def _sharegpt_calls(value: Json, path: Path) -> list[Json]:
    calls = _parsed(_Column(value, path), "a call", "bad_tool_calls")
    calls = calls if isinstance(calls, list) else [calls]
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise _wrong_type(call, path, "a call {name, arguments}, or a list of them", "bad_tool_calls")
    return [{"type": "function", "function": call} for call in calls]


def _check_calls(message: dict[str, Json], path: Path) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    path = (*path, "tool_calls")
    if isinstance(calls, str):
        calls = message["tool_calls"] = _parsed(_Column(calls, path), "the tool calls", "bad_tool_calls")
    if not isinstance(calls, list):
        raise _wrong_type(calls, path, "a list of calls", "bad_tool_calls")
    for number, call in enumerate(calls):
        if not isinstance(call, dict):
            raise _wrong_type(call, (*path, number), "a call, which is an object", "bad_tool_calls")
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RecordError(
                f"{json_path((*path, number))} names no function; its keys: {', '.join(call) or 'none'}. "
                'A call is {"function": {"name", "arguments"}} or {"name", "arguments"}',
                reason="bad_tool_calls",
            )
    refuse_foreign(calls, path)


def _check_content(message: dict[str, Json], path: Path, number: int, key: str) -> None:
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
        raise _wrong_type(content, path, "a string, null or a list of parts")


def _is_part(value: Json) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _check_parts(message: dict[str, Json], parts: list[Json], path: Path, number: int) -> None:
    """Refuse what is not text, and bring {"type", "value"} parts into the usual form."""
    for index, part in enumerate(parts):
        here = (*path, index)
        if isinstance(part, str):
            continue
        if not _is_part(part):
            raise _wrong_type(part, here, 'a part {"type": "text", "text": ...}')
        kind = part["type"]
        if kind in TEXT_PARTS or (kind == "tool_call" and "value" in part and message["role"] == "assistant"):
            if kind == "text" and not isinstance(part.get("text", part.get("value")), str):
                raise _wrong_type(part.get("text", part.get("value")), (*here, "text"), "a string")
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
            calls += _sharegpt_calls(part["value"], (*path, index, "value"))
        else:
            reasoning.append(_string(_Column(part["value"], (*path, index, "value")), "the reasoning"))
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


def _tools(columns: Mapping[str, _Column]) -> list[Json] | None:
    tools = _list(columns, "tools")
    if tools is not None:
        if tools and all(isinstance(entry, str) for entry in tools):
            path = columns["tools"].path
            tools = [_parsed(_Column(entry, (*path, index)), "a tool") for index, entry in enumerate(tools)]
        for index, entry in enumerate(tools):
            if not isinstance(entry, dict):
                raise _wrong_type(entry, (*columns["tools"].path, index), "a tool, which is an object", "bad_tools")
        return tools
    functions = _list(columns, "functions")
    return None if functions is None else [{"type": "function", "function": entry} for entry in functions]


def _list(columns: Mapping[str, _Column], name: str) -> list[Json] | None:
    """A column that is a list or the JSON text of one; None where it is absent, null or an empty string."""
    column = columns.get(name)
    if column is None or column.value == "":
        return None
    value = _parsed(column, name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise _wrong_type(value, column.path, "a list")
    refuse_foreign(value, column.path)
    return value


def _kwargs(columns: Mapping[str, _Column]) -> dict[str, Json]:
    column = columns.get("chat_template_kwargs")
    if column is None or column.value == "":
        return {}
    value = _parsed(column, "chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong_type(value, column.path, "an object of keyword arguments")
    for key in RESERVED_KWARGS:
        if key in value:
            raise RecordError(
                f"{json_path((*column.path, key))}: {key} cannot be a keyword argument of the template, it has a "
                "meaning of its own",
                reason="bad_kwargs",
            )
    refuse_foreign(value, column.path)
    return value


def _parsed(column: _Column, what: str, reason: str = "bad_json_column") -> Json:
    """The value; if it is a string, the JSON value that the string holds."""
    if not isinstance(column.value, str):
        return column.value
    try:
        return parse(column.value)
    except RecordError as error:
        inner = error.reason if error.reason != "not_json" else reason
        raise RecordError(
            f"{json_path(column.path)} is a string, so it must be the JSON text of {what}: {error}", reason=inner
        ) from None


def _first(columns: Mapping[str, _Column], names: tuple[str, ...]) -> _Column | None:
    present = [columns[name] for name in names if name in columns]
    return next((column for column in present if column.mapped), present[0] if present else None)


def _string(column: _Column, what: str) -> str:
    if not isinstance(column.value, str):
        raise _wrong_type(column.value, column.path, f"a string ({what})")
    return column.value


def _wrong_type(value: Json, path: Path, expected: str, reason: str = "bad_field") -> RecordError:
    return RecordError(f"{json_path(path)} is {_kind(value)}; expected {expected}", reason=reason)


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the string {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if type(value) in (int, float):
        return f"the number {value!r:.40}"
    return f"a {type(value).__module__}.{type(value).__name__}"


def _unknown_shape(record: Json, columns: Mapping[str, _Column], recipe: Recipe) -> RecordError:
    seen = ", ".join(record) if isinstance(record, dict) else _kind(record)
    found = _find_messages(record, "", 0)
    hint = f" Messages stand at {found}: --map {found}=messages takes them (and nothing beside them)." if found else ""
    absent = [name for name in recipe.columns if "[]." not in name and record.get(name, _dig(record, name)[0]) is None]
    if absent:
        hint += f" The mapped column {', '.join(absent)} is not in this record."
    return RecordError(
        f"unknown shape: the record has the columns {seen or '(none)'}; accepted: {ACCEPTED}.{hint} Rename columns "
        "with --map NAME=KNOWN, also inside: --map answer.text=completion",
        reason="unknown_shape",
    )


_MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


def _find_messages(value: Json, path: str, level: int) -> str | None:
    """The dotted path of the first list of {role, content} objects inside a record; looks a few levels deep."""
    if isinstance(value, list):
        if value and isinstance(value[0], dict) and any(pair <= set(value[0]) for pair in _MESSAGE_KEYS):
            return path or None
        entries = [(str(index), entry) for index, entry in enumerate(value[:1])]
    elif isinstance(value, dict):
        entries = list(value.items())
    else:
        return None
    for name, entry in entries:
        if level < 4 and (found := _find_messages(entry, f"{path}.{name}" if path else name, level + 1)):
            return found
    return None
