"""Datasets by name. There is no network in a test: `datasets` builds them from a directory, as it does from a hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from maskpipe.errors import UsageError
from maskpipe.recipe import Recipe
from maskpipe.sources import hub, open_sources

RECORDS = {
    split: [{"messages": [{"role": "user", "content": f"{split} {number}"}]} for number in range(3)]
    for split in ("train", "test")
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of data files, and a cache for what `datasets` builds from it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "some-chats"
    repository.mkdir()
    for split, records in RECORDS.items():
        (repository / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return repository


@pytest.fixture
def on_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """org/some-chats is that directory, at the commit abc123."""
    asked: list[tuple[Any, ...]] = []
    load = datasets.load_dataset_builder

    def stand_in(path: str, name: str | None = None, *, revision: str | None = None) -> Any:
        asked.append((path, name, revision))
        if path != "org/some-chats":
            raise ConnectionError(f"Couldn't reach '{path}' on the Hub")
        builder = load(str(folder), name)
        builder.hash = "abc123"
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", stand_in)
    return asked


def read(source: Any, **options: Any) -> list[Any]:
    return [record for _, _, record in open_sources(source, **options).records()]


def test_a_dataset_is_read_by_its_name_and_its_commit_is_its_identity(on_hub: list[tuple[Any, ...]]) -> None:
    assert read("org/some-chats", split="train") == RECORDS["train"]
    assert open_sources("org/some-chats", split="test").names == ["org/some-chats@abc123/test"]
    assert open_sources("org/some-chats:default@v1.0", split="test").names == ["org/some-chats:default@abc123/test"]
    assert on_hub[-1] == ("org/some-chats", "default", "v1.0")
    sources = open_sources("org/some-chats", Recipe(source_caps={"org/some-chats": 2}), split="train")
    (chunk,) = sources.chunks()
    assert chunk.take == 2 and sources.origins[0].records == 3


@pytest.mark.usefixtures("on_hub")
def test_what_is_not_there_says_what_is() -> None:
    for given, split, says in (
        ("org/some-chats", None, "has the splits train, test: choose one with --split"),
        ("org/some-chats", "dev", "'dev' is not one of them"),
        ("org/some-chats:other", "train", "BuilderConfig 'other' not found. Available: .'default'."),
        ("org/nothing", "train", "datasets cannot find it: Couldn't reach 'org/nothing' on the Hub"),
    ):
        with pytest.raises(UsageError, match=says):
            open_sources(given, split=split)


def test_a_directory_or_file_can_be_read_through_datasets(folder: Path) -> None:
    assert read(f"hf:{folder}", split="test") == RECORDS["test"]
    assert open_sources(f"hf:{folder}", split="test").names == ["some-chats/test"]


def test_a_file_that_is_missing_is_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for given in ("data/chats", "x/chats.jsonl", "x/*.jsonl", "/org/name", "a/b/c", "name"):
        assert not hub.is_hub_name(given), given
    for given in ("org/name", "org/name:config", "org/name@main", "org/name:en@refs/pr/1", "hf:anything"):
        assert hub.is_hub_name(given), given


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'maskpipe\[datasets\]'"):
        open_sources("org/some-chats", split="train")
