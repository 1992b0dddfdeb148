"""Control tokens in the text that a template writes by itself, and comparing such texts without cutting one in two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MARKER_LIKE = re.compile(r"<[^<>\s]+>|<｜[^<>]+｜>|\[/?[A-Z_]+\]|\[\|[^\[\]|\s]+\|\]|[\[\]][\w!]*~[\w!]*[\[\]]")
"""What looks like a control token when no tokenizer says which strings are."""

REMEMBERED_TEXTS, REMEMBERED_LENGTH = 4096, 256
"""Literal texts whose analysis is kept, and the longest of them: templates write the same few again and again."""


class ControlTokens:
    """The strings that the tokenizer knows as single tokens; without any, what looks like one."""

    def __init__(self, tokens: Sequence[str], named: Iterable[str]) -> None:
        """`named` are special tokens, which count whatever they look like where there are no `tokens`."""
        words = sorted({token for token in tokens if token.strip()}, key=lambda token: (-len(token), token))
        if words:
            self._pattern = re.compile("|".join(map(re.escape, words)))
        else:
            known = sorted({token for token in named if token.strip()}, key=lambda token: (-len(token), token))
            self._pattern = re.compile("|".join([*map(re.escape, known), MARKER_LIKE.pattern]))
        self._found: dict[str, list[tuple[int, int, str]]] = {}

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, token) of the control tokens in literal text, left to right."""
        found = self._found.get(text)
        if found is None:
            found = [(match.start(), match.end(), match.group()) for match in self._pattern.finditer(text)]
            if len(text) <= REMEMBERED_LENGTH:
                if len(self._found) >= REMEMBERED_TEXTS:
                    self._found.clear()
                self._found[text] = found
        return found

    def markers(self, text: str) -> list[tuple[int, int, str]]:
        """Control tokens, or what looks like them where the tokenizer knows none."""
        return self.find(text) or [(match.start(), match.end(), match.group()) for match in MARKER_LIKE.finditer(text)]

    def is_closed_block(self, text: str) -> bool:
        """Is this an opening and a closing marker, with at most literal words between them?"""
        text = text.strip()
        found = self.markers(text)
        return len(found) == 2 and found[0][0] == 0 and found[1][1] == len(text) and found[0][2] != found[1][2]

    def common_length(self, first: str, second: str) -> int:
        """Length of the common prefix, not ending inside a control token of either."""
        length = len(common_prefix(first, second))
        for text in (first, second):
            for start, end, _ in self.find(text):
                if start < length < end:
                    length = start
        return length

    def common_lengths(self, first: str, second: str) -> tuple[int, int]:
        """How much of each text the other begins with too when white space does not count, and the white space after
        it that both have; neither ends inside a control token."""
        inside = [{at for start, end, _ in self.find(text) for at in range(start + 1, end)} for text in (first, second)]
        best = (0, 0)
        i = j = 0
        while i < len(first) and j < len(second):
            if first[i] == second[j]:
                i, j = i + 1, j + 1
                if not first[i - 1].isspace() and i not in inside[0] and j not in inside[1]:
                    best = (i, j)
            elif first[i].isspace():
                i += 1
            elif second[j].isspace():
                j += 1
            else:
                break
        i, j = best
        same = len(common_prefix(first[i:], second[j:]))
        space = min(same, len(first) - i - len(first[i:].lstrip()))
        return i + space, j + space


def common_prefix(first: str, second: str) -> str:
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first.startswith(second[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return first[:low]
