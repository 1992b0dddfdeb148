"""Text that a terminal and a page can show, whatever is in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from maskpipe.tokenizer import Tokenizer


LINE_BREAK = "↵"
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    """The text with every control, format and unassigned character made visible, so that it can do nothing to a
    terminal and nothing hides: a line break is ↵, a tab ⇥, ESC ␛, U+202E <U+202E>."""
    return "".join(map(visible_character, text))


def visible_character(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    code = ord(character)
    if character == "\n":
        return LINE_BREAK
    if character == "\t":
        return "⇥"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) == "Zs":
        return "␣" if character != "\u00a0" else "⍽"
    return f"<U+{code:04X}>"


def token_texts(ids: npt.NDArray[np.int32], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The text of each token, and "". Tokens with parts of characters share a text, with their place in it: "1/3"."""
    out: list[tuple[str, str]] = []
    for start, stop in characters(ids, tokenizer):
        text, size = tokenizer.decode(ids[start:stop]), stop - start
        out += [(text, f"{k + 1}/{size}" if size > 1 else "") for k in range(size)]
    return out


def characters(ids: npt.NDArray[np.int32], tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    """The smallest groups of tokens [start, stop) that are whole characters; bytes that are no UTF-8 stay alone."""
    start = 0
    while start < len(ids):
        stop, raw = start, b""
        while stop < min(start + 8, len(ids)):
            raw += tokenizer.token_bytes(int(ids[stop]))
            stop += 1
            try:
                raw.decode()
                break
            except UnicodeDecodeError:
                continue
        else:
            stop = start + 1
        yield start, stop
        start = stop
