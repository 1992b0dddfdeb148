"""`prepare --dry-run`: what would become of the first records."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskpipe import summary
from maskpipe.findings import Finding
from maskpipe.fit import check_fit
from maskpipe.job import encoder_of
from maskpipe.keys import compared
from maskpipe.mapping import Tally
from maskpipe.partitions import plan_units
from maskpipe.recipe import Recipe
from maskpipe.records import add_records, new_batch
from maskpipe.sources import open_sources
from maskpipe.tokenizer import Tokenizer


@dataclass
class Trial:
    """What `dry_run` found in the first records; nothing was written."""

    records: int
    kept: int
    counts: Counter[str]
    documents: int
    tokens: int
    loss_tokens: int
    sequences: int
    runs: int
    """Stretches of tokens with the same facts: what files keep facts as."""
    ended: bool
    """The sources hold no further records."""
    sequence_length: int
    rejected: Counter[str]
    findings: list[Finding]
    rejects: list[dict[str, Any]]
    seconds: float
    not_tried: list[str]
    """What of the recipe is decided over all records, so not in these figures: deduplicate, validation, …"""

    def __str__(self) -> str:
        return summary.of_trial(self)


def dry_run(
    source: Any,
    *,
    tokenizer: Tokenizer | str | Path,
    recipe: Recipe | None = None,
    split: str | None = None,
    records: int = 1000,
    proof: int | None = None,
) -> Trial:
    """What `prepare` would make of the first records, in this process, without writing anything."""
    begun = time.monotonic()
    encoder = encoder_of(tokenizer, recipe)
    recipe = encoder.recipe
    findings = check_fit(encoder)
    total = new_batch()
    tally = Tally()
    lengths: list[int] = []
    ended = True
    for chunk in open_sources(source, recipe, split=split).chunks():
        if total.records >= records:
            ended = False
            break
        left = records - total.records
        ended = chunk.count <= left
        add_records(encoder, chunk, total, lengths, None, left, proof)
    tally.add_counts(total)
    total.counts.update({f"records_{reason}": n for reason, n in total.left_out.items()})
    units = total.units.astype(np.int64) if recipe.objective == "preference" else None
    rows = plan_units(np.array(lengths, np.int32), units, recipe).rows if lengths else 0
    return Trial(
        records=total.records, kept=total.kept, counts=total.counts, documents=len(lengths), tokens=sum(lengths),
        loss_tokens=total.loss_tokens, sequences=rows, runs=total.runs, ended=ended,
        sequence_length=recipe.sequence_length, rejected=tally.rejected,
        findings=findings, rejects=tally.examples(), seconds=time.monotonic() - begun,
        not_tried=compared(recipe),
    )  # fmt: skip
