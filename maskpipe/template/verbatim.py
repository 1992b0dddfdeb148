"""A turn whose tail is the message's own text exactly as given: the recipe's sampled_text=verbatim."""

from __future__ import annotations

import re

from maskpipe.errors import TemplateError
from maskpipe.roles import Verdict
from maskpipe.template import origin
from maskpipe.template.own_text import end_of_data
from maskpipe.template.render import REASONING_FIELDS, Engine, Trace, Wrapped
from maskpipe.template.turn import Turn, refused


def document(engine: Engine, wrapped: Wrapped, index: int, stop: str) -> tuple[Trace | None, Turn]:
    """The turn alone, its tail the message's own text exactly as given: P + (reasoning, then content) + stop token.

    What the prompt already supplies of the content (an opening `<think>`) is not repeated. None, and a refused
    turn, where the message holds more than text, or reasoning that the prompt does not open.
    """
    try:
        prompt = engine.trace(wrapped, index, add_generation_prompt=True)
    except TemplateError as error:
        return None, refused(index, f"the turn's prompt cannot be rendered: {error}")
    message = wrapped.raw["messages"][index]
    if message.get("tool_calls") or not isinstance(message.get("content"), str):
        return None, refused(index, "sampled_text='verbatim' needs content that is text, without tool calls")
    by_path = {leaf.path: number for number, leaf in enumerate(wrapped.leaves)}
    literal = origin.scaffold(index)
    pieces: list[tuple[str, int, int]] = []  # text, source, start in the source
    ending = prompt.text[end_of_data(prompt) :]
    content = message["content"]
    reasoning = next(((name, message[name]) for name in REASONING_FIELDS if message.get(name)), None)
    supplied = 0
    if reasoning is not None:
        opening = re.search(r"<([^<>/\s]+)>\s*$", ending)
        if opening is None or not isinstance(reasoning[1], str):
            return None, refused(index, "its prompt does not open reasoning; give the reasoning inside the content")
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
