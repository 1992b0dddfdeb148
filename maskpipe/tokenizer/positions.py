"""Positions in a text: characters as callers count them, bytes of its UTF-8 as everything here does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.errors import RecordError, UsageError
from maskpipe.tokenizer.added_tokens import Occurrence, Owned

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

NO_INT64 = np.zeros(0, np.int64)
NO_INT32 = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Content:
    """The ranges of a text that came from data, in bytes: ascending, not overlapping, none empty."""

    starts: Int64  # [ranges]
    ends: Int64  # [ranges]
    allowed: Sequence[frozenset[str]] | None
    """The control tokens that each range may hold; None where none may hold any."""

    def owned(self) -> Owned | None:
        """For looking things up; None when there is no range."""
        if not len(self.starts):
            return None
        allowed = self.allowed if self.allowed is not None else [frozenset()] * len(self.starts)
        return Owned(self.starts.tolist(), self.ends.tolist(), list(allowed))


NO_CONTENT = Content(NO_INT64, NO_INT64, None)


def utf8(text: str) -> bytes:
    """RecordError (lone_surrogate) for text that is no Unicode."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, which no "
            "tokenizer can encode; repair the record (often half of an escaped emoji) or skip it",
            reason="lone_surrogate",
        ) from None


def byte_positions(text: str, raw: bytes, cuts: Sequence[int]) -> list[int]:
    """Ascending character positions of a text as byte positions of its UTF-8; UsageError where they make no sense."""
    places = list(cuts)
    for before, cut in zip([0, *places], places, strict=False):
        if not before <= cut <= len(text):
            raise UsageError(f"cuts must ascend inside the text of {len(text)} characters; got {cut} after {before}")
    if len(raw) != len(text):
        places = _core.char_to_byte(raw, np.array(places, np.int64)).tolist()
    return sorted(set(places))


def content_in_bytes(text: str, raw: bytes, content: Sequence[tuple[int, int, frozenset[str] | None]]) -> Content:
    ranges = sorted(((start, end, allowed or frozenset()) for start, end, allowed in content if start != end))
    positions = np.array([position for start, end, _ in ranges for position in (start, end)], np.int64)
    if len(positions) and (np.any(np.diff(positions) < 0) or positions[0] < 0 or positions[-1] > len(text)):
        raise UsageError(f"content ranges overlap, are reversed or leave the text of {len(text)} characters")
    if len(raw) != len(text):
        positions = _core.char_to_byte(raw, positions)
    return Content(positions[::2].copy(), positions[1::2].copy(), [allowed for _, _, allowed in ranges])


def in_characters(text: str, raw: bytes, occurrences: list[Occurrence]) -> list[tuple[int, int, str]]:
    """(start, end, token), characters; the occurrences ascend by their core."""
    out = []
    byte = character = 0
    for occurrence in occurrences:
        character += len(raw[byte : occurrence.core_start].decode())
        byte = occurrence.core_start
        size = len(raw[byte : occurrence.core_end].decode())
        out.append((character, character + size, occurrence.token.content))
    return out


def ends_of_offsets(offsets: list[tuple[int, int]], text: str) -> Int64:
    """Byte ends of tokens from character offsets. Text that no token claims goes to the token after it, at the end to
    the last one; tokens that share characters are zero-width until the last of them."""
    characters = []
    reached = 0
    for i, (_, stop) in enumerate(offsets):
        if i + 1 < len(offsets):
            stop = min(stop, offsets[i + 1][0])
        reached = max(reached, stop)
        characters.append(reached)
    if characters:
        characters[-1] = len(text)
    return _core.char_to_byte(text.encode(), np.array(characters, np.int64))
