"""Which tokens get loss: each policy is a query over the facts of a document, so it can be asked again at any time.

    train_on = ("assistant",)                           what the model samples, stop tokens included
    train_on = ("assistant", "last_turn")               the last assistant turn only
    train_on = ("assistant", "-assistant.reasoning")    without reasoning
    train_on = ("assistant", "tool.content")            and the bodies of tool outputs
    train_on = ("assistant", "turns:0,-1")              the first and the last assistant turn
    train_on = ("all",)                                 every token

Selectors apply from left to right; a leading '-' takes away. The wrapper that a template writes around reasoning or a
tool call goes with what it wraps. `all` alone trains every token of the one text, as pretraining does, whatever the
verdicts. With any other selectors never trained: a document's first token (nothing predicts
it), tokens that straddle the border of sampled text, turns whose verdict forbids it, a turn other than the own one of a
split document, messages of source weight 0, and empty reasoning blocks unless the recipe says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskpipe.errors import UsageError
from maskpipe.roles import Flag, Part, Role, Verdict

if TYPE_CHECKING:
    from maskpipe.document import Document
    from maskpipe.recipe import Recipe

_ROLES = {role.name.lower(): role for role in Role if role not in (Role.PADDING, Role.UNKNOWN)}
_PARTS = {part.name.lower(): part for part in Part if part is not Part.NONE}
_SYNTAX = (
    "selectors are a role (assistant, user, system, tool, context, other, text), role.part (content, reasoning, "
    "tool_call, tool_schema, scaffold, stop), all, last_turn or turns:0,-1; a leading '-' takes away"
)


@dataclass(frozen=True)
class _Selector:
    add: bool
    role: Role | None
    """None: every role."""
    part: Part | None
    """None: what the role says; for the assistant all that is sampled, for others their own text."""


@dataclass(frozen=True)
class Policy:
    """The parsed `train_on` of a recipe. Raises UsageError on a selector that is none."""

    selectors: tuple[_Selector, ...]
    turns: tuple[int, ...] | None
    """Which assistant turns, counted from 0, negative from the end; None: all of them."""
    empty_reasoning: bool
    accept_rewritten: bool

    @staticmethod
    def of(recipe: Recipe) -> Policy:
        if recipe.objective == "pretrain":
            return Policy((_Selector(True, None, None),), None, True, True)
        selectors: list[_Selector] = []
        turns: tuple[int, ...] | None = None
        for word in recipe.train_on:
            if word == "last_turn":
                turns = (-1,)
            elif word.startswith("turns:"):
                turns = _turn_numbers(word)
            else:
                selectors.append(_selector(word))
        if not any(selector.add for selector in selectors):
            selectors.insert(0, _Selector(True, Role.ASSISTANT, None))
        return Policy(tuple(selectors), turns, recipe.train_on_empty_reasoning, recipe.on_history_rewrite == "accept")

    @property
    def trains_everything(self) -> bool:
        """Is every token selected, whatever the turns' verdicts say?"""
        return self.selectors == (_Selector(True, None, None),)

    @property
    def trains_turns(self) -> bool:
        """Can an assistant turn get loss at all?"""
        return any(selector.add and selector.role in (None, Role.ASSISTANT) for selector in self.selectors)

    @property
    def trains_others(self) -> bool:
        """Can tokens outside assistant turns get loss?"""
        return any(selector.add and selector.role is not Role.ASSISTANT for selector in self.selectors)

    def chosen_turns(self, messages: list[int]) -> set[int]:
        """Of the assistant turns with these message indices, in order, those that may be trained."""
        if self.turns is None:
            return set(messages)
        count = len(messages)
        return {messages[number] for number in self.turns if -count <= number < count}

    def loss(self, document: Document) -> npt.NDArray[np.uint8]:
        """[n] 0 or 1, from the document's facts alone."""
        roles, flags, messages = document.role_ids, document.flags, document.message_ids
        parts = kinds(document.part_ids, flags, messages)
        sampled = flags & Flag.SAMPLED > 0
        mask = np.zeros(len(document), dtype=bool)
        for selector in self.selectors:
            chosen = np.ones(len(document), dtype=bool) if selector.role is None else roles == selector.role
            if selector.part is not None:
                chosen &= parts == selector.part
            elif selector.role is not None and selector.role is not Role.ASSISTANT:
                chosen &= parts != Part.SCAFFOLD
            if selector.role is Role.ASSISTANT and selector.add:
                chosen &= sampled
            mask = mask | chosen if selector.add else mask & ~chosen
        if not self.trains_everything:
            mask &= ~self._forbidden_turns(document, roles, messages)
            mask &= flags & Flag.STRADDLES == 0
        if not self.empty_reasoning:
            mask &= flags & Flag.EMPTY_REASONING == 0
        if document.weights is not None:
            mask &= document.weights != 0
        mask[:1] = False
        return mask.astype(np.uint8)

    def _forbidden_turns(
        self, document: Document, roles: npt.NDArray[np.uint8], messages: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.bool_]:
        """Tokens of assistant turns that must not be trained in this document, and all others' in a split one."""
        turns = sorted(document.verdicts)
        chosen = self.chosen_turns(turns)
        if document.turn >= 0:
            refused = document.verdicts.get(document.turn, Verdict.EXACT) & Verdict.REFUSED
            if refused or document.turn not in chosen:
                return np.ones(len(document), dtype=bool)
            return np.asarray(messages != document.turn)
        allowed = [
            turn for turn in turns if turn in chosen and may_train(document.verdicts.get(turn, Verdict.REFUSED), self)
        ]
        return np.asarray((roles == Role.ASSISTANT) & ~np.isin(messages, allowed))


def may_train(verdict: Verdict, policy: Policy) -> bool:
    """May a turn with this verdict be trained where it stands?"""
    if verdict & Verdict.REFUSED:
        return False
    return policy.accept_rewritten or not verdict & Verdict.HISTORY_DIFFERS


def kinds(
    parts: npt.NDArray[np.uint8], flags: npt.NDArray[np.uint8], messages: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """[n] the part each token belongs to: a sampled wrapper goes with the reasoning or tool call that it wraps."""
    out = parts.copy()
    loose = (flags & Flag.SAMPLED > 0) & (parts == Part.SCAFFOLD)
    if not loose.any():
        return out
    size = len(parts)
    edges = np.flatnonzero(np.diff(loose.view(np.int8), prepend=0, append=0))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        after = parts[stop] if stop < size and messages[stop] == messages[start] else Part.NONE
        before = parts[start - 1] if start > 0 and messages[start - 1] == messages[start] else Part.NONE
        for neighbour in (after, before):
            if neighbour in (Part.TOOL_CALL, Part.REASONING):
                out[start:stop] = neighbour
                break
    return out


def _selector(word: str) -> _Selector:
    name = word.removeprefix("-")
    add = name == word
    if name == "all":
        return _Selector(add, None, None)
    role, dot, part = name.partition(".")
    if role not in _ROLES or (dot and part not in _PARTS):
        raise UsageError(f"train_on: {word!r} is no selector; {_SYNTAX}")
    return _Selector(add, _ROLES[role], _PARTS[part] if part else None)


def _turn_numbers(word: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in word.removeprefix("turns:").split(","))
    except ValueError:
        raise UsageError(f"train_on: {word!r} must list turn numbers, such as turns:0,2,-1") from None
