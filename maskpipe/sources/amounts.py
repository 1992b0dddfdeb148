"""How much of each source is taken: the recipe's `source_caps` and `source_weights`.

    source_caps: {"chats.jsonl": 10000}     the first 10,000 records of it
    source_weights: {"web/": 0.25}          a quarter of its records, chosen by what they say: the same when it grows
    source_weights: {"gold.jsonl": 2.5}     all twice, and half of them a third time

A name is what the user gave (a path, pattern, directory or dataset name), or the name of one source (a file in a
directory; "dataset", "table" or "iterable" for objects). A cap is counted over everything that the name stands for, in
order. What is not taken is counted: beyond_cap, not_selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from maskpipe.errors import UsageError
from maskpipe.recipe import Recipe
from maskpipe.sources.chunk import Chunk
from maskpipe.sources.source import Source

T = TypeVar("T")


@dataclass
class Amounts:
    """Per source, what is taken of it."""

    caps: list[str | None]
    """The key of source_caps that holds for it."""
    weights: list[float]
    """1 where the recipe says nothing."""
    _left: dict[str, int]

    @staticmethod
    def of(recipe: Recipe, sources: Sequence[Source]) -> Amounts:
        """UsageError: a name in the recipe that is no source's, or two names for one source."""
        caps = _assigned("source_caps", recipe.source_caps, sources)
        weights = _assigned("source_weights", recipe.source_weights, sources)
        return Amounts(
            caps, [1.0 if key is None else recipe.source_weights[key] for key in weights], dict(recipe.source_caps)
        )

    def restart(self, recipe: Recipe) -> None:
        """A new pass over the sources begins."""
        self._left = dict(recipe.source_caps)

    def limit(self, chunk: Chunk) -> Chunk:
        """The chunk, with how much of it is taken; without its content if that is nothing."""
        share = min(1.0, self.weights[chunk.source])
        key = self.caps[chunk.source]
        if key is None:
            return chunk if share == 1 else replace(chunk, share=share)
        take = min(chunk.count, self._left[key])
        self._left[key] -= take
        if not take:
            return replace(chunk, kind="lines", payload=b"", ends=b"", take=0)
        return replace(chunk, take=take, share=share)


def _assigned(field: str, values: Mapping[str, T], sources: Sequence[Source]) -> list[str | None]:
    out: list[str | None] = [None] * len(sources)
    for key in values:
        matched = [k for k, source in enumerate(sources) if key in (source.given, source.name)]
        if not matched:
            names = dict.fromkeys(name for source in sources for name in (source.given, source.name) if name)
            raise UsageError(f"{field}: {key!r} is no source; the sources are {', '.join(list(names)[:12])}")
        for k in matched:
            if out[k] is not None:
                raise UsageError(f"{field}: {out[k]!r} and {key!r} are both {sources[k].name}; keep one")
            out[k] = key
    return out
