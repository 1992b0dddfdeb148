"""What a template does whatever the data: how it ends turns, heads them, and writes empty reasoning.

Learned from canned conversations when a template is loaded, so that it never depends on the data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpipe.errors import TemplateError
from maskpipe.template.control import ControlTokens
from maskpipe.template.headers import start_after_header
from maskpipe.template.own_text import literal_tail, own_range
from maskpipe.template.render import Engine, Trace, wrap

_EMPTY_ELEMENT = re.compile(r"\s*<([^<>/\s]+)>\s*</\1>\s*")

_OWN_WORD = "Zq7xReasoningProbe"
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "Probe.", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class Habits:
    """How a template, under given keyword arguments, ends plain assistant turns and writes empty reasoning."""

    known: bool
    """Could a plain question and answer be rendered? Without that nothing below says anything."""
    stops_last: tuple[str, ...]
    stops_middle: tuple[str, ...]
    header: str
    """What both a generation prompt and history write before an assistant turn; "" when there is no such thing."""
    empty_reasoning: tuple[str, ...]
    """Texts between prompt and content that the template writes for a message without reasoning; longest first."""


def learn(engine: Engine, control: ControlTokens, stop_tokens: Sequence[str], kwargs: Mapping[str, Any]) -> Habits:
    """The habits of a template under these keyword arguments; `stop_tokens` are those that the tokenizer declares."""
    user: dict[str, Any] = {"role": "user", "content": "Question one?"}
    answer: dict[str, Any] = {"role": "assistant", "content": "Answer one."}
    plain_kwargs = {name: str(value) if isinstance(value, str) else value for name, value in kwargs.items()}

    def trace(
        messages: list[dict[str, Any]], prompt: bool = False, switch: dict[str, Any] | None = None
    ) -> Trace | None:
        for tools in (None, [_PROBE_TOOL]):  # some templates exist for chats with tools alone
            try:
                wrapped = wrap(messages, tools=tools, kwargs={**plain_kwargs, **(switch or {})})
                return engine.trace(wrapped, add_generation_prompt=prompt)
            except TemplateError:
                continue
        return None

    last = trace([user, answer])
    if last is None or own_range(last, 1) is None:  # some templates show content as a list of parts alone
        user, answer = _in_parts(user), _in_parts(answer)
        last = trace([user, answer])
    middle = trace([user, answer, user])
    stops_last, stops_middle = _learn_stops(control, stop_tokens, last, middle)
    empty: set[str] = set()
    prompt = trace([user], prompt=True)
    call = {"type": "function", "id": "call00000", "function": {"name": "probe", "arguments": {"a": "b"}}}
    for shape in (answer, {**answer, "tool_calls": [call]}):
        turn = last if shape is answer else trace([user, shape])
        if turn is not None and prompt is not None:
            empty |= _empty_by_switch(engine, prompt, turn, trace, user)
            probed = trace([user, {**shape, "reasoning_content": _OWN_WORD}])
            empty |= _empty_by_probe(control, prompt, turn, probed)
    ordered = tuple(sorted(empty, key=lambda text: (-len(text), text)))
    known = last is not None and own_range(last, 1) is not None
    return Habits(known, stops_last, stops_middle, _learn_header(control, trace([user]), prompt, last), ordered)


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _learn_header(control: ControlTokens, bare: Trace | None, prompt: Trace | None, last: Trace | None) -> str:
    own = own_range(last, 1) if last is not None else None
    if bare is None or prompt is None or last is None or own is None:
        return ""
    at = control.common_length(bare.text, prompt.text)
    if not last.text.startswith(prompt.text[:at]):
        return ""
    common, _ = control.common_lengths(last.text[at : own[0]], prompt.text[at:])
    return last.text[at : at + common]


def _learn_stops(
    control: ControlTokens, stop_tokens: Sequence[str], last: Trace | None, middle: Trace | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    own_last = own_range(last, 1) if last is not None else None
    if last is None or own_last is None:
        return (), ()
    tail = literal_tail(last, own_last[1], 1)
    own_middle = own_range(middle, 1) if middle is not None else None
    if middle is None or own_middle is None:
        found = [token for _, end, token in control.find(tail.text) if end <= tail.own]
        return tuple(found[:1]), ()
    inside = literal_tail(middle, own_middle[1], 1)
    common = control.common_length(tail.text, inside.text)
    shared = [(end, token) for _, end, token in control.find(tail.text[:common])]
    declared = [token for _, token in shared if token in stop_tokens]
    own = [token for end, token in shared if end <= tail.own]
    if declared or own or shared:
        stop = declared[0] if declared else own[-1] if own else shared[0][1]
        return (stop,), (stop,)
    first_last = [
        token for start, end, token in control.find(tail.text) if end <= tail.own and not tail.text[:start].strip()
    ]
    first_middle = [token for start, _, token in control.find(inside.text) if not inside.text[:start].strip()]
    return tuple(first_last[:1]), tuple(first_middle[:1])


def _empty_by_switch(engine: Engine, prompt: Trace, last: Trace, trace: Any, user: dict[str, Any]) -> set[str]:
    """What a switch of the template adds to the prompt, where the template writes the same into an answer that
    has no reasoning: the prompt supplies it, so the model need not learn to write it."""
    found = set()
    answer = last.text[len(prompt.text) :] if last.text.startswith(prompt.text) else ""
    for name in sorted(engine.variables):
        for value in (False, True):
            switched = trace([user], prompt=True, switch={name: value})
            if switched is not None and switched.text.startswith(prompt.text):
                added = switched.text[len(prompt.text) :]
                if added.strip() and answer.startswith(added):
                    found.add(added)
    return found


def _empty_by_probe(control: ControlTokens, prompt: Trace, last: Trace, probed: Trace | None) -> set[str]:
    """With reasoning the template writes opening + reasoning + closing before the content; where it writes just
    opening + closing without, that is an empty reasoning block. So is an element that is opened and closed at once.
    """
    head = _head(control, prompt, last)
    if not head.strip():
        return set()
    if _EMPTY_ELEMENT.fullmatch(head):
        return {head}
    head_probed = _head(control, prompt, probed, _OWN_WORD, "Answer one.") if probed is not None else ""
    return {head} if "".join(head_probed.split()) == "".join(head.split()) else set()


def _head(control: ControlTokens, prompt: Trace, turn: Trace, *own: str) -> str:
    """The literal text between the prompt and the content of message 1; with `own`, the text up to the last of
    these words, without them."""
    start: int | None = len(prompt.text)
    if not turn.text.startswith(prompt.text):
        start = start_after_header(control, 1, prompt, turn)
    where = own_range(turn, 1)
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
