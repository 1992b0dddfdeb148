"""The dataset card: README.md of a dataset."""

from __future__ import annotations

from collections import Counter

from maskpipe.shards.manifest import Manifest


def of(manifest: Manifest, counts: Counter[str]) -> str:
    """The card's text, a function of the dataset alone."""
    return f"# A maskpipe dataset\n\n{manifest.totals.sequences:,} sequences of {manifest.sequence_length:,} tokens.\n"
