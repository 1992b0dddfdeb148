"""Where a message's own text stands in a trace, and the literal text beside it."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from maskpipe.roles import Part
from maskpipe.template import origin
from maskpipe.template.render import Leaf, Trace, end_of_inline_reasoning, shown_range


def own_range(trace: Trace, index: int) -> tuple[int, int] | None:
    """From the first to the last character of the message's own text, None when it shows none."""
    place = trace.layout.own.get(index)
    return None if place is None else (trace.origins[place[0]][0], trace.origins[place[1]][1])


def unbroken_range(trace: Trace, index: int) -> tuple[int, int] | None:
    """The same up to the first text of another message after it (a tool's answer may name the function that the turn
    called)."""
    place = trace.layout.own.get(index)
    if place is None:
        return None
    last = place[0]
    for number in range(place[0], place[1] + 1):
        leaf = trace.leaf(trace.origins[number])
        if leaf is not None:
            if leaf.message != index:
                break
            last = number
    return trace.origins[place[0]][0], trace.origins[last][1]


def own_entries(trace: Trace, index: int) -> Iterator[tuple[origin.Origin, Leaf]]:
    """The origins of the message's own text, in order."""
    first, last = trace.layout.own.get(index, (0, -1))
    for entry in trace.origins[first : last + 1]:
        leaf = trace.leaf(entry)
        if leaf is not None and leaf.message == index:
            yield entry, leaf


def shown_characters(trace: Trace, index: int) -> int:
    """How many distinct characters of the message's own text are shown, white space aside."""
    ranges: dict[int, list[tuple[int, int]]] = {}
    for entry, _ in own_entries(trace, index):
        ranges.setdefault(entry[2], []).append(shown_range(entry))
    count = 0
    for source, found in ranges.items():
        text = trace.leaves[source].text
        at = 0
        for start, stop in sorted(found):
            count += sum(map(len, text[max(at, start) : stop].split()))
            at = max(at, stop)
    return count


def has_other_data(trace: Trace, start: int, stop: int, index: int) -> bool:
    """Does own text of other messages (or of none: tools, documents) stand in text[start:stop]?"""
    if stop <= start:
        return False
    leaves = trace.leaves
    for number in range(trace.first_at(start), len(trace.origins)):
        entry = trace.origins[number]
        if entry[0] >= stop:
            break
        if entry[2] >= 0 and leaves[entry[2]].message != index and not leaves[entry[2]].is_role_name:
            return True
    return False


@dataclass(frozen=True)
class Tail:
    """Literal text after a turn's own last character, up to the next data."""

    text: str
    own: int
    """How much of it was printed while the template's loop stood on the turn; all of it where that is not known."""


def literal_tail(trace: Trace, start: int, index: int) -> Tail:
    """The literal text after `start` up to the next data, and how much of it belongs to message `index`."""
    stop = start
    own = 0
    for number in range(trace.first_at(start), len(trace.origins)):
        entry = trace.origins[number]
        if trace.leaf(entry) is not None:
            break
        stop = entry[1]
        if trace.message(entry) == index:
            own = stop - start
    known = origin.scaffold(index) in trace.layout.literal
    return Tail(trace.text[start:stop], own if known else stop - start)


def literal_before(trace: Trace, index: int) -> tuple[int, int]:
    """The literal text before the first own text of a message; of one that shows none, before the next data."""
    data = trace.layout.data
    at = bisect.bisect_left(trace.layout.peaks, index)
    start = trace.origins[data[at - 1]][1] if at else 0
    return start, trace.origins[data[at]][0] if at < len(data) else len(trace.text)


def end_of_data(trace: Trace) -> int:
    """Where the last data of a text ends."""
    data = trace.layout.data
    return trace.origins[data[-1]][1] if data else 0


def shows_reasoning(trace: Trace, index: int) -> bool:
    """Is reasoning of the message shown, be it a field of its own or inside the content?"""
    return any(
        leaf.part is Part.REASONING or shown_range(entry)[0] < end_of_inline_reasoning(leaf)
        for entry, leaf in own_entries(trace, index)
    )


def glued_to(prompt: Trace, alone: Trace, start: int) -> Trace:
    """The prompt followed by what `alone` has from `start` on."""
    shift = len(prompt.text)
    tail = tuple((a + shift, b + shift, source, c, d) for a, b, source, c, d in alone.cut(start, len(alone.text)))
    return Trace(prompt.text + alone.text[start:], prompt.origins + tail, alone.leaves, alone.reprs, alone.roles)
