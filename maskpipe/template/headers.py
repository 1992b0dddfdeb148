"""The literal text before a turn beside the literal end of the prompt that inference would feed."""

from __future__ import annotations

from dataclasses import dataclass

from maskpipe.template.control import ControlTokens
from maskpipe.template.own_text import end_of_data, literal_before, own_entries, shows_reasoning
from maskpipe.template.render import Trace, end_of_inline_reasoning


@dataclass(frozen=True)
class Header:
    """The literal text before a turn beside the literal end of its prompt."""

    start: int | None
    """Where the turn starts in the text; None when the two have nothing in common."""
    supplied: str
    """What the prompt ends with beyond what both share."""
    unsaid: str
    """The part of it that stands nowhere before the turn."""
    rest: str
    """What stands before the turn beyond all that its prompt ends with."""


def compare_headers(control: ControlTokens, index: int, prompt: Trace, whole: Trace) -> Header:
    """The literal text before the turn beside the literal end of its prompt; white space may differ."""
    begin, end = literal_before(whole, index)
    header = whole.text[begin:end]
    ending = prompt.text[end_of_data(prompt) :]
    common, used = control.common_lengths(header, ending)
    rest, supplied = header[common:], ending[used:]
    overlap = next((size for size in range(min(len(rest), len(supplied)), 0, -1) if supplied.endswith(rest[:size])), 0)
    start = begin + common + overlap if common or not header else None
    return Header(start, supplied, supplied[: len(supplied) - overlap], rest[overlap:])


def start_after_header(control: ControlTokens, index: int, prompt: Trace, whole: Trace) -> int | None:
    """Where the turn starts in a text that its prompt is no prefix of: after what the literal text before the turn
    has in common with the literal end of the prompt, and what the prompt's own ending already supplies."""
    return compare_headers(control, index, prompt, whole).start


def unanswered(control: ControlTokens, index: int, prompt: Trace, alone: Trace) -> str:
    """Why the turn's text must not be put after a prompt that the template does not write before it.

    A prompt may end with text that history lacks: an empty reasoning block (opened and closed) suits a turn without
    reasoning; one that only opens reasoning is answered by reasoning, which the template did not write here. Where
    history has other text in its place, that may only go on with a marker of its own.
    """
    header = compare_headers(control, index, prompt, alone)
    if not header.unsaid.strip():
        return ""
    shown = f"the prompt ends with {header.unsaid.strip()!r}, which the template does not write before this turn"
    if _answers(control, alone, index, header.supplied.strip()):
        return ""
    if shows_reasoning(alone, index):
        return f"{shown}'s reasoning"
    if not control.is_closed_block(header.supplied):
        return f"{shown}, and nothing in the turn answers it"
    instead = header.rest.strip()
    if instead and not any(start == 0 for start, _, _ in control.markers(instead)):
        return f"{shown}; there it writes {instead!r} instead"
    return ""


def _answers(control: ControlTokens, alone: Trace, index: int, opening: str) -> bool:
    """Does the prompt only open the reasoning that the turn's own content goes on with and closes?"""
    first, leaf = next(own_entries(alone, index), (None, None))
    if first is None or leaf is None or not end_of_inline_reasoning(leaf):
        return False
    if first[3] < 0 or leaf.text[: first[3]].strip():
        return False
    found = control.markers(opening)
    return len(found) == 1 and len(found[0][2]) == len(opening) and not leaf.text.lstrip().startswith(opening)
