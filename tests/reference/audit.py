"""What csrc/audit.cpp finds in a row that holds together, one token at a time: defect -> how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from maskpipe.policy import Policy, may_train
from maskpipe.roles import Flag, Part, Role, Verdict

Token = tuple[int, int, int, int, int]
"""id, role, part, flags, message."""
OWN = {Part.CONTENT, Part.REASONING, Part.TOOL_CALL, Part.TOOL_SCHEMA}


def document(
    tokens: Sequence[Token],
    policy: Policy,
    turn: int,
    verdicts: Mapping[int, Verdict],
    weights: Sequence[float],
    *,
    piece: bool,
    control: frozenset[int],
    stops: frozenset[int],
    unknown: int,
) -> Counter[str]:
    """Of one document."""
    found: Counter[str] = Counter()
    _, roles, parts, flags, messages = (list(column) for column in zip(*tokens, strict=True))
    facts = [np.array(roles, np.uint8), np.array(parts, np.uint8), np.array(flags, np.uint8)]
    marks = policy.mark(*facts, np.array(messages, np.int32), np.array(weights, np.float32), turn, verdicts)
    plain = policy.mark(*facts, np.array(messages, np.int32), None, turn, verdicts)
    chosen = policy.chosen_turns(sorted(verdicts))
    regions: list[list[int]] = []  # positions of each stretch of sampled assistant tokens of one message
    for k, (_, role, _, flag, message) in enumerate(tokens):
        if not flag & Flag.SAMPLED:
            continue
        if role != Role.ASSISTANT:
            found["sampled_elsewhere"] += role != Role.TEXT
            continue
        if turn >= 0 and message != turn:
            found["sampled_elsewhere"] += 1
        if regions and messages[regions[-1][-1]] == message:
            found["hole"] += k - regions[-1][-1] - 1
            regions[-1].append(k)
        else:
            found["turn_order"] += bool(regions) and message < messages[regions[-1][-1]]
            regions.append([k])
    for k, (id, role, part, flag, _) in enumerate(tokens):
        loss, wanted = bool(flag & Flag.LOSS), bool(marks[k] & Flag.LOSS)
        found["role_missing"] += role in (Role.PADDING, Role.UNKNOWN) or part == Part.NONE
        found["unknown_token"] += id == unknown
        found["control_in_content"] += id in control and part in OWN and not flag & Flag.EMPTY_REASONING
        if loss and k == 0:
            found["first_trained"] += 1
        elif loss and not wanted:
            found[_why(k, tokens, policy, turn, verdicts, chosen, regions, bool(plain[k] & Flag.LOSS))] += 1
        elif wanted and not loss and part != Part.STOP:
            found["not_trained"] += 1
    for k in range(len(tokens)):  # a stop is counted once per run
        wanted = bool(marks[k] & Flag.LOSS) and not flags[k] & Flag.LOSS and parts[k] == Part.STOP
        same = k > 1 and tokens[k][1:] == tokens[k - 1][1:] and bool(marks[k - 1] & Flag.LOSS)
        found["stop_not_trained"] += wanted and not same
    for region in regions:
        _turn(region, tokens, verdicts, stops, found)
    _unsampled(tokens, turn, verdicts, regions, found)
    if turn >= 0 and regions and messages[regions[-1][-1]] == turn:
        behind = tokens[regions[-1][-1] + 1 :]
        found["text_after_own_turn"] += any(t[2] != Part.SCAFFOLD and not t[3] & Flag.STRADDLES for t in behind)
    if len(tokens) == 1:
        found["single_token"] += 1
    else:
        found["nothing_trained"] += not any(flag & Flag.LOSS for flag in flags)
    found["chat_cut"] += piece and roles[0] != Role.TEXT
    return +found


def _why(
    k: int, tokens: Sequence[Token], policy: Policy, turn: int, verdicts: Mapping[int, Verdict], chosen: set[int],
    regions: list[list[int]], but_for_weight: bool,
) -> str:  # fmt: skip
    _, role, _, flag, message = tokens[k]
    if but_for_weight:
        return "weight_0_trained"
    if flag & Flag.STRADDLES:
        return "straddler_trained"
    if flag & Flag.EMPTY_REASONING and not policy.empty_reasoning:
        return "empty_reasoning_trained"
    if role != Role.ASSISTANT:
        return "other_trained"
    if turn >= 0 and message != turn:
        return "not_chosen_trained"
    if message not in verdicts or verdicts[message] & Verdict.REFUSED:
        return "refused_trained"
    if message not in chosen:
        return "not_chosen_trained"
    if turn < 0 and not may_train(verdicts[message], policy):
        return "history_trained"
    if flag & Flag.SAMPLED:
        return "not_chosen_trained"
    own = [region for region in regions if tokens[region[0]][4] == message]
    return "after_stop_trained" if any(k > region[0] for region in own) else "header_trained"


def _turn(
    region: list[int], tokens: Sequence[Token], verdicts: Mapping[int, Verdict], stops: frozenset[int],
    found: Counter[str],
) -> None:  # fmt: skip
    stop: list[int] = []  # the first run of stop tokens
    for place, k in enumerate(region):
        if stop and not (k == stop[-1] + 1 and tokens[k][1:] == tokens[stop[-1]][1:]):
            found["sampled_elsewhere"] += len(region) - place
            break
        if stop or tokens[k][2] == Part.STOP:
            stop.append(k)
    if not any(tokens[k][3] & Flag.LOSS for k in region):
        return
    if not stop:
        after = tokens[region[-1] + 1] if region[-1] + 1 < len(tokens) else None
        no_stop = verdicts.get(tokens[region[0]][4], Verdict.EXACT) & Verdict.NO_STOP
        straddles = after is not None and after[3] & Flag.STRADDLES
        found["turn_without_stop" if no_stop or straddles else "stop_not_trained"] += 1
        return
    found["stop_doubled"] += len(stop) > 1 and tokens[stop[0]][0] in stops
    found["stop_unknown"] += tokens[stop[-1]][0] not in stops


def _unsampled(
    tokens: Sequence[Token], turn: int, verdicts: Mapping[int, Verdict], regions: list[list[int]], found: Counter[str]
) -> None:
    for message, verdict in verdicts.items():
        if (turn >= 0 and message != turn) or verdict & (Verdict.HISTORY_DIFFERS | Verdict.REFUSED):
            continue
        if any(tokens[region[0]][4] == message for region in regions):
            continue
        shown = (
            role == Role.ASSISTANT and part in OWN and at == message and not flag & Flag.STRADDLES
            for _, role, part, flag, at in tokens
        )  # fmt: skip
        found["turn_not_sampled"] += any(shown)
