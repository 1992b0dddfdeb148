"""An answer with a label that says whether it is wanted, and no rival (as KTO takes it) → one Chat with its Side.

    {"prompt": …, "completion": …, "label": true}      strings, messages, or a transcript
    {"messages": [… user, assistant], "label": false}  any other shape of one chat; also `kto_tag`

Of prompt and completion the completion is judged; of a whole chat, what follows its last user message.
"""

from __future__ import annotations

from maskpipe.chat.columns import COMPLETION_COLUMNS, Column, Columns, first, wrong_type
from maskpipe.chat.conversation import Chat, Side
from maskpipe.chat.pairs import says_something
from maskpipe.chat.prompts import prompt_of
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import json_path

LABEL_COLUMNS = ("label", "kto_tag")


def label_of(columns: Columns) -> bool | None:
    """The record's label; None where it has none."""
    column = first(columns, LABEL_COLUMNS)
    if column is None:
        return None
    if column.value not in (True, False):
        raise wrong_type(column.value, column.path, "true or false: whether the answer is wanted", "bad_label")
    return bool(column.value)


def labelled(chat: Chat, label: bool, columns: Columns, recipe: Recipe) -> Chat:
    """The chat with its side. RecordError empty_side where there is no answer."""
    prompt = columns.get("prompt")
    if prompt is not None and first(columns, COMPLETION_COLUMNS) is not None:
        asked = len(prompt_of(Column(prompt.value, prompt.path), recipe).messages)
    else:
        asked = 1 + max((k for k, m in enumerate(chat.messages) if m["role"] not in ("assistant", "tool")), default=-1)
    answer = chat.messages[asked:]
    if not any(map(says_something, answer)):
        raise RecordError("the record has a label, and no answer behind its prompt", reason="empty_side")
    if not asked:
        raise RecordError("the record has a label, and no prompt before its answer", reason="no_common_prompt")
    if answer[0]["role"] != "assistant":
        raise RecordError(
            f"{json_path(chat.paths[asked])}: the answer begins with a message of role {answer[0]['role']!r}",
            reason="prompts_differ",
        )
    chat.side = Side(asked, label=label)
    return chat
