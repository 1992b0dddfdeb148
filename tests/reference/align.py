"""What csrc/align.h promises, the slow way: byte by byte, and by trying everything."""

from __future__ import annotations

from collections.abc import Sequence


def find(strings: Sequence[bytes], text: bytes) -> list[tuple[int, int]]:
    """(start, index of the string), longest first at equal starts."""
    hits = [
        (start, -len(string), i)
        for start in range(len(text))
        for i, string in enumerate(strings)
        if text.startswith(string, start)
    ]
    return [(start, i) for start, _, i in sorted(hits)]


def spellings(token: bytes, mark: bytes) -> list[bytes]:
    """Every way a token may stand in the text: each of its spaces as a space or as the mark."""
    out = [b""]
    for byte in token:
        choices = [bytes([byte])] + ([mark] if mark and byte == ord(" ") else [])
        out = [start + choice for start in out for choice in choices]
    return out


def piece_ends(tokens: Sequence[bytes], text: bytes, prefix_space: bool, mark: bytes) -> list[int] | None:
    """Ends of tokens that print exactly `text`, or a space and then the text; None when they do not."""

    def walk(tokens: Sequence[bytes], at: int) -> list[int] | None:
        if not tokens:
            return [] if at == len(text) else None
        for spelling in spellings(tokens[0], mark):
            if text.startswith(spelling, at):
                rest = walk(tokens[1:], at + len(spelling))
                if rest is not None:
                    return [at + len(spelling), *rest]
        return None

    ends = walk(tokens, 0)
    if ends is None and prefix_space and tokens and tokens[0].startswith(b" "):
        ends = walk([tokens[0][1:], *tokens[1:]], 0)
    return ends


def touched(token_ends: Sequence[int], span_ends: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) span of each token."""
    span_of_byte = [i for i, (a, b) in enumerate(zip([0, *span_ends], span_ends, strict=False)) for _ in range(a, b)]
    wide = [i for i, (a, b) in enumerate(zip([0, *span_ends], span_ends, strict=False)) if a < b]
    out = []
    for start, end in zip([0, *token_ends], token_ends, strict=False):
        if start < end:
            out.append((min(span_of_byte[start:end]), max(span_of_byte[start:end])))
        else:
            at = span_of_byte[start] if start < len(span_of_byte) else wide[-1] if wide else 0
            out.append((at, at))
    return out


def char_to_byte(text: str, positions: Sequence[int]) -> list[int]:
    return [len(text[:position].encode()) for position in positions]
