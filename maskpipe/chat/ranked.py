"""Several answers to one prompt, with ranks or scores → pairs of Chats, each with its Side.

    {"prompt": …, "completions": [{"completion": …, "score": 4.5}, {"completion": …, "score": 2}]}     also `responses`,
    {"instruction": …, "completions": [{"response": …, "overall_score": 7.5}, …]}                      `answers`
    {"context": [messages], "completions": [{"rank": 0, "completion": [messages]}, …]}
    {"prompt": …, "completions": ["…", "…"], "scores": [4.5, 2]}                                       also `ranks`, …

Ranks are best at the least number, scores at the greatest. Which pairs a list makes the recipe says (ranked_pairs):
best_worst, the first answer of the best rank with the first of the worst; adjacent, each rank's first answer with the
next rank's; all, every two of unlike rank. Answers of one rank make no pair; what is left out is counted
(ranked_answers_tied, ranked_answers_unused).
"""

from __future__ import annotations

import copy
import itertools
import math

from maskpipe.chat.columns import (
    COMPLETIONS_COLUMNS,
    RANK_LISTS,
    SCORE_LISTS,
    Column,
    Columns,
    first,
    parsed,
    wrong_type,
)
from maskpipe.chat.conversation import Chat, Json
from maskpipe.chat.messages import read_messages
from maskpipe.chat.pairs import MAX_SCORE, paired
from maskpipe.chat.prompts import ANSWER_KEYS, answer_of, joined, prompt_of, with_input
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import Path, json_path

LISTS = (*COMPLETIONS_COLUMNS, "answers")
RANK_KEYS = ("rank", "ranking")
SCORE_KEYS = ("score", "overall_score", "reward", "rating")


def from_ranked(columns: Columns, recipe: Recipe) -> list[Chat] | None:
    """The pairs of a record with a list of answers, chosen before rejected; None where it has no such list.

    RecordError: no_preference, nothing says which is better; all_tied, nothing is better; and those of `paired`."""
    answers = first(columns, LISTS)
    prompt = None if answers is None else _prompt(columns, recipe)
    if answers is None or prompt is None:
        return None
    entries = parsed(answers, "completions")
    if not isinstance(entries, list):
        raise wrong_type(entries, answers.path, "a list of answers")
    places = _places(entries, answers, columns)
    at, before = prompt
    chats = [
        joined(at, before, answer_of(_text(entry, (*answers.path, number)), recipe))
        for number, entry in enumerate(entries)
    ]
    out: list[Chat] = []
    wanted = _which([worse for worse, _ in places], recipe.ranked_pairs)
    for better, worse in wanted:
        one, two = copy.copy(chats[better]), copy.copy(chats[worse])
        try:
            out += paired(one, two, (places[better][1], places[worse][1]))
        except RecordError as error:
            raise RecordError(
                f"answers {better} and {worse} of {json_path(answers.path)}: {error}", error.reason
            ) from None
    if not out:
        raise RecordError(
            f"the {len(entries)} answers of {json_path(answers.path)} have one rank, so none is preferred",
            reason="all_tied",
        )
    used = {number for pair in wanted for number in pair}
    ranks = [worse for worse, _ in places]
    out[0].counts = {
        "ranked_answers_tied": sum(k not in used and ranks.count(rank) > 1 for k, rank in enumerate(ranks)),
        "ranked_answers_unused": sum(k not in used and ranks.count(rank) == 1 for k, rank in enumerate(ranks)),
    }
    return out


def _which(ranks: list[float], method: str) -> list[tuple[int, int]]:
    """The pairs (better, worse) of answers with these ranks, the least the best, as `ranked_pairs` names them."""
    order = sorted(range(len(ranks)), key=lambda number: (ranks[number], number))
    if method == "all":
        return [(a, b) for a, b in itertools.combinations(order, 2) if ranks[a] < ranks[b]]
    heads = [next(group) for _, group in itertools.groupby(order, key=lambda number: ranks[number])]
    pairs = list(itertools.pairwise(heads))
    return pairs if method == "adjacent" else [(heads[0], heads[-1])] if pairs else []


def _prompt(columns: Columns, recipe: Recipe) -> tuple[Column, Chat] | None:
    if "prompt" in columns:
        return columns["prompt"], prompt_of(columns["prompt"], recipe)
    if "instruction" in columns:
        return columns["instruction"], with_input(columns, recipe)
    for name in ("context", "messages", "question"):
        if name in columns and isinstance(columns[name].value, list):
            return columns[name], read_messages(columns[name], recipe)
    return None


def _places(entries: list[Json], answers: Column, columns: Columns) -> list[tuple[float, float | None]]:
    """Of each answer its rank, the least the best, and its score where it has one."""
    for names, sign in ((RANK_LISTS, 1.0), (SCORE_LISTS, -1.0)):
        column = first(columns, names)
        if column is None:
            continue
        values = parsed(column, "numbers")
        if not isinstance(values, list) or len(values) != len(entries):
            raise wrong_type(values, column.path, f"a list of {len(entries)} numbers, one per answer", "bad_score")
        numbers = [_number(value, (*column.path, number)) for number, value in enumerate(values)]
        return [(sign * number, number if sign < 0 else None) for number in numbers]
    out = []
    for number, entry in enumerate(entries):
        path = (*answers.path, number)
        keys = entry.keys() if isinstance(entry, dict) else ()
        rank = next((_number(entry[key], (*path, key)) for key in RANK_KEYS if key in keys), None)
        score = next((_number(entry[key], (*path, key)) for key in SCORE_KEYS if key in keys), None)
        if rank is None and score is None:
            raise RecordError(
                f"{json_path(path)} has no rank and no score, so nothing says which answer is preferred. Name a list "
                f"of them with --map NAME=scores, or a key of the answers: {', '.join((*RANK_KEYS, *SCORE_KEYS))}",
                reason="no_preference",
            )
        out.append((-score if rank is None and score is not None else rank or 0.0, score))
    kinds = {"rank" if any(key in entry for key in RANK_KEYS) else "score" for entry in entries}
    if len(kinds) > 1:
        raise RecordError(
            f"{json_path(answers.path)}: some answers have a rank, others only a score", reason="no_preference"
        )
    return out


def _number(value: Json, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong_type(value, path, "a finite number", "bad_score")
    if abs(value) > MAX_SCORE:
        raise wrong_type(value, path, f"a number of at most {MAX_SCORE:g}", "bad_score")
    return float(value)


def _text(entry: Json, path: Path) -> Column:
    """What an answer says: text, messages, or the key that holds them."""
    if not isinstance(entry, dict) or "role" in entry or "from" in entry:
        return Column(entry, path)
    keys = [key for key in (*ANSWER_KEYS, "answer") if key in entry]
    if len(keys) != 1:
        raise RecordError(
            f"{json_path(path)} has the keys {', '.join(map(str, entry))}, so it is not clear which is the answer; one "
            f"of {', '.join((*ANSWER_KEYS, 'answer'))} is expected",
            reason="bad_field",
        )
    return Column(entry[keys[0]], (*path, keys[0]))
