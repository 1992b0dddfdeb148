"""Finished work stays finished: whatever ends a run, the same command goes on, and ends with the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe import commit, demo_data, durable, mapping, partial, partitions, sources
from maskpipe.encoder import Encoder
from maskpipe.errors import DatasetError, MaskpipeError, RecordError, UsageError
from maskpipe.guard import UNGUARDED
from maskpipe.recipe import Recipe
from maskpipe.shards.verify import verify
from maskpipe.sources import Chunk
from maskpipe.tasks import map_task, run_map
from maskpipe.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
RECIPE = Recipe(sequence_length=256, on_bad_record="reject")
RACES = 1000 if os.environ.get("MASKPIPE_LONG") == "1" else 60
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few records, partitions of one chunk, shards of a few rows."""
    monkeypatch.setattr(sources.limits, "CHUNK_BYTES", 1500)
    monkeypatch.setattr(partitions, "PARTITION_TOKENS", 400)
    monkeypatch.setattr(partitions, "PARTITION_SEQUENCES", 1)
    monkeypatch.setattr(Recipe, "shard_bytes", 4 * 256 * 3)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    lines = demo_data.chats().read_text(encoding="utf-8").splitlines()[:8]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(f"{line}\n" for line in [*lines[:4], "{not json", *lines[4:]]), encoding="utf-8")
    return path


def prepare(source: Any, out: Path, **more: Any) -> dict[str, Any]:
    """Prepares in this process; what run.json says of the tasks."""
    maskpipe.prepare(source, out, **{"tokenizer": TOKENIZER, "recipe": RECIPE, "workers": 0, **more})
    return dict(json.loads((out / "run.json").read_text())["tasks"])


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "run.json"}


def in_a_process(work: Callable[[], Any]) -> int:
    """Exit code of a forked process that does the work; negative for a signal."""

    def run() -> None:
        with contextlib.suppress(MaskpipeError):
            work()

    process = FORK.Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def kill_after(commits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that commits its n-th task is killed as soon as the record is there."""
    real, made = commit.commit, 0

    def committing(*arguments: Any) -> Any:
        nonlocal made
        out = real(*arguments)
        made += 1
        if made == commits:
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    monkeypatch.setattr(commit, "commit", committing)


# -- resume


def test_a_kill_after_every_commit_leaves_a_run_that_goes_on_with_what_is_finished(
    chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(chats, tmp_path / "whole")
    total = whole["attempts"]["map"] + whole["attempts"]["write"]
    assert whole["attempts"]["map"] >= 3 and whole["attempts"]["write"] >= 3 and whole["found"] == {}
    for k in range(1, total + 1):
        out = tmp_path / f"out{k}"
        with monkeypatch.context() as patch:
            kill_after(k, patch)
            assert in_a_process(lambda out=out: prepare(chats, out)) == -signal.SIGKILL  # type: ignore[misc]
        assert not out.exists()
        again = prepare(chats, out)
        assert sum(again["found"].values()) == k
        assert again["attempts"].get("map", 0) + again["attempts"].get("write", 0) == total - k
        assert bytes_of(out) == bytes_of(tmp_path / "whole")
        assert not partial.partial_of(out).exists()


def test_a_kill_between_publishing_and_cleaning_up_is_ended_by_the_same_command(
    chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(partial.Partial, "remove", lambda self: os.kill(os.getpid(), signal.SIGKILL))
        assert in_a_process(lambda: prepare(chats, out)) == -signal.SIGKILL
    assert (out / "manifest.json").is_file() and partial.partial_of(out).is_dir()
    before = bytes_of(out)
    made = maskpipe.prepare(chats, out, tokenizer=TOKENIZER, recipe=RECIPE, workers=0)
    assert made.manifest == maskpipe.open(out).manifest and made.counts["tokens"] > 0
    assert [entry["reason"] for entry in made.rejects] == ["not_json"]
    assert bytes_of(out) == before and not partial.partial_of(out).exists()
    with pytest.raises(UsageError, match="already there"):
        prepare(chats, out)


def test_a_full_disk_at_every_call_is_an_error_that_names_a_file_and_the_rerun_is_whole(
    chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(chats, tmp_path / "whole")
    real = os.write
    for n in range(1, 200, 7):
        out, calls = tmp_path / f"out{n}", 0

        def full(descriptor: int, data: Any, n: int = n) -> int:
            nonlocal calls
            calls += 1
            if calls >= n:
                raise OSError(28, "No space left on device")
            return real(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr(durable.os, "write", full)
            try:
                prepare(chats, out)
            except MaskpipeError as error:
                assert "No space left on device" in str(error) and f"out{n}.partial/" in str(error)
            else:
                assert calls < n
                break
        assert not out.exists()
        prepare(chats, out)
        assert bytes_of(out) == bytes_of(tmp_path / "whole")
    else:
        raise AssertionError("never got through")


def test_a_mended_input_goes_on_with_the_chunks_that_did_not_change(chats: Path, tmp_path: Path) -> None:
    stop = RECIPE.replace(on_bad_record="stop")
    with pytest.raises(RecordError, match=r"chats\.jsonl:5: .*out\.partial: run the same command again"):
        prepare(chats, tmp_path / "out", recipe=stop)
    text = chats.read_text(encoding="utf-8").replace("{not json\n", "")
    chats.write_text(text, encoding="utf-8")
    assert prepare(chats, tmp_path / "out", recipe=stop)["found"]["map"] >= 1
    prepare(chats, tmp_path / "whole", recipe=stop)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_run_that_stopped_at_a_bad_record_goes_on_with_reject(chats: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="--on-bad-record reject"):
        prepare(chats, tmp_path / "out", recipe=RECIPE.replace(on_bad_record="stop"))
    assert prepare(chats, tmp_path / "out")["found"]["map"] >= 1
    prepare(chats, tmp_path / "whole")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


# -- whose work it is


def interrupted(chats: Path, out: Path, **more: Any) -> Path:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        prepare(chats, out, progress=interrupt, **more)
    return partial.partial_of(out)


def test_unfinished_work_of_another_job_is_an_error_that_says_what_differs(chats: Path, tmp_path: Path) -> None:
    work = interrupted(chats, tmp_path / "out")
    before = sorted(work.rglob("*"))
    with pytest.raises(UsageError, match=r"another job \(recipe\.sequence_length: 256 there, 512 now\).*maskpipe gc"):
        prepare(chats, tmp_path / "out", recipe=RECIPE.replace(sequence_length=512))
    other = tmp_path / "other.jsonl"
    other.write_bytes(chats.read_bytes())
    with pytest.raises(UsageError, match=r'sources: \["chats\.jsonl"\] there, \["other\.jsonl"\] now'):
        prepare(other, tmp_path / "out")
    assert sorted(work.rglob("*")) == before
    ours = (work / "job.json").read_bytes()
    written = json.loads(ours)
    written["identity"]["columns"].remove("ids_xxh3")  # a version whose shards had fewer
    identity = json.dumps(written["identity"], sort_keys=True).encode()
    (work / "job.json").write_text(json.dumps({**written, "job": hashlib.sha256(identity).hexdigest()}))
    with pytest.raises(UsageError, match=r"another job \(columns: .*maskpipe gc"):
        prepare(chats, tmp_path / "out")
    (work / "job.json").write_bytes(ours)
    prepare(chats, tmp_path / "out")


def test_an_error_of_the_recipe_does_not_block_the_next_one(chats: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        prepare(chats, tmp_path / "out", recipe=RECIPE.replace(on_bad_record="stop"))
    prepare(chats, tmp_path / "out", recipe=RECIPE.replace(sequence_length=512))
    prepare(chats, tmp_path / "whole", recipe=RECIPE.replace(sequence_length=512))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_foreign_files_in_the_way_are_named_and_stay(chats: Path, tmp_path: Path) -> None:
    work = tmp_path / "out.partial"
    work.mkdir()
    (work / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"out\.partial holds thesis\.tex"):
        prepare(chats, tmp_path / "out")
    (work / "thesis.tex").unlink()
    (work / "job.json").write_text('{"mine": 1}')
    with pytest.raises(UsageError, match=r"job\.json is not one of ours"):
        prepare(chats, tmp_path / "out")
    assert (work / "job.json").read_text() == '{"mine": 1}'


def test_a_second_run_is_told_of_the_first(chats: Path, tmp_path: Path) -> None:
    def second(*_: Any) -> None:
        with pytest.raises(UsageError, match=rf"another run works here \(process {os.getpid()} on "):
            prepare(chats, tmp_path / "out")

    prepare(chats, tmp_path / "out", progress=second)
    verify(tmp_path / "out")


# -- records


def test_two_results_for_one_task_are_an_error_that_names_both(tmp_path: Path) -> None:
    name = commit.identify("job", "map", b"chunk")
    assert commit.commit(tmp_path, name, {"rows": 1}) == {"rows": 1}
    assert commit.commit(tmp_path, name, {"rows": 1}) == {"rows": 1}
    with pytest.raises(
        DatasetError, match=rf"{name}\.json: .* two results, [0-9a-f]{{16}} before and [0-9a-f]{{16}} now"
    ):
        commit.commit(tmp_path, name, {"rows": 2})
    assert commit.find(tmp_path, name) == {"rows": 1}
    assert os.listdir(tmp_path) == [f"{name}.json"]


def test_a_damaged_record_or_piece_is_never_taken_for_finished(chats: Path, tmp_path: Path) -> None:
    work = interrupted(chats, tmp_path / "out")
    record = next((work / "commits").iterdir())
    raw = record.read_bytes()
    for damaged in (raw[:-20], raw.replace(b'"kept":', b'"kapt":'), b"", b"[]"):
        record.write_bytes(damaged)
        with pytest.raises(DatasetError, match="commit record is damaged"):
            prepare(chats, tmp_path / "out")
    record.write_bytes(raw)
    stage = work / "stage" / json.loads(raw)["result"]["stage"]["file"]
    content = stage.read_bytes()
    stage.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DatasetError, match="missing or not as it was written"):
        prepare(chats, tmp_path / "out")
    stage.write_bytes(content)
    prepare(chats, tmp_path / "out")


def test_the_name_of_a_task_is_a_hash_of_all_that_decides_its_result(tmp_path: Path) -> None:
    chunk = Chunk(0, "a.jsonl", 0, 1, "lines", b"{}\n", first_line=1)
    names = {
        map_task(tmp_path, "job", chunk, None).name,
        map_task(tmp_path, "other", chunk, None).name,
        map_task(tmp_path, "job", chunk, 3).name,
        *(
            map_task(tmp_path, "job", Chunk(**{**vars(chunk), **change}), None).name
            for change in (
                {"source": 1}, {"name": "b.jsonl"}, {"first_row": 1}, {"count": 2}, {"kind": "array"},
                {"payload": b"[]\n"}, {"first_line": 2}, {"ends": b"1"}, {"reason": "x"},
            )
        ),
    }  # fmt: skip
    assert len(names) == 12
    assert map_task(tmp_path / "elsewhere", "job", chunk, None).name in names


def test_racing_attempts_at_one_task_end_with_one_result() -> None:
    line = demo_data.chats().read_bytes().split(b"\n")[0]
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as given:
        directory = Path(given)
        for folder in ("stage", "commits"):
            (directory / folder).mkdir()
        start = FORK.Barrier(2)

        def race() -> None:
            encoder = Encoder(TOKENIZER, RECIPE)
            for number in range(RACES):
                task = map_task(directory, f"job{number}", Chunk(0, "a.jsonl", 0, 1, "lines", line + b"\n"), None)
                start.wait(60)
                run_map(encoder, task, UNGUARDED)

        racers = [FORK.Process(target=race) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(300)
        assert [racer.exitcode for racer in racers] == [0, 0]
        records, pieces = list((directory / "commits").iterdir()), list((directory / "stage").iterdir())
        assert (len(records), len(pieces)) == (RACES, RACES)
        for record in records:
            stage = commit.get(directory / "commits", record.stem)["stage"]
            commit.check_file(directory / "stage" / stage["file"], stage["size"], stage["sha256"])


def test_racing_commits_that_differ_have_one_winner(tmp_path: Path) -> None:
    start = FORK.Barrier(2)

    def race(mine: int) -> None:
        lost = 0
        for number in range(50):
            start.wait(60)
            try:
                commit.commit(tmp_path, commit.identify("job", "map", number), {"mine": mine})
            except DatasetError:
                lost += 1
        os._exit(lost)

    racers = [FORK.Process(target=race, args=(mine,)) for mine in (1, 2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    assert sum(racer.exitcode or 0 for racer in racers) == 50
    assert len(os.listdir(tmp_path)) == 50


def test_the_attempts_that_run_json_counts_are_the_tasks_of_the_plan(chats: Path, tmp_path: Path) -> None:
    tasks = prepare(chats, tmp_path / "out")
    assert tasks["attempts"]["write"] == len(maskpipe.open(tmp_path / "out").manifest.shards)
    assert mapping.EXAMPLES == 20
