"""export: opens the dataset, lets the target write it into a directory of its own, and checks what came out."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from maskpipe.durable import write_file
from maskpipe.errors import MaskpipeError, UsageError
from maskpipe.exports import hf, megatron_bridge, olmo, trl, trl_dpo
from maskpipe.exports.rows import LOST, Options
from maskpipe.partial import new_directory
from maskpipe.shards.reader import Dataset
from maskpipe.shards.reader import open as open_dataset

TargetName = Literal["hf", "trl", "trl-dpo", "megatron-bridge", "olmo"]
_TARGETS: Mapping[str, ModuleType] = {
    "hf": hf,
    "trl": trl,
    "trl-dpo": trl_dpo,
    "megatron-bridge": megatron_bridge,
    "olmo": olmo,
}
"""Each has OPTIONS (those it knows), names(dataset, options) of the files that
write(dataset, work, counted, options) writes, and card(dataset, exported, options) -> README.md."""
README = "README.md"


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    to: str
    files: tuple[str, ...]
    counted: Mapping[str, int] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        return self.counted["sequences"]

    @property
    def tokens(self) -> int:
        """Tokens of documents."""
        return self.counted["tokens"]

    @property
    def loss_tokens(self) -> int:
        """Targets."""
        return self.counted["loss"]

    @property
    def reweighted(self) -> int:
        """Targets whose source weight, neither 0 nor 1, was left out."""
        return self.counted.get("reweighted", 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "path": str(self.path),
            "to": self.to,
            "files": list(self.files),
            "sequences": self.sequences,
            "documents": self.counted["documents"],
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "lost_targets": self.counted.get("lost_targets", 0),
            "skipped_tokens": self.counted.get("skipped_tokens", 0),
            "reweighted": self.reweighted,
            "lost_facts": LOST,
        }

    def __str__(self) -> str:
        lines = [
            f"exported  {self.sequences:,} sequences, {self.counted['documents']:,} documents, {self.tokens:,} tokens, "
            f"{self.loss_tokens:,} with loss, to {self.path} ({self.to})",
            "checked   all tokens and all tokens with loss of the dataset are there",
        ]
        if self.counted.get("lost_targets"):
            lines.append(f"lost      {self.counted['lost_targets']:,} targets that this reader takes the loss from")
        if self.counted.get("skipped_tokens"):
            lines.append(
                f"left out  {self.counted['skipped_tokens']:,} documents of one token, which hold nothing to predict"
            )
        if self.counted.get("behind_answers"):
            lines.append(f"left out  {self.counted['behind_answers']:,} tokens behind answers, which no target sees")
        if self.reweighted:
            lines.append(f"weights   {self.reweighted:,} targets have a source weight that a loss mask does not say")
        lines.append(f"not there {LOST}")
        lines.append(f"next      less {shlex.quote(str(self.path))}/README.md")
        return "\n".join(lines)


def export(
    out: str | Path, destination: str | Path, to: TargetName = "hf", *, options: Options | None = None
) -> Exported:
    """Writes the dataset `out` for the target into the new directory `destination`, which appears when it is complete.

    UsageError when the destination is there already, an option is not one of this target, or the target cannot say
    what the dataset says and no option tells to go on. DatasetError when the dataset is damaged.
    """
    if to not in _TARGETS:
        raise UsageError(f"--to {to}: must be one of {', '.join(get_args(TargetName))}")
    target, options = _TARGETS[to], options or Options()
    _check_options(target, to, options)
    with open_dataset(out) as dataset:
        files = target.names(dataset, options)
        identity = {"made_by": "export", "from": dataset.manifest.fingerprint, "to": to, "options": vars(options)}
        with new_directory(destination, identity, [*files, README]) as partial:
            counted: Counter[str] = Counter()
            target.write(dataset, partial.dataset, counted, options)
            _check(dataset, counted)
            made = Exported(Path(os.path.abspath(destination)), to, tuple(files), dict(counted))
            write_file(partial.dataset / README, target.card(dataset, made, options).encode())
    return made


def _check_options(target: ModuleType, to: str, options: Options) -> None:
    for name, value in vars(options).items():
        if value and name not in target.OPTIONS:
            raise UsageError(f"--{name.replace('_', '-')} has no meaning for --to {to}; leave it out")


def _check(dataset: Dataset, counted: Counter[str]) -> None:
    """Nothing was lost on the way out but what the target counted."""
    totals = dataset.manifest.totals
    found = (counted["sequences"], counted["documents"], counted["tokens"], counted["loss"])
    expected = (totals.sequences, totals.fragments, totals.n_tokens, totals.n_loss)
    left_out = counted["skipped_tokens"] + counted["behind_answers"]
    written = (counted["written_tokens"] + left_out, counted["written_loss"])
    if found != expected or written != (totals.n_tokens, totals.n_loss):
        raise MaskpipeError(f"exported {dict(counted)}, but the manifest counts {totals}; please report this")
