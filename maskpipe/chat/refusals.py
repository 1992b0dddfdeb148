"""Records that hold no chat to imitate, and what to do with each."""

from __future__ import annotations

from maskpipe.chat import transcripts
from maskpipe.chat.columns import CHAT_COLUMNS, MEDIA_COLUMNS, PAIR_COLUMNS, Columns, dig, kind
from maskpipe.chat.conversation import Json
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import json_path

ACCEPTED = (
    "messages: [{role, content}, ...] | conversations: [{from, value}, ...] | prompt + completion(s) | "
    "instruction (+ input) + output | question + answer | a tree of {role, text, replies} | text"
)
PREFERENCES = (
    "chosen + rejected (or another name of the two), with or without a prompt | an answer + label | a prompt with "
    "ranked completions"
)


def refuse_pair(columns: Columns, recipe: Recipe) -> None:
    """A preference pair is no chat to imitate."""
    for chosen, rejected in PAIR_COLUMNS:
        if chosen in columns and rejected in columns:
            raise RecordError(
                f"the record is a preference pair (columns {chosen} and {rejected}), which is not a chat to imitate. "
                "Prepare pairs with --objective preference. To train on the chosen branch as a chat: "
                f"{_branch_hint(chosen, columns, recipe)}",
                reason="preference_pair",
            )


def _branch_hint(chosen: str, columns: Columns, recipe: Recipe) -> str:
    value = columns[chosen].value
    if isinstance(value, str) and transcripts.is_transcript(value, recipe):
        return f"--map {chosen}=messages"
    inner = columns.get("input")
    if inner is not None and isinstance(inner.value, dict) and "messages" in inner.value:
        return f"--map input.messages=prompt --map {chosen}=completion"
    if isinstance(value, list) and "prompt" not in columns:
        return f"--map {chosen}=messages"
    prompt = next((name for name in ("prompt", *CHAT_COLUMNS, "question", "instruction") if name in columns), None)
    if prompt is None:
        return "split its text into messages, and give them as a column messages"
    return f"--map {prompt}=prompt --map {chosen}=completion"


def refuse_label(columns: Columns) -> None:
    """A record that says whether its answer is wanted."""
    label = next((columns[name] for name in ("label", "kto_tag") if name in columns), None)
    if label is not None and isinstance(label.value, bool):
        name = ".".join(map(str, label.path))
        raise RecordError(
            f"{json_path(label.path)} is {str(label.value).lower()}: the record says whether its answer is wanted "
            "(unpaired preference), so training on all of them would teach the unwanted ones. Prepare them with "
            f"--objective preference, or keep the wanted records only and say so with --map {name}=ignore",
            reason="preference_label",
        )


def refuse_media(columns: Columns) -> None:
    """Pictures, sound or video beside a chat."""
    for name in MEDIA_COLUMNS if not columns.keys().isdisjoint(MEDIA_COLUMNS) else ():
        if name in columns and columns[name].value:
            raise RecordError(
                f"the record has {name} ({json_path(columns[name].path)}), and only text can be prepared: the text "
                "would speak of what is not there. Leave such records out with --on-bad-record reject, or say that the "
                f"column has nothing to do with the chat: --map {name}=ignore",
                reason="multimodal_content",
            )


def unknown_shape(record: Json, columns: Columns, recipe: Recipe) -> RecordError:
    """What the record has, what maskpipe knows, and what may help."""
    if "input_ids" in columns and isinstance(columns["input_ids"].value, list):
        return RecordError(
            "the record holds input_ids: it is tokenized already, and the text that says which token is whose is gone. "
            "Prepare the chats it was made from",
            reason="already_tokenized",
        )
    seen = ", ".join(record) if isinstance(record, dict) else kind(record)
    found = _find_messages(record, "", 0)
    hint = f" Messages stand at {found}: --map {found}=messages takes them (and nothing beside them)." if found else ""
    if not found and isinstance(record, dict):
        texts = (name for name, value in record.items() if isinstance(value, str))
        told = next((name for name in texts if transcripts.is_transcript(record[name], recipe)), None)
        hint = f" The column {told} is a transcript: --map {told}=messages reads it." if told else ""
    absent = [name for name in recipe.columns if "[]." not in name and record.get(name, dig(record, name)[0]) is None]
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
