"""Added tokens in a text: the places where the tokenizers library finds them, and which of them data may write.

    text       a   <|end|>  b    "<|end|>" swallows whitespace (lstrip, rstrip)
    core           ^^^^^^^       its own characters decide who wrote it
    occurrence  ^^^^^^^^^^^^     the token covers what it swallowed too

The library looks twice: for tokens that are not `normalized` in the raw text, then for the others in the normalised
text between those. Each time the leftmost, then the longest match wins. A token that content may not write is passed
over as if it did not exist. Time O(bytes + hits), memory O(hits).
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import tokenizers

from maskpipe import _core
from maskpipe.tokenizer.vocabulary import AddedToken, Lead

WHITE_SPACE = frozenset(
    character.encode()
    for character in "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
"""Characters with the Unicode property White_Space, in UTF-8: what lstrip and rstrip tokens swallow."""


class Occurrence(NamedTuple):
    """An added token in the text; byte positions."""

    start: int
    end: int
    core_start: int
    core_end: int
    token: AddedToken


@dataclass
class Found:
    """Added tokens of one range of the text, ascending."""

    accepted: list[Occurrence] = field(default_factory=list)
    rejected: list[Occurrence] = field(default_factory=list)
    """Control tokens in content that may not hold them; positions may lie inside each other only in part."""


@dataclass(frozen=True)
class Owned:
    """The byte ranges that came from data, ascending, none empty, and the control tokens that each may hold."""

    starts: list[int]
    ends: list[int]
    allowed: list[frozenset[str]]

    def touches(self, start: int, end: int) -> bool:
        i = bisect_right(self.ends, start)
        return i < len(self.starts) and self.starts[i] < end

    def accepts(self, occurrence: Occurrence) -> bool:
        """Wholly in the template's text, or wholly in one range that may hold it."""
        start, end = occurrence.core_start, occurrence.core_end
        i = bisect_right(self.ends, start)
        if i == len(self.starts) or self.starts[i] >= end:
            return True
        return self.starts[i] <= start and end <= self.ends[i] and occurrence.token.content in self.allowed[i]


Judge = Callable[[Occurrence], bool] | None
"""Whether an occurrence may be what it is; None: always."""


class _Patterns:
    """Strings to look for, and the token that each stands for."""

    def __init__(self, patterns: dict[bytes, AddedToken]) -> None:
        self.tokens = list(patterns.values())
        self.sizes = [len(pattern) for pattern in patterns]
        self.strings = _core.Strings(list(patterns))

    def hits(self, raw: bytes) -> tuple[list[int], list[int]]:
        """(starts, indices): every place where a pattern occurs, longest first at equal starts."""
        if not self.tokens:
            return [], []
        starts, strings = self.strings.find(raw)
        return starts.tolist(), strings.tolist()


class AddedTokens:
    """The added tokens of one tokenizer. `normalizer(lead)` is the library's normaliser there, or None."""

    def __init__(
        self, tokens: Sequence[AddedToken], control: frozenset[str], normalizer: Callable[[Lead], Any | None]
    ) -> None:
        self.control = control
        self.normalizer = normalizer
        whole = normalizer("start") if any(token.normalized for token in tokens) else None
        self.raw = _Patterns({token.content.encode(): token for token in tokens if not token.normalized})
        normalised = {}
        for token in tokens:
            content = token.content if whole is None else whole.normalize_str(token.content)
            if token.normalized and content:
                normalised[content.encode()] = token
        self.normalised = _Patterns(normalised)
        self.rewrites = whole is not None and bool(normalised)


class Scan:
    """One text, and where the strings of added tokens stand in it."""

    def __init__(self, raw: bytes, added: AddedTokens) -> None:
        self.raw = raw
        self._added = added
        self._raw_hits = added.raw.hits(raw)
        self._normalised_hits = added.normalised.hits(raw)

    def may_hold(self, start: int, end: int) -> bool:
        """Whether an added token could begin in raw[start:end]."""
        return self._added.rewrites or any(
            bisect_left(starts, start) < bisect_left(starts, end)
            for starts, _ in (self._raw_hits, self._normalised_hits)
        )

    def find(self, begin: int, end: int, lead: Lead, owned: Owned | None) -> Found:
        """What the library finds in raw[begin:end] taken alone, without what `owned` may not hold."""
        found = Found()
        judge: Judge = None
        if owned is not None:
            control, accepts = self._added.control, owned.accepts

            def judge(occurrence: Occurrence) -> bool:
                return occurrence.token.content not in control or accepts(occurrence)

        _choose(self.raw, self._raw_hits, self._added.raw, begin, end, judge, found)
        if self._added.normalised.tokens:
            for occurrence in list(found.accepted):
                self._find_normalised(begin, occurrence.start, lead, judge, found)
                begin, lead = occurrence.end, "after_token"
            self._find_normalised(begin, end, lead, judge, found)
            found.accepted.sort(key=lambda occurrence: occurrence[:2])
            found.rejected.sort(key=lambda occurrence: occurrence[2:4])
        return found

    def _find_normalised(self, begin: int, end: int, lead: Lead, judge: Judge, found: Found) -> None:
        if begin >= end:
            return
        normalizer = self._added.normalizer(lead) if self._added.rewrites else None
        if normalizer is not None:
            text = self.raw[begin:end].decode()
            normalised = normalizer.normalize_str(text)
            if normalised != text:
                self._find_rewritten(text, normalizer, normalised, begin, judge, found)
                return
        _choose(self.raw, self._normalised_hits, self._added.normalised, begin, end, judge, found)

    def _find_rewritten(
        self, text: str, normalizer: Any, normalised: str, begin: int, judge: Judge, found: Found
    ) -> None:
        """Tokens in rewritten text; positions come back through the library's own alignment."""
        raw = normalised.encode()

        def back(occurrence: Occurrence) -> Occurrence:
            start, end = (len(raw[:position].decode()) for position in occurrence[:2])
            bounds = sorted({0, start, end, len(normalised)})
            ranges = list(pairwise(bounds))
            split = tokenizers.PreTokenizedString(text)
            split.normalize(normalizer.normalize)
            split.split(lambda _, whole: [whole.slice(part) for part in ranges])
            first, last = split.get_splits("original", "char")[ranges.index((start, end))][1]
            inside = text[first:last].rfind(occurrence.token.content)
            core = (first, last) if inside < 0 else (first + inside, first + inside + len(occurrence.token.content))
            places = [begin + len(text[:position].encode()) for position in (first, last, *core)]
            return Occurrence(places[0], places[1], places[2], places[3], occurrence.token)

        here = Found()
        mapped_judge: Judge = None if judge is None else lambda occurrence: judge(back(occurrence))
        _choose(raw, self._added.normalised.hits(raw), self._added.normalised, 0, len(raw), mapped_judge, here)
        found.accepted += map(back, here.accepted)
        found.rejected += map(back, here.rejected)


def _choose(
    raw: bytes, hits: tuple[list[int], list[int]], patterns: _Patterns, begin: int, end: int, judge: Judge, found: Found
) -> None:
    """Adds the hits that the library takes in raw[begin:end]: leftmost, then longest, of those that `judge` accepts."""
    starts, strings = hits
    at = taken = reported = begin
    for i in range(bisect_left(starts, begin), len(starts)):
        start = starts[i]
        if start >= end:
            break
        token = patterns.tokens[strings[i]]
        stop = start + patterns.sizes[strings[i]]
        if start < at or stop > end:
            continue
        alone = not token.single_word or not (_word_before(raw, begin, start) or _word_after(raw, stop, end))
        left = _space_before(raw, begin, start) if token.lstrip else start
        right = _space_after(raw, stop, end) if token.rstrip else stop
        occurrence = Occurrence(max(left, taken), max(right, taken), start, stop, token)
        if judge is not None and not judge(occurrence):
            if alone and stop > reported:
                found.rejected.append(occurrence)
                reported = stop
            continue
        at = stop  # the library does not look again inside a match that is part of a word
        if alone:
            taken = occurrence.end
            found.accepted.append(occurrence)


def _space_before(raw: bytes, begin: int, at: int) -> int:
    """Where the whitespace that ends at `at` begins."""
    while size := next((n for n in (1, 2, 3) if at - n >= begin and raw[at - n : at] in WHITE_SPACE), 0):
        at -= size
    return at


def _space_after(raw: bytes, at: int, end: int) -> int:
    """Where the whitespace that begins at `at` ends."""
    while size := next((n for n in (1, 2, 3) if at + n <= end and raw[at : at + n] in WHITE_SPACE), 0):
        at += size
    return at


def _word_before(raw: bytes, begin: int, at: int) -> bool:
    return at > begin and _is_word(raw[max(begin, at - 4) : at].decode(errors="ignore")[-1])


def _word_after(raw: bytes, at: int, end: int) -> bool:
    return at < end and _is_word(raw[at : min(end, at + 4)].decode(errors="ignore")[0])


def _is_word(character: str) -> bool:
    """Whether it is a word character of Unicode's \\w: alphabetic, mark, decimal digit, connector or joiner."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or character in "\u200c\u200d" or _circled(character)


def _circled(character: str) -> bool:
    """Symbols that are alphabetic: circled and squared letters."""
    return any(
        first <= character <= last
        for first, last in (
            ("\u24b6", "\u24e9"),
            ("\U0001f130", "\U0001f149"),
            ("\U0001f150", "\U0001f169"),
            ("\U0001f170", "\U0001f189"),
        )
    )
