"""What csrc/loss.h promises, the slow way: token by token, from the words of maskpipe/policy.py."""

from __future__ import annotations

from collections.abc import Sequence

from maskpipe.roles import Flag, Part, Role

Fact = tuple[int, int, int, int]
"""(role, part, flags, message) of one token."""


def kinds(facts: Sequence[Fact]) -> list[int]:
    """The part of each token; a sampled wrapper goes with what stands beside it in its own message."""

    def loose(k: int) -> bool:
        return bool(facts[k][2] & Flag.SAMPLED) and facts[k][1] == Part.SCAFFOLD

    out = []
    for k, (_, part, _, _) in enumerate(facts):
        first = last = k
        while loose(k) and first > 0 and loose(first - 1):
            first -= 1
        while loose(k) and last + 1 < len(facts) and loose(last + 1):
            last += 1
        beside = [facts[j] for j in (last + 1, first - 1) if loose(k) and 0 <= j < len(facts)]
        wrapped = [near[1] for near in beside if near[3] == facts[first][3]]
        out.append(next((near for near in wrapped if near in (Part.TOOL_CALL, Part.REASONING)), part))
    return out


def loss(
    facts: Sequence[Fact],
    selectors: Sequence[tuple[int, int, int]],
    everything: bool,
    empty_reasoning: bool,
    weights: Sequence[float] | None,
    none: bool,
    own: int,
    trainable: Sequence[int],
) -> list[bool]:
    out = []
    for k, ((role, _, flags, message), kind) in enumerate(zip(facts, kinds(facts), strict=True)):
        chosen = False
        for add, wanted_role, wanted_part in selectors:
            fits = wanted_role in (-1, role)
            if wanted_part != -1:
                fits &= kind == wanted_part
            elif wanted_role not in (-1, Role.ASSISTANT):
                fits &= kind != Part.SCAFFOLD
            if wanted_role == Role.ASSISTANT and add:
                fits &= bool(flags & Flag.SAMPLED)
            if fits:
                chosen = bool(add)
        turn_forbids = none or (message != own if own >= 0 else role == Role.ASSISTANT and message not in trainable)
        forbidden = flags & Flag.STRADDLES or (turn_forbids and not everything)
        empty = flags & Flag.EMPTY_REASONING and not empty_reasoning
        weightless = weights is not None and weights[k] == 0
        out.append(bool(k > 0 and chosen and not forbidden and not empty and not weightless))
    return out
