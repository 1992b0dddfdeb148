"""Two answers to one prompt, one of them preferred → two Chats, each with its Side.

    {"prompt": [user], "chosen": [assistant], "rejected": [assistant]}        explicit prompt: messages or a string
    {"chosen": [user, assistant], "rejected": [user, assistant]}              implicit: the messages both begin with
    {"prompt": "…", "chosen": [user, assistant], …}                           both, and they must say the same
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}                 transcripts, as in HH-RLHF
    {"conversations": [human], "chosen": {"from": "gpt", …}, "rejected": …}   also `messages` for the prompt
    {"question" or "instruction" (+ "input"): "…", "response_j" …}            and the other names of PAIR_COLUMNS
    {"input": {"messages": …, "tools": …}, "preferred_output": …}             as OpenAI keeps pairs

The common prompt is found by message, never by characters or tokens: all messages that both sides begin with, also
beyond an explicit prompt. Behind it both sides must go on with an assistant turn, and with something to say. A score
per side (score_chosen, chosen_score, chosen_rating, …) is kept; a margin is the score of the chosen side, against 0.
"""

from __future__ import annotations

import json
import math

from maskpipe.chat import anthropic, transcripts
from maskpipe.chat.columns import CHAT_COLUMNS, PAIR_COLUMNS, SCORE_COLUMNS, Column, Columns, wrong_type
from maskpipe.chat.conversation import Chat, Json, Side
from maskpipe.chat.messages import read_messages
from maskpipe.chat.prompts import answer_of, joined, prompt_of, said, with_input
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.roles import Branch
from maskpipe.strict_json import json_path, parse

MAX_SCORE = 1e30
"""Scores are stored as float32."""


def from_pair(columns: Columns, recipe: Recipe) -> list[Chat] | None:
    """The chosen and the rejected chat of a record with two columns for them; None without those columns."""
    names = next((pair for pair in PAIR_COLUMNS if pair[0] in columns and pair[1] in columns), None)
    if names is None:
        one = next((name for pair in PAIR_COLUMNS for name in pair if name in columns), None)
        if one is not None:
            other = next(pair[pair[0] == one] for pair in PAIR_COLUMNS if one in pair)
            raise RecordError(f"the record has {one} and no {other}: half a pair", reason="empty_side")
        return None
    prompt, at = _prompt(columns, names, recipe)
    sides = [_whole(prompt, at, columns[name], columns, recipe) for name in names]
    return list(paired(sides[0], sides[1], scores_of(columns)))


def paired(chosen: Chat, rejected: Chat, scores: tuple[float | None, float | None]) -> tuple[Chat, Chat]:
    """Both chats with their sides. RecordError where they are no pair: they say the same (collapsed), one has no answer
    (empty_side), nothing is common (no_common_prompt), or they differ before an answer begins (prompts_differ)."""
    a, b = chosen.messages, rejected.messages
    common = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if not _is_same(x, y)), min(len(a), len(b)))
    if len(a) == len(b) == common:
        raise RecordError("chosen and rejected say the same, so nothing is preferred", reason="collapsed")
    for name, messages in (("chosen", a), ("rejected", b)):
        if len(messages) == common or not any(map(says_something, messages[common:])):
            raise RecordError(f"{name} has no answer behind the common prompt", reason="empty_side")
    if not common:
        raise RecordError(
            "chosen and rejected do not begin with a common message, so there is no prompt that both answer. If the "
            "prompt is in another column: --map NAME=prompt",
            reason="no_common_prompt",
        )
    for chat in (chosen, rejected):
        role = chat.messages[common]["role"]
        if role != "assistant":
            raise RecordError(
                f"{json_path(chat.paths[common])}: chosen and rejected differ from message {common} on, which is of "
                f"role {role!r} there: they answer different prompts",
                reason="prompts_differ",
            )
    chosen.side = Side(common, Branch.CHOSEN, scores[0])
    rejected.side = Side(common, Branch.REJECTED, scores[1])
    return chosen, rejected


def _is_same(one: dict[str, Json], other: dict[str, Json]) -> bool:
    """Do two messages say the same? Python takes 1, 1.0 and true for equal, and a template shows them otherwise."""
    return one == other and all(isinstance(one[key], str) or _json(one[key]) == _json(other[key]) for key in one)


def _json(value: Json) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def says_something(message: dict[str, Json]) -> bool:
    """Is this an answer with anything in it?"""
    if message["role"] != "assistant":
        return False
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", part)) if isinstance(part, dict) else str(part) for part in content)
    return bool(str(content or "").strip() or message.get("tool_calls") or message.get("reasoning_content"))


# -- the prompt


def _prompt(columns: Columns, names: tuple[str, str], recipe: Recipe) -> tuple[Chat | None, Column | None]:
    """The explicit prompt and its column; None for an implicit one."""
    inner = columns.get("input")
    if inner is not None and isinstance(inner.value, dict) and "messages" in inner.value:
        column = Column(inner.value["messages"], (*inner.path, "messages"))
        chat = read_messages(column, recipe)
        if isinstance(inner.value.get("tools"), list):
            chat.tools = [anthropic.tool_of(tool) if anthropic.is_tool(tool) else tool for tool in inner.value["tools"]]
        return chat, column
    if "prompt" in columns:
        prompt = prompt_of(columns["prompt"], recipe)
        _refuse_second_prompt(prompt, columns, names, recipe)
        return prompt, columns["prompt"]
    for name in CHAT_COLUMNS:
        if name in columns:
            return read_messages(columns[name], recipe, blocks=anthropic.says_blocks(columns)), columns[name]
    if "instruction" in columns:
        return with_input(columns, recipe), columns["instruction"]
    for name in ("question", "input"):
        if name in columns and isinstance(columns[name].value, str):
            return said("user", columns[name].value, columns[name].path), columns[name]
    return None, None


def _refuse_second_prompt(prompt: Chat, columns: Columns, names: tuple[str, str], recipe: Recipe) -> None:
    """Messages beside a prompt must be the prompt, or begin with it: often they are the chosen conversation."""
    for name in CHAT_COLUMNS:
        if name not in columns or columns["prompt"].mapped:
            continue
        beside = read_messages(columns[name], recipe)
        if beside.messages[: len(prompt.messages)] != prompt.messages and not _opens_with(beside, prompt):
            raise RecordError(
                f"two readings: the prompt in prompt, and another in {name}, and they say different things. Take one "
                f"away: --map {name}=ignore or --map prompt=ignore",
                reason="ambiguous_shape",
            )


def _whole(prompt: Chat | None, at: Column | None, side: Column, columns: Columns, recipe: Recipe) -> Chat:
    """The whole conversation of one side."""
    if prompt is None or at is None:
        if isinstance(side.value, str) and not transcripts.is_transcript(side.value, recipe) and not _is_json(side):
            raise RecordError(
                f"{json_path(side.path)} is text, and no column holds its prompt. Where a prompt ends is never guessed "
                "from characters: name its column with --map NAME=prompt, or give messages",
                reason="no_prompt",
            )
        return read_messages(side, recipe, blocks=anthropic.says_blocks(columns))
    text = isinstance(side.value, str)
    if text and transcripts.is_transcript(side.value, recipe):
        whole = read_messages(side, recipe)
        if whole.messages[: len(prompt.messages)] == prompt.messages:
            return whole  # it begins with the prompt; else it is an answer that looks like a transcript
    if text and (isinstance(at.value, str) or not _is_json(side)):
        return joined(at, prompt, answer_of(side, recipe))
    answer = read_messages(side, recipe, blocks=anthropic.says_blocks(columns))
    if not answer.messages:
        raise RecordError(f"{json_path(side.path)} has no messages", reason="empty_side")
    if answer.messages[: len(prompt.messages)] == prompt.messages or _opens_with(answer, prompt):
        return answer
    role = answer.messages[0]["role"]
    if role in ("assistant", "tool") or (prompt.messages and prompt.messages[-1]["role"] in ("assistant", "tool")):
        return joined(at, prompt, answer)
    raise RecordError(
        f"{json_path(side.path)} begins with a message of role {role!r} that is not the prompt's, so it is not clear "
        f"what it answers. Take the prompt's column away if it is another text: --map {at.path[0]}=ignore",
        reason="ambiguous_shape",
    )


def _opens_with(answer: Chat, prompt: Chat) -> bool:
    """Does the conversation begin with this prompt of one user message, perhaps behind a system message? Spaces around
    it are no difference."""
    if [message["role"] for message in prompt.messages] != ["user"]:
        return False
    first = next((message for message in answer.messages if message["role"] != "system"), None)
    one, two = prompt.messages[0].get("content"), None if first is None else first.get("content")
    same = isinstance(one, str) and isinstance(two, str) and one.strip() == two.strip()
    return first is not None and first["role"] == "user" and same


def _is_json(column: Column) -> bool:
    """Is this string the JSON text of messages?"""
    if column.value.lstrip()[:1] not in ("[", "{"):
        return False
    try:
        value = parse(column.value)
    except RecordError:
        return False
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(isinstance(entry, dict) and ("role" in entry or "from" in entry) for entry in entries)


# -- scores


def scores_of(columns: Columns) -> tuple[float | None, float | None]:
    """The scores of the chosen and of the rejected side."""
    for names in SCORE_COLUMNS:
        if all(name in columns for name in names):
            chosen, rejected = (score_in(columns[name].value, columns[name]) for name in names)
            return chosen, rejected
    if "margin" in columns:
        return score_in(columns["margin"].value, columns["margin"]), 0.0
    return None, None


def score_in(value: Json, column: Column) -> float:
    """A finite number. RecordError bad_score."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong_type(value, column.path, "a finite number (a score)", "bad_score")
    if abs(value) > MAX_SCORE:
        raise wrong_type(value, column.path, f"a score of at most {MAX_SCORE:g}", "bad_score")
    return float(value)
