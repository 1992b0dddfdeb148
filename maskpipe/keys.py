"""What identifies a conversation by what it says: 16 bytes, equal for equal messages, tools, documents and arguments.

    key_of(item)      BLAKE2b-128 of the canonical JSON text: key order as the data has it, since templates show it
    in_share(key, w)  does its record belong to the share w? A function of the key, so the same when the data grows

The first 8 bytes, as a number, decide the side of a split, the last 8 which share of a source is taken, so the two are
independent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskpipe.chat import Conversation, Text
from maskpipe.recipe import Recipe

SIZE = 16
UInt64 = npt.NDArray[np.uint64]


def key_of(item: Conversation | Text) -> bytes:
    """The conversation's key. Weights count too: they decide what is trained."""
    if isinstance(item, Text):
        said: object = item.text
    else:
        said = [item.messages, item.tools, item.documents, item.chat_template_kwargs, item.weights]
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=SIZE).digest()


def are_needed(recipe: Recipe) -> bool:
    """Does the recipe compare conversations with each other, or take some several times?"""
    return recipe.deduplicate or recipe.validation > 0 or any(weight > 1 for weight in recipe.source_weights.values())


def as_numbers(keys: bytes) -> UInt64:
    """Keys one after another as uint64[keys, 2]."""
    return np.frombuffer(keys, ">u8").reshape(-1, 2).astype(np.uint64)


def in_share(keys: Sequence[bytes], share: float) -> bool:
    """Does a record with these conversations belong to a share of its source? The least key decides."""
    return min(int.from_bytes(key[8:], "big") for key in keys) < threshold(share)


def threshold(share: float) -> int:
    """Numbers of 64 bits below this one are that share of all."""
    return int(share * 2.0**64)
