"""A prompt and its answer in columns of their own → Chat.

prompt + completion (or response)     strings, lists of messages, or a prompt that is a transcript up to Assistant:
prompt + completions (or responses)   a list of answers: one chat for each
instruction (+ input) + output        alpaca: `input` (or `context`), if not empty, after one newline; `history`,
                                      pairs of [user, assistant], before
question + answer                     two strings, and no other column that could belong to the text
"""

from __future__ import annotations

from maskpipe.chat import transcripts
from maskpipe.chat.columns import (
    COMPLETION_COLUMNS,
    COMPLETIONS_COLUMNS,
    INPUT_COLUMNS,
    OUTPUT_COLUMNS,
    SYSTEM_COLUMNS,
    Column,
    Columns,
    as_string,
    first,
    parsed,
    wrong_type,
)
from maskpipe.chat.conversation import Chat, Json
from maskpipe.chat.messages import read_messages
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import Path, json_path

QUESTION_EXTRAS = ("id", "idx", "index", "source", "split", "level", "type", "category", "subject", "problem_idx")
"""Columns that may stand beside question and answer without making it unclear what the prompt is."""
ANSWER_KEYS = ("completion", "response", "output", "text", "content", "value")
_ANSWER_EXTRAS = ("model", "model_name", "id", "index", "idx", "name", "source", "seed", "temperature", "finish_reason",
                  "stop_reason", "role", "from")  # fmt: skip
"""Keys that may stand beside an answer; another one, such as a score, may say that it is not wanted."""


def from_prompt(columns: Columns, recipe: Recipe) -> list[Chat] | None:
    """prompt + completion."""
    prompt = columns.get("prompt")
    completion = None if prompt is None else first(columns, COMPLETION_COLUMNS)
    if prompt is None or completion is None:
        return None
    before, answer = prompt_of(prompt, recipe), answer_of(completion, recipe)
    return [joined(prompt, before, answer)]


def from_completions(columns: Columns, recipe: Recipe) -> list[Chat] | None:
    """prompt + completions."""
    prompt = columns.get("prompt")
    answers = None if prompt is None else first(columns, COMPLETIONS_COLUMNS)
    if prompt is None or answers is None:
        return None
    entries = parsed(answers, "completions")
    if not isinstance(entries, list):
        raise wrong_type(entries, answers.path, "a list of answers")
    before = prompt_of(prompt, recipe)
    return [
        joined(prompt, before, answer_of(_one_of(entry, (*answers.path, number), answers), recipe))
        for number, entry in enumerate(entries)
    ]


def prompt_of(column: Column, recipe: Recipe) -> Chat:
    if isinstance(column.value, list | dict):
        return read_messages(column, recipe)
    text = as_string(column, "the user's text")
    if transcripts.is_prompt(text, recipe):
        return transcripts.read_transcript(text, column.path, recipe, prompt=True)
    return said("user", text, column.path)


def answer_of(column: Column, recipe: Recipe) -> Chat:
    if isinstance(column.value, list | dict):
        return read_messages(column, recipe)
    return said("assistant", as_string(column, "the assistant's text"), column.path)


def joined(prompt: Column, before: Chat, answer: Chat) -> Chat:
    """Behind `Assistant:` one space belongs to the name, as in any transcript."""
    text = answer.messages[0].get("content") if answer.messages else None
    if isinstance(prompt.value, str) and prompt.value.endswith("\n\nAssistant:") and isinstance(text, str):
        answer.messages[0] = {**answer.messages[0], "content": text.removeprefix(" ")}
    return before.then(answer)


def _one_of(entry: Json, path: Path, answers: Column) -> Column:
    """The answer that an entry of completions holds."""
    if not isinstance(entry, dict):
        return Column(entry, path)
    keys = [key for key in ANSWER_KEYS if key in entry]
    others = [key for key in entry if key not in (*ANSWER_KEYS, *_ANSWER_EXTRAS)]
    if len(keys) != 1 or others:
        name = ".".join(map(str, answers.path))
        raise RecordError(
            f"{json_path(path)} has the keys {', '.join(entry)}"
            + (
                f": {', '.join(others)} may say that this answer is not wanted, and all would be trained. Take one "
                if others
                else ", so it is not clear which is the answer. Take one "
            )
            + f"with --map {name}.0.{(keys or ['KEY'])[0]}=completion",
            reason="ranked_completions" if others else "bad_field",
        )
    if "role" in entry or "from" in entry:
        return Column(entry, path)
    return Column(entry[keys[0]], (*path, keys[0]))


def from_alpaca(columns: Columns, recipe: Recipe) -> list[Chat] | None:
    """instruction + output."""
    instruction = columns.get("instruction")
    output = None if instruction is None else first(columns, OUTPUT_COLUMNS)
    if instruction is None or output is None:
        return None
    chat = with_input(columns, recipe)
    chat.add({"role": "assistant", "content": as_string(output, "the output")}, output.path)
    return [chat]


def with_input(columns: Columns, recipe: Recipe) -> Chat:
    """The prompt that `instruction`, `input` and `history` are."""
    instruction = columns["instruction"]
    chat = Chat()
    history = columns.get("history")
    if history is not None:
        if not isinstance(history.value, list):
            raise wrong_type(history.value, history.path, "a list of [user, assistant] pairs")
        for number, pair in enumerate(history.value):
            path = (*history.path, number)
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(entry, str) for entry in pair)):
                raise wrong_type(pair, path, "a pair of strings [user, assistant]")
            chat.add({"role": "user", "content": pair[0]}, (*path, 0))
            chat.add({"role": "assistant", "content": pair[1]}, (*path, 1))
    question = as_string(instruction, "the instruction")
    extra = first(columns, INPUT_COLUMNS)
    if extra is not None and as_string(extra, "the input"):
        question += "\n" + extra.value
    chat.add({"role": "user", "content": question}, instruction.path)
    return chat


def from_question(columns: Columns, recipe: Recipe) -> list[Chat] | None:
    """question + answer."""
    question, answer = columns.get("question"), columns.get("answer")
    if question is None or answer is None:
        return None
    if not (isinstance(question.value, str) and isinstance(answer.value, str)):
        return None
    expected = {"question", "answer", *SYSTEM_COLUMNS, *QUESTION_EXTRAS}
    if not (question.mapped or answer.mapped) and any(name not in expected for name in columns):
        return None
    return [said("user", question.value, question.path).then(said("assistant", answer.value, answer.path))]


def said(role: str, text: str, path: Path) -> Chat:
    chat = Chat()
    chat.add({"role": role, "content": text}, path)
    return chat
