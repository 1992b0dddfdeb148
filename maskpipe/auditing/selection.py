"""Which tokens get loss under a recipe, decided from facts alone: the words of the recipe, without the code of
`policy.py` and `csrc/loss`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role, Verdict

UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """The `train_on` of a recipe."""

    words: tuple[tuple[bool, int, int], ...]
    """(adds, role or -1, part or -1), in order."""
    turns: tuple[int, ...] | None
    """Which assistant turns, negative from the end; None: all."""
    empty: bool
    accepts: bool

    @staticmethod
    def of(recipe: Recipe) -> Selection:
        if recipe.objective == "pretrain":
            return Selection(((True, -1, -1),), None, True, True)
        words: list[tuple[bool, int, int]] = []
        turns: tuple[int, ...] | None = None
        for word in recipe.train_on:
            adds, name = not word.startswith("-"), word.lstrip("-")
            if name == "last_turn":
                turns = (-1,)
            elif name.startswith("turns:"):
                turns = tuple(map(int, name[6:].split(",")))
            elif name == "all":
                words.append((adds, -1, -1))
            else:
                role, _, part = name.partition(".")
                words.append((adds, int(Role[role.upper()]), int(Part[part.upper()]) if part else -1))
        if not any(adds for adds, _, _ in words):
            words.insert(0, (True, int(Role.ASSISTANT), -1))
        return Selection(tuple(words), turns, recipe.train_on_empty_reasoning, recipe.on_history_rewrite == "accept")

    @property
    def everything(self) -> bool:
        return self.words == ((True, -1, -1),)

    @property
    def takes_turns(self) -> bool:
        return any(adds and role in (-1, Role.ASSISTANT) for adds, role, _ in self.words)

    @property
    def takes_others(self) -> bool:
        return any(adds and role != Role.ASSISTANT for adds, role, _ in self.words)

    def chosen(self, turns: list[int]) -> set[int]:
        if self.turns is None:
            return set(turns)
        return {turns[k] for k in self.turns if -len(turns) <= k < len(turns)}

    def may_train(self, verdict: int) -> bool:
        """In place?"""
        return not verdict & Verdict.REFUSED and (self.accepts or not verdict & Verdict.HISTORY_DIFFERS)

    def loss(
        self,
        roles: UInt8,
        parts: UInt8,
        flags: UInt8,
        messages: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32] | None,
        own: int,
        verdicts: Mapping[int, int],
    ) -> Bool:
        """[n] which tokens of a document get loss."""
        sampled = flags & np.uint8(Flag.SAMPLED) > 0
        what = parts if all(part < 0 for _, _, part in self.words) else _belongs_to(parts, sampled, messages)
        out = np.zeros(len(roles), bool)
        for adds, role, part in self.words:
            fits = np.ones(len(roles), bool) if role < 0 else roles == role
            if part >= 0:
                fits &= what == part
            elif role not in (-1, Role.ASSISTANT):
                fits &= what != Part.SCAFFOLD
            if adds and role == Role.ASSISTANT:
                fits &= sampled
            out[fits] = adds
        if not self.everything:
            turns = sorted(verdicts)
            chosen = self.chosen(turns)
            if own >= 0:
                out &= messages == own
                if verdicts.get(own, 0) & Verdict.REFUSED or own not in chosen:
                    out[:] = False
            else:
                trained = [turn for turn in turns if turn in chosen and self.may_train(verdicts[turn])]
                out &= (roles != Role.ASSISTANT) | np.isin(messages, trained)
        out &= flags & np.uint8(Flag.STRADDLES) == 0
        if not self.empty:
            out &= flags & np.uint8(Flag.EMPTY_REASONING) == 0
        if weights is not None:
            out &= weights != 0
        out[:1] = False
        return out


def _belongs_to(parts: UInt8, sampled: Bool, messages: npt.NDArray[np.int32]) -> UInt8:
    """[n] parts, where the markup that a model writes around reasoning or a tool call goes with it."""
    out = parts.copy()
    loose = sampled & (parts == Part.SCAFFOLD)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], loose.view(np.int8), [0]))))
    for start, stop in edges.reshape(-1, 2).tolist():
        for beside in (stop, start - 1):
            mine = 0 <= beside < len(parts) and messages[beside] == messages[start]
            if mine and parts[beside] in (Part.TOOL_CALL, Part.REASONING):
                out[start:stop] = parts[beside]
                break
    return out
