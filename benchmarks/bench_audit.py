"""Speed of the audit: its checks in the core, the whole of it, and coverage of many shards from the manifest.

    python benchmarks/bench_audit.py [--tokens 400000] [--shards 10000] [--json]

Made chats, long ones of five exchanges and short ones of one, packed into rows of 8,192 tokens; how many tokens a
document and a run have is printed. CPU seconds of this process, the best of several runs:
  checks     _core.Audit over rows in memory: every invariant over every token and what coverage counts of them, the
             hash of each document, and the copies of facts that the core takes. Without Arrow, the hashes of files,
             the search for identical documents and the ledger, which the next line has
  one pass   maskpipe.audit: hashes (xxh3, SHA-256), Arrow, checks, ledger, fingerprint, coverage
  foreign    the same rows as another tool would have written them (labels, position_ids, seq_lengths): what their
             columns say, where turns stand, every check; rows in memory
  coverage   a manifest of this many shards, read and summed up; no shard is touched
The bars: checks at 0.5 GB of input_ids per second and core, coverage in 2 s; exit code 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import maskpipe
from maskpipe import demo_data
from maskpipe.auditing.checks import core_arguments, core_audit
from maskpipe.auditing.foreign import habits, ids_of, opened
from maskpipe.auditing.foreign.checks import Checker
from maskpipe.auditing.foreign.locate import Locator
from maskpipe.auditing.foreign.rows import labels_shift, understand
from maskpipe.auditing.foreign.shelf import Shelf
from maskpipe.auditing.known import learn
from maskpipe.exports import Options, export
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.shards.format import MANIFEST, MANIFEST_HASH
from maskpipe.shards.manifest import manifest_hash
from maskpipe.shards.reader import ShardReader
from maskpipe.tokenizer import Tokenizer

BAR_GB, BAR_SECONDS = 0.5, 2.0
LENGTH = 8192


def best(call: Callable[[], Any], repeats: int = 3) -> float:
    """CPU seconds of the fastest run."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def texts(record: dict[str, Any]) -> list[str]:
    """What its messages say."""
    return [m["content"] for m in record.get("messages", []) if isinstance(m.get("content"), str)]


LONG, SHORT = (5, 100, 250), (1, 40, 110)
"""Exchanges of a chat, and at most how many words of a question and of an answer."""


def prepared(directory: Path, tokens: int, shape: tuple[int, int, int]) -> Path:
    """A dataset of about so many tokens."""
    exchanges, asked, answered = shape
    words = " ".join(text for record in map(json.loads, demo_data.chats().open()) for text in texts(record)).split()
    random = Random(1)

    def said(role: str, most: int) -> dict[str, str]:
        first = random.randrange(len(words) - most)
        return {"role": role, "content": " ".join(words[first : first + random.randint(most // 4, most)])}

    directory.mkdir()
    path = directory / "chats.jsonl"
    with path.open("w") as file:
        for _ in range(max(1, tokens // (exchanges * (asked + answered)))):
            turns = [said(*one) for _ in range(exchanges) for one in (("user", asked), ("assistant", answered))]
            file.write(json.dumps({"messages": turns}) + "\n")
    recipe = Recipe(sequence_length=LENGTH)
    maskpipe.prepare(path, directory / "out", tokenizer=demo_data.tokenizer(), recipe=recipe, workers=0)
    return directory / "out"


def checks(out: Path) -> tuple[float, float, dict[str, int]]:
    """(CPU seconds, GB of input_ids, their shape)."""
    dataset = maskpipe.open(out)
    manifest = dataset.manifest
    recipe = Recipe.from_dict(dict(manifest.recipe))
    known = learn(Tokenizer.load(out), recipe, manifest.vocab_size)
    batches = []
    for number in range(len(manifest.shards)):
        reader = ShardReader(dataset.path, manifest, number)
        batches += [reader.raw_batch(k) for k in range(reader.n_batches)]
        reader.close()
    audit = core_audit(manifest, Policy.of(recipe), recipe, known)

    def run() -> None:
        first = 0
        for rows in batches:
            audit.add(**core_arguments(rows), first_row=first)
            first += len(rows)

    tokens = sum(rows.input_ids.size for rows in batches)
    shape = {
        "tokens_per_document": round(tokens / sum(len(rows.documents) for rows in batches)),
        "tokens_per_run": round(tokens / sum(len(rows.runs) for rows in batches)),
    }
    return best(run, 5), tokens * 4 / 1e9, shape


def foreign(out: Path) -> float:
    """CPU seconds."""
    there = out.parent / "theirs"
    export(out, there, "trl", options=Options(ignore_weights=True))
    tokenizer = Tokenizer.load(out)
    reading, stretches, about = opened(there, ids_of(tokenizer), None)
    rows, locator = list(stretches), Locator(tokenizer, habits.learn(tokenizer), about)

    def run() -> None:
        checker, shelf = Checker(tokenizer, about, locator), Shelf(tokenizer, "theirs")
        for stretch in rows:
            understood = understand(stretch, reading, about, labels_shift(stretch) or 0, checker.tally)
            assert understood is not None
            shelf.add(understood, checker.add(understood), checker.tally)
        checker.finish()

    return best(run, 5)


def coverage(out: Path, shards: int) -> float:
    """CPU seconds for coverage of a manifest with so many shards of 256 MiB."""
    manifest = maskpipe.open(out).manifest
    (shard, *_) = manifest.shards
    many = [
        replace(shard, name=f"part-{k:05d}-{shard.sha256[:16]}.arrow", size=256 << 20, regions="0" * (16 * 256))
        for k in range(shards)
    ]
    place = out.parent / "many"
    place.mkdir()
    raw = replace(manifest, shards=tuple(many)).to_json()
    (place / MANIFEST).write_bytes(raw)
    (place / MANIFEST_HASH).write_bytes(manifest_hash(raw))
    return best(lambda: maskpipe.audit(place, coverage_only=True).to_dict())


def measure(tokens: int, shards: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        found: dict[str, Any] = {
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        for name, shape in (("long", LONG), ("short", SHORT)):
            out = prepared(Path(directory) / name, tokens, shape)
            seconds, size, sizes = checks(out)
            found[name] = {
                "input_ids_gb": round(size, 4),
                **sizes,
                "checks_gb_per_second": round(size / seconds, 3),
                "foreign_gb_per_second": round(size / foreign(out), 3),
                "one_pass_gb_per_second": round(size / best(lambda out=out: maskpipe.audit(out), 1), 3),
            }
        return found | {"coverage_shards": shards, "coverage_seconds": round(coverage(out, shards), 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.tokens, options.shards)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:<18}{value}")
    slowest = min(found[name]["checks_gb_per_second"] for name in ("long", "short"))
    return int(slowest < BAR_GB or found["coverage_seconds"] > BAR_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
