"""What identifies a conversation by what it says: 16 bytes, equal for equal messages, tools, documents and arguments.

    key_of(item)       8 bytes of what is said, and 8 of everything, key order included, since templates show it
    in_share(keys, w)  does their record belong to the share w? A function of the keys, so the same when the data grows

The first 8 bytes are equal where the same is said by the same roles, whatever the shape of the record, its weights,
tools or ids: they decide the side of a split, so that nothing is trained and validated on. In preference data they are
of what stands before the first answer, so that all answers to one question are on one side. Duplicates are equal in all
16 bytes. The last 8 decide which share of a source is taken, so the two are independent.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from maskpipe.chat import Conversation, Json, Text
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import parse

SIZE = 16
UInt64 = npt.NDArray[np.uint64]


def key_of(item: Conversation | Text, *others: Conversation | Text) -> bytes:
    """The key of a conversation, or of a pair of them. Weights count too, in its second half: they decide what is
    trained; so do scores and labels."""
    if isinstance(item, Text):
        return _digest(item.text) + _digest([item.text])
    if item.side is not None:
        answers = [answer for answer in (item, *others) if isinstance(answer, Conversation)]
        asked = itertools.takewhile(lambda message: message["role"] != "assistant", item.messages)
        return _digest([_said(message) for message in asked]) + _digest([_everything(answer) for answer in answers])
    everything = [item.messages, item.tools, item.documents, item.chat_template_kwargs, item.weights]
    return _digest([_said(message) for message in item.messages]) + _digest(everything)


def _everything(answer: Conversation) -> list[Json]:
    side = answer.side
    judged = None if side is None else [side.branch, side.prompt, side.score, side.label]
    return [
        answer.messages, answer.tools, answer.documents, answer.chat_template_kwargs, answer.weights, judged
    ]  # fmt: skip


def _said(message: Mapping[str, Json]) -> list[Json]:
    """Who says what: text in parts is one text, arguments are the same as an object and as its JSON text."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, str) or set(part) >= {"type", "text"} for part in content):
        content = "".join(part if isinstance(part, str) else str(part["text"]) for part in content)
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    return [
        message["role"], content or "", message.get("reasoning_content") or "",
        [[call.get("name"), _sorted(call.get("arguments"))] for call in calls],
    ]  # fmt: skip


def _sorted(arguments: Json) -> str:
    """The arguments as JSON text with sorted keys."""
    if isinstance(arguments, str):
        try:
            arguments = parse(arguments)
        except RecordError:
            return str(arguments)
    return json.dumps(arguments, ensure_ascii=False, sort_keys=True, default=repr)


def _digest(value: Json) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=repr)  # Arrow has dates and bytes
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=SIZE // 2).digest()


def are_needed(recipe: Recipe) -> bool:
    """Does the recipe compare conversations with each other, or take some several times?"""
    return bool(compared(recipe))


def compared(recipe: Recipe) -> list[str]:
    """The settings of the recipe for which it does."""
    settings = {
        "deduplicate": recipe.deduplicate,
        "validation": recipe.validation > 0,
        "source_weights above 1": any(weight > 1 for weight in recipe.source_weights.values()),
    }
    return [name for name, active in settings.items() if active]


def as_numbers(keys: bytes) -> UInt64:
    """Keys one after another as uint64[keys, 2]."""
    return np.frombuffer(keys, ">u8").reshape(-1, 2).astype(np.uint64)


def in_share(keys: Sequence[bytes], share: float) -> bool:
    """Does a record with these conversations belong to a share of its source? The least key decides."""
    least = np.array([min(int.from_bytes(key[8:], "big") for key in keys)], np.uint64)
    return bool(below(least, share)[0])


def below(least: UInt64, share: float) -> npt.NDArray[np.bool_]:
    """Per record, given the least number of its conversations: does it belong to the share? The number is mixed before,
    since the least of several is small: a record of many conversations is taken no more often than another."""
    mixed = (least ^ (least >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.asarray(mixed ^ (mixed >> np.uint64(32)) < np.uint64(threshold(share)))


def threshold(share: float) -> int:
    """Numbers of 64 bits below this one are that share of all."""
    return int(share * 2.0**64)
