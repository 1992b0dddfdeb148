"""The columns of a record under the names maskpipe knows, with the place of each, and how one is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from maskpipe.chat.conversation import Json
from maskpipe.errors import RecordError, UsageError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import Path, json_path, parse, refuse_foreign

CHAT_COLUMNS = ("messages", "conversations", "conversation", "messages_display")
COMPLETION_COLUMNS = ("completion", "response")
COMPLETIONS_COLUMNS = ("completions", "responses")
OUTPUT_COLUMNS = ("output", "response")
INPUT_COLUMNS = ("input", "context")
SYSTEM_COLUMNS = ("system", "system_prompt")
MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
PAIR_COLUMNS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("response_j", "response_k"),
)
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_reward", "rejected_reward"),
)
RANK_LISTS = ("ranks", "ranking", "rankings")
SCORE_LISTS = ("scores", "rewards", "ratings")
IGNORE = "ignore"
"""The name to which a column is mapped to take it away."""
KNOWN_COLUMNS = (
    *CHAT_COLUMNS, "tree", "prompt", *COMPLETION_COLUMNS, *COMPLETIONS_COLUMNS, "instruction", "output",
    *INPUT_COLUMNS, "history", "question", "answer", "answer_generation", "text", "tools", "functions", "documents",
    "chat_template_kwargs", *SYSTEM_COLUMNS, *MEDIA_COLUMNS, *(name for pair in PAIR_COLUMNS for name in pair),
    "label", "kto_tag", *(name for pair in SCORE_COLUMNS for name in pair), "margin", "answers",
    *RANK_LISTS, *SCORE_LISTS, IGNORE,
)  # fmt: skip


class Column(NamedTuple):
    value: Json
    path: Path
    mapped: bool = False


Columns = Mapping[str, Column]


def columns_of(record: Json, recipe: Recipe) -> dict[str, Column]:
    """The record's columns that are not null. UsageError: the recipe maps a column to an unknown name."""
    if isinstance(record, list) and record and all(isinstance(entry, dict) for entry in record):
        return {"messages": Column(record, ())}
    if not isinstance(record, dict):
        raise RecordError(
            f'a record is a JSON object, got {kind(record)}. Write texts as {{"text": ...}}', reason="not_an_object"
        )
    columns = {str(name): Column(value, (name,)) for name, value in record.items() if value is not None}
    moved: dict[str, Column] = {}
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
            found, path = dig(record, name)
        if found is not None and known != IGNORE:
            moved.setdefault(known, Column(found, path, mapped=True))
    columns.update(moved)
    return columns


def dig(record: dict[str, Json], dotted: str) -> tuple[Json, Path]:
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


def first(columns: Columns, names: tuple[str, ...]) -> Column | None:
    """The first of these that is there and says something; a mapped one goes before the others. RecordError
    ambiguous_shape where two say different things and none is mapped."""
    if columns.keys().isdisjoint(names):
        return None
    present = [columns[name] for name in names if name in columns]
    if len(present) < 2:
        return present[0] if present else None
    mapped = next((column for column in present if column.mapped), None)
    if mapped is not None:
        return mapped
    saying = [column for column in present if column.value != ""]
    other = next((column for column in saying[1:] if column.value != saying[0].value), None)
    if other is not None:
        one, two = (".".join(map(str, column.path)) for column in (saying[0], other))
        raise RecordError(
            f"two readings: the columns {one} and {two} stand for the same, and they say different things. Take one "
            f"away: --map {two}=ignore or --map {one}=ignore",
            reason="ambiguous_shape",
        )
    return (saying or present)[0]


def as_string(column: Column, what: str) -> str:
    if not isinstance(column.value, str):
        raise wrong_type(column.value, column.path, f"a string ({what})")
    return column.value


def parsed(column: Column, what: str, reason: str = "bad_json_column") -> Json:
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


def as_list(columns: Columns, name: str) -> list[Json] | None:
    """A column that is a list or the JSON text of one; None where it is absent, null or an empty string."""
    column = columns.get(name)
    if column is None or column.value == "":
        return None
    value = parsed(column, name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise wrong_type(value, column.path, "a list")
    refuse_foreign(value, column.path)
    return value


def wrong_type(value: Json, path: Path, expected: str, reason: str = "bad_field") -> RecordError:
    return RecordError(f"{json_path(path)} is {kind(value)}; expected {expected}", reason=reason)


def kind(value: Json) -> str:
    """What a value is, for messages."""
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
