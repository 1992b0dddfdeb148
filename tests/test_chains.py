"""Any chain of prepare, append, merge, repack, ranks, stops and splits over some sources ends where one preparation of
all of them begins: the same bytes once packed alike, no record lost or there twice, and no difference that `diff` sees.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maskpipe
from maskpipe import merge, partitions, repack
from maskpipe.diff import diff
from maskpipe.errors import RecordError, UsageError
from maskpipe.ranks import prepare_share
from maskpipe.recipe import Recipe
from maskpipe.shards.verify import verify
from maskpipe.sources import limits
from tests.test_repack import TOKENIZER, bytes_of, chat, reasoning, tree

LONG = os.environ.get("MASKPIPE_LONG") == "1"
LENGTHS = (96, 256, 400, 700, 1024)
REFUSED = "anew"
SIDES = ("train", "validation")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 2 << 10)
    monkeypatch.setattr(partitions, "PARTITION_TOKENS", 1500)
    monkeypatch.setattr(partitions, "PARTITION_SEQUENCES", 1)
    monkeypatch.setattr(Recipe, "shard_bytes", 4 * 1024 * 3)
    monkeypatch.setattr(repack, "GROUP_TOKENS", 1200)


@dataclass
class Made:
    """A dataset and what went into it."""

    path: Path
    sources: list[Path]
    length: int


class Chain:
    def __init__(self, seed: int, folder: Path) -> None:
        self.draw = random.Random(seed)
        self.folder = folder
        self.count = 0
        self.settings: dict[str, Any] = {
            "on_bad_record": "reject",
            "on_too_long": self.draw.choice(["drop", "truncate", "refuse"]),
            "on_history_rewrite": self.draw.choice(["split", "split", "last", "accept"]),
            "packing": self.draw.choice(["best_fit", "best_fit", "first_fit", "none"]),
            "validation": self.draw.choice([0.0, 0.0, 0.3]),
        }

    def name(self, kind: str) -> Path:
        self.count += 1
        return self.folder / f"{kind}{self.count}"

    def source(self) -> Path:
        draw = self.draw
        kinds = [
            lambda: chat(draw.randint(1, 6), draw.randint(1, 40)),
            lambda: reasoning(draw.randint(1, 4), draw.randint(1, 30)),
            lambda: {"messages": [{"role": "user", "content": "no answer"}]},
            lambda: {"nothing": 1},
        ]
        if not self.settings["validation"]:  # records that share a conversation go to one side together
            kinds.append(lambda: tree(draw.randint(0, 9)))
        weights = [6, 4, 1, 1, 3][: len(kinds)]
        lines = [json.dumps(draw.choices(kinds, weights)[0]()) for _ in range(draw.randint(1, 14))]
        path = self.name("source").with_suffix(".jsonl")
        path.write_text("".join(line + "\n" for line in lines))
        return path

    def recipe(self, length: int) -> Recipe:
        return Recipe(sequence_length=length, **self.settings)

    def prepare(self, sources: list[Path], length: int, *, plain: bool = False) -> Made:
        out = self.name("out")
        given: dict[str, Any] = {"tokenizer": TOKENIZER, "recipe": self.recipe(length), "workers": 0}
        way = "plain" if plain else self.draw.choice(["plain", "ranks", "stopped"])
        if way == "ranks":
            world = self.draw.randint(1, 4)
            for rank in self.draw.sample(range(world), self.draw.randint(1, world)):
                prepare_share(sources, out, rank=rank, world_size=world, **given)
        elif way == "stopped":
            after = self.draw.randint(1, 3)

            def interrupt(*_: Any) -> None:
                nonlocal after
                after -= 1
                if after <= 0:
                    raise KeyboardInterrupt

            with suppress(KeyboardInterrupt):
                maskpipe.prepare(sources, out, progress=interrupt, **given)
        if not out.exists():
            maskpipe.prepare(sources, out, **given)
        return Made(out, sources, length)

    def append(self, made: Made) -> Made:
        source, out = self.source(), self.name("appended")
        if self.settings["validation"]:
            with pytest.raises(UsageError, match="merge train with train"):
                merge.append(made.path / "train", source, out, workers=0)
            return self.merge([made, self.prepare([source], made.length)])
        merge.append(made.path, source, out, workers=0)
        return Made(out, [*made.sources, source], made.length)

    def merge(self, parts: list[Made]) -> Made:
        parts = [part if part.length == parts[0].length else self.repack(part, parts[0].length) for part in parts]
        out = self.name("merged")
        if self.settings["validation"]:
            out.mkdir()
            for side in SIDES:
                merge.merge([part.path / side for part in parts], out / side)
        else:
            merge.merge([part.path for part in parts], out)
        return Made(out, [source for part in parts for source in part.sources], parts[0].length)

    def repack(self, made: Made, length: int) -> Made:
        """UsageError REFUSED where something was or would be cut or rejected for its length."""
        out = self.name("repacked")
        if self.settings["validation"]:
            out.mkdir()
            for side in SIDES:
                repack.repack(made.path / side, out / side, sequence_length=length)
        else:
            repack.repack(made.path, out, sequence_length=length)
        return Made(out, made.sources, length)


def sides(made: Made) -> list[Path]:
    return [made.path] if (made.path / "manifest.json").exists() else [made.path / side for side in SIDES]


def held(path: Path) -> Counter[tuple[str, int]]:
    with maskpipe.open(path) as dataset:
        names = [source.name for source in dataset.manifest.sources]
        return Counter({(names[document.source], document.row): 1 for document in dataset.documents()})


def check(made: Made) -> None:
    """Each record of each source is in one place, or in the list of rejects."""
    rejected: set[tuple[str, int]] = set()
    kept: Counter[tuple[str, int]] = Counter()
    for path in sides(made):
        verify(path)
        own = held(path)
        kept += own
        with maskpipe.open(path) as dataset:
            manifest = dataset.manifest
        names = [source.name for source in manifest.sources]
        assert names == [source.name for source in made.sources]
        lines = (path / "rejects.jsonl").read_text().splitlines()
        here = {(names[entry["source"]], entry["row"]) for entry in map(json.loads, lines)}
        assert len(here) == len(lines) == sum(manifest.rejected.values()) and not here & own.keys()
        rejected |= here
        assert manifest.records_kept == len(own)
        assert manifest.records == len(own) + len(here) + sum(manifest.left_out.values())
    expected = {(path.name, row) for path in made.sources for row in range(len(path.read_text().splitlines()))}
    assert kept.keys() | rejected == expected and not kept.keys() & rejected
    assert set(kept.values()) == {1}, "a record is on one side"


def run(seed: int, folder: Path) -> str:
    chain = Chain(seed, folder)
    draw = chain.draw
    try:
        parts = [chain.prepare([chain.source() for _ in range(draw.randint(1, 2))], draw.choice(LENGTHS)) for _ in "ab"]
    except RecordError as error:
        assert error.reason in ("empty_split_side", "nothing_left")
        return error.reason
    made = parts[0]
    for _ in range(draw.randint(1, 4)):
        step = draw.choice(["append", "merge", "repack"])
        try:
            if step == "append":
                made = chain.append(made)
            elif step == "merge" and len(parts) > 1:
                pair = [made, parts.pop()]
                made = chain.merge(pair if draw.random() < 0.5 else pair[::-1])
            else:
                made = chain.repack(made, draw.choice(LENGTHS))
        except RecordError as error:
            if error.reason not in ("empty_split_side", "nothing_left", "too_long"):
                raise
        except UsageError as error:
            assert REFUSED in str(error), "rows of another length hold more or less, and prepare alone knows what"
        check(made)
    whole = chain.prepare(made.sources, made.length, plain=True)
    check(whole)
    for ours, theirs in zip(sides(made), sides(whole), strict=True):
        assert diff(ours, theirs).same
    try:
        again = chain.repack(made, made.length)
    except UsageError:
        return "not packed anew"
    for ours, theirs in zip(sides(again), sides(whole), strict=True):
        one, other = bytes_of(ours), bytes_of(theirs)
        if len(sides(whole)) == 2:  # what prepare counts before it splits, one side of it does not know
            one, other = ({n: b for n, b in f.items() if n.startswith("part-")} for f in (one, other))
            assert maskpipe.open(ours).manifest.fingerprint == maskpipe.open(theirs).manifest.fingerprint
        assert one == other
    return "whole"


@pytest.mark.usefixtures("small_steps")
@settings(max_examples=400 if LONG else 8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**9))
def test_a_chain_ends_where_one_preparation_of_everything_does(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run(seed, tmp_path_factory.mktemp("chain"))
