"""The facts kept per token, with their uint8 values. The values are fixed by shard format v1: never renumber them.

Facts are orthogonal; loss is not a fact but a query over them (policy.py).

    text      <|im_start|>  user \\n  Hi   <|im_end|> \\n  <|im_start|> assistant \\n   Hello    <|im_end|>   \\n
    role      user          user     user user       ..   assistant    ..             assistant assistant   assistant
    part      scaffold      scaffold content scaffold     scaffold     ..             content   stop        scaffold
    sampled   0             0        0    0               0            0              1         1           0
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from functools import cache


class Role(IntEnum):
    """Whose turn is it?"""

    PADDING = 0
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4
    CONTEXT = 5
    """Tool definitions and documents: data that belongs to no message."""
    OTHER = 6
    """A role of the data that is none of these; its name is in the manifest."""
    TEXT = 7
    """Plain text for pretraining."""
    TEMPLATE = 8
    """Literal text of the template that belongs to no message."""
    UNKNOWN = 255
    """Only in data that maskpipe did not prepare."""


class Part(IntEnum):
    """What is it?"""

    NONE = 0
    """Padding."""
    CONTENT = 1
    REASONING = 2
    TOOL_CALL = 3
    TOOL_SCHEMA = 4
    SCAFFOLD = 5
    """Literal text that the template wrote."""
    STOP = 6
    """The token that ends a turn."""


class Flag(IntFlag):
    """One byte of bits per token."""

    SAMPLED = 1
    """The model itself would emit this token at inference."""
    LOSS = 2
    """This token is a target with loss, as the recipe decided. Never set on padding or on a document's first token."""
    STRADDLES = 4
    """The token holds characters from both sides of the border between sampled and not sampled: never trained."""
    CUT_BEFORE = 8
    """Encoding was cut before this token, as it is at inference where the generation prompt ends."""
    EMPTY_REASONING = 16
    """Belongs to an empty reasoning block that the template added and the prompt supplies when reasoning is off."""


class Verdict(IntFlag):
    """What was established about one assistant turn. 0 is exact: everything verified."""

    EXACT = 0
    HISTORY_DIFFERS = 1
    """What stands before the turn, or how it is written, is not what inference would feed or sample."""
    NO_STOP = 2
    """The template writes no stop token after this turn."""
    REFUSED = 4
    """Provenance or the sampled rule could not be established: no loss."""


class Branch(IntEnum):
    """What a document is in preference data."""

    NONE = 0
    """In no pair: a chat, a text, or an answer that has a label of its own."""
    PROMPT = 1
    CHOSEN = 2
    REJECTED = 3


ROLE_NAMES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}


def role_of(name: str) -> Role:
    """The role a message's own `role` string stands for; OTHER when it is none of the standard ones."""
    return ROLE_NAMES.get(name, Role.OTHER)


@cache
def verdict_name(verdict: int) -> str:
    """`exact`, or the names of the bits joined by `+`."""
    return "+".join(bit.name.lower() for bit in Verdict if verdict & bit and bit.name) or "exact"
