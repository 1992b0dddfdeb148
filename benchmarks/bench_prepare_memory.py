"""Peak memory of `prepare` for an input and for ten times as much, and how far two workers overlap.

    python benchmarks/bench_prepare_memory.py [MiB of the small input]

Prints JSON: peak resident MiB of the driver and of the largest worker for both inputs and their ratio; and how
much of the map step both of two workers had a task. Chunks, partitions and shards are made so small that the input
has several of them: beyond one partition nothing may grow but the lengths.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskpipe import demo_data, partitions, pipeline
from maskpipe.progress import Seen
from maskpipe.recipe import Recipe
from maskpipe.sources import limits
from maskpipe.tokenizer import Tokenizer

RECIPE = Recipe(sequence_length=2048, on_bad_record="reject", shard_size="4MiB")


def write_chats(path: Path, size: int) -> None:
    """Chats of 2 to 12 turns until there are so many bytes; every 500th line is no JSON."""
    words = demo_data.prose().read_text(encoding="utf-8").split()
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < size:
            number += 1
            messages = [
                {
                    "role": "assistant" if turn % 2 else "user",
                    "content": " ".join(chance.choices(words, k=chance.randint(5, 300))),
                }
                for turn in range(2 * chance.randint(1, 6))
            ]
            file.write("{not json\n" if number % 500 == 0 else json.dumps({"messages": messages}) + "\n")


def family(root: int) -> Iterator[int]:
    """Processes below the root."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    todo = [root]
    while todo:
        parent = todo.pop()
        children = [pid for pid, its in parents.items() if its == parent]
        yield from children
        todo += children


def peak_mib(pid: int) -> float:
    """VmHWM: the most that was ever resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(source: Path, out: Path, workers: int, answer: Any) -> None:
    limits.CHUNK_BYTES = 1 << 20
    partitions.PARTITION_TOKENS = 1 << 20
    partitions.PARTITION_SEQUENCES = 1

    workers_peak: dict[int, float] = {}
    marks: list[float] = []
    watched = [0.0]  # CPU seconds of looking
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            for pid in family(os.getpid()):
                try:
                    workers_peak[pid] = max(workers_peak.get(pid, 0.0), peak_mib(pid))
                except OSError:
                    continue
            watched[0] = time.thread_time()

    def note(seen: Seen) -> None:
        if seen.step == "map":
            marks.append(time.process_time() - watched[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    made = pipeline.prepare(
        source, out, tokenizer=Tokenizer.load(demo_data.tokenizer()), recipe=RECIPE, workers=workers, progress=note
    )
    ended.set()
    watcher.join()
    tasks = json.loads((out / "run.json").read_text())["tasks"]
    answer.send(
        {
            "mib_of_input": round(source.stat().st_size / 2**20, 1),
            "documents": made.manifest.totals.documents,
            "rejects": sum(made.manifest.rejected.values()),
            "shards": len(made.manifest.shards),
            "driver_peak_mib": round(peak_mib(os.getpid()), 1),
            "worker_peak_mib": round(max(workers_peak.values()), 1),
            "map_driver_cpu_seconds": round(marks[-1] - marks[0], 2),
            "map_busy_seconds": tasks["busy_seconds"]["map"],
            "map_span_seconds": tasks["span_seconds"]["map"],
        }
    )


def run(source: Path, out: Path, workers: int) -> dict[str, Any]:
    """In a process of its own: peaks never go down."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measure, args=(source, out, workers, theirs))
    process.start()
    theirs.close()
    answer: dict[str, Any] = ours.recv()
    process.join()
    return answer


def main() -> None:
    size = int(float(sys.argv[1]) * 2**20) if len(sys.argv) > 1 else 16 << 20
    with tempfile.TemporaryDirectory() as given:
        directory = Path(given)
        write_chats(directory / "small.jsonl", size)
        write_chats(directory / "large.jsonl", 10 * size)
        small = run(directory / "small.jsonl", directory / "small", 2)
        large = run(directory / "large.jsonl", directory / "large", 2)
    ratios = {
        f"{who}_ratio": round(large[f"{who}_peak_mib"] / small[f"{who}_peak_mib"], 3) for who in ("driver", "worker")
    }
    overlap = large["map_busy_seconds"] / large["map_span_seconds"] / 2
    print(json.dumps({"small": small, "large": large, **ratios, "overlap_of_two_workers": round(overlap, 3)}, indent=1))


if __name__ == "__main__":
    main()
