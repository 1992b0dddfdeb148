"""A chat in one string, with a role name at the beginning of each turn → Chat.

    "\\n\\nHuman: Hi\\n\\nAssistant: Hello"            blank lines before each turn, as in HH-RLHF
    "user: Hi\\nassistant: Hello\\ntool: {}"           each turn on a new line, as in tau-bench

A string is a transcript when it begins, perhaps after an empty line, with `Human:`, `User:`, `Assistant:` or `System:`,
with one of the small names user, assistant, system, tool, or with a name that `--map-role` maps. In a string that
begins with an empty line, turns begin after empty lines only. Else capital names must all follow an empty line, or
none of them may: a transcript of both kinds can be cut in two ways, so it is refused. So is one that calls its turns in
two ways (Human and User, or Assistant and assistant): one of them may be part of what was said. One space after the
colon belongs to the name; everything else is what was said.
"""

from __future__ import annotations

import re
from functools import lru_cache

from maskpipe.chat.conversation import Chat
from maskpipe.chat.fields import role_named
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import Path, json_path

_CAPITAL = {"Human": "user", "User": "user", "Assistant": "assistant", "System": "system"}
_SMALL = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}
_SPELLINGS = {**_CAPITAL, **_SMALL}


def is_transcript(text: str, recipe: Recipe) -> bool:
    """Does the string begin as a transcript does?"""
    return _marker(tuple(recipe.roles)).match(text, len(text) - len(text.lstrip("\n"))) is not None


def is_prompt(text: str, recipe: Recipe) -> bool:
    """Is this a transcript in which the assistant is to speak next?"""
    return text.removesuffix(" ").endswith("\n\nAssistant:") and is_transcript(text, recipe)


def read_transcript(text: str, path: Path, recipe: Recipe, *, prompt: bool = False) -> Chat:
    """The turns of a transcript. A `prompt` may end with the name of who speaks next, which is no turn."""
    marks = list(_marker(tuple(recipe.roles)).finditer(text))
    apart = [text.endswith("\n\n", 0, mark.start()) or mark.start() == 0 for mark in marks]
    if text.startswith("\n\n"):
        marks = [mark for mark, own in zip(marks, apart, strict=True) if own]
        blank = True
    else:
        blank = all(apart)
        if any(apart[1:]) and not blank and marks[0][1] in _CAPITAL:
            mark = marks[apart.index(False)]
            raise RecordError(
                f"{json_path(path)}: an ambiguous transcript: {mark[1]!r} at character {mark.start()} follows a line "
                "break, others follow an empty line. Is it a turn, or part of what was said? Give the chat as messages",
                reason="ambiguous_transcript",
            )
    _refuse_two_ways(marks, path, recipe)
    chat = Chat()
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        end = len(text) if following is None else following.start() - (2 if blank else 1)
        start = mark.end()
        role = role_named(mark[1], _SPELLINGS, path, recipe)
        if following is None and role == "assistant" and prompt and not text[start:]:
            return chat
        if following is None and role == "assistant" and text.endswith(":") and start == len(text):
            raise RecordError(
                f"{json_path(path)}: the transcript ends with {mark[1]}: and nothing after it: it is a prompt, and the "
                "answer is missing. Map the column to prompt and the answer's to completion",
                reason="bad_transcript",
            )
        said = text[start:end]
        if role == "assistant" and said == "None" and following is not None and following[1].lower() == "tool":
            raise RecordError(
                f"{json_path(path)}: 'assistant: None' at character {mark.start()} stands where the assistant called a "
                "tool, and the call itself is not there, so neither it nor what follows can be trained as the model "
                "would say it. Use data with the calls",
                reason="call_not_shown",
            )
        chat.add({"role": role, "content": said}, (*path, start, end))
    return chat


def _refuse_two_ways(marks: list[re.Match[str]], path: Path, recipe: Recipe) -> None:
    """Names that no one transcript uses together, those apart that the recipe maps."""
    firsts: dict[str, re.Match[str]] = {}
    for mark in marks:
        if mark[1] not in recipe.roles:
            firsts.setdefault(mark[1], mark)
    small, capital = [name for name in firsts if name in _SMALL], [name for name in firsts if name in _CAPITAL]
    if not (small and capital) and not {"Human", "User"} <= firsts.keys():
        return
    one = next(iter(firsts))
    clashing = {"Human", "User"} if not (small and capital) else set(capital if one in small else small)
    two = next(name for name in firsts if name in clashing and name != one)
    raise RecordError(
        f"{json_path(path)}: an ambiguous transcript: turns are called {one!r}, and {two!r} at character "
        f"{firsts[two].start()}. Is it a turn, or part of what was said? Give the chat as messages",
        reason="ambiguous_transcript",
    )


@lru_cache
def _marker(mapped: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(map(re.escape, sorted({*_SPELLINGS, *mapped}, key=len, reverse=True)))
    return re.compile(rf"^({names}):(?: |$)", re.MULTILINE)
