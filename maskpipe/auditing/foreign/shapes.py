"""What was recognised: which tool's shape, and how each column is read. Said in the report, never guessed silently."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from maskpipe.errors import UsageError

Shape = Literal["hf", "trl", "axolotl", "llama-factory", "megatron-bridge", "olmo", "batches"]
MASKS = ("assistant_masks", "assistant_mask", "completion_mask", "loss_mask", "label_mask")
LENGTHS = ("seq_lengths", "sequence_lengths")
ENDS = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seqlens_q")
STARTS = ("seq_start_id",)
SEGMENTS = ("segment_ids", "seq_idx", "sequence_ids", "document_ids", "doc_ids")
KNOWN = ("input_ids", "labels", "attention_mask", "position_ids", *MASKS, *LENGTHS, *ENDS, *STARTS, *SEGMENTS)
"""Columns that are read; others are named in the report."""

_MEANINGS = {
    "input_ids": "token ids",
    "attention_mask": "0 is padding; numbers above 1 tell documents apart",
    "position_ids": "0 begins a document",
    **dict.fromkeys(LENGTHS, "the length of each document"),
    **dict.fromkeys(ENDS, "where documents end, from 0"),
    **dict.fromkeys(STARTS, "where documents begin"),
    **dict.fromkeys(SEGMENTS, "the number of each token's document"),
}


@dataclass(frozen=True)
class Reading:
    """How the columns of a dataset or of batches are read."""

    shape: Shape
    columns: tuple[str, ...]
    """Those that are read, input_ids first."""
    loss: tuple[str, ...]
    """The columns that say what is trained: labels, or masks, of which all must be 1. Empty: nothing says so."""
    at_predictor: bool = False
    """A mask stands at the token that predicts the target (Megatron-Bridge), not at the target."""
    reader_skips_first: bool = False
    """Whoever reads these columns gives the first token of each document the label -100 (TRL, where it packs)."""
    unread: tuple[str, ...] = ()
    """Columns that say nothing that is known here."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What else was recognised, such as the number type of raw files."""

    @property
    def borders(self) -> tuple[str, ...]:
        """The columns that say where documents begin or end, the most explicit first."""
        order = (*LENGTHS, *ENDS, *STARTS, *SEGMENTS, "position_ids", "attention_mask")
        return tuple(name for name in order if name in self.columns)

    def lines(self) -> list[str]:
        """The reading in words, one column each."""
        out = [f"{name}: {self._meaning(name)}" for name in self.columns]
        if self.reader_skips_first:
            out.append("labels of first tokens: the collator of this shape makes them -100, so they count as that")
        if not self.loss:
            out.append("no column says what is trained: a trainer takes every token")
        out += [f"{name}: {text}" for name, text in self.about.items()]
        if self.unread:
            out.append(f"not read: {', '.join(self.unread)}")
        return out

    def _meaning(self, name: str) -> str:
        if name == "labels":
            return "the token where it is a target, else -100"
        if name in MASKS:
            if name not in self.loss:
                return "not used: labels say what is trained"
            where = "at the token that predicts it" if self.at_predictor else "at the target itself"
            return f"1 where a target has loss, {where}" + (" (with the other masks)" if len(self.loss) > 1 else "")
        return _MEANINGS[name]


def recognise(names: Collection[str], where: str, shape: Shape | None = None, about: Mapping[str, str] = {}) -> Reading:
    """How columns of these names are read. UsageError when there are no token ids among them."""
    if "input_ids" not in names:
        found = ", ".join(sorted(names)) or "no columns"
        raise UsageError(
            f"{where}: no column input_ids (found {found}). The audit reads tokenized data; give raw chats to "
            "`maskpipe prepare` or `maskpipe explain`"
        )
    columns = tuple(name for name in KNOWN if name in names)
    masks = tuple(name for name in MASKS if name in columns)
    shape = shape or _shape(names, columns)
    return Reading(
        shape=shape,
        columns=columns,
        loss=("labels",) if "labels" in columns else masks,
        at_predictor="loss_mask" in columns and "seq_start_id" in columns,
        reader_skips_first=shape == "trl" and "labels" in columns,
        unread=tuple(sorted(set(names) - set(columns))),
        about=about,
    )


def _shape(names: Collection[str], columns: Collection[str]) -> Shape:
    """Whose columns these are. It decides nothing but the place of a mask; everything else is said by the columns."""
    if "seq_start_id" in columns and "loss_mask" in columns:
        return "megatron-bridge"
    if {"images", "videos", "audios"} <= set(names):
        return "llama-factory"
    if "position_ids" in columns and "seq_lengths" not in columns and "length" in names:
        return "axolotl"
    if {"seq_lengths", "assistant_masks", "completion_mask"} & set(columns):
        return "trl" if "position_ids" not in columns else "hf"
    return "hf"
