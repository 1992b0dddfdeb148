"""Document: one tokenized unit that may not attend outside itself, with the facts of each of its tokens.

Dense, one value per token, is how people and tests look at it; runs (`RunTable`) are how files keep it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from maskpipe.roles import Branch, Flag, Verdict

Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Document:
    """One document. All arrays have the same length n and index the same tokens."""

    input_ids: Int32  # [n]
    role_ids: UInt8  # [n] roles.Role
    part_ids: UInt8  # [n] roles.Part
    flags: UInt8  # [n] bits of roles.Flag
    message_ids: Int32  # [n] index in the normalised conversation, -1 for none
    weights: Float32 | None = None  # [n] source weight, the data's own; None: 1 everywhere
    source: int = 0
    """Index of the source file, in the order given."""
    row: int = 0
    """0-based record number in its source."""
    turn: int = -1
    """In a split document the message index of the only trainable turn, else -1."""
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """What was established about each assistant turn of the conversation (message index → verdict); in a split document
    the entry of `turn` is about this document, the others are about the whole conversation's text. In preference data
    only the turns behind the prompt are here, so no policy can train the prompt."""
    pair: int | None = None
    """Number of the preference pair; None exactly where `branch` is NONE."""
    branch: Branch = Branch.NONE
    parent: int | None = None
    """How many documents before this branch its prompt stands, where both branches of the pair share it."""
    score: float | None = None
    """What the data says of this answer; finite."""
    label: bool | None = None
    """Is this answer wanted? Where it has no rival."""

    @property
    def sampled(self) -> UInt8:
        """[n] 0 or 1: the model itself would emit this token at inference."""
        return (self.flags & Flag.SAMPLED > 0).astype(np.uint8)

    @property
    def loss_mask(self) -> UInt8:
        """[n] 0 or 1: this token is a target with loss, as the recipe decided."""
        return (self.flags & Flag.LOSS > 0).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.input_ids)
