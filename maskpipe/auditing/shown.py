"""A rendered text, and for each of its characters the character of the data that it came from.

Plain and dark text stand side by side. A stand-in says by itself what it came from; what had to stay as it is is placed
by its neighbours; what the template wrote was marked, or is what remains.
"""

from __future__ import annotations

import itertools
import json
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.exchange import BLANKS, MARKUP, Bool, Data, Int32, UInt32
from maskpipe.auditing.marked import ANY_TEXT, Marked
from maskpipe.roles import Part


class Shown:
    """One rendered text and where each of its n characters came from."""

    def __init__(
        self, text: str, leaf: Int32, offset: Int32, loop: Int32, stands: Bool, written: Bool, sure: Bool, data: Data
    ) -> None:
        self.text = text
        self.leaf = leaf  # [n] index in data.leaves, -1 for text of the template
        self.offset = offset  # [n] character of the leaf's text, -1
        self.loop = loop  # [n] the message that the template's loop stood on, -1
        self.stands = stands  # [n] known by a stand-in of its own
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
        def both(name: str) -> Any:
            return np.concatenate([getattr(self, name), getattr(other, name)])

        leaf, offset, loop, stands, written, sure = map(both, ("leaf", "offset", "loop", "stands", "written", "sure"))
        return Shown(self.text + other.text, leaf, offset, loop, stands, written, sure, self.data)

    @cached_property
    def messages(self) -> Int32:
        """[n] the message whose own text a character is; -1 for data of none, -2 for text of the template."""
        return np.where(self.leaf >= 0, self.data.leaf_messages[self.leaf], np.int32(-2))

    def own(self, message: int) -> Int32:
        """Positions of the characters that are the message's own text, ascending."""
        return np.flatnonzero(self.messages == message).astype(np.int32)

    def may_be(self, at: int, role: int, part: int, message: int) -> bool:
        """Is there a second reading of the character at `at`, by which it has these facts?"""
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
    if len(plain) != len(dark):
        return None
    size = len(plain)
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
    seen = np.frombuffer(dark.encode("utf-32-le", "surrogatepass"), np.uint32)
    number = seen.astype(np.int64) - data.first
    stands = (number >= 0) & (number < len(data.characters))
    number[~stands] = 0
    back, own, tagged, messages = marked.meant(seen)
    if len(data.characters):
        back = np.where(stands, data.characters[number], back)
    blank = np.zeros(size, bool)
    different = np.flatnonzero(back != codes)
    if len(different):
        blank, rest = _blanks(plain, dark, different, data)
        for at in rest:
            if not (stands[at] or own[at] or tagged[at]) or chr(back[at]).casefold() != plain[at].casefold():
                return None
    leaf = np.where(stands, data.of[number] if len(data.of) else -1, -1).astype(np.int32)
    place = np.where(stands, number, np.where(own, -2, -1))
    weak = np.zeros(size, bool)
    _fill(codes, plain, place, leaf, weak, blank, data)
    offset = np.where(leaf >= 0, place - data.starts[leaf] if len(data.starts) else -1, -1).astype(np.int32)
    sizes = [end - start for start, end in itertools.pairwise([0, *ends])]
    loop = np.where(tagged, messages, np.repeat(np.array(loops, np.int32), sizes)).astype(np.int32)
    sure = ~weak
    if marked.moved_in_macro:
        sure &= (leaf >= 0) | tagged | ((marks == ANY_TEXT) & (own | (codes < 128)))
    return Shown(plain, leaf, offset, loop, stands, own, sure, data)


def _blanks(plain: str, dark: str, different: npt.NDArray[np.int64], data: Data) -> tuple[Bool, list[int]]:
    """Which of these are white space of the data that became other white space, and the rest."""
    blank = np.zeros(len(plain), bool)
    rest: list[int] = []
    for at in different.tolist():
        if data.blanks and dark[at] in BLANKS and plain[at].isspace():
            blank[at] = True
        else:
            rest.append(at)
    return blank, rest


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
    for escaped in (json.dumps(between, ensure_ascii=False)[1:-1], json.dumps(between)[1:-1], repr(between)[1:-1]):
        if shown == escaped and (place[a + 1 : b] == -1).all():
            place[a + 1 : b] = place[a] + 1
            leaf[a + 1 : b] = leaf[a]
            return
