"""Where the stop token of a turn stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskpipe.template.control import ControlTokens, common_prefix
from maskpipe.template.habits import Habits
from maskpipe.template.own_text import Tail, literal_tail
from maskpipe.template.render import Trace


@dataclass(frozen=True)
class Stops:
    """Finds stop tokens in what a template writes after turns."""

    control: ControlTokens
    declared: Sequence[str]
    """The stop tokens that the tokenizer's own files name."""

    def place(
        self, index: int, whole: Trace, after: int, alone: Trace, alone_after: int, habits: Habits
    ) -> tuple[tuple[int, int] | None, str]:
        """Where the stop token of the turn stands in `whole`, and why the turn differs from itself as the last one.
        The turn's own text ends at `after` in `whole` and at `alone_after` in `alone`."""
        tail_alone = literal_tail(alone, alone_after, index)
        tail = tail_alone if alone is whole else literal_tail(whole, after, index)
        place, reason = self.place_in(tail, tail_alone, alone is whole, habits)
        return None if place is None else (after + place[0], after + place[1]), reason

    def place_in(
        self, tail: Tail, tail_alone: Tail, is_last: bool, habits: Habits
    ) -> tuple[tuple[int, int] | None, str]:
        """The same for the literal text after the turn's own text, here and where the turn is last; places in it."""
        last = self._last_stop(tail_alone, habits)
        if is_last:
            return last, ""
        common = self.control.common_length(tail_alone.text, tail.text)
        if last is not None and last[1] <= common:
            return last, ""
        rest = tail.text[common:]
        middle = next(
            ((start, end, token) for start, end, token in self.control.find(rest) if not rest[:start].strip()), None
        )
        if middle is not None and middle[2] not in habits.stops_middle and _begins_with(rest, habits.header):
            middle = None  # another turn of the assistant begins: nothing stopped this one
        usual = (*habits.stops_last, *habits.stops_middle, *self.declared)
        if middle is not None and last is None and habits.stops_last and middle[2] not in usual:
            middle = None  # plain answers end with a token of their own: what follows this one is the next header
        if middle is None:
            return None, "" if last is None else "as the last turn it would end with a stop token"
        place = (common + middle[0], common + middle[1])
        if last is None or tail_alone.text[last[0] : last[1]] == middle[2]:
            return place, ""
        return place, f"it ends with {middle[2]!r}, as the last turn with {tail_alone.text[last[0] : last[1]]!r}"

    def inside(self, whole: Trace, start: int, first: int, stop: int, habits: Habits) -> str:
        """A stop token that the template wrote into text[start:stop], a turn whose own text begins at `first`; "" for
        none. What data holds is no stop, and what ends earlier turns may stand between the parts of a turn."""
        final = (*habits.stops_last, *self.declared)
        for token, end in (*((token, stop) for token in final), *((token, first) for token in habits.stops_middle)):
            at = whole.text.find(token, start, end) if token else -1
            while at >= 0:
                covering = whole.origins[whole.first_at(at) : whole.first_at(at + len(token) - 1) + 1]
                if all(whole.leaf(entry) is None for entry in covering):
                    return token
                at = whole.text.find(token, at + 1, end)
        return ""

    def _last_stop(self, tail: Tail, habits: Habits) -> tuple[int, int] | None:
        found = self.control.find(tail.text)
        for tokens in (habits.stops_last, self.declared, habits.stops_middle):
            for start, end, token in found:
                if token in tokens and (tokens is not habits.stops_middle or end <= tail.own):
                    return start, end
        if habits.known and not habits.stops_last:
            return None  # plain answers end without one: the last token here only closes what the turn opened
        own = [(start, end) for start, end, _ in found if end <= tail.own]
        return own[-1] if own else None

    def closing(self, index: int, whole: Trace, after: int, alone: Trace, alone_after: int) -> int:
        """Literal text that closes a turn without a stop token, such as the end of a tool call."""
        tail = literal_tail(whole, after, index)
        closing = common_prefix(literal_tail(alone, alone_after, index).text, tail.text)
        return len(closing[: tail.own].rstrip())


def _begins_with(text: str, header: str) -> bool:
    return bool(header.strip()) and text.lstrip().startswith(header.strip())
