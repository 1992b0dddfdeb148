"""read_record: which shape a record has, and what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from maskpipe.chat import anthropic, labelled, pairs, prompts, ranked, tool_traces, transcripts, trees
from maskpipe.chat.beside import kwargs_of, tools_of, with_system
from maskpipe.chat.columns import (
    CHAT_COLUMNS,
    COMPLETION_COLUMNS,
    COMPLETIONS_COLUMNS,
    INPUT_COLUMNS,
    OUTPUT_COLUMNS,
    Column,
    Columns,
    as_list,
    as_string,
    columns_of,
)
from maskpipe.chat.conversation import Chat, Conversation, Json, Read, Text
from maskpipe.chat.messages import message_keys, read_messages, read_usual
from maskpipe.chat.refusals import PREFERENCES, refuse_label, refuse_media, refuse_pair, unknown_shape
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import json_path


def read_record(record: Json, recipe: Recipe, *, source: int = 0, row: int = 0) -> Conversation | Text:
    """The chat or text of a raw record that holds one. Raises what read_all raises, and RecordError
    several_conversations for a tree or a prompt with several completions."""
    items = read_all(record, recipe, source=source, row=row).items
    if len(items) > 1:
        raise RecordError(
            f"the record holds {len(items)} conversations, and one was asked for; read_all gives all",
            reason="several_conversations",
        )
    return items[0]


def read_all(record: Json, recipe: Recipe, *, source: int = 0, row: int = 0) -> Read:
    """All chats of a raw record, or its text.

    RecordError, with a reason and the field's path: a shape that is not known (unknown_shape) or that can be read in
    two ways (ambiguous_shape), a role that is not known (unknown_role), a missing or mistyped field, images or sound
    (multimodal_content), a preference pair or label (preference_pair, preference_label), plain text where the
    objective needs a chat (text_needs_pretrain). UsageError: the recipe maps a column to an unknown name.
    """
    usual = read_usual(record, recipe)
    if usual is not None:
        return Read(
            [Conversation(usual.messages, weights=usual.weights, paths=usual.paths, source=source, row=row)], Counter()
        )
    columns = columns_of(record, recipe)
    if recipe.objective == "preference":
        chats: list[Chat] | None = _answers(record, columns, recipe)
    else:
        refuse_pair(columns, recipe)
        chats = _chats(record, columns, recipe)
    if chats is None:
        if "text" not in columns:
            raise unknown_shape(record, columns, recipe)
        return Read([_text(columns["text"], recipe, source, row)], Counter())
    if recipe.objective != "preference":
        refuse_label(columns)
    refuse_media(columns)
    if not chats or not all(chat.messages for chat in chats):
        raise RecordError("the conversation has no messages", reason="empty_conversation")
    tools, documents, kwargs = tools_of(columns), as_list(columns, "documents"), kwargs_of(columns)
    counts: Counter[str] = Counter()
    items: list[Conversation | Text] = []
    for chat in chats:
        whole = with_system(columns, chat)
        side, more = chat.side, len(whole.messages) - len(chat.messages)
        if chat.counts:
            counts.update(chat.counts)
        items.append(
            Conversation(
                messages=whole.messages,
                tools=tools if chat.tools is None or tools is not None else chat.tools,
                documents=documents,
                chat_template_kwargs=kwargs,
                weights=whole.weights,
                paths=whole.paths,
                source=source,
                row=row,
                side=side if side is None or not more else replace(side, prompt=side.prompt + more),
            )
        )
    return Read(items, counts)


def _answers(record: Json, columns: Columns, recipe: Recipe) -> list[Chat]:
    """The answers of a record that says which are preferred."""
    chats = pairs.from_pair(columns, recipe) or ranked.from_ranked(columns, recipe)
    if chats is not None:
        return chats
    label = labelled.label_of(columns)
    chats = _chats(record, columns, recipe)
    if chats is None:
        raise unknown_shape(record, columns, recipe)
    if label is None:
        raise RecordError(
            "the record holds a chat and does not say which answer is preferred, as objective 'preference' needs it: "
            f"{PREFERENCES}",
            reason="no_preference",
        )
    return [labelled.labelled(chat, label, columns, recipe) for chat in chats]


def _text(column: Column, recipe: Recipe, source: int, row: int) -> Text:
    if recipe.objective != "pretrain":
        said = transcripts.is_transcript(column.value, recipe) if isinstance(column.value, str) else False
        raise RecordError(
            f"{json_path(column.path)} is plain text, which has no assistant to train for objective "
            f"{recipe.objective!r}. Use --objective pretrain to train on all of it"
            + (f", or --map {column.path[-1]}=messages to read it as a transcript of a chat" if said else ""),
            reason="text_needs_pretrain",
        )
    value = as_string(column, "the text")
    if not value:
        raise RecordError(f"{json_path(column.path)} is empty", reason="empty_text")
    return Text(text=value, path=column.path, source=source, row=row)


class _Shape(NamedTuple):
    names: tuple[str, ...]
    """Columns that belong to it."""
    read: Callable[[Json, Columns, Recipe], list[Chat] | None]
    """The chats, or None if the record has another shape."""


def _messages_in(name: str) -> _Shape:
    def read(record: Json, columns: Columns, recipe: Recipe) -> list[Chat] | None:
        if name not in columns:
            return None
        return [read_messages(columns[name], recipe, blocks=anthropic.says_blocks(columns))]

    return _Shape((name,), read)


def _tree(record: Json, columns: Columns, recipe: Recipe) -> list[Chat] | None:
    root = trees.root_of(record, columns)
    return None if root is None else trees.read_tree(root, columns, message_keys(recipe), recipe)


def _generation(record: Json, columns: Columns, recipe: Recipe) -> list[Chat] | None:
    column = columns.get("answer_generation")
    if column is None or not tool_traces.is_generation(column.value):
        return None
    contexts, tools = tool_traces.contexts_of(column)
    chats = [read_messages(context, recipe) for context in contexts]
    for chat in chats:
        chat.tools = tools
    return chats


def _columns_only(read: Callable[[Columns, Recipe], list[Chat] | None]) -> Callable[..., list[Chat] | None]:
    return lambda record, columns, recipe: read(columns, recipe)


_SHAPES = (
    *map(_messages_in, CHAT_COLUMNS),
    _Shape(("tree",), _tree),
    _Shape(("prompt", *COMPLETION_COLUMNS), _columns_only(prompts.from_prompt)),
    _Shape(("prompt", *COMPLETIONS_COLUMNS), _columns_only(prompts.from_completions)),
    _Shape(("instruction", *OUTPUT_COLUMNS, *INPUT_COLUMNS, "history"), _columns_only(prompts.from_alpaca)),
    _Shape(("question", "answer"), _columns_only(prompts.from_question)),
    _Shape(("answer_generation",), _generation),
)
"""In the order in which they are tried."""
_NAMES_AFTER = [
    frozenset(name for shape in _SHAPES[number + 1 :] for name in shape.names) for number in range(len(_SHAPES))
]
"""Per shape, the columns of those behind it."""


def _chats(record: Json, columns: Columns, recipe: Recipe) -> list[Chat] | None:
    """The chats of the shape that fits, None if none does. A mapped column goes before all others."""
    mapped = {name for name, column in columns.items() if column.mapped}
    if mapped:
        beside = {name: column for name, column in columns.items() if name not in CHAT_COLUMNS or column.mapped}
        for shape in _SHAPES:
            if mapped.intersection(shape.names):
                chats = shape.read(record, beside, recipe)
                if chats is not None:
                    return chats
        if "text" in mapped:
            return None
    for number, shape in enumerate(_SHAPES):
        chats = shape.read(record, columns, recipe)
        if chats is not None:
            if not columns.keys().isdisjoint(_NAMES_AFTER[number]):
                _refuse_second_reading(record, columns, recipe, chats, shape, _SHAPES[number + 1 :])
            return chats
    return None


def _refuse_second_reading(
    record: Json, columns: Columns, recipe: Recipe, chats: list[Chat], shape: _Shape, others: tuple[_Shape, ...]
) -> None:
    """Two shapes may fit if the second says nothing that the first does not."""
    for other in others:
        if not any(name in columns for name in other.names):
            continue
        try:
            second = other.read(record, columns, recipe)
        except RecordError:
            continue
        said = {repr(message.get("content")) for chat in chats for message in chat.messages}
        if second and any(repr(message.get("content")) not in said for chat in second for message in chat.messages):
            one, two = (
                [name for name in names if name in columns] or ["record"] for names in (shape.names, other.names)
            )
            raise RecordError(
                f"two readings: a chat in {' + '.join(one)}, and another in {' + '.join(two)}, and they say different "
                f"things. Take one away: --map {two[0]}=ignore or --map {one[0]}=ignore",
                reason="ambiguous_shape",
            )
