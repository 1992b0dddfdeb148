"""Two attempts at one task, at the same moment: one result that shows, and nobody fails."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

from maskpipe import commit, demo_data, tasks
from maskpipe.durable import TEMPORARY
from maskpipe.encoder import Encoder
from maskpipe.guard import UNGUARDED
from maskpipe.recipe import Recipe
from maskpipe.sources import open_sources
from maskpipe.tokenizer import Tokenizer
from tests.faults.harness import small_source

RACES = 1000 if os.environ.get("MASKPIPE_LONG") == "1" else 200


def race(barrier: Any, root: str, says: Any) -> None:
    encoder = Encoder(Tokenizer.load(demo_data.tokenizer()), Recipe(sequence_length=256, on_bad_record="reject"))
    (chunk,) = open_sources(Path(root) / "chats.jsonl", encoder.recipe).chunks()
    found: list[str] = []
    for number in range(RACES):
        directory = Path(root) / str(number)
        task = tasks.map_task(directory, "a job", chunk, None)
        barrier.wait(60)
        result = commit.get(directory / "commits", tasks.run_map(encoder, task, UNGUARDED))
        stage = result["stage"]
        commit.check_file(directory / "stage" / stage["file"], stage["size"], stage["sha256"])
        found.append(hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest())
    says.send(found)
    says.close()


def test_two_attempts_at_one_task_give_one_result() -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as root:
        small_source(Path(root) / "chats.jsonl", records=2)
        for number in range(RACES):
            for folder in ("stage", "commits"):
                (Path(root) / str(number) / folder).mkdir(parents=True)
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(2)
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        runners = [context.Process(target=race, args=(barrier, root, says)) for _, says in pipes]
        for runner in runners:
            runner.start()
        for _, says in pipes:
            says.close()  # so that a runner that fails ends the wait for it
        results = [hears.recv() for hears, _ in pipes]
        for runner in runners:
            runner.join(60)
            assert runner.exitcode == 0
        assert results[0] == results[1]
        for number in range(RACES):
            directory = Path(root) / str(number)
            (record,) = (directory / "commits").iterdir()
            (stage,) = (directory / "stage").iterdir()
            assert not TEMPORARY.fullmatch(record.name)
            committed = commit.get(directory / "commits", record.stem)
            assert committed["stage"]["file"] == stage.name
        print(f"{RACES} races, {RACES} results")
