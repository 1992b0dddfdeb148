"""What every spelling of a message has: a role name, and perhaps a weight."""

from __future__ import annotations

from collections.abc import Mapping

from maskpipe.chat.columns import wrong_type
from maskpipe.chat.conversation import Json
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.roles import ROLE_NAMES
from maskpipe.strict_json import Path, json_path

OPENAI_ROLES = {"function": "tool"}
"""An older name."""
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
WEIGHT_KEYS = ("train", "weight", "loss_weight")
MAX_WEIGHT = 1e30
"""Weights are stored as float32, and products with a loss must stay finite."""


def role_named(said: str, spellings: Mapping[str, str], path: Path, recipe: Recipe) -> str:
    """The role that a name stands for: as the recipe maps it, else as these spellings do, else itself."""
    if said in recipe.roles:
        role = recipe.roles[said]
        if role in ROLE_NAMES or role == said:  # mapped to itself: the template knows it, and the user says so
            return role
    else:
        role = spellings.get(said, said)
    if role not in ROLE_NAMES:
        number = next((f"message {step}" for step in reversed(path) if isinstance(step, int)), "a message")
        raise RecordError(
            f"{number} has role {said!r}{f' (mapped to {role!r})' if role != said else ''}; expected one of "
            f"system, developer, user, assistant, tool ({json_path(path)}). Rename it with --map-role {said}=user (or "
            f"another of these), keep it with --map-role {said}={said} if the template knows it, or leave such records "
            "out with --on-bad-record reject",
            reason="unknown_role",
        )
    return role


def message_weight(raw: Mapping[str, Json], path: Path) -> float | None:
    """What the message says about its loss."""
    weight: float | None = None
    for key in WEIGHT_KEYS[1:]:
        value = raw.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_WEIGHT:
            raise wrong_type(value, (*path, key), f"a number from 0 to {MAX_WEIGHT:g}", "bad_weight")
        if weight is not None and weight != float(value):
            raise RecordError(
                f"{json_path(path)} has both weight and loss_weight, and they differ", reason="bad_weight"
            )
        weight = float(value)
    train = raw.get("train")
    if train is not None:
        if not isinstance(train, bool) and train not in (0, 1):
            raise wrong_type(train, (*path, "train"), "true or false", "bad_weight")
        if not train:
            return 0.0
        return 1.0 if weight is None else weight
    return weight
