"""What the tokenizer and template inside a dataset say: which ids are control tokens, stops and BOS, and with which ids
a prompt ends. Learned by encoding a few conversations as prepare does; nothing is known by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.scripts import scripts_of
from maskpipe.chat import read_all
from maskpipe.document import Document
from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role
from maskpipe.tokenizer import Tokenizer

CONTROL, BOS, STOP, MARK, UNKNOWN = 1, 2, 4, 8, 16
"""id_class of csrc/audit.h."""
NOT_KNOWN = (-1, -1)
MAX_HEADERS = 64


@dataclass
class Known:
    """Tables over ids, as _core.Audit takes them; everything is "not known" until it is learned."""

    ids: npt.NDArray[np.uint16]  # [vocab_size] bits above, and the script in the high byte
    allowed: npt.NDArray[np.uint16]  # [vocab_size] bit r: content of role r may hold it
    marks: npt.NDArray[np.int8]  # [vocab_size] p opens pair p, -p closes it
    mark_bounds: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    """[pairs + 1] Opening less closing marks in a turn of this template: least, most."""
    scripts: list[str] = field(default_factory=lambda: ["not known"])
    headers: list[list[int]] = field(default_factory=list)
    chat_bos: tuple[int, int] = NOT_KNOWN
    text_bos: tuple[int, int] = NOT_KNOWN
    stops_known: bool = False
    missing: list[str] = field(default_factory=list)
    """What is not known, and why, for a person."""

    @staticmethod
    def nothing(vocab_size: int, why: str) -> Known:
        """Of a dataset without its tokenizer."""
        zeros = np.zeros(vocab_size, np.uint16)
        return Known(zeros, zeros.copy(), np.zeros(vocab_size, np.int8), missing=[why])


def learn(tokenizer: Tokenizer, recipe: Recipe, vocab_size: int) -> Known:
    """What they say of ids below vocab_size."""
    known = Known.nothing(vocab_size, "")
    known.missing.clear()
    tokens = [tokenizer.token_bytes(id) for id in range(min(vocab_size, tokenizer.vocab_size))]
    control = {tokenizer.added_tokens[text] for text in tokenizer.control}
    scripts, known.scripts = scripts_of(tokens, frozenset(control))
    known.ids[: len(tokens)] = scripts << 8
    _control_tokens(known, tokenizer, recipe)
    _marks(known, tokenizer)
    if tokenizer.unknown_id is not None:
        _set(known, tokenizer.unknown_id, UNKNOWN)
    if recipe.control_tokens_in_content != "keep":
        known.text_bos = (0, 0)
    if tokenizer.bos_token in tokenizer.added_tokens:
        _set(known, tokenizer.added_tokens[tokenizer.bos_token], BOS)
    _habits(known, tokenizer, recipe)
    return known


def _set(known: Known, id: int, bit: int) -> None:
    if id < len(known.ids):
        known.ids[id] |= bit


def _control_tokens(known: Known, tokenizer: Tokenizer, recipe: Recipe) -> None:
    swallowing = sorted(tokenizer.swallows_before & tokenizer.control)
    if swallowing:
        shown = ", ".join(map(repr, swallowing[:3]))
        known.missing.append(f"{shown} take white space before them with them, so they may begin inside content")
    for text in tokenizer.control - tokenizer.swallows_before:
        _set(known, tokenizer.added_tokens[text], CONTROL)
    if recipe.control_tokens_in_content == "keep":
        known.allowed[:] = np.iinfo(np.uint16).max
        known.missing.append("control tokens in content: the recipe keeps them (control_tokens_in_content keep)")
    for role, texts in recipe.control_tokens_allowed.items():
        for text in texts:
            id = tokenizer.added_tokens.get(text, len(known.allowed))
            if id < len(known.allowed):
                known.allowed[id] |= 1 << Role[role.upper()]


def _marks(known: Known, tokenizer: Tokenizer) -> None:
    """Pairs such as <think> and </think>."""
    for text, id in sorted(tokenizer.added_tokens.items()):
        closing = tokenizer.added_tokens.get(f"</{text[1:]}") if text[:1] == "<" and text[:2] != "</" else None
        pair = len(known.mark_bounds)
        if closing is None or max(id, closing) >= len(known.marks) or pair > 127:
            continue
        known.mark_bounds.append((0, 0))
        known.marks[id], known.marks[closing] = pair, -pair
        _set(known, id, MARK)
        _set(known, closing, MARK)


# -- habits of the template

_CALL = {"type": "function", "id": "call00000", "function": {"name": "probe", "arguments": {"a": "b"}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probes.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "A."}}},
    },
}
_USER, _ANSWER = {"role": "user", "content": "Question one?"}, {"role": "assistant", "content": "Answer one."}
_SYSTEM = {"role": "system", "content": "Be brief."}
_PROBES: tuple[dict[str, Any], ...] = (
    {"messages": [_USER, _ANSWER]},
    {"messages": [_USER, _ANSWER, {"role": "user", "content": "And two?"}, {"role": "assistant", "content": "Two."}]},
    {"messages": [_SYSTEM, _USER, _ANSWER]},
    {"messages": [_USER, _ANSWER], "tools": [_TOOL]},
    {"messages": [_USER, {**_ANSWER, "reasoning_content": "Let me see."}]},
    {"messages": [_USER, {**_ANSWER, "reasoning_content": "Let me see."}, _USER, _ANSWER]},
    {"messages": [_USER, {"role": "assistant", "content": "", "tool_calls": [_CALL]}], "tools": [_TOOL]},
    {
        "messages": [
            _USER,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call00000", "name": "probe", "content": "c"},
            _ANSWER,
        ],
        "tools": [_TOOL],
    },
)


def _habits(known: Known, tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Headers, stops and BOS, from what conversations become."""
    plain = recipe.replace(
        columns={},
        roles={},
        on_content_lost="count",
        sequence_length=1 << 20,
        tokenizer_backend="tokenizers",
        objective="sft" if recipe.objective == "preference" else recipe.objective,
    )
    try:
        encoder = Encoder(tokenizer, plain)
        if not encoder.has_template:
            return
        documents = list(_probed(encoder))
    except MaskpipeError as error:
        known.missing.append(f"what the template writes around turns: {error}")
        return
    if not documents:
        known.missing.append("what the template writes around turns: it takes none of the conversations it is asked")
        return
    bos = {_leading_bos(known, document) for document in documents}
    known.chat_bos = (min(bos), max(bos))
    headers: dict[tuple[int, ...], None] = {}
    stops: set[int] = set()
    for document in documents:
        for start, end in _turns(document):
            headers[_header(document, start)] = None
            _widen_bounds(known, document, start)
            stops |= set(document.input_ids[start:end][document.part_ids[start:end] == Part.STOP][-1:].tolist())
    if () not in headers and len(headers) <= MAX_HEADERS:
        known.headers = [list(header) for header in headers]
    control = {tokenizer.added_tokens[text] for text in tokenizer.control}
    if stops and stops <= control:
        known.stops_known = True
        declared = {tokenizer.added_tokens[text] for text in tokenizer.stop_tokens if text in tokenizer.control}
        for id in stops | declared:
            _set(known, id, STOP)


def _probed(encoder: Encoder) -> Iterator[Document]:
    """What the probes become, as they are and with each switch of the template on and off."""
    switches: list[dict[str, Any]] = [{}]
    for name in sorted(encoder.template.engine.variables):
        switches += [{name: False}, {name: True}]
    for switch in switches:
        for probe in _PROBES if not switch else _PROBES[:1] + _PROBES[4:7]:
            record = {**probe, "chat_template_kwargs": switch} if switch else probe
            try:
                (item,) = read_all(record, encoder.recipe, source=0, row=0).items
                yield from encoder.encode(item).documents
            except MaskpipeError:
                continue  # this template has no such conversations


def _turns(document: Document) -> Iterator[tuple[int, int]]:
    """Stretches of sampled tokens of one message."""
    sampled = (document.flags & Flag.SAMPLED > 0) & (document.role_ids == Role.ASSISTANT)
    message = np.where(sampled, document.message_ids, -1)
    borders = np.flatnonzero(np.diff(message, prepend=-1, append=-1))
    for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        if message[start] >= 0:
            yield start, end


def _header(document: Document, start: int) -> tuple[int, ...]:
    """The template's text right before a turn, as far as it belongs to the turn or to no message."""
    first = start
    while first > 0 and _is_header(document, first - 1, int(document.message_ids[start])):
        first -= 1
    return tuple(document.input_ids[first:start].tolist())


def _is_header(document: Document, at: int, message: int) -> bool:
    own = document.role_ids[at] == Role.TEMPLATE or int(document.message_ids[at]) == message
    return bool(own and document.part_ids[at] == Part.SCAFFOLD and not document.flags[at] & Flag.STRADDLES)


def _widen_bounds(known: Known, document: Document, start: int) -> None:
    """Marks in a turn, its header and the end of the prompt before it, as check_marks of csrc/audit.cpp counts them."""
    message = int(document.message_ids[start])
    own = (document.role_ids == Role.ASSISTANT) & (document.message_ids == message)
    first = last = start
    while last < len(own) and own[last]:
        last += 1
    while first > 0 and own[first - 1]:
        first -= 1
    while first > 0 and document.role_ids[first - 1] == Role.TEMPLATE:
        first -= 1
    found = known.marks[document.input_ids[first:last]]
    for pair in np.unique(np.abs(found[found != 0])).tolist():
        net = int(np.sign(found[np.abs(found) == pair]).sum())
        least, most = known.mark_bounds[pair]
        known.mark_bounds[pair] = (min(least, net), max(most, net))


def _leading_bos(known: Known, document: Document) -> int:
    is_bos = known.ids[document.input_ids] & BOS > 0
    return int(np.argmin(np.append(is_bos, False)))
