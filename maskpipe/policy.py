"""Which tokens get loss: each policy is a query over the facts of a document, so it can be asked again at any time.

    train_on = ("assistant",)                           what the model samples, stop tokens included
    train_on = ("assistant", "last_turn")               the last assistant turn only
    train_on = ("assistant", "-assistant.reasoning")    without reasoning
    train_on = ("assistant", "tool.content")            and the bodies of tool outputs
    train_on = ("assistant", "turns:0,-1")              the first and the last assistant turn
    train_on = ("all",)                                 every token

Selectors apply from left to right; a leading '-' takes away. The wrapper that a template writes around reasoning or a
tool call goes with what it wraps. `all` alone trains every token of the one text, as pretraining does, whatever the
verdicts. Never trained, whatever the selectors: a document's first token (nothing predicts it), tokens that straddle
the border of sampled text, messages of source weight 0, and empty reasoning blocks unless the recipe says so. With any
selectors but `all` neither: turns whose verdict forbids it, and a turn other than the own one of a split document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.errors import UsageError
from maskpipe.roles import Flag, Part, Role, Verdict

if TYPE_CHECKING:
    from maskpipe.document import Document
    from maskpipe.recipe import Recipe

_ROLES = {role.name.lower(): role for role in Role if role not in (Role.PADDING, Role.UNKNOWN)}
_PARTS = {part.name.lower(): part for part in Part if part is not Part.NONE}
_REFUSED, _HISTORY_DIFFERS = int(Verdict.REFUSED), int(Verdict.HISTORY_DIFFERS)
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
        if recipe.objective == "preference":
            other = next((s for s in selectors if s.add and s.role is not Role.ASSISTANT), None)
            if other is not None:
                raise UsageError(
                    "train_on: with objective='preference' only what the assistant says is compared; select assistant "
                    "or parts of it, such as assistant.content"
                )
        if not any(selector.add for selector in selectors):
            selectors.insert(0, _Selector(True, Role.ASSISTANT, None))
        return Policy(tuple(selectors), turns, recipe.train_on_empty_reasoning, recipe.on_history_rewrite == "accept")

    @cached_property
    def trains_everything(self) -> bool:
        """Is every token selected, whatever the turns' verdicts say?"""
        return self.selectors == (_Selector(True, None, None),)

    @cached_property
    def trains_turns(self) -> bool:
        """Can an assistant turn get loss at all?"""
        return any(selector.add and selector.role in (None, Role.ASSISTANT) for selector in self.selectors)

    @cached_property
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
        return (self.flags(document) & Flag.LOSS > 0).astype(np.uint8)

    def flags(self, document: Document) -> npt.NDArray[np.uint8]:
        """[n] the document's flags, with Flag.LOSS on the tokens that get loss and on no other."""
        return self.mark(
            document.role_ids,
            document.part_ids,
            document.flags,
            document.message_ids,
            document.weights,
            document.turn,
            document.verdicts,
        )

    def mark(
        self,
        roles: npt.NDArray[np.uint8],
        parts: npt.NDArray[np.uint8],
        flags: npt.NDArray[np.uint8],
        messages: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32] | None,
        turn: int,
        verdicts: Mapping[int, Verdict],
    ) -> npt.NDArray[np.uint8]:
        """As `flags`, for the facts that a Document has under these names. ValueError when they differ in length."""
        none, allowed = self._trainable(turn, verdicts)
        return _core.mark_loss(self.rule, roles, parts, flags, messages, weights, none, turn, allowed)

    @cached_property
    def rule(self) -> _core.LossRule:
        """The selectors as the core takes them."""
        selectors = [
            (
                int(selector.add),
                -1 if selector.role is None else int(selector.role),
                -1 if selector.part is None else int(selector.part),
            )
            for selector in self.selectors
        ]
        return _core.LossRule(selectors, self.trains_everything, self.empty_reasoning)

    def _trainable(self, turn: int, verdicts: Mapping[int, Verdict]) -> tuple[bool, list[int]]:
        """(nothing may train, messages of the assistant turns that may); a split document's own turn is known."""
        turns = sorted(verdicts)
        chosen = self.chosen_turns(turns)
        if turn >= 0:
            refused = int(verdicts.get(turn, 0)) & _REFUSED > 0
            return refused or turn not in chosen, []
        return False, [message for message in turns if message in chosen and may_train(verdicts[message], self)]


def may_train(verdict: Verdict, policy: Policy) -> bool:
    """May a turn with this verdict be trained where it stands?"""
    bits = int(verdict)  # operators of enum.Flag take a microsecond each, and this is asked of every turn
    if bits & _REFUSED:
        return False
    return policy.accept_rewritten or not bits & _HISTORY_DIFFERS


def kinds(
    parts: npt.NDArray[np.uint8], flags: npt.NDArray[np.uint8], messages: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """[n] the part each token belongs to: a sampled wrapper goes with the reasoning or tool call that it wraps."""
    return _core.kinds(parts, flags, messages)


def _selector(word: str) -> _Selector:
    name = word.removeprefix("-")
    add = name == word
    if name == "all":
        return _Selector(add, None, None)
    role, dot, part = name.partition(".")
    if role not in _ROLES or (dot and part not in _PARTS):
        raise UsageError(f"train_on: {word!r} is no selector;{_meant(role, part)} {_SYNTAX}")
    return _Selector(add, _ROLES[role], _PARTS[part] if part else None)


def _meant(role: str, part: str) -> str:
    """The selector that a misspelt one is close to, as a question; nothing where none is."""
    roles = get_close_matches(role, [*_ROLES, "all", "last_turn"], 1)
    parts = get_close_matches(part, _PARTS, 1)
    if not roles or (part and not parts):
        return ""
    return f" did you mean {'.'.join(roles + parts)!r}?"


def _turn_numbers(word: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in word.removeprefix("turns:").split(","))
    except ValueError:
        raise UsageError(f"train_on: {word!r} must list turn numbers, such as turns:0,2,-1") from None
