"""The sampled rule: which characters of a rendered conversation would the model itself emit at inference?

For the assistant turn i, inference feeds P = render(messages[:i], add_generation_prompt=True) and the model samples up
to and including the stop token. Nothing here knows a template: each claim is established by rendering, per turn.

    whole        <u>Hi<e>\\n<a>Hello<e>\\n          render(messages)
    P            <u>Hi<e>\\n<a>                     a prefix of whole: the turn starts where P ends
    alone        <u>Hi<e>\\n<a>Hello<e>\\n          render(messages[:i+1]): the turn as its template writes it when last
    sampled                     Hello<e>

A turn is exact when P is a prefix of the whole, nothing of another message is inside the turn, all of its own shown
text is, the turn shows as much as it would as the last one, and it ends with the same stop token. Source of the rule:
reference/templates.md of the project's design notes; decisions in docs/decisions/.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from maskpipe import _core
from maskpipe.errors import TemplateError
from maskpipe.roles import Part, Verdict
from maskpipe.template import origin
from maskpipe.template.render import (
    COMPARED_ONE_IN,
    REASONING_FIELDS,
    Engine,
    Leaf,
    Trace,
    Wrapped,
    end_of_inline_reasoning,
    shown_range,
    wrap,
)

_MARKER_LIKE = re.compile(r"<[^<>\s]+>|<｜[^<>]+｜>|\[/?[A-Z_]+\]|\[\|[^\[\]|\s]+\|\]|[\[\]][\w!]*~[\w!]*[\[\]]")
"""What looks like a control token when no tokenizer says which strings are."""

_EMPTY_ELEMENT = re.compile(r"\s*<([^<>/\s]+)>\s*</\1>\s*")

_REMEMBERED_TEXTS, _REMEMBERED_LENGTH = 4096, 256

_OWN_WORD = "Zq7xReasoningProbe"
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "Probe.", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class Turn:
    """What was established about one assistant turn of one text; positions are characters of that text."""

    message: int
    verdict: Verdict
    start: int
    """First sampled character."""
    stop: int
    """End of the sampled characters, the stop token included."""
    stop_token: tuple[int, int] | None
    """Where the stop token stands, None when the template writes none."""
    empty_reasoning: tuple[int, int] | None
    """An empty reasoning block that the template added at the head of the turn."""
    cut: int
    """Where the prompt ends: inference encodes the text before it on its own. -1 when no prompt ends in this text."""
    reason: str = ""
    """Why the verdict is not exact, in words."""

    @property
    def trainable_in_place(self) -> bool:
        return not self.verdict & (Verdict.HISTORY_DIFFERS | Verdict.REFUSED)


@dataclass(frozen=True)
class Habits:
    """How a template, under given keyword arguments, ends plain assistant turns and writes empty reasoning. Learned
    from canned conversations when the template is loaded, so that it never depends on the data."""

    known: bool
    """Could a plain question and answer be rendered? Without that nothing below says anything."""
    stops_last: tuple[str, ...]
    stops_middle: tuple[str, ...]
    header: str
    """What both a generation prompt and history write before an assistant turn; "" when there is no such thing."""
    empty_reasoning: tuple[str, ...]
    """Texts between prompt and content that the template writes for a message without reasoning; longest first."""


class _OfCore(NamedTuple):
    """What the core takes of habits, and what was found about the stop after the same literal texts."""

    habits: _core.TurnHabits
    stops: dict[tuple[Any, ...], tuple[tuple[int, int] | None, str]]


@dataclass
class Sampling:
    """Analyses conversations of one template. `control_tokens` are the strings the tokenizer knows as single tokens."""

    engine: Engine
    control_tokens: Sequence[str] = ()
    stop_tokens: Sequence[str] = ()
    _habits: dict[str, Habits] = field(default_factory=dict)
    _found: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)
    """Control tokens of short literal texts: templates write the same few again and again."""
    _of_core: dict[int, _OfCore] = field(default_factory=dict)
    """By the identity of the habits, all of which are kept."""

    def __post_init__(self) -> None:
        words = sorted(
            {token for token in self.control_tokens if token.strip()}, key=lambda token: (-len(token), token)
        )
        if words:
            self._control = re.compile("|".join(map(re.escape, words)))
        else:  # the named special tokens are control tokens whatever they look like
            named = {*self.stop_tokens, *self.engine.special_tokens.values()}
            known = sorted((token for token in named if token.strip()), key=lambda token: (-len(token), token))
            self._control = re.compile("|".join([*map(re.escape, known), _MARKER_LIKE.pattern]))

    def controls(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, token) of the control tokens in literal text, left to right."""
        found = self._found.get(text)
        if found is None:
            found = [(match.start(), match.end(), match.group()) for match in self._control.finditer(text)]
            if len(text) <= _REMEMBERED_LENGTH:
                if len(self._found) >= _REMEMBERED_TEXTS:
                    self._found.clear()
                self._found[text] = found
        return found

    # -- one conversation

    def turns(self, wrapped: Wrapped, whole: Trace) -> list[Turn]:
        """The assistant turns of a whole render, in order."""
        messages = wrapped.raw["messages"]
        habits = self.habits(wrapped.raw["kwargs"] or {})
        last = len(messages) - 1
        out = []
        for index, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            try:
                usual = self._usual_turn(wrapped, whole, index, habits)
                if usual is not None:
                    out.append(usual)
                    continue
                prompt = self.engine.plain_of(wrapped, index, add_generation_prompt=True)
                alone = whole if index == last else self.engine.trace(wrapped, index + 1)
                start: int | None
                alone_start: int | None
                if whole.text.startswith(prompt) and alone.text.startswith(prompt):
                    start = alone_start = self._after_own_header(len(prompt), index, alone, habits)
                else:
                    traced = self.engine.trace(wrapped, index, add_generation_prompt=True)
                    start, alone_start = self._start(index, traced, whole), self._start(index, traced, alone)
                is_prefix = start == len(prompt) and whole.text.startswith(prompt)
                out.append(self._turn(index, start, is_prefix, whole, alone, alone_start, habits))
            except TemplateError as error:
                out.append(_refused(index, f"the turn's prompt cannot be rendered: {error}"))
        return out

    def _usual_turn(self, wrapped: Wrapped, whole: Trace, index: int, habits: Habits) -> Turn | None:
        """A turn about which there is nothing to say but where it is: what the rest of this class would establish. None
        for any other one, and where the core did not render. TemplateError as Engine.trace."""
        if whole.core is None:
            return None
        of_core = self.in_core(habits)
        is_last = index == len(wrapped.raw["messages"]) - 1
        found = whole.core.usual_turn(index, of_core.habits, COMPARED_ONE_IN)
        if found is False:  # the Python tracker has to make these renders too
            alone = whole if is_last else self.engine.trace(wrapped, index + 1)
            if self.engine.core(wrapped, index, True) is None or alone.core is None:
                return None
            found = whole.core.usual_turn(index, of_core.habits, 0)
        if found is None or found is False:
            return None
        start, own_end, supplied, *_ = found
        key = (is_last, *found[3:])
        known = of_core.stops.get(key)
        if known is None:
            tail, alone_tail = _Tail(*found[3:5]), _Tail(*found[5:])
            known = self._stop_in(tail, alone_tail, is_last, habits)
            if len(tail.text) + len(alone_tail.text) <= _REMEMBERED_LENGTH:
                if len(of_core.stops) >= _REMEMBERED_TEXTS:
                    of_core.stops.clear()
                of_core.stops[key] = known
                usual = None if known[1] else known[0]
                of_core.habits.remember(is_last, *found[3:], usual, _REMEMBERED_TEXTS)
        place, reason = known
        if place is None or reason:
            return None
        stop = (own_end + place[0], own_end + place[1])
        empty = (start, start + supplied) if supplied else None
        return Turn(index, Verdict.EXACT, start, stop[1], stop, empty, start)

    def in_core(self, habits: Habits) -> _OfCore:
        """The habits as the core takes them; of `self.habits`, all of which are kept."""
        of_core = self._of_core.get(id(habits))
        if of_core is None:
            finals = [token for token in (*habits.stops_last, *self.stop_tokens) if token]
            middles = [token for token in habits.stops_middle if token]
            of_core = _OfCore(_core.TurnHabits(habits.header.strip(), finals, middles, habits.empty_reasoning), {})
            self._of_core[id(habits)] = of_core
        return of_core

    def own_document(self, wrapped: Wrapped, index: int) -> tuple[Trace | None, Turn]:
        """The turn alone: P followed by its sampled tail as the template writes it when that turn is last.

        None, and a refused turn, when the tail cannot be isolated.
        """
        habits = self.habits(wrapped.kwargs)
        try:
            prompt = self.engine.trace(wrapped, index, add_generation_prompt=True)
            alone = self.engine.trace(wrapped, index + 1)
        except TemplateError as error:
            return None, _refused(index, f"the turn's prompt cannot be rendered: {error}")
        start: int | None = None
        if alone.text.startswith(prompt.text):
            start = self._after_own_header(len(prompt.text), index, alone, habits)
        if start == len(prompt.text):
            glued, reason = alone, "split"
        elif start is not None:
            glued, reason = _glued(prompt, alone, start), "without a header that the prompt does not have"
        else:
            start = self._start_after_header(index, prompt, alone)
            if start is None:
                return None, _refused(
                    index, "the turn's own text cannot be told from its history, even as the last turn"
                )
            problem = self._unanswered(index, prompt, alone)
            if problem:
                return None, _refused(index, problem)
            glued, reason = (
                _glued(prompt, alone, start),
                "continues a prompt that the template does not write in history",
            )
        turn = self._turn(index, len(prompt.text), True, glued, glued, len(prompt.text), habits)
        if turn.verdict & Verdict.REFUSED:
            return None, turn
        document = Trace(glued.text[: turn.stop], glued.cut(0, turn.stop), glued.leaves, glued.reprs, glued.roles)
        return document, replace(turn, verdict=turn.verdict | Verdict.HISTORY_DIFFERS, reason=reason)

    def verbatim_document(self, wrapped: Wrapped, index: int) -> tuple[Trace | None, Turn]:
        """The turn alone, its tail the message's own text exactly as given: P + (reasoning, then content) + stop token.

        What the prompt already supplies of the content (an opening `<think>`) is not repeated. None, and a refused
        turn, where the message holds more than text, or reasoning that the prompt does not open.
        """
        try:
            prompt = self.engine.trace(wrapped, index, add_generation_prompt=True)
        except TemplateError as error:
            return None, _refused(index, f"the turn's prompt cannot be rendered: {error}")
        message = wrapped.raw["messages"][index]
        if message.get("tool_calls") or not isinstance(message.get("content"), str):
            return None, _refused(index, "sampled_text='verbatim' needs content that is text, without tool calls")
        by_path = {leaf.path: number for number, leaf in enumerate(wrapped.leaves)}
        literal = origin.scaffold(index)
        pieces: list[tuple[str, int, int]] = []  # text, source, start in the source
        ending = prompt.text[_end_of_data(prompt) :]
        content = message["content"]
        reasoning = next(((name, message[name]) for name in REASONING_FIELDS if message.get(name)), None)
        supplied = 0
        if reasoning is not None:
            opening = re.search(r"<([^<>/\s]+)>\s*$", ending)
            if opening is None or not isinstance(reasoning[1], str):
                return None, _refused(
                    index, "its prompt does not open reasoning; give the reasoning inside the content"
                )
            pieces.append((reasoning[1], by_path["messages", index, reasoning[0]], 0))
            pieces.append((f"\n</{opening[1]}>\n\n", literal, 0))
        else:
            supplied = next(
                (
                    size
                    for size in range(min(len(content), len(ending)), 0, -1)
                    if (ending.endswith(content[:size]) or ending.rstrip().endswith(content[:size]))
                ),
                0,
            )
            if supplied and not ending.endswith(content[:supplied]):
                supplied += len(content[supplied:]) - len(content[supplied:].lstrip())
        if content[supplied:]:
            pieces.append((content[supplied:], by_path["messages", index, "content"], supplied))
        habits = self.habits(wrapped.kwargs)
        stop = next(iter(habits.stops_last + habits.stops_middle + tuple(self.stop_tokens)), "")
        pieces.append((stop, literal, 0))
        text, origins = prompt.text, list(prompt.origins)
        for piece, source, start in pieces:
            if piece:
                origins.append((len(text), len(text) + len(piece), source, start, start + len(piece)))
                text += piece
        place = (len(text) - len(stop), len(text)) if stop else None
        verdict = Verdict.HISTORY_DIFFERS if stop else Verdict.HISTORY_DIFFERS | Verdict.NO_STOP
        turn = Turn(index, verdict, len(prompt.text), len(text), place, None, len(prompt.text), "verbatim")
        return Trace(text, tuple(origins), prompt.leaves, prompt.reprs, prompt.roles), turn

    def _turn(
        self,
        index: int,
        start: int | None,
        prompt_is_prefix: bool,
        whole: Trace,
        alone: Trace,
        alone_start: int | None,
        habits: Habits,
    ) -> Turn:
        """One turn of `whole`; `alone` is the conversation cut after it (`whole` itself for the last turn), in which it
        starts at `alone_start`."""
        reasons: list[str] = []
        verdict = Verdict.EXACT
        if start is None or alone_start is None:
            return _refused(index, "the start of the turn cannot be found")
        if not prompt_is_prefix:
            verdict |= Verdict.HISTORY_DIFFERS
            reasons.append("the text before it is not the prompt that inference would feed")
        own = _own_range(alone, index)
        if own is not None and (own[1] <= alone_start if prompt_is_prefix else own[0] < alone_start):
            return _refused(index, "text of the turn stands before the end of its own prompt")
        end_alone = max(alone_start, own[1] if own is not None else alone_start)
        if own is not None:  # what its prompt begins, such as an opening tag that the data has too, is not sampled
            own = (max(own[0], alone_start), own[1])
        shift = _same_turn(whole.text, start, alone.text[alone_start:end_alone], habits.empty_reasoning)
        if shift is not None:
            first = start + shift + (own[0] - alone_start if own is not None else 0)
            end_of_own = start + shift + end_alone - alone_start
        else:
            verdict |= Verdict.HISTORY_DIFFERS
            less = _shown(whole, index) < _shown(alone, index)
            reasons.append(
                "later messages make the template show less of it"
                if less
                else "later messages make the template write it in another way"
            )
            here = _unbroken_range(whole, index)
            if here is not None and here[0] < start:
                return _refused(index, "text of the turn stands before the end of its own prompt")
            first, end_of_own = here or (start, start)
        if _has_other_data(whole, start, end_of_own, index):
            return _refused(index, "text of another message stands inside the turn")
        inside = self._stop_inside(whole, start, first, end_of_own, habits)
        if inside:
            return _refused(index, f"the stop token {inside!r} stands inside the turn: a model would end there")

        stop, reason = self._stop(index, whole, end_of_own, alone, end_alone, habits)
        if reason:
            verdict |= Verdict.HISTORY_DIFFERS
            reasons.append(reason)
        if stop is None:
            verdict |= Verdict.NO_STOP
            reasons.append("the template writes no stop token after it")
            closing = 0 if own is None else self._closing(index, whole, end_of_own, alone, end_alone)
            end = end_of_own + closing
        else:
            end = stop[1]
        if _has_other_data(whole, end_of_own, end, index):
            return _refused(index, "text of another message stands between the turn and its stop token")

        head = whole.text[start:first] if own is not None else whole.text[start:end]
        empty = next((text for text in habits.empty_reasoning if head.startswith(text)), "")
        return Turn(
            index,
            verdict,
            start,
            end,
            stop,
            (start, start + len(empty)) if empty else None,
            start if prompt_is_prefix else -1,
            "; ".join(reasons),
        )

    def _start(self, index: int, prompt: Trace, text: Trace) -> int | None:
        """Where the turn starts in a text, whether or not its prompt is a prefix of it."""
        if text.text.startswith(prompt.text):
            return len(prompt.text)
        return self._start_after_header(index, prompt, text)

    def _after_own_header(self, start: int, index: int, alone: Trace, habits: Habits) -> int:
        """The end of the turn's header, where the template writes it into history although the prompt lacks it (it may
        go on without one after a tool's answer): the model does not sample it."""
        own = _own_range(alone, index)
        header = habits.header.strip()
        head = alone.text[start : own[0]] if own is not None else alone.text[start:]
        if not header or not head.lstrip().startswith(header):
            return start
        at = len(head) - len(head.lstrip()) + len(header)
        space = habits.header[len(habits.header.rstrip()) :]
        return start + at + len(_common_prefix(head[at:], space))

    def _start_after_header(self, index: int, prompt: Trace, whole: Trace) -> int | None:
        """Where the turn starts in a text that its prompt is no prefix of: after what the literal text before the turn
        has in common with the literal end of the prompt, and what the prompt's own ending already supplies."""
        return self._compare_headers(index, prompt, whole).start

    def _compare_headers(self, index: int, prompt: Trace, whole: Trace) -> _Header:
        """The literal text before the turn beside the literal end of its prompt; white space may differ."""
        begin, end = _literal_before(whole, index)
        header = whole.text[begin:end]
        ending = prompt.text[_end_of_data(prompt) :]
        common, used = self._common_lengths(header, ending)
        rest, supplied = header[common:], ending[used:]
        overlap = next(
            (size for size in range(min(len(rest), len(supplied)), 0, -1) if supplied.endswith(rest[:size])), 0
        )
        start = begin + common + overlap if common or not header else None
        return _Header(start, supplied, supplied[: len(supplied) - overlap], rest[overlap:])

    def _common_lengths(self, first: str, second: str) -> tuple[int, int]:
        """How much of each text the other begins with too when white space does not count, and the white space after
        it that both have; neither ends inside a control token."""
        inside = [
            {at for start, end, _ in self.controls(text) for at in range(start + 1, end)} for text in (first, second)
        ]
        best = (0, 0)
        i = j = 0
        while i < len(first) and j < len(second):
            if first[i] == second[j]:
                i, j = i + 1, j + 1
                if not first[i - 1].isspace() and i not in inside[0] and j not in inside[1]:
                    best = (i, j)
            elif first[i].isspace():
                i += 1
            elif second[j].isspace():
                j += 1
            else:
                break
        i, j = best
        same = len(_common_prefix(first[i:], second[j:]))
        space = min(same, len(first) - i - len(first[i:].lstrip()))
        return i + space, j + space

    def _unanswered(self, index: int, prompt: Trace, alone: Trace) -> str:
        """Why the turn's text must not be put after a prompt that the template does not write before it.

        A prompt may end with text that history lacks: an empty reasoning block (opened and closed) suits a turn without
        reasoning; one that only opens reasoning is answered by reasoning, which the template did not write here. Where
        history has other text in its place, that may only go on with a marker of its own.
        """
        header = self._compare_headers(index, prompt, alone)
        if not header.unsaid.strip():
            return ""
        shown = f"the prompt ends with {header.unsaid.strip()!r}, which the template does not write before this turn"
        if self._answers(alone, index, header.supplied.strip()):
            return ""
        if _shows_reasoning(alone, index):
            return f"{shown}'s reasoning"
        if not self._is_closed_block(header.supplied):
            return f"{shown}, and nothing in the turn answers it"
        instead = header.rest.strip()
        if instead and not any(start == 0 for start, _, _ in self._markers(instead)):
            return f"{shown}; there it writes {instead!r} instead"
        return ""

    def _answers(self, alone: Trace, index: int, opening: str) -> bool:
        """Does the prompt only open the reasoning that the turn's own content goes on with and closes?"""
        first, leaf = next(_own_entries(alone, index), (None, None))
        if first is None or leaf is None or not end_of_inline_reasoning(leaf):
            return False
        if first[3] < 0 or leaf.text[: first[3]].strip():
            return False
        found = self._markers(opening)
        return len(found) == 1 and len(found[0][2]) == len(opening) and not leaf.text.lstrip().startswith(opening)

    def _is_closed_block(self, text: str) -> bool:
        """Is this an opening and a closing marker, with at most literal words between them?"""
        text = text.strip()
        found = self._markers(text)
        return len(found) == 2 and found[0][0] == 0 and found[1][1] == len(text) and found[0][2] != found[1][2]

    def _markers(self, text: str) -> list[tuple[int, int, str]]:
        """Control tokens, or what looks like them where the tokenizer knows none."""
        return self.controls(text) or [
            (match.start(), match.end(), match.group()) for match in _MARKER_LIKE.finditer(text)
        ]

    def _stop(
        self, index: int, whole: Trace, after: int, alone: Trace, alone_after: int, habits: Habits
    ) -> tuple[tuple[int, int] | None, str]:
        """Where the stop token of the turn stands in `whole`, and why the turn differs from itself as the last one.
        The turn's own text ends at `after` in `whole` and at `alone_after` in `alone`."""
        tail_alone = _literal_tail(alone, alone_after, index)
        tail = tail_alone if alone is whole else _literal_tail(whole, after, index)
        place, reason = self._stop_in(tail, tail_alone, alone is whole, habits)
        return None if place is None else (after + place[0], after + place[1]), reason

    def _stop_in(
        self, tail: _Tail, tail_alone: _Tail, is_last: bool, habits: Habits
    ) -> tuple[tuple[int, int] | None, str]:
        """The same for the literal text after the turn's own text, here and where the turn is last; places in it."""
        last = self._last_stop(tail_alone, habits)
        if is_last:
            return last, ""
        common = self._common_length(tail_alone.text, tail.text)
        if last is not None and last[1] <= common:
            return last, ""
        rest = tail.text[common:]
        middle = next(
            ((start, end, token) for start, end, token in self.controls(rest) if not rest[:start].strip()), None
        )
        if middle is not None and middle[2] not in habits.stops_middle and _begins_with(rest, habits.header):
            middle = None  # another turn of the assistant begins: nothing stopped this one
        usual = (*habits.stops_last, *habits.stops_middle, *self.stop_tokens)
        if middle is not None and last is None and habits.stops_last and middle[2] not in usual:
            middle = None  # plain answers end with a token of their own: what follows this one is the next header
        if middle is None:
            return None, "" if last is None else "as the last turn it would end with a stop token"
        place = (common + middle[0], common + middle[1])
        if last is None or tail_alone.text[last[0] : last[1]] == middle[2]:
            return place, ""
        return place, f"it ends with {middle[2]!r}, as the last turn with {tail_alone.text[last[0] : last[1]]!r}"

    def _stop_inside(self, whole: Trace, start: int, first: int, stop: int, habits: Habits) -> str:
        """A stop token that the template wrote into text[start:stop], a turn whose own text begins at `first`; "" for
        none. What data holds is no stop, and what ends earlier turns may stand between the parts of a turn."""
        final = (*habits.stops_last, *self.stop_tokens)
        for token, end in (*((token, stop) for token in final), *((token, first) for token in habits.stops_middle)):
            at = whole.text.find(token, start, end) if token else -1
            while at >= 0:
                covering = whole.origins[whole.first_at(at) : whole.first_at(at + len(token) - 1) + 1]
                if all(whole.leaf(entry) is None for entry in covering):
                    return token
                at = whole.text.find(token, at + 1, end)
        return ""

    def _last_stop(self, tail: _Tail, habits: Habits) -> tuple[int, int] | None:
        found = self.controls(tail.text)
        for tokens in (habits.stops_last, self.stop_tokens, habits.stops_middle):
            for start, end, token in found:
                if token in tokens and (tokens is not habits.stops_middle or end <= tail.own):
                    return start, end
        if habits.known and not habits.stops_last:
            return None  # plain answers end without one: the last token here only closes what the turn opened
        own = [(start, end) for start, end, _ in found if end <= tail.own]
        return own[-1] if own else None

    def _common_length(self, first: str, second: str) -> int:
        """Length of the common prefix, not ending inside a control token of either."""
        length = len(_common_prefix(first, second))
        for text in (first, second):
            for start, end, _ in self.controls(text):
                if start < length < end:
                    length = start
        return length

    def _closing(self, index: int, whole: Trace, after: int, alone: Trace, alone_after: int) -> int:
        """Literal text that closes a turn without a stop token, such as the end of a tool call."""
        tail = _literal_tail(whole, after, index)
        closing = _common_prefix(_literal_tail(alone, alone_after, index).text, tail.text)
        return len(closing[: tail.own].rstrip())

    # -- what a template does, whatever the data

    def habits(self, kwargs: Mapping[str, Any]) -> Habits:
        """The template's habits under these keyword arguments."""
        key = repr(sorted((name, str(value)) for name, value in kwargs.items())) if kwargs else ""
        if key not in self._habits:
            self._habits[key] = self._learn(kwargs)
        return self._habits[key]

    def _learn(self, kwargs: Mapping[str, Any]) -> Habits:
        user: dict[str, Any] = {"role": "user", "content": "Question one?"}
        answer: dict[str, Any] = {"role": "assistant", "content": "Answer one."}
        plain_kwargs = {name: str(value) if isinstance(value, str) else value for name, value in kwargs.items()}

        def trace(
            messages: list[dict[str, Any]], prompt: bool = False, switch: dict[str, Any] | None = None
        ) -> Trace | None:
            for tools in (None, [_PROBE_TOOL]):  # some templates exist for chats with tools alone
                try:
                    wrapped = wrap(messages, tools=tools, kwargs={**plain_kwargs, **(switch or {})})
                    return self.engine.trace(wrapped, add_generation_prompt=prompt)
                except TemplateError:
                    continue
            return None

        last = trace([user, answer])
        if last is None or _own_range(last, 1) is None:  # some templates show content as a list of parts alone
            user, answer = _in_parts(user), _in_parts(answer)
            last = trace([user, answer])
        middle = trace([user, answer, user])
        stops_last, stops_middle = self._learn_stops(last, middle)
        empty: set[str] = set()
        prompt = trace([user], prompt=True)
        call = {"type": "function", "id": "call00000", "function": {"name": "probe", "arguments": {"a": "b"}}}
        for shape in (answer, {**answer, "tool_calls": [call]}):
            turn = last if shape is answer else trace([user, shape])
            if turn is not None and prompt is not None:
                empty |= self._empty_by_switch(prompt, turn, trace, user)
                probed = trace([user, {**shape, "reasoning_content": _OWN_WORD}])
                empty |= self._empty_by_probe(prompt, turn, probed)
        ordered = tuple(sorted(empty, key=lambda text: (-len(text), text)))
        known = last is not None and _own_range(last, 1) is not None
        return Habits(known, stops_last, stops_middle, self._learn_header(trace([user]), prompt, last), ordered)

    def _learn_header(self, bare: Trace | None, prompt: Trace | None, last: Trace | None) -> str:
        own = _own_range(last, 1) if last is not None else None
        if bare is None or prompt is None or last is None or own is None:
            return ""
        at = self._common_length(bare.text, prompt.text)
        if not last.text.startswith(prompt.text[:at]):
            return ""
        common, _ = self._common_lengths(last.text[at : own[0]], prompt.text[at:])
        return last.text[at : at + common]

    def _learn_stops(self, last: Trace | None, middle: Trace | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        own_last = _own_range(last, 1) if last is not None else None
        if last is None or own_last is None:
            return (), ()
        tail = _literal_tail(last, own_last[1], 1)
        own_middle = _own_range(middle, 1) if middle is not None else None
        if middle is None or own_middle is None:
            found = [token for _, end, token in self.controls(tail.text) if end <= tail.own]
            return tuple(found[:1]), ()
        inside = _literal_tail(middle, own_middle[1], 1)
        common = self._common_length(tail.text, inside.text)
        shared = [(end, token) for _, end, token in self.controls(tail.text[:common])]
        declared = [token for _, token in shared if token in self.stop_tokens]
        own = [token for end, token in shared if end <= tail.own]
        if declared or own or shared:
            stop = declared[0] if declared else own[-1] if own else shared[0][1]
            return (stop,), (stop,)
        first_last = [
            token for start, end, token in self.controls(tail.text) if end <= tail.own and not tail.text[:start].strip()
        ]
        first_middle = [token for start, _, token in self.controls(inside.text) if not inside.text[:start].strip()]
        return tuple(first_last[:1]), tuple(first_middle[:1])

    def _empty_by_switch(self, prompt: Trace, last: Trace, trace: Any, user: dict[str, Any]) -> set[str]:
        """What a switch of the template adds to the prompt, where the template writes the same into an answer that
        has no reasoning: the prompt supplies it, so the model need not learn to write it."""
        found = set()
        answer = last.text[len(prompt.text) :] if last.text.startswith(prompt.text) else ""
        for name in sorted(self.engine.variables):
            for value in (False, True):
                switched = trace([user], prompt=True, switch={name: value})
                if switched is not None and switched.text.startswith(prompt.text):
                    added = switched.text[len(prompt.text) :]
                    if added.strip() and answer.startswith(added):
                        found.add(added)
        return found

    def _empty_by_probe(self, prompt: Trace, last: Trace, probed: Trace | None) -> set[str]:
        """With reasoning the template writes opening + reasoning + closing before the content; where it writes just
        opening + closing without, that is an empty reasoning block. So is an element that is opened and closed at once.
        """
        head = self._head(prompt, last)
        if not head.strip():
            return set()
        if _EMPTY_ELEMENT.fullmatch(head):
            return {head}
        head_probed = self._head(prompt, probed, _OWN_WORD, "Answer one.") if probed is not None else ""
        return {head} if "".join(head_probed.split()) == "".join(head.split()) else set()

    def _head(self, prompt: Trace, turn: Trace, *own: str) -> str:
        """The literal text between the prompt and the content of message 1; with `own`, the text up to the last of
        these words, without them."""
        start: int | None = len(prompt.text)
        if not turn.text.startswith(prompt.text):
            start = self._start_after_header(1, prompt, turn)
        where = _own_range(turn, 1)
        if start is None or where is None:
            return ""
        if not own:
            return turn.text[start : where[0]]
        pieces = []
        for word in own:
            at = turn.text.find(word, start)
            if at < 0:
                return ""
            pieces.append(turn.text[start:at])
            start = at + len(word)
        return "".join(pieces)


@dataclass(frozen=True)
class _Header:
    """The literal text before a turn beside the literal end of its prompt."""

    start: int | None
    """Where the turn starts in the text; None when the two have nothing in common."""
    supplied: str
    """What the prompt ends with beyond what both share."""
    unsaid: str
    """The part of it that stands nowhere before the turn."""
    rest: str
    """What stands before the turn beyond all that its prompt ends with."""


@dataclass(frozen=True)
class _Tail:
    """Literal text after a turn's own last character, up to the next data."""

    text: str
    own: int
    """How much of it was printed while the template's loop stood on the turn; all of it where that is not known."""


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _same_turn(text: str, start: int, turn: str, empty_reasoning: Sequence[str]) -> int | None:
    """How much longer the head of the turn is in text[start:] than in `turn`, which an empty reasoning block more or
    less does not make another turn; None where the two differ in more."""
    heads = ["", *(head for head in empty_reasoning if turn.startswith(head))]
    for head in reversed(heads):
        for there in (head, "", *empty_reasoning):
            if text.startswith(there + turn[len(head) :], start):
                return len(there) - len(head)
    return None


def _begins_with(text: str, header: str) -> bool:
    return bool(header.strip()) and text.lstrip().startswith(header.strip())


def _refused(index: int, reason: str) -> Turn:
    return Turn(index, Verdict.REFUSED, 0, 0, None, None, -1, reason)


def _own_range(trace: Trace, index: int) -> tuple[int, int] | None:
    """From the first to the last character of the message's own text, None when it shows none."""
    place = trace.layout.own.get(index)
    return None if place is None else (trace.origins[place[0]][0], trace.origins[place[1]][1])


def _unbroken_range(trace: Trace, index: int) -> tuple[int, int] | None:
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


def _own_entries(trace: Trace, index: int) -> Iterator[tuple[origin.Origin, Leaf]]:
    """The origins of the message's own text, in order."""
    first, last = trace.layout.own.get(index, (0, -1))
    for entry in trace.origins[first : last + 1]:
        leaf = trace.leaf(entry)
        if leaf is not None and leaf.message == index:
            yield entry, leaf


def _shown(trace: Trace, index: int) -> int:
    """How many distinct characters of the message's own text are shown, white space aside."""
    ranges: dict[int, list[tuple[int, int]]] = {}
    for entry, _ in _own_entries(trace, index):
        ranges.setdefault(entry[2], []).append(shown_range(entry))
    count = 0
    for source, found in ranges.items():
        text = trace.leaves[source].text
        at = 0
        for start, stop in sorted(found):
            count += sum(map(len, text[max(at, start) : stop].split()))
            at = max(at, stop)
    return count


def _has_other_data(trace: Trace, start: int, stop: int, index: int) -> bool:
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


def _literal_tail(trace: Trace, start: int, index: int) -> _Tail:
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
    return _Tail(trace.text[start:stop], own if known else stop - start)


def _common_prefix(first: str, second: str) -> str:
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first.startswith(second[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return first[:low]


def _shows_reasoning(trace: Trace, index: int) -> bool:
    """Is reasoning of the message shown, be it a field of its own or inside the content?"""
    return any(
        leaf.part is Part.REASONING or shown_range(entry)[0] < end_of_inline_reasoning(leaf)
        for entry, leaf in _own_entries(trace, index)
    )


def _end_of_data(trace: Trace) -> int:
    """Where the last data of a text ends."""
    data = trace.layout.data
    return trace.origins[data[-1]][1] if data else 0


def _literal_before(trace: Trace, index: int) -> tuple[int, int]:
    """The literal text before the first own text of a message; of one that shows none, before the next data."""
    data = trace.layout.data
    at = bisect.bisect_left(trace.layout.peaks, index)
    start = trace.origins[data[at - 1]][1] if at else 0
    return start, trace.origins[data[at]][0] if at < len(data) else len(trace.text)


def _glued(prompt: Trace, alone: Trace, start: int) -> Trace:
    """The prompt followed by what `alone` has from `start` on."""
    shift = len(prompt.text)
    tail = tuple((a + shift, b + shift, source, c, d) for a, b, source, c, d in alone.cut(start, len(alone.text)))
    return Trace(prompt.text + alone.text[start:], prompt.origins + tail, alone.leaves, alone.reprs, alone.roles)
