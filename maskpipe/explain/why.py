"""Facts → reasons: the one place that says why a token gets loss or not."""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskpipe.policy import Policy, kinds, may_train
from maskpipe.roles import Flag, Part, Role, Verdict

if TYPE_CHECKING:
    from maskpipe.document import Document


class Why(IntEnum):
    """Why a token gets loss (below 32) or does not."""

    CONTENT = 0
    REASONING = 1
    TOOL_CALL = 2
    STOP = 3
    WRAPPER = 4
    EMPTY_REASONING_TRAINED = 5
    SELECTED = 6
    TEXT = 7
    ALL = 8
    GIVEN = 9

    FIRST = 32
    HEADER = 33
    AFTER_STOP = 34
    SYSTEM = 35
    USER = 36
    TOOL = 37
    CONTEXT = 38
    OTHER = 39
    AROUND = 40
    TEMPLATE = 41
    STRADDLES = 42
    EMPTY_REASONING = 43
    REFUSED = 44
    HISTORY_DIFFERS = 45
    HISTORY_OF_SPLIT = 46
    WEIGHT_0 = 47
    NOT_CHOSEN = 48
    NOT_SELECTED = 49
    NOT_SAMPLED = 50
    PROMPT = 53
    PADDING = 51
    UNKNOWN = 52
    GIVEN_NONE = 53


WORDS = {
    Why.CONTENT: "assistant content",
    Why.REASONING: "assistant reasoning, with its markup",
    Why.TOOL_CALL: "assistant tool call, with its markup",
    Why.STOP: "stop token: the turn ends here",
    Why.WRAPPER: "assistant markup: the model writes it itself",
    Why.EMPTY_REASONING_TRAINED: "empty reasoning added by the template, trained because of train_on_empty_reasoning",
    Why.SELECTED: "not the assistant's, but selected by train_on",
    Why.TEXT: "text",
    Why.ALL: "every token is trained under this recipe",
    Why.GIVEN: "the mask of the data says so",
    Why.FIRST: "first token of a document: nothing predicts it",
    Why.HEADER: "header: supplied by the generation prompt",
    Why.AFTER_STOP: "template text after the turn's end",
    Why.SYSTEM: "system message",
    Why.USER: "user message",
    Why.TOOL: "tool output",
    Why.CONTEXT: "tool definitions and documents",
    Why.OTHER: "message of another role",
    Why.AROUND: "template text around the message",
    Why.TEMPLATE: "template text",
    Why.STRADDLES: "straddles the border of sampled text",
    Why.EMPTY_REASONING: "empty reasoning added by the template",
    Why.REFUSED: "turn refused",
    Why.HISTORY_DIFFERS: "turn whose context is not what inference would feed",
    Why.HISTORY_OF_SPLIT: "history of a split turn",
    Why.WEIGHT_0: "source weight 0",
    Why.NOT_CHOSEN: "turn not chosen by train_on",
    Why.NOT_SELECTED: "not selected by train_on",
    Why.NOT_SAMPLED: "assistant text that the model does not write here",
    Why.PROMPT: "turn of the prompt, which the answers share",
    Why.PADDING: "padding",
    Why.UNKNOWN: "role unknown",
    Why.GIVEN_NONE: "the mask of the data says so",
}
"""The reason of each kind, as a person reads it."""

_OTHERS = {
    Role.SYSTEM: Why.SYSTEM,
    Role.USER: Why.USER,
    Role.TOOL: Why.TOOL,
    Role.CONTEXT: Why.CONTEXT,
    Role.OTHER: Why.OTHER,
    Role.TEXT: Why.NOT_SELECTED,
    Role.TEMPLATE: Why.TEMPLATE,
    Role.PADDING: Why.PADDING,
    Role.UNKNOWN: Why.UNKNOWN,
}


def reasons(document: Document, policy: Policy) -> npt.NDArray[np.uint8]:
    """[n] Why of each token as a target. Below 32 exactly where `document.loss_mask` is 1."""
    return np.where(document.loss_mask > 0, _gets_loss(document, policy), _gets_none(document, policy)).astype(np.uint8)


def _gets_loss(document: Document, policy: Policy) -> npt.NDArray[np.uint8]:
    roles, parts = document.role_ids, kinds(document.part_ids, document.flags, document.message_ids)
    assistant = (roles == Role.ASSISTANT) & (document.sampled > 0)
    everything = Why.ALL if policy.trains_everything else Why.SELECTED
    out = np.where(roles == Role.TEXT, Why.TEXT, everything)
    for part, why in (
        (Part.CONTENT, Why.CONTENT),
        (Part.REASONING, Why.REASONING),
        (Part.TOOL_CALL, Why.TOOL_CALL),
        (Part.STOP, Why.STOP),
        (Part.SCAFFOLD, Why.WRAPPER),
    ):
        out[assistant & (parts == part)] = why
    out[document.flags & Flag.EMPTY_REASONING > 0] = Why.EMPTY_REASONING_TRAINED
    return out.astype(np.uint8)


def _gets_none(document: Document, policy: Policy) -> npt.NDArray[np.uint8]:
    roles, flags = document.role_ids, document.flags
    out = np.full(len(document), Why.UNKNOWN, np.uint8)
    for role, why in _OTHERS.items():
        out[roles == role] = why
    spoken = np.isin(roles, (Role.SYSTEM, Role.USER, Role.TOOL, Role.CONTEXT, Role.OTHER))
    out[spoken & (document.part_ids == Part.SCAFFOLD)] = Why.AROUND
    for message in np.unique(document.message_ids[roles == Role.ASSISTANT]).tolist():
        own = (roles == Role.ASSISTANT) & (document.message_ids == message)
        out[own] = _of_turn(document, policy, message, own)[own]
    if document.weights is not None:
        would = (document.sampled > 0) | (policy.loss(replace(document, weights=None)) > 0)
        out[(document.weights == 0) & would] = Why.WEIGHT_0
    out[flags & Flag.STRADDLES > 0] = Why.STRADDLES
    out[:1] = Why.FIRST if document.parent is None else Why.HEADER
    out[roles == Role.PADDING] = Why.PADDING
    return out


def _of_turn(document: Document, policy: Policy, message: int, own: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Why tokens of an assistant turn, those without loss, have none."""
    out = np.full(len(document), Why.NOT_SAMPLED, np.uint8)
    sampled = np.flatnonzero(own & (document.flags & (Flag.SAMPLED | Flag.STRADDLES) > 0))
    if message not in document.verdicts and (document.pair is not None or document.label is not None):
        out[:] = Why.PROMPT
        return out
    verdict = document.verdicts.get(message, Verdict.REFUSED)
    if document.turn >= 0 and message != document.turn:
        out[:] = Why.HISTORY_OF_SPLIT
        return out
    if verdict & Verdict.REFUSED:
        out[:] = Why.REFUSED
        return out
    if len(sampled):
        place = np.arange(len(document))
        literal = document.part_ids == Part.SCAFFOLD
        out[(place < sampled[0]) & literal] = Why.HEADER
        out[(place > sampled[-1]) & literal] = Why.AFTER_STOP
    why = Why.NOT_SELECTED
    if message not in policy.chosen_turns(sorted(document.verdicts)):
        why = Why.NOT_CHOSEN
    elif document.turn < 0 and not may_train(verdict, policy):
        why = Why.HISTORY_DIFFERS
    out[sampled] = why
    if not policy.empty_reasoning:
        out[document.flags & Flag.EMPTY_REASONING > 0] = Why.EMPTY_REASONING
    return out


def verdict_words(verdict: Verdict) -> str:
    """A verdict as a person reads it."""
    if verdict & Verdict.REFUSED:
        return "refused"
    names = {Verdict.HISTORY_DIFFERS: "history differs", Verdict.NO_STOP: "no stop token"}
    return ", ".join(name for bit, name in names.items() if verdict & bit) or "exact"
