"""What the loader makes of the facts: loss flags as stored, or a policy asked again; weights by role and part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.errors import UsageError
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.roles import Part, Role
from maskpipe.shards.manifest import Manifest

CorePolicy = tuple[_core.LossRule, list[int] | None, bool]
"""Selectors, turns, accept_rewritten: what _core.Reader takes."""

_PARTS = 8
_SMALLEST, _LARGEST = float(np.finfo(np.float32).smallest_normal), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Decision:
    """How runs become labels and weights."""

    policy: CorePolicy | None
    """None: the loss flags as they are stored."""
    weights: npt.NDArray[np.float32]  # [256 * 8] by role and part


def decide(
    manifests: Sequence[Manifest], train_on: str | Sequence[str] | None, weights: Mapping[str, float] | None
) -> Decision:
    """The decision for these datasets. UsageError for a selector or a role that is none, or when the datasets' recipes
    would read `train_on` in different ways."""
    return Decision(None if train_on is None else _policy(manifests, train_on), _table(weights or {}))


def _policy(manifests: Sequence[Manifest], train_on: str | Sequence[str]) -> CorePolicy:
    policies = []
    for manifest in manifests:
        if manifest.recipe.get("objective") == "preference":
            raise UsageError(
                "train_on: a dataset was prepared with objective='preference', whose loss begins where the branches of "
                "a pair part; prepare it anew to train on something else"
            )
        if manifest.recipe.get("objective") == "pretrain":
            raise UsageError(
                "train_on: a dataset was prepared with objective='pretrain', which trains every token; prepare it with "
                "objective='sft' and train_on to choose"
            )
        words = train_on if isinstance(train_on, str) else tuple(train_on)
        recipe = Recipe.from_dict({**manifest.recipe, "train_on": words})
        policies.append(Policy.of(recipe))
    if any(policy != policies[0] for policy in policies):
        raise UsageError(
            "train_on: the recipes of the datasets differ in train_on_empty_reasoning or on_history_rewrite, so the "
            "same words would mean different tokens; load them with the labels they were prepared with"
        )
    policy = policies[0]
    return policy.rule, None if policy.turns is None else list(policy.turns), policy.accept_rewritten


def _table(weights: Mapping[str, float]) -> npt.NDArray[np.float32]:
    """ "role" or "role.part" → weight; the more exact word holds. 0 takes the loss away."""
    table = np.ones((256, _PARTS), np.float32)
    roles = {role.name.lower(): role for role in Role if role is not Role.PADDING}
    parts = {part.name.lower(): part for part in Part if part is not Part.NONE}
    for word in sorted(weights, key=lambda word: "." in word):
        weight = weights[word]
        role, dot, part = word.partition(".")
        if role not in roles or (dot and part not in parts):
            raise UsageError(f"weights: {word!r} is no role ({', '.join(roles)}) and no role.part ({', '.join(parts)})")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            raise UsageError(f"weights: {word} is {weight!r}; a weight is a finite number of at least 0")
        if weight and not _SMALLEST <= weight <= _LARGEST:
            raise UsageError(f"weights: {word} is {weight!r}, which float32 cannot hold; scale the weights")
        table[roles[role], parts[part] if dot else slice(None)] = weight
    return table.reshape(-1)
