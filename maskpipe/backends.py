"""Backends: who computes the ids of a text. The ids are those of the tokenizers library, whoever computes them.

    tokenizers   required, and the measure of all others
    fastokens    an extra, many times faster; used after it made the same ids of every text of the proof

    proof        our own hostile and multilingual texts, with this tokenizer's control tokens among them
                 ─▶ a sample of the user's own texts ─▶ one text in CHECKED_ONE_IN as the run goes on

Ids come flat: no Python object per token. A backend that differs, or fails, is never used for a run; one that differs
later stops the run, because texts that nobody compared went before.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.errors import TokenizerError, UsageError
from maskpipe.proof_texts import proof_texts
from maskpipe.tokenizer import Tokenizer

Int32 = npt.NDArray[np.int32]

CHECKED_ONE_IN = 256
"""Of the texts of a run, this share is encoded by both; chosen by a hash of the text, so always the same ones."""
SAMPLE_BYTES = 256 << 10
"""Text of the user's own data that both must agree on before fastokens is used: a quarter of a second's work."""


@dataclass(frozen=True)
class Backend:
    """Who computes the ids of a run."""

    used: str = "tokenizers"
    reason: str = ""
    """Why it is not fastokens, where `auto` had the choice."""
    refused: bool = False
    """fastokens is installed, and cannot be used."""


class Fastokens:
    """The ids of texts by fastokens. Use `engage`, which proves that they are those of the tokenizers library."""

    name = "fastokens"

    def __init__(self, tokenizer: Tokenizer) -> None:
        """UsageError when fastokens is not installed, TokenizerError when it cannot load this tokenizer."""
        try:
            import fastokens
        except ImportError as error:
            raise UsageError(
                f"fastokens cannot be imported ({error}); install it with `pip install maskpipe[fast]`"
            ) from None
        self._tokenizer = tokenizer
        try:
            self._library: Any = fastokens.Tokenizer.from_json_str(tokenizer.library_json())
            self._library.no_truncation()
            self._library.no_padding()
        except BaseException as error:  # Rust panics are no Exception
            raise _refused(error, "cannot load this tokenizer") from None

    def ids(self, texts: Sequence[str]) -> list[Int32]:
        """The ids of each text. TokenizerError where they are found to be other ones."""
        flat = self._flat(texts)
        for text, ids in zip(texts, flat, strict=True):
            if zlib.crc32(text.encode()) % CHECKED_ONE_IN == 0:
                self._compare([text], [ids])
        return flat

    def prove(self, texts: Sequence[str]) -> None:
        """TokenizerError unless both make the same ids of every text, alone and together with the others."""
        self._compare(texts, self._flat(texts))
        for text in texts[:64]:
            self._compare([text], self._flat([text]))

    def _flat(self, texts: Sequence[str]) -> list[Int32]:
        if not texts:
            return []
        try:
            ids, offsets = self._library.encode_batch_flat(list(texts))
        except BaseException as error:
            raise _refused(error, "failed on a text") from None
        places = np.frombuffer(offsets, np.uint64).astype(np.int64)
        tokens = np.frombuffer(ids, np.int32)
        if len(places) != len(texts) + 1 or places[0] != 0 or places[-1] != len(tokens) or (np.diff(places) < 0).any():
            raise TokenizerError(f"fastokens gave offsets that do not fit {len(texts)} texts of {len(tokens)} tokens")
        return np.split(tokens, places[1:-1])

    def _compare(self, texts: Sequence[str], flat: Sequence[Int32]) -> None:
        for text, fast, slow in zip(texts, flat, self._tokenizer.ids(texts), strict=True):
            if not np.array_equal(fast, slow):
                at = next(
                    (k for k, (a, b) in enumerate(zip(fast, slow, strict=False)) if a != b), min(len(fast), len(slow))
                )
                before = self._tokenizer.decode(slow[:at])
                raise TokenizerError(
                    f"fastokens makes other ids than tokenizers of the text {text[max(0, len(before) - 40) :][:80]!r}, "
                    f"from token {at} on: {fast[at : at + 4].tolist()} instead of {slow[at : at + 4].tolist()}. "
                    "Prepare with --tokenizer-backend tokenizers"
                )


def engage(tokenizer: Tokenizer, texts: Sequence[str] = ()) -> Fastokens:
    """fastokens for this tokenizer, proved on our own texts and on these. UsageError, or TokenizerError with the reason
    why it cannot be used."""
    fast = Fastokens(tokenizer)
    fast.prove([*proof_texts(sorted(tokenizer.added_tokens)), *texts])
    return fast


def _refused(error: BaseException, what: str) -> BaseException:
    if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
        return error
    return TokenizerError(f"fastokens {what}: {error}. Prepare with --tokenizer-backend tokenizers")
