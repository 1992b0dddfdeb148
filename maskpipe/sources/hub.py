"""Datasets by name, through the package `datasets`: ORG/NAME, ORG/NAME:CONFIG, ORG/NAME@REVISION, or both.

    open_sources("org/chats:en@v1.0", split="train")     name of the source: org/chats:en@<commit>/train

With `hf:` in front anything that datasets.load_dataset takes can be named, also a local directory. What is downloaded
stays in the cache of `datasets` (HF_HOME). The commit that was read stands in the source's name, so in the manifest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from maskpipe.errors import UsageError
from maskpipe.sources.objects import read_dataset
from maskpipe.sources.paths import choose_split, is_known
from maskpipe.sources.source import Source

PREFIX = "hf:"
_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?(?:@[\w./-]+)?")
_PARTS = re.compile(r"(?P<path>.+?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")


def is_hub_name(given: str) -> bool:
    """Can this be the name of a dataset, and of nothing on this machine?"""
    if given.startswith(PREFIX):
        return True
    return bool(_NAME.fullmatch(given)) and not is_known(given) and not Path(given.partition("/")[0]).exists()


def from_hub(given: str, split: str | None) -> Source:
    """UsageError: `datasets` is not installed, there is no such dataset, config or split, or it cannot be reached."""
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"{given}: a dataset by name needs the package datasets: pip install 'maskpipe[datasets]'. If a file is "
            "meant, there is none of this name"
        ) from None
    match = _PARTS.fullmatch(given.removeprefix(PREFIX))
    assert match is not None
    path, config, revision = match["path"], match["config"], match["revision"]
    try:
        builder = datasets.load_dataset_builder(path, config, revision=revision)
        names = [str(name) for name in builder.info.splits or getattr(builder.config, "data_files", None) or ()]
    except Exception as error:  # whatever the package raises: the list is long, and differs between versions
        raise UsageError(f"{given}: datasets cannot find it: {_one_line(error)}. {_SYNTAX}") from None
    chosen = choose_split(names, split, given) if names else split
    if chosen is None:
        raise UsageError(f"{given}: choose a split with --split")
    commit = str(builder.hash or "")
    name = f"{path}{f':{config}' if config else ''}{f'@{commit}' if commit else ''}/{chosen}"
    if Path(path).exists():  # the hash is then of paths and times
        name = f"{Path(path).name}/{chosen}"

    def load() -> Any:
        try:
            builder.download_and_prepare()
            return builder.as_dataset(split=chosen)
        except Exception as error:
            raise UsageError(f"{given}: datasets cannot load the split {chosen}: {_one_line(error)}") from None

    return Source(name, lambda reading: read_dataset(load(), reading))


_SYNTAX = "A dataset is named ORG/NAME, ORG/NAME:CONFIG or ORG/NAME@REVISION; a file must be there"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"
