"""The last lines a person reads after a preparation: what was made, what gets loss, what was lost on the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpipe.fit import Finding
from maskpipe.shards.manifest import Manifest

if TYPE_CHECKING:
    from maskpipe.pipeline import Trial


def of_dataset(
    path: Path, manifest: Manifest, counts: Counter[str], findings: list[Finding], rejects: list[dict[str, Any]]
) -> str:
    """The summary of a finished dataset."""
    totals = manifest.totals
    return (
        f"prepared  {manifest.records_kept:,} records -> {totals.sequences:,} sequences of {manifest.sequence_length:,}\n"
        f"loss      {totals.n_loss:,} of {totals.n_tokens:,} tokens"
    )


def of_trial(trial: Trial) -> str:
    """The summary of a dry run."""
    return f"dry run   {trial.records:,} records, {trial.tokens:,} tokens, {trial.loss_tokens:,} with loss"
