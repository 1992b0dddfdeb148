"""Spans: the public form of a rendered conversation; contiguous, covering its text, each with one provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from maskpipe.errors import TemplateError
from maskpipe.roles import Part, Role, Verdict
from maskpipe.template import origin
from maskpipe.template.lost import Lost, find_lost, find_printed
from maskpipe.template.render import DEFAULT_CLOCK, Engine, Path, Trace, end_of_inline_reasoning, shown_range, wrap
from maskpipe.template.sampled import Sampling
from maskpipe.template.turn import Turn


class Span(NamedTuple):
    """A run of characters text[start:end] with one provenance."""

    start: int
    end: int
    role: Role
    part: Part
    message: int
    """Index in the messages, -1 for none."""
    sampled: bool
    """The model itself would emit these characters at inference."""
    source: tuple[Path, int, int] | None
    """(field path, start, end): the characters of the input these came from; None for literal text of the template.
    Where a filter built its text anew, start and end are -1, and the path is ("unknown",) if several fields went in."""
    empty_reasoning: bool = False
    """Part of an empty reasoning block that the template added."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as its template prints it."""

    text: str
    spans: list[Span]
    """Contiguous from 0 to len(text)."""
    turns: list[Turn]
    """What was established about each assistant turn."""
    lost: list[Lost]
    """Fields of the input that the template dropped, or printed as Python repr."""

    def sampled_text(self) -> list[str]:
        """The sampled characters, one string per run."""
        out: list[str] = []
        last = -1
        for span in self.spans:
            if span.sampled:
                if span.start == last:
                    out[-1] += self.text[span.start : span.end]
                else:
                    out.append(self.text[span.start : span.end])
                last = span.end
        return out


class ChatTemplate:
    """A chat template, unmodified, rendered with provenance.

    source: the template's text, or the path of a file with it. `control_tokens`: strings that the tokenizer knows as
    single tokens; without them the stop token is recognised by its look. `stop_tokens` default to `eos_token`.
    Raises TemplateError when it does not parse.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        control_tokens: Sequence[str] = (),
        stop_tokens: Sequence[str] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        clock: str = DEFAULT_CLOCK,
    ) -> None:
        text = read_template(source)
        names = {"bos_token": bos_token, "eos_token": eos_token, **(special_tokens or {})}
        self.engine = Engine(text, special_tokens=names, clock=clock)
        self.sampling = Sampling(
            self.engine,
            control_tokens,
            tuple(stop_tokens) if stop_tokens is not None else tuple(filter(None, [eos_token])),
        )

    @property
    def source(self) -> str:
        return self.engine.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> Rendered:
        """The text that transformers' apply_chat_template(tokenize=False) gives, with a Span for every character.

        Raises TemplateError with the template's own words when it refuses the messages.
        """
        wrapped = wrap(messages, tools=tools, documents=documents, kwargs=kwargs)
        trace = self.engine.trace(wrapped, add_generation_prompt=add_generation_prompt)
        bare = self.engine.trace(wrapped) if add_generation_prompt else trace
        turns = self.sampling.turns(wrapped, bare) if trace.text.startswith(bare.text) or bare is trace else []
        lost = find_lost(trace) + find_printed(self.engine, wrapped, trace)
        return Rendered(trace.text, list(spans_of(trace, turns)), turns, lost)


def read_template(source: str) -> str:
    """The template's text; a short string without Jinja markup is the path of a file with it."""
    if "{{" in source or "{%" in source or "\n" in source or len(source) > 1024:
        return source
    try:
        return FilePath(source).read_text(encoding="utf-8")
    except OSError as error:
        raise TemplateError(
            f"{source!r} is neither a chat template (it has no Jinja markup) nor a readable file: {error.strerror}"
        ) from None


def spans_of(trace: Trace, turns: Sequence[Turn]) -> Iterator[Span]:
    """The spans of a trace in which these turns are sampled, in order."""
    cuts = sorted({place for turn in turns for place in _borders(turn)})
    regions = sorted((turn.start, turn.stop, turn) for turn in turns if turn.stop > turn.start)
    leaves = trace.leaves
    cut = region = 0
    for entry in trace.origins:
        start, end, source, first, last = entry
        leaf = leaves[source] if source >= 0 else None
        inline = end_of_inline_reasoning(leaf) if leaf is not None else 0
        one_to_one = end - start == last - first
        while cut < len(cuts) and cuts[cut] <= start:
            cut += 1
        stops = []
        while cut < len(cuts) and cuts[cut] < end:
            stops.append(cuts[cut])
            cut += 1
        if inline and one_to_one and first < inline < last:
            stops = sorted({*stops, start + inline - first})
        shift = first - start
        for stop in (*stops, end):
            while region < len(regions) and regions[region][1] <= start:
                region += 1
            turn = regions[region][2] if region < len(regions) and regions[region][0] <= start else None
            if leaf is None:
                yield _literal_span(trace, source, start, stop, turn)
            else:
                place = (start + shift, stop + shift) if one_to_one else (first, last)
                part = leaf.part
                if inline and 0 < (place[1] if one_to_one else shown_range(entry)[1]) <= inline:
                    part = Part.REASONING
                empty = turn is not None and _in_empty_reasoning(turn, start)
                yield Span(start, stop, leaf.role, part, leaf.message, turn is not None, (leaf.path, *place), empty)
            start = stop


def _literal_span(trace: Trace, source: int, start: int, stop: int, turn: Turn | None) -> Span:
    if turn is None:
        message = origin.scaffold_message(source)
        role = trace.roles[message] if 0 <= message < len(trace.roles) else Role.TEMPLATE
        return Span(start, stop, role, Part.SCAFFOLD, message, False, None)
    empty = _in_empty_reasoning(turn, start)
    is_stop = turn.stop_token is not None and turn.stop_token[0] <= start < turn.stop_token[1]
    part = Part.STOP if is_stop else Part.REASONING if empty else Part.SCAFFOLD
    return Span(start, stop, Role.ASSISTANT, part, turn.message, True, None, empty)


def _in_empty_reasoning(turn: Turn, at: int) -> bool:
    return turn.empty_reasoning is not None and turn.empty_reasoning[0] <= at < turn.empty_reasoning[1]


def _borders(turn: Turn) -> list[int]:
    out = [turn.start, turn.stop]
    if turn.stop_token is not None:
        out += turn.stop_token
    if turn.empty_reasoning is not None:
        out += turn.empty_reasoning
    return out


__all__ = ["ChatTemplate", "Rendered", "Span", "Verdict", "read_template", "spans_of"]
