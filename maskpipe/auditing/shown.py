"""A rendered text, and for each of its characters the character of the data that it came from.

Plain and dark text stand side by side. A stand-in says by itself what it came from; what had to stay as it is is placed
by its neighbours; what the template wrote was marked, or is what remains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.exchange import (
    BLANK_CODES,
    FENCE,
    FENCE_END,
    MARKUP,
    Bool,
    CannotProveError,
    Data,
    Int32,
    UInt32,
)
from maskpipe.auditing.marked import ANY_TEXT, Marked
from maskpipe.roles import Part

Int64 = npt.NDArray[np.int64]

_FAR = 80
"""How far behind its key a boolean is looked for."""
_WHITE = np.array([chr(code).isspace() for code in range(0x3002)])


class Shown:
    """One rendered text and where each of its n characters came from."""

    def __init__(
        self, text: str, leaf: Int32, offset: Int32, loop: Int32, stands: Bool, written: Bool, sure: Bool, data: Data
    ) -> None:
        self.text = text
        self.leaf = leaf  # [n] index in data.leaves, -1 for text of the template
        self.offset = offset  # [n] character of the leaf's text, -1
        self.loop = loop  # [n] the message that the template's loop stood on, -1
        self.stands = stands  # [n] known by a stand-in of its own; of the template's text, a role's name
        self.written = written  # [n] known by a mark to be written by the template
        self.sure = sure  # [n] nothing but this: not placed by neighbours alone, not printed after a loop had gone on
        self.data = data

    def __len__(self) -> int:
        return len(self.text)

    def cut(self, start: int, stop: int) -> Shown:
        at = slice(start, stop)
        return Shown(
            self.text[at], self.leaf[at], self.offset[at], self.loop[at], self.stands[at], self.written[at],
            self.sure[at], self.data,
        )  # fmt: skip

    def followed_by(self, other: Shown) -> Shown:
        """Both texts as one. CannotProveError where neither's exchange knows all that stands in the other."""
        if other.data is not self.data:
            if (mine := other._of(self.data)) is not None:
                return self.followed_by(mine)
            if (mine := self._of(other.data)) is not None:
                return mine.followed_by(other)
            raise CannotProveError("two renders show parts of the data that no one exchange tells apart")

        def both(name: str) -> Any:
            return np.concatenate([getattr(self, name), getattr(other, name)])

        leaf, offset, loop, stands, written, sure = map(both, ("leaf", "offset", "loop", "stands", "written", "sure"))
        return Shown(self.text + other.text, leaf, offset, loop, stands, written, sure, self.data)

    def _of(self, data: Data) -> Shown | None:
        """The same in the numbers of another exchange of the same data; None where that has no stand-ins for some."""
        numbers = {leaf.path: k for k, leaf in enumerate(data.leaves)}
        table = np.array([*(numbers.get(leaf.path, -2) for leaf in self.data.leaves), -1], np.int32)
        leaf = table[self.leaf]
        if (leaf == -2).any():
            return None
        return Shown(self.text, leaf, self.offset, self.loop, self.stands, self.written, self.sure, data)

    @cached_property
    def messages(self) -> Int32:
        """[n] the message whose own text a character is; -1 for data of none, -2 for text of the template."""
        return np.where(self.leaf >= 0, self.data.leaf_messages[self.leaf], np.int32(-2))

    def own(self, message: int) -> Int32:
        """Positions of the characters that are the message's own text, ascending."""
        return np.flatnonzero(self.messages == message).astype(np.int32)

    @cached_property
    def doubtful(self) -> Bool:
        """[n] the characters that have a second reading: placed by their neighbours alone, printed by a loop that had
        gone on, or the same as data that could not be exchanged where nothing says that the template wrote them."""
        out = ~self.sure
        unsaid = (self.leaf < 0) & ~self.written
        if unsaid.any():
            for word in {leaf.text for leaf in self.data.unexchanged}:
                for found in re.finditer(re.escape(word), self.text, re.IGNORECASE):
                    at = slice(found.start(), found.end())
                    out[at] |= unsaid[at]
        return out

    def may_be(self, at: int, role: int, part: int, message: int) -> bool:
        """Is there a second reading of the character at `at`, by which it has these facts?"""
        if not self.doubtful[at]:
            return False
        if not self.sure[at] and part == Part.SCAFFOLD:
            return True
        if self.leaf[at] >= 0 or self.written[at]:
            return False
        for leaf in self.data.unexchanged:
            size = len(leaf.text)
            same = (leaf.role, leaf.part, leaf.message) == (role, part, message)
            same &= part != Part.SCAFFOLD or self.loop[at] < 0  # a role's name that is printed outside of all loops
            if same and leaf.text.casefold() in self.text[max(0, at - size + 1) : at + size].casefold():
                return True
        return False


def match(
    plain: str, dark: str, ends: list[int], loops: list[int], data: Data, marked: Marked, marks: int
) -> Shown | None:
    """The provenance, or None where the dark text, exchanged back, is not the plain one."""
    seen, bounds, fences = _without_fences(dark, ends)
    size = len(plain)
    if len(seen) != size:
        return None
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
    number = seen.astype(np.int64) - data.first
    stands = (number >= 0) & (number < len(data.characters))
    number[~stands] = 0
    back, own, tagged, messages = marked.meant(seen)
    if len(data.characters):
        back = np.where(stands, data.characters[number], back)
    blank = np.zeros(size, bool)
    different = np.flatnonzero(back != codes)
    numbers = np.zeros(size, bool)
    if len(different):
        blank, rest = _blanks(codes, seen, different, data)
        if data.numbers and len(rest):
            numbers[rest] = True
            rest = rest[~(_is_digit(codes[rest]) & _is_digit(back[rest]))]
        for at in rest.tolist():
            if not (stands[at] or own[at] or tagged[at]) or chr(back[at]).casefold() != plain[at].casefold():
                return None
    leaf = np.where(stands, data.of[number] if len(data.of) else -1, -1).astype(np.int32)
    place = np.where(stands, number, np.where(own, -2, -1))
    weak = np.zeros(size, bool)
    if numbers.any() and not _place_numbers(plain, back, numbers, place, leaf, weak, data):
        return None
    if len(fences):
        _place_fenced(plain, fences, np.flatnonzero(stands), place, leaf, data)
    _fill(codes, plain, place, leaf, weak, blank, data)
    if data.switches:
        _place_switches(plain, place, leaf, data)
    lone = np.flatnonzero(blank & (place == -1))
    if len(lone):
        _place_blanks(plain, seen, lone, place, leaf, weak, data)
    offset = np.where(leaf >= 0, place - data.starts[leaf] if len(data.starts) else -1, -1).astype(np.int32)
    loop = np.where(tagged, messages, np.repeat(np.array(loops, np.int32), np.diff(bounds, prepend=0))).astype(np.int32)
    sure = ~weak
    names = data.role_names[leaf] & (leaf >= 0)
    if names.any():  # whose turn it is says the template, in the words of the data
        loop[names], own = data.leaf_messages[leaf[names]], own | names
        leaf[names], offset[names] = -1, -1
    if marked.moved_in_macro:
        sure &= (leaf >= 0) | tagged | ((marks == ANY_TEXT) & (own | (codes < 128)))
    return Shown(plain, leaf, offset, loop, stands, own, sure, data)


def _without_fences(dark: str, ends: list[int]) -> tuple[UInt32, Int64, list[tuple[int, int]]]:
    """The text without its fences, its pieces' ends in it, and (position, which) of the fences."""
    seen = np.frombuffer(dark.encode("utf-32-le", "surrogatepass"), np.uint32)
    bounds = np.array(ends, np.int64)
    fence = (seen >= FENCE) & (seen < FENCE_END)
    if not fence.any():
        return seen, bounds, []
    kept = np.concatenate(([0], np.cumsum(~fence)))
    at = np.flatnonzero(fence)
    found = list(zip(kept[at].tolist(), (seen[at] - np.uint32(FENCE)).tolist(), strict=True))
    return seen[~fence], kept[bounds], found


def _place_fenced(
    plain: str, fences: list[tuple[int, int]], stands: Int64, place: Int64, leaf: Int32, data: Data
) -> None:
    """Places what stands between a fence of a leaf and its nearest stand-in, or its other fence."""
    for k, (at, which) in enumerate(fences):
        own = which // 2
        if own not in data.fences:
            continue
        low, text = int(data.starts[own]), data.leaves[own].text
        first, last = data.fences[own]
        if which % 2 == 0:
            begin = at
            behind = int(np.searchsorted(stands, at))
            end, stop = (int(stands[behind]), 0) if behind < len(stands) else (len(plain) + 1, 0)
            stop = int(place[end]) - low if end < len(plain) and leaf[end] == own else -1
            if k + 1 < len(fences) and fences[k + 1][1] == which + 1 and fences[k + 1][0] <= end:
                end, stop = fences[k + 1][0], last
            start = first
        else:
            end, stop = at, last
            before = int(np.searchsorted(stands, at)) - 1
            begin = int(stands[before]) + 1 if before >= 0 and leaf[stands[before]] == own else -1
            start = int(place[begin - 1]) - low + 1 if begin > 0 else -1
        if begin < 0 or start < 0 or stop <= start or not (place[begin:end] == -1).all():
            continue
        said, meant = plain[begin:end], text[start:stop]
        if said == meant:
            place[begin:end] = np.arange(low + start, low + stop)
            leaf[begin:end] = own
        elif said in _escaped(meant):
            place[begin:end], leaf[begin:end] = low + start, own


def _escaped(text: str) -> tuple[str, ...]:
    """The text as JSON and Python write it inside of quotes."""
    return (json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1])


def _blanks(codes: UInt32, seen: UInt32, different: Int64, data: Data) -> tuple[Bool, Int64]:
    """Which of these are white space of the data that became other white space, and the rest."""
    blank = np.zeros(len(codes), bool)
    if not data.blanks:
        return blank, different
    here = np.isin(seen[different], BLANK_CODES) & _WHITE[np.minimum(codes[different], len(_WHITE) - 1)]
    blank[different[here]] = True
    return blank, different[~here]


def _is_digit(codes: UInt32) -> Bool:
    return (codes >= ord("0")) & (codes <= ord("9"))


def _place_numbers(plain: str, back: UInt32, open_: Bool, place: Int64, leaf: Int32, weak: Bool, data: Data) -> bool:
    """Places the numbers of the data that became other ones. `open_`: the characters in which the texts differ. Are
    all of those in numbers?"""
    dark = back.astype(np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
    done: set[tuple[Any, ...]] = set()
    for number, other in data.numbers:
        own = data.leaves[number]
        if (other, *own[1:]) in done:
            continue
        done.add((other, *own[1:]))
        at = dark.find(other)
        while at >= 0:
            end = at + len(other)
            if (
                plain.startswith(own.text, at)
                and open_[at:end].any()
                and not (dark[at - 1 : at].isdigit() or dark[end : end + 1].isdigit())
            ):
                before = data.leaves[leaf[at]] if leaf[at] >= 0 else own
                weak[at:end] |= before[2:] != own[2:]  # two numbers look alike
                place[at:end] = np.arange(data.starts[number], data.starts[number] + len(other))
                leaf[at:end] = number
            at = dark.find(other, at + 1)
    return not np.any(open_ & _is_digit(back) & (leaf < 0))


def _place_switches(plain: str, place: Int64, leaf: Int32, data: Data) -> None:
    """Places booleans behind their keys: as the only text before the next data that the template did not write."""
    for number, ways in data.switches:
        key = number - 1
        of_key = leaf == key
        for end in (np.flatnonzero(of_key[:-1] & ~of_key[1:]) + 1).tolist():
            behind = np.flatnonzero(place[end : end + _FAR] >= 0)
            stop = end + (int(behind[0]) if len(behind) else _FAR)
            found = [
                at for way in set(ways) for at in _all(plain, way, end, stop) if (place[at : at + len(way)] == -1).all()
            ]
            if len(found) == 1:
                at = slice(found[0], found[0] + len(ways[0]))
                place[at] = np.arange(data.starts[number], data.starts[number] + len(ways[0]))
                leaf[at] = number


def _all(text: str, word: str, start: int, stop: int) -> Iterator[int]:
    at = text.find(word, start, stop)
    while at >= 0:
        yield at
        at = text.find(word, at + 1, stop)


def _place_blanks(plain: str, seen: UInt32, lone: Int64, place: Int64, leaf: Int32, weak: Bool, data: Data) -> None:
    """Places white space of the data that stands beside nothing else of it: which one it is says what it became."""
    free = [(own, number) for own in data.spaces for number in _numbers_of(own, data)]
    for at in lone.tolist():
        before, after = np.flatnonzero(place[:at] >= 0), np.flatnonzero(place[at + 1 :] >= 0)
        near = [(int(before[-1]), 1)] if len(before) else []
        near += [(at + 1 + int(after[0]), -1)] if len(after) else []
        candidates = []
        for beside, step in near:
            numbers, number = _numbers_of(leaf[beside], data), int(place[beside]) + step
            candidates += (
                [
                    (leaf[beside], k)
                    for k in (numbers[number - numbers[0] :] if step > 0 else numbers[: number - numbers[0]][::-1])
                ]
                if numbers[0] <= number <= numbers[-1]
                else []
            )
        fitting = [
            (own, number)
            for own, number in (*candidates, *free)
            if chr(data.characters[number]) == plain[at]
            and number not in place
            and BLANK_CODES[(number - int(data.starts[own]) + (own if own in data.spaces else 0)) % len(BLANK_CODES)]
            == seen[at]
        ]
        weak[at] = not fitting or len({data.leaves[own][2:] for own, _ in fitting}) > 1
        if fitting:
            leaf[at], place[at] = fitting[0]


def _numbers_of(own: Any, data: Data) -> range:
    low = int(data.starts[own])
    return range(low, low + len(data.leaves[own].text))


def _fill(codes: UInt32, plain: str, place: Any, leaf: Int32, weak: Bool, blank: Bool, data: Data) -> None:
    """Places the characters of the data that had to stay as they are, by their neighbours."""
    stands = np.flatnonzero(place >= 0)
    if not len(stands):
        return
    first, last = stands[:-1], stands[1:]
    inside = (leaf[first] == leaf[last]) & (last - first > 1)
    alike = place[last] - place[first] == last - first
    _interpolate(codes, plain, stands, place, leaf, weak, data)
    for a, b in zip(first[inside & ~alike].tolist(), last[inside & ~alike].tolist(), strict=True):
        _fill_escaped(plain, a, b, place, leaf, data)
    edges = np.flatnonzero((leaf[first] != leaf[last]) | (place[last] != place[first] + (last - first)))
    for k in (-1, *edges.tolist()):  # behind the last stand-in of a stretch, and before the first of the next
        if k >= 0:
            _extend(codes, plain, int(stands[k]), 1, place, leaf, weak, blank, data)
        if k + 1 < len(stands):
            _extend(codes, plain, int(stands[k + 1]), -1, place, leaf, weak, blank, data)
    _extend(codes, plain, int(stands[-1]), 1, place, leaf, weak, blank, data)


def _interpolate(codes: UInt32, plain: str, stands: Any, place: Any, leaf: Int32, weak: Bool, data: Data) -> None:
    """Between two stand-ins of one leaf that are as far apart in the text as in the leaf."""
    x = np.arange(len(codes))
    before = np.zeros(len(codes), np.int64)
    before[stands] = stands
    before = np.maximum.accumulate(before)
    after = np.searchsorted(stands, x)
    open_ended = after == len(stands)
    after = stands[np.where(open_ended, 0, after)]
    number = place[before] + x - before
    fits = (place == -1) & ~open_ended & (x > before) & (place[before] >= 0) & (leaf[before] == leaf[after])
    fits &= place[after] - (after - x) == number
    at = np.flatnonzero(fits)
    at = at[data.characters[number[at]] == codes[at]]
    place[at], leaf[at] = number[at], leaf[before[at]]
    if not len(at) or np.any(place == -2):
        return
    markup = {int(before[match.start()]) for match in MARKUP.finditer(plain) if fits[match.start()]}
    if markup:
        weak[at] = np.isin(before[at], sorted(markup))


def _extend(
    codes: UInt32, plain: str, at: int, step: int, place: Any, leaf: Int32, weak: Bool, blank: Bool, data: Data
) -> None:
    """From a stand-in outwards, as long as the text goes on as the leaf does."""
    own = leaf[at]
    low = int(data.starts[own])
    high = low + len(data.leaves[own].text)
    number, x = int(place[at]) + step, at + step
    while 0 <= x < len(codes) and low <= number < high and place[x] == -1:
        escape = _escape_of(chr(data.characters[number]))
        size = len(escape)
        begin = x if step > 0 else x - size + 1
        if size and begin >= 0 and plain[begin : begin + size] == escape and (place[begin : begin + size] == -1).all():
            place[begin : begin + size], leaf[begin : begin + size] = number, own
            number, x = number + step, x + step * size
            continue
        if codes[x] != data.characters[number]:
            return
        space = chr(codes[x]).isspace()
        if space and data.blanks and not blank[x] and _at_edge(data, own, number):
            return  # white space of the data would show another one here
        place[x], leaf[x] = number, own
        weak[x] = not blank[x]
        number, x = number + step, x + step


def _escape_of(char: str) -> str:
    """How JSON writes a character that it cannot write as it is; "" for the others."""
    escape = json.dumps(char, ensure_ascii=False)[1:-1] if char in '"\\' or char < " " else ""
    return escape if len(escape) > 1 else ""


def _at_edge(data: Data, own: int, number: int) -> bool:
    """Does white space alone lie between this character of a leaf and the leaf's nearer end?"""
    text = data.leaves[own].text
    at = number - int(data.starts[own])
    return not text[:at].strip() or not text[at:].strip()


def _fill_escaped(plain: str, a: int, b: int, place: Any, leaf: Int32, data: Data) -> None:
    """Between two stand-ins of one leaf the text is as long as the data with escapes, or something was left out."""
    text = data.leaves[leaf[a]].text
    low = int(data.starts[leaf[a]])
    between = text[place[a] - low + 1 : place[b] - low]
    if not between or place[b] < place[a]:
        return
    shown = plain[a + 1 : b]
    for escaped in _escaped(between):
        if shown == escaped and (place[a + 1 : b] == -1).all():
            place[a + 1 : b] = place[a] + 1
            leaf[a + 1 : b] = leaf[a]
            return
