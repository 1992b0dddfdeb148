"""Several ranks, one dataset: whoever maps which chunk, and in whichever order, the bytes are those of one run."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe import cli, demo_data, partitions, sources
from maskpipe.errors import RecordError, UsageError
from maskpipe.partial import claim, join
from maskpipe.ranks import Share, prepare_share
from maskpipe.recipe import Recipe
from maskpipe.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
RECIPE = Recipe(sequence_length=256, on_bad_record="reject", deduplicate=True)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few records, several partitions."""
    monkeypatch.setattr(sources.limits, "CHUNK_BYTES", 1500)
    monkeypatch.setattr(partitions, "PARTITION_TOKENS", 400)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    lines = demo_data.chats().read_text(encoding="utf-8").split("\n")[:14]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(f"{line}\n" for line in [*lines, "{not json", *lines[:3]]), encoding="utf-8")
    return path


def whole(source: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Prepares without a rank; what run.json says of the map tasks."""
    maskpipe.prepare(source, out, **{"tokenizer": TOKENIZER, "recipe": RECIPE, "workers": 0, **more})
    tasks = json.loads((out / "run.json").read_text())["tasks"]
    return {"begun": tasks["attempts"].get("map", 0), "found": tasks["found"].get("map", 0)}


def share(source: Path, out: Path, rank: int, world_size: int, **more: Any) -> Share:
    given = {"tokenizer": TOKENIZER, "recipe": RECIPE, "workers": 0, **more}
    return prepare_share(source, out, rank=rank, world_size=world_size, **given)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "run.json"}


@pytest.mark.parametrize("world_size", [1, 4])
def test_the_bytes_do_not_depend_on_the_ranks(tmp_path: Path, chats: Path, world_size: int) -> None:
    chunks = whole(chats, tmp_path / "one")["begun"]
    order = random.Random(world_size).sample(range(world_size), world_size)
    shares = [share(chats, tmp_path / "out", rank, world_size) for rank in order]
    assert sum(each.chunks for each in shares) == chunks > 4
    assert not (tmp_path / "out").exists(), "ranks publish nothing"
    assert whole(chats, tmp_path / "out") == {"begun": 0, "found": chunks}
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "one")
    assert not (tmp_path / "out.partial").exists()


def test_what_a_lost_rank_did_not_do_is_done_by_the_last_command(tmp_path: Path, chats: Path) -> None:
    chunks = whole(chats, tmp_path / "one")["begun"]
    done = share(chats, tmp_path / "out", 0, 3).chunks + share(chats, tmp_path / "out", 2, 3).chunks
    again = share(chats, tmp_path / "out", 2, 3)
    assert again.found == again.chunks > 0, "a rank that is run again finds what it did"
    assert whole(chats, tmp_path / "out") == {"begun": chunks - done, "found": done}
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "one")


def test_ranks_work_at_the_same_time(tmp_path: Path, chats: Path) -> None:
    whole(chats, tmp_path / "one")
    processes = [FORK.Process(target=share, args=(chats, tmp_path / "out", rank % 2, 2)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert whole(chats, tmp_path / "out")["begun"] == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "one")


def test_nobody_takes_a_working_ranks_files_away(tmp_path: Path, chats: Path) -> None:
    share(chats, tmp_path / "out", 0, 2)
    job = json.loads((tmp_path / "out.partial" / "job.json").read_text())
    unfinished = tmp_path / "out.partial" / "stage" / ".tmp-1-0123456789abcdef"
    unfinished.write_bytes(b"another rank is writing this")
    working = join(tmp_path / "out", job["job"], job["identity"], job["files"])
    try:
        share(chats, tmp_path / "out", 1, 2)
        assert unfinished.exists()
        with pytest.raises(UsageError, match="another run works here"):
            whole(chats, tmp_path / "out")
    finally:
        working.close()
    whole(chats, tmp_path / "out")
    alone = claim(tmp_path / "new", "job", {}, [])
    try:
        with pytest.raises(UsageError, match="another run works here"):
            share(chats, tmp_path / "new", 0, 2)
    finally:
        alone.close()


def test_ranks_of_another_job_and_ranks_too_late_are_refused(tmp_path: Path, chats: Path) -> None:
    share(chats, tmp_path / "out", 0, 2)
    with pytest.raises(UsageError, match=r"unfinished work of another job \(recipe.sequence_length: 256 there"):
        share(chats, tmp_path / "out", 1, 2, recipe=RECIPE.replace(sequence_length=128))
    whole(chats, tmp_path / "out")
    with pytest.raises(UsageError, match="already there"):
        share(chats, tmp_path / "out", 1, 2)
    for rank, world_size in [(-1, 2), (2, 2), (0, 0)]:
        with pytest.raises(UsageError, match="below the number of ranks"):
            share(chats, tmp_path / "new", rank, world_size)


def test_a_bad_record_stops_its_rank_and_keeps_the_others_work(tmp_path: Path, chats: Path) -> None:
    strict = RECIPE.replace(on_bad_record="stop")
    outcomes = []
    for rank in range(4):
        try:
            outcomes.append(share(chats, tmp_path / "out", rank, 4, recipe=strict).chunks)
        except RecordError as error:
            assert "chats.jsonl:" in str(error)
            outcomes.append(-1)
    assert outcomes.count(-1) == 1
    assert whole(chats, tmp_path / "out")["found"] >= sum(n for n in outcomes if n > 0)


def test_the_command_says_what_comes_next(tmp_path: Path, chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", str(chats), str(tmp_path / "out"), "--tokenizer", str(demo_data.tokenizer()),
               "--on-bad-record", "reject", "--workers", "0"]  # fmt: skip
    assert cli.run([*command, "--rank", "0", "--world", "1"]) == 0
    said = capsys.readouterr().out
    assert "the share of rank 0 of 1" in said and "without --rank and --world" in said and "1 not_json" in said
    assert cli.run([*command, "--rank", "0", "--world", "1", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"] > 1
    assert (
        cli.run([*command, "--rank", "0"]) == 2 and cli.run([*command, "--rank", "0", "--world", "1", "--dry-run"]) == 2
    )
    assert cli.run(command) == 0
