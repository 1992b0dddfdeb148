"""gc takes away what killed runs of ours left, file by file, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe import cli, demo_data, leftovers, sources
from maskpipe.errors import UsageError
from maskpipe.recipe import Recipe

RECIPE = Recipe(sequence_length=512)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an interrupted run, a dataset with an old temporary file, and other people's things."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources.limits, "CHUNK_BYTES", 4 << 10)
    path = tmp_path / "data"
    path.mkdir()
    given: dict[str, Any] = {"tokenizer": demo_data.tokenizer(), "recipe": RECIPE, "workers": 0}
    with pytest.raises(KeyboardInterrupt):
        maskpipe.prepare(demo_data.chats(), path / "killed", progress=interrupt, **given)
    maskpipe.prepare(demo_data.chats(), path / "whole", **given)
    old = path / "whole" / f".tmp-{2**22 + 1}-{'0' * 16}"
    old.write_bytes(b"x" * 1000)
    os.utime(old, (0, 0))
    (path / "whole" / f".tmp-{os.getpid()}-{'1' * 16}").write_bytes(b"of a process that lives")
    (path / "mine.partial").mkdir()
    (path / "mine.partial" / "thesis.tex").write_text("mine")
    (path / "notes.txt").write_text("mine")
    return path


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def gc(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["gc", *map(str, arguments)])
    return int(str(ended.value.code)), capsys.readouterr().out


def test_a_dry_run_lists_and_removes_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(data)
    code, out = gc(capsys, data)
    assert code == 0 and "killed.partial" in out and "--delete" in out
    assert "mine.partial" not in out and "notes.txt" not in out
    assert names(data) == before
    entries = json.loads(gc(capsys, data, "--format", "json")[1])["leftovers"]
    found = {Path(entry["path"]).name: entry for entry in entries}
    killed, old, alive = "killed.partial", f".tmp-{2**22 + 1}-{'0' * 16}", f".tmp-{os.getpid()}-{'1' * 16}"
    assert {name: entry["in_use"] for name, entry in found.items()} == {killed: False, old: False, alive: True}
    assert found[killed]["bytes"] > 1000 and found[killed]["files"] >= 4 and not found[killed]["removed"]
    assert found[old]["bytes"] == 1000


def test_delete_takes_away_ours_and_leaves_all_else(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(data)
    code, _ = gc(capsys, data, "--delete")
    assert code == 0
    gone = {name for name in before if name.startswith("killed.partial")} | {f"whole/.tmp-{2**22 + 1}-{'0' * 16}"}
    assert names(data) == sorted(set(before) - gone)
    assert (data / "mine.partial" / "thesis.tex").read_text() == "mine"
    assert "no leftovers" not in gc(capsys, data)[1]  # the one that lives is still listed


@pytest.mark.parametrize("folder", ["", "stage", "commits", "dataset"])
def test_a_partial_with_foreign_files_is_refused_and_names_them(
    data: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    (data / "killed.partial" / folder / "thesis.tex").write_text("mine")
    before = names(data / "killed.partial")
    code, out = gc(capsys, data, "--delete")
    assert code == 1 and os.path.join(folder, "thesis.tex") in out
    assert names(data / "killed.partial") == before


def test_symbolic_links_are_not_followed(data: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (data / "killed.partial").rename(elsewhere / "killed.partial")
    (data / "link.partial").symlink_to(elsewhere / "killed.partial")
    assert all(leftover.path.name != "link.partial" for leftover in leftovers.find(data))
    with pytest.raises(UsageError, match="not followed"):
        leftovers.find(data / "link.partial")
    stage = elsewhere / "killed.partial" / "stage"
    moved = tmp_path / "moved"
    stage.rename(moved)
    stage.symlink_to(moved)
    found = leftovers.find(elsewhere)
    assert found[0].foreign == ("stage",)
    with pytest.raises(UsageError, match="holds stage"):
        leftovers.remove(found[0])
    assert list(moved.iterdir())


def test_what_a_run_works_in_is_in_use(data: Path) -> None:
    def look(*_: Any) -> None:
        found = leftovers.find(data / "new.partial")
        assert [entry.in_use for entry in found] == [True]
        with pytest.raises(UsageError, match="works here"):
            leftovers.remove(found[0])

    maskpipe.prepare(
        demo_data.chats(), data / "new", tokenizer=demo_data.tokenizer(), recipe=RECIPE, workers=0, progress=look
    )
    assert (data / "new" / "manifest.json").is_file()


def test_a_directory_that_was_killed_before_it_was_marked_is_ours(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "lock").touch()
    (tmp_path / "out.partial" / f".tmp-99-{'a' * 16}").touch()
    found = leftovers.find(tmp_path)
    leftovers.remove(found[0])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", ["hf", "trl", "megatron-bridge", "olmo"])
def test_what_a_killed_export_left_is_taken_away_whole(
    tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    maskpipe.prepare([chat], tmp_path / "out", tokenizer=demo_data.tokenizer(), recipe=RECIPE, workers=0)
    program = (
        "import os, sys\n"
        "from maskpipe.exports import exporting\n"
        "exporting._check = lambda dataset, counted: os._exit(9)\n"
        "exporting.export(sys.argv[1], sys.argv[2], sys.argv[3])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "out", tmp_path / "new" / "deep", to], timeout=120)
    assert done.returncode == 9 and [path.name for path in (tmp_path / "new").iterdir()] == ["deep.partial"]
    assert gc(capsys, tmp_path / "new", "--delete")[0] == 0
    assert names(tmp_path / "new") == []
