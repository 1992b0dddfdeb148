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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from maskpipe import _core
from maskpipe.errors import TemplateError
from maskpipe.roles import Verdict
from maskpipe.template import verbatim
from maskpipe.template.control import REMEMBERED_LENGTH, REMEMBERED_TEXTS, ControlTokens, common_prefix
from maskpipe.template.habits import Habits, learn
from maskpipe.template.headers import start_after_header, unanswered
from maskpipe.template.own_text import Tail, glued_to, has_other_data, own_range, shown_characters, unbroken_range
from maskpipe.template.render import COMPARED_ONE_IN, Engine, Trace, Wrapped
from maskpipe.template.stops import Stops
from maskpipe.template.turn import Turn, refused


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
    _of_core: dict[int, _OfCore] = field(default_factory=dict)
    """By the identity of the habits, all of which are kept."""

    def __post_init__(self) -> None:
        self.control = ControlTokens(self.control_tokens, {*self.stop_tokens, *self.engine.special_tokens.values()})
        self._stops = Stops(self.control, self.stop_tokens)

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
                out.append(refused(index, f"the turn's prompt cannot be rendered: {error}"))
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
            tail, alone_tail = Tail(*found[3:5]), Tail(*found[5:])
            known = self._stops.place_in(tail, alone_tail, is_last, habits)
            if len(tail.text) + len(alone_tail.text) <= REMEMBERED_LENGTH:
                if len(of_core.stops) >= REMEMBERED_TEXTS:
                    of_core.stops.clear()
                of_core.stops[key] = known
                usual = None if known[1] else known[0]
                of_core.habits.remember(is_last, *found[3:], usual, REMEMBERED_TEXTS)
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
            return None, refused(index, f"the turn's prompt cannot be rendered: {error}")
        start: int | None = None
        if alone.text.startswith(prompt.text):
            start = self._after_own_header(len(prompt.text), index, alone, habits)
        if start == len(prompt.text):
            glued, reason = alone, "split"
        elif start is not None:
            glued, reason = glued_to(prompt, alone, start), "without a header that the prompt does not have"
        else:
            start = start_after_header(self.control, index, prompt, alone)
            if start is None:
                return None, refused(
                    index, "the turn's own text cannot be told from its history, even as the last turn"
                )
            problem = unanswered(self.control, index, prompt, alone)
            if problem:
                return None, refused(index, problem)
            glued, reason = (
                glued_to(prompt, alone, start),
                "continues a prompt that the template does not write in history",
            )
        turn = self._turn(index, len(prompt.text), True, glued, glued, len(prompt.text), habits)
        if turn.verdict & Verdict.REFUSED:
            return None, turn
        document = Trace(glued.text[: turn.stop], glued.cut(0, turn.stop), glued.leaves, glued.reprs, glued.roles)
        return document, replace(turn, verdict=turn.verdict | Verdict.HISTORY_DIFFERS, reason=reason)

    def verbatim_document(self, wrapped: Wrapped, index: int) -> tuple[Trace | None, Turn]:
        """The turn alone, its tail the message's own text exactly as given; see verbatim.py."""
        habits = self.habits(wrapped.kwargs)
        stop = next(iter(habits.stops_last + habits.stops_middle + tuple(self.stop_tokens)), "")
        return verbatim.document(self.engine, wrapped, index, stop)

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
            return refused(index, "the start of the turn cannot be found")
        if not prompt_is_prefix:
            verdict |= Verdict.HISTORY_DIFFERS
            reasons.append("the text before it is not the prompt that inference would feed")
        own = own_range(alone, index)
        if own is not None and (own[1] <= alone_start if prompt_is_prefix else own[0] < alone_start):
            return refused(index, "text of the turn stands before the end of its own prompt")
        end_alone = max(alone_start, own[1] if own is not None else alone_start)
        if own is not None:  # what its prompt begins, such as an opening tag that the data has too, is not sampled
            own = (max(own[0], alone_start), own[1])
        shift = _same_turn(whole.text, start, alone.text[alone_start:end_alone], habits.empty_reasoning)
        if shift is not None:
            first = start + shift + (own[0] - alone_start if own is not None else 0)
            end_of_own = start + shift + end_alone - alone_start
        else:
            verdict |= Verdict.HISTORY_DIFFERS
            less = shown_characters(whole, index) < shown_characters(alone, index)
            reasons.append(
                "later messages make the template show less of it"
                if less
                else "later messages make the template write it in another way"
            )
            here = unbroken_range(whole, index)
            if here is not None and here[0] < start:
                return refused(index, "text of the turn stands before the end of its own prompt")
            first, end_of_own = here or (start, start)
        if has_other_data(whole, start, end_of_own, index):
            return refused(index, "text of another message stands inside the turn")
        inside = self._stops.inside(whole, start, first, end_of_own, habits)
        if inside:
            return refused(index, f"the stop token {inside!r} stands inside the turn: a model would end there")

        stop, reason = self._stops.place(index, whole, end_of_own, alone, end_alone, habits)
        if reason:
            verdict |= Verdict.HISTORY_DIFFERS
            reasons.append(reason)
        if stop is None:
            verdict |= Verdict.NO_STOP
            reasons.append("the template writes no stop token after it")
            closing = 0 if own is None else self._stops.closing(index, whole, end_of_own, alone, end_alone)
            end = end_of_own + closing
        else:
            end = stop[1]
        if has_other_data(whole, end_of_own, end, index):
            return refused(index, "text of another message stands between the turn and its stop token")

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

    def _after_own_header(self, start: int, index: int, alone: Trace, habits: Habits) -> int:
        """The end of the turn's header, where the template writes it into history although the prompt lacks it (it may
        go on without one after a tool's answer): the model does not sample it."""
        own = own_range(alone, index)
        header = habits.header.strip()
        head = alone.text[start : own[0]] if own is not None else alone.text[start:]
        if not header or not head.lstrip().startswith(header):
            return start
        at = len(head) - len(head.lstrip()) + len(header)
        space = habits.header[len(habits.header.rstrip()) :]
        return start + at + len(common_prefix(head[at:], space))

    def _start(self, index: int, prompt: Trace, text: Trace) -> int | None:
        """Where the turn starts in a text, whether or not its prompt is a prefix of it."""
        if text.text.startswith(prompt.text):
            return len(prompt.text)
        return start_after_header(self.control, index, prompt, text)

    def habits(self, kwargs: Mapping[str, Any]) -> Habits:
        """The template's habits under these keyword arguments."""
        key = repr(sorted((name, str(value)) for name, value in kwargs.items())) if kwargs else ""
        if key not in self._habits:
            self._habits[key] = learn(self.engine, self.control, self.stop_tokens, kwargs)
        return self._habits[key]


def _same_turn(text: str, start: int, turn: str, empty_reasoning: Sequence[str]) -> int | None:
    """How much longer the head of the turn is in text[start:] than in `turn`, which an empty reasoning block more or
    less does not make another turn; None where the two differ in more."""
    heads = ["", *(head for head in empty_reasoning if turn.startswith(head))]
    for head in reversed(heads):
        for there in (head, "", *empty_reasoning):
            if text.startswith(there + turn[len(head) :], start):
                return len(there) - len(head)
    return None
