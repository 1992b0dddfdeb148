"""The layouts of a pair, the obvious way: both sides whole, and how much of them may stand once."""

from __future__ import annotations

import dataclasses

import numpy as np

from maskpipe.document import Document
from maskpipe.roles import Branch, Flag, Role


def separate_of(documents: list[Document]) -> list[Document]:
    """A pair in the layout `separate`, whichever it has."""
    if documents[0].branch is not Branch.PROMPT:
        return documents
    prompt, *sides = documents
    out = []
    for number, side in enumerate(sides, 1):
        assert side.parent == number
        messages = prompt.message_ids.copy()
        first = min(side.verdicts)
        own = messages == min(sides[0].verdicts)  # the header of the answer
        messages[own] = first
        facts = {
            name: np.concatenate([getattr(prompt, name), getattr(side, name)])
            for name in ("input_ids", "role_ids", "part_ids", "flags")
        }
        weights = None
        if prompt.weights is not None or side.weights is not None:
            weights = np.concatenate(
                [np.ones(len(d), np.float32) if d.weights is None else d.weights for d in (prompt, side)]
            )
        messages = np.concatenate([messages, side.message_ids])
        out.append(dataclasses.replace(side, message_ids=messages, weights=weights, parent=None, **facts))
    return out


def shared_size(chosen: Document, rejected: Document) -> int:
    """Tokens that both may share, token by token; 0 for none."""
    size = 0
    while size < min(len(chosen), len(rejected)) and _alike(chosen, rejected, size):
        if _is_answer(chosen, size) or _is_answer(rejected, size):
            break
        size += 1
    if size >= min(len(chosen), len(rejected)) or not (_is_answer(chosen, size) and _is_answer(rejected, size)):
        return 0  # they part before the answers begin
    for side in (chosen, rejected):
        for token in (size - 1, size):
            if int(side.flags[token]) & int(Flag.STRADDLES | Flag.CUT_BEFORE):
                return 0
    return max(0, size - 1)


def _is_answer(document: Document, token: int) -> bool:
    """Is this token one that the model samples in the answer?"""
    sampled = int(document.flags[token]) & Flag.SAMPLED > 0
    said = sampled and document.role_ids[token] == Role.ASSISTANT
    return bool(said and int(document.message_ids[token]) in document.verdicts)


def _alike(chosen: Document, rejected: Document, token: int) -> bool:
    if _is_answer(chosen, token) and _is_answer(rejected, token):
        return True  # what they say may differ; that it begins here is what matters
    return _facts(chosen, token) == _facts(rejected, token)


def _facts(document: Document, token: int) -> tuple[object, ...]:
    message, first = int(document.message_ids[token]), min(document.verdicts)
    place = ("answer", message - first) if message >= first else ("prompt", message)
    weight = 1.0 if document.weights is None else float(document.weights[token])
    values = (document.input_ids, document.role_ids, document.part_ids, document.flags)
    return (*(int(value[token]) for value in values), place, weight)
