"""The sampled rule once more: what would the model emit, decided from plain renders and what they show of the data.

Written from the rule (the design's §4), without the code of `template/sampled.py`: turn i begins where its prompt
render(messages[:i], add_generation_prompt) ends, and ends with the stop token that the template writes behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskpipe.auditing.exchange import BLANKS_STAY, CannotProveError
from maskpipe.auditing.renders import Renders, Template
from maskpipe.auditing.shown import Shown
from maskpipe.chat import Conversation
from maskpipe.roles import Verdict

_LOOKS_LIKE_A_MARKER = re.compile(
    r"<[^<>\s]+>|<｜[^<>]+｜>|\[/?[A-Z_]+\]|\[\|[^\[\]|\s]+\|\]|[\[\]][\w!]*~[\w!]*[\[\]]"
)
_OPENED_AND_CLOSED = re.compile(r"\s*<([^<>/\s]+)>\s*</\1>\s*")
_WORD = "Qj4wThoughtOfTheProof"
_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "Probe.", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class Turn:
    """An assistant turn in one text; positions are characters."""

    message: int
    verdict: int
    start: int = 0
    stop: int = 0
    stop_token: tuple[int, int] = (-1, -1)
    empty: tuple[int, int] = (-1, -1)
    cut: int = -1
    """Where its prompt ends, if a prompt ends in this text."""


@dataclass(frozen=True)
class Manner:
    """How a template ends plain answers and writes empty reasoning: the same for all conversations."""

    last: str | None
    """The stop token of a plain answer that is last; None where it writes none."""
    middle: str | None
    known: bool
    header: str
    """What both the prompt and history write before a plain answer."""
    empty: tuple[str, ...]
    """What it writes before the content of an answer without reasoning; longest first."""


@dataclass
class Rule:
    """The rule for one template and tokenizer."""

    template: Template
    control: frozenset[str]
    stops: tuple[str, ...]
    _manners: dict[str, Manner] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words = sorted((word for word in self.control if word.strip()), key=len, reverse=True)
        if not words:
            named = {*self.stops, *self.template.special_tokens.values()}
            words = sorted((word for word in named if word.strip()), key=len, reverse=True)
            self._markers = re.compile("|".join([*map(re.escape, words), _LOOKS_LIKE_A_MARKER.pattern]))
        else:
            self._markers = re.compile("|".join(map(re.escape, words)))

    def controls(self, text: str) -> list[tuple[int, int, str]]:
        return [(match.start(), match.end(), match.group()) for match in self._markers.finditer(text)]

    # -- one conversation

    def in_place(self, renders: Renders, index: int) -> Turn:
        """The turn where it stands in the whole conversation."""
        whole = renders.shown(renders.count)
        manner = self.manner(renders.given["kwargs"])
        prompt = renders.plain(index, True)
        alone_text = whole.text if index == renders.count - 1 else renders.plain(index + 1)
        if prompt is None or alone_text is None:
            return _refused(index)
        alone = whole if index == renders.count - 1 else self._alone(renders, index, whole, alone_text)
        if alone.data.strength > BLANKS_STAY and renders.given["messages"][index].get("tool_calls"):
            raise CannotProveError("the template looks at names of called functions, which then cannot be exchanged")
        if whole.text.startswith(prompt) and alone_text.startswith(prompt):
            start = begin = self._behind_own_header(len(prompt), index, alone, manner)
        else:
            shown_prompt = renders.shown(index, True)
            starts = [
                len(prompt) if text.text.startswith(prompt) else self._behind_header(index, shown_prompt, text)
                for text in (whole, alone)
            ]
            if starts[0] is None or starts[1] is None:
                return _refused(index)
            start, begin = starts[0], starts[1]
        exact = start == len(prompt) and whole.text.startswith(prompt)
        return self._turn(index, start, exact, whole, alone, begin, manner)

    def apart(self, renders: Renders, index: int) -> tuple[Shown, Turn] | None:
        """The turn in a document of its own: its prompt, and the turn as the template writes it when it is last. None
        where the turn cannot be told from its history."""
        manner = self.manner(renders.given["kwargs"])
        prompt_text = renders.plain(index, True)
        if prompt_text is None or renders.plain(index + 1) is None:
            return None
        alone = renders.shown(index + 1)
        start: int | None = None
        if alone.text.startswith(prompt_text):
            start = self._behind_own_header(len(prompt_text), index, alone, manner)
        if start == len(prompt_text):
            text = alone
        else:
            prompt = renders.shown(index, True)
            start = self._behind_header(index, prompt, alone) if start is None else start
            if start is None:
                return None
            text = prompt.followed_by(alone.cut(start, len(alone)))
        turn = self._turn(index, len(prompt_text), True, text, text, len(prompt_text), manner)
        if turn.verdict & Verdict.REFUSED:
            return None
        verdict = turn.verdict | int(Verdict.HISTORY_DIFFERS)
        return text.cut(0, turn.stop), Turn(
            index, verdict, turn.start, turn.stop, turn.stop_token, turn.empty, turn.cut
        )

    def _alone(self, renders: Renders, index: int, whole: Shown, text: str) -> Shown:
        """The conversation up to the turn. Where the whole text begins with all that the turn can show of itself, it
        need not be rendered in the dark again."""
        own = whole.own(index)
        data = whole.data
        same = _common(whole.text, text)
        seen = int(np.count_nonzero(whole.stands[:same] & (whole.messages[:same] == index)))
        beside = any(word in text[same:] for word in data.said_beside.get(index, ()))
        if len(own) and own[-1] < same and seen >= data.exchanged[index] > 0 and not beside:
            rest = len(text) - same
            tail = Shown(
                text[same:], np.full(rest, -1, np.int32), np.full(rest, -1, np.int32), np.full(rest, index, np.int32),
                np.zeros(rest, bool), np.zeros(rest, bool), np.ones(rest, bool), data,
            )  # fmt: skip
            return whole.cut(0, same).followed_by(tail)
        return renders.shown(index + 1)

    def _turn(
        self, index: int, start: int, exact: bool, whole: Shown, alone: Shown, begin: int, manner: Manner
    ) -> Turn:
        verdict = 0 if exact else int(Verdict.HISTORY_DIFFERS)
        own = alone.own(index)
        first_own, end_own = (int(own[0]), int(own[-1]) + 1) if len(own) else (-1, -1)
        if len(own) and (end_own <= begin if exact else first_own < begin):
            return _refused(index)
        end = max(begin, end_own)
        shift = _same(whole.text, start, alone.text[begin:end], manner.empty)
        if shift is not None:
            first = start + shift + (max(first_own, begin) - begin if len(own) else 0)
            stop_own = start + shift + end - begin
        else:
            verdict |= int(Verdict.HISTORY_DIFFERS)
            here = _stretch(whole, index)
            if here is not None and here[0] < start:
                return _refused(index)
            first, stop_own = here or (start, start)
        if _holds_other_data(whole, start, stop_own, index):
            return _refused(index)
        if self._stops_inside(whole, start, first, stop_own, manner):
            return _refused(index)
        stop, differs = self._stop(index, whole, stop_own, alone, end, manner)
        if differs:
            verdict |= int(Verdict.HISTORY_DIFFERS)
        if stop is None:
            verdict |= int(Verdict.NO_STOP)
            last = stop_own + (self._closing(index, whole, stop_own, alone, end) if len(own) else 0)
        else:
            last = stop[1]
        if _holds_other_data(whole, stop_own, last, index):
            return _refused(index)
        head = whole.text[start:first] if len(own) else whole.text[start:last]
        empty = next((text for text in manner.empty if head.startswith(text)), "")
        return Turn(
            index, verdict, start, last, stop or (-1, -1), (start, start + len(empty)) if empty else (-1, -1),
            start if exact else -1,
        )  # fmt: skip

    # -- where a turn begins

    def _behind_own_header(self, at: int, index: int, alone: Shown, manner: Manner) -> int:
        """Behind a header that history has and this prompt lacks."""
        header = manner.header.strip()
        own = alone.own(index)
        head = alone.text[at : int(own[0])] if len(own) and own[0] >= at else alone.text[at:]
        if len(own) and own[0] < at:
            head = ""
        if not header or not head.lstrip().startswith(header):
            return at
        behind = len(head) - len(head.lstrip()) + len(header)
        space = manner.header[len(manner.header.rstrip()) :]
        return at + behind + _common(head[behind:], space)

    def _behind_header(self, index: int, prompt: Shown, text: Shown) -> int | None:
        """Behind what the text before the turn and the end of its prompt have in common, and what the prompt supplies
        of the rest; white space apart."""
        begin, end = _literal_before(text, index)
        header = text.text[begin:end]
        data = np.flatnonzero(prompt.leaf >= 0)
        ending = prompt.text[int(data[-1]) + 1 if len(data) else 0 :]
        common, used = self._in_common(header, ending)
        rest, supplied = header[common:], ending[used:]
        overlap = next((k for k in range(min(len(rest), len(supplied)), 0, -1) if supplied.endswith(rest[:k])), 0)
        return begin + common + overlap if common or not header else None

    def _in_common(self, first: str, second: str) -> tuple[int, int]:
        torn = [{k for a, b, _ in self.controls(text) for k in range(a + 1, b)} for text in (first, second)]
        i = j = 0
        best = (0, 0)
        while i < len(first) and j < len(second):
            if first[i] == second[j]:
                i, j = i + 1, j + 1
                if not first[i - 1].isspace() and i not in torn[0] and j not in torn[1]:
                    best = (i, j)
            elif first[i].isspace():
                i += 1
            elif second[j].isspace():
                j += 1
            else:
                break
        i, j = best
        space = 0
        while i + space < len(first) and j + space < len(second) and first[i + space] == second[j + space]:
            if not first[i + space].isspace():
                break
            space += 1
        return i + space, j + space

    # -- where a turn ends

    def _stop(
        self, index: int, whole: Shown, after: int, alone: Shown, alone_after: int, manner: Manner
    ) -> tuple[tuple[int, int] | None, bool]:
        """(the stop token in `whole`, whether the turn ends otherwise than as the last one)."""
        tail, own = _tail(alone, alone_after, index)
        last = self._last_stop(tail, own, manner)
        if alone is whole:
            return (None if last is None else (after + last[0], after + last[1])), False
        here, _ = _tail(whole, after, index)
        common = self._whole_common(tail, here)
        if last is not None and last[1] <= common:
            return (after + last[0], after + last[1]), False
        rest = here[common:]
        found = next(((a, b, word) for a, b, word in self.controls(rest) if not rest[:a].strip()), None)
        if found is not None and found[2] != manner.middle and _begins(rest, manner.header):
            found = None
        usual = (manner.last, manner.middle, *self.stops)
        if found is not None and last is None and manner.last is not None and found[2] not in usual:
            found = None
        if found is None:
            return None, last is not None
        place = (after + common + found[0], after + common + found[1])
        return place, not (last is None or tail[last[0] : last[1]] == found[2])

    def _last_stop(self, tail: str, own: int, manner: Manner) -> tuple[int, int] | None:
        found = self.controls(tail)
        for words, everywhere in (((manner.last,), True), (self.stops, True), ((manner.middle,), False)):
            for start, end, word in found:
                if word in words and (everywhere or end <= own):
                    return start, end
        if manner.known and manner.last is None:
            return None
        inside = [(start, end) for start, end, _ in found if end <= own]
        return inside[-1] if inside else None

    def _whole_common(self, first: str, second: str) -> int:
        size = _common(first, second)
        for text in (first, second):
            for start, end, _ in self.controls(text):
                if start < size < end:
                    size = start
        return size

    def _closing(self, index: int, whole: Shown, after: int, alone: Shown, alone_after: int) -> int:
        here, own = _tail(whole, after, index)
        there, _ = _tail(alone, alone_after, index)
        return len(here[: _common(there, here)][:own].rstrip())

    def _stops_inside(self, whole: Shown, start: int, first: int, stop: int, manner: Manner) -> bool:
        for words, end in (((manner.last, *self.stops), stop), ((manner.middle,), first)):
            for word in words:
                at = whole.text.find(word, start, end) if word else -1
                while at >= 0:
                    if np.all(whole.leaf[at : at + len(word or "")] < 0):
                        return True
                    at = whole.text.find(word or "", at + 1, end)
        return False

    # -- the template's manner

    def manner(self, kwargs: Mapping[str, Any]) -> Manner:
        key = repr(sorted((name, str(value)) for name, value in kwargs.items())) if kwargs else ""
        if key not in self._manners:
            self._manners[key] = self._learn(kwargs)
        return self._manners[key]

    def _learn(self, kwargs: Mapping[str, Any]) -> Manner:
        plain: dict[str, Any] = {"role": "user", "content": "Question one?"}
        answer: dict[str, Any] = {"role": "assistant", "content": "Answer one."}

        def show(
            messages: list[dict[str, Any]], prompt: bool = False, switch: tuple[str, bool] | None = None
        ) -> Shown | None:
            for tools in (None, [_TOOL]):
                chat = Conversation(messages=messages, tools=tools)
                renders = Renders(self.template, chat, {**kwargs, **dict([switch] if switch else [])})
                try:
                    return renders.shown(len(messages), prompt)
                except CannotProveError:
                    continue
            return None

        user = plain
        last = show([user, answer])
        if last is None or not len(last.own(1)):
            user, answer = _in_parts(user), _in_parts(answer)
            last = show([user, answer])
        middle, prompt, bare = show([user, answer, user]), show([user], True), show([user])
        stops = self._learn_stops(last, middle)
        known = last is not None and len(last.own(1)) > 0
        empty: set[str] = set()
        call = {"type": "function", "id": "call00000", "function": {"name": "probe", "arguments": {"a": "b"}}}
        for shape in (answer, {**answer, "tool_calls": [call]}):
            turn = last if shape is answer else show([user, shape])
            if turn is None or prompt is None:
                continue
            reply = turn.text[len(prompt) :] if turn.text.startswith(prompt.text) else ""
            for name in self.template.switches:
                for value in (False, True):
                    switched = show([user], True, (name, value))
                    if switched is not None and switched.text.startswith(prompt.text):
                        added = switched.text[len(prompt) :]
                        if added.strip() and reply.startswith(added):
                            empty.add(added)
            head = self._head(prompt, turn)
            if head.strip():
                if _OPENED_AND_CLOSED.fullmatch(head):
                    empty.add(head)
                probed = show([user, {**shape, "reasoning_content": _WORD}])
                said = "" if probed is None else self._head(prompt, probed, _WORD, "Answer one.")
                if "".join(said.split()) == "".join(head.split()):
                    empty.add(head)
        return Manner(*stops, known, self._header(bare, prompt, last), tuple(sorted(empty, key=lambda t: (-len(t), t))))

    def _header(self, bare: Shown | None, prompt: Shown | None, last: Shown | None) -> str:
        if bare is None or prompt is None or last is None or not len(last.own(1)):
            return ""
        at = self._whole_common(bare.text, prompt.text)
        if not last.text.startswith(prompt.text[:at]):
            return ""
        common, _ = self._in_common(last.text[at : int(last.own(1)[0])], prompt.text[at:])
        return last.text[at : at + common]

    def _learn_stops(self, last: Shown | None, middle: Shown | None) -> tuple[str | None, str | None]:
        if last is None or not len(last.own(1)):
            return None, None
        tail, own = _tail(last, int(last.own(1)[-1]) + 1, 1)
        if middle is None or not len(middle.own(1)):
            return next((word for _, end, word in self.controls(tail) if end <= own), None), None
        here, _ = _tail(middle, int(middle.own(1)[-1]) + 1, 1)
        shared = [(end, word) for _, end, word in self.controls(tail[: self._whole_common(tail, here)])]
        if shared:
            declared = [word for _, word in shared if word in self.stops]
            inside = [word for end, word in shared if end <= own]
            stop = declared[0] if declared else inside[-1] if inside else shared[0][1]
            return stop, stop
        ends = next((w for a, b, w in self.controls(tail) if b <= own and not tail[:a].strip()), None)
        return ends, next((w for a, _, w in self.controls(here) if not here[:a].strip()), None)

    def _head(self, prompt: Shown, turn: Shown, *own: str) -> str:
        start: int | None = len(prompt)
        if not turn.text.startswith(prompt.text):
            start = self._behind_header(1, prompt, turn)
        where = turn.own(1)
        if start is None or not len(where):
            return ""
        if not own:
            return turn.text[start : int(where[0])]
        out = ""
        for word in own:
            at = turn.text.find(word, start)
            if at < 0:
                return ""
            out += turn.text[start:at]
            start = at + len(word)
        return out


def _refused(index: int) -> Turn:
    return Turn(index, int(Verdict.REFUSED))


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _common(first: str, second: str) -> int:
    if first.startswith(second):
        return len(second)
    if second.startswith(first):
        return len(first)
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _same(text: str, start: int, turn: str, empties: tuple[str, ...]) -> int | None:
    """How much longer the turn's head is in text[start:] than in `turn`, an empty reasoning block apart."""
    if text.startswith(turn, start):
        return 0
    heads = ["", *(empty for empty in empties if turn.startswith(empty))]
    for head in reversed(heads):
        for other in (head, "", *empties):
            if text.startswith(other + turn[len(head) :], start):
                return len(other) - len(head)
    return None


def _begins(text: str, header: str) -> bool:
    return bool(header.strip()) and text.lstrip().startswith(header.strip())


def _stretch(text: Shown, index: int) -> tuple[int, int] | None:
    """The message's own text up to the first text of another one behind it."""
    own = text.own(index)
    if not len(own):
        return None
    others = np.flatnonzero((text.messages != index) & (text.messages != -2))
    behind = others[others > own[0]]
    last = own[own < behind[0]][-1] if len(behind) else own[-1]
    return int(own[0]), int(last) + 1


def _holds_other_data(text: Shown, start: int, stop: int, index: int) -> bool:
    inside = text.messages[start:stop]
    return bool(np.any((inside != index) & (inside != -2)))


def _literal_before(text: Shown, index: int) -> tuple[int, int]:
    """The literal text before the first data of the message or of a later one."""
    data = np.flatnonzero(text.leaf >= 0)
    later = np.flatnonzero(text.messages[data] >= index)
    if not len(later):
        return (int(data[-1]) + 1 if len(data) else 0), len(text)
    at = int(later[0])
    return (int(data[at - 1]) + 1 if at else 0), int(data[at])


def _tail(text: Shown, start: int, index: int) -> tuple[str, int]:
    """The literal text from `start` to the next data, and how much of it the template wrote for the message."""
    data = np.flatnonzero(text.leaf[start:] >= 0)
    stop = start + int(data[0]) if len(data) else len(text)
    mine = np.flatnonzero(text.loop[start:stop] == index)
    known = bool(np.any((text.loop == index) & (text.leaf < 0) & ~text.stands))
    return text.text[start:stop], (int(mine[-1]) + 1 if len(mine) else 0) if known else stop - start
