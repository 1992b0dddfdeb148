"""Which script is a token written in? By the Unicode name of its first letter; what has none is said in one word."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

NO_LETTERS, PIECES, CONTROL, OTHERS = "no letters", "pieces of characters", "control tokens", "others"
"""Digits, punctuation and space; bytes that are no whole character; added control tokens; beyond 255 scripts."""


def scripts_of(tokens: Sequence[bytes], control: frozenset[int]) -> tuple[npt.NDArray[np.uint16], list[str]]:
    """(per id the number of its script, the names by number); at most 256 numbers."""
    names = {NO_LETTERS: 0, PIECES: 1, CONTROL: 2, OTHERS: 3}
    out = np.empty(len(tokens), np.uint16)
    for id, raw in enumerate(tokens):
        name = CONTROL if id in control else _script(raw)
        if name not in names and len(names) < 256:
            names[name] = len(names)
        out[id] = names.get(name, names[OTHERS])
    return out, list(names)


def _script(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode(errors="ignore")
        if not any(map(str.isalpha, text)):
            return PIECES
    return next((_of_letter(letter) for letter in text if letter.isalpha()), NO_LETTERS)


@lru_cache(maxsize=1 << 17)
def _of_letter(letter: str) -> str:
    word = unicodedata.name(letter, OTHERS).split(" ")[0].split("-")[0].lower()
    return {"fullwidth": "latin", "halfwidth": "katakana", "modifier": NO_LETTERS, "mathematical": "latin"}.get(
        word, word
    )
