"""Presets: short recipe files to copy and change. Each names the keys that make it what it is; the rest is default."""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path

from maskpipe.errors import UsageError


def names() -> list[str]:
    """The presets, sorted."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder() if file.name.endswith(".yaml"))


def text(name: str) -> str:
    """A preset's YAML with its comments. UsageError for a name that is none."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names())}"
        raise UsageError(f"no recipe is called {name!r}; {hint}")
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def summary(name: str) -> str:
    """The first line of a preset's comment."""
    return text(name).split("\n", 1)[0].removeprefix("#").strip()


def copy(name: str, path: str | Path) -> Path:
    """Writes a preset to a new file. UsageError when the file is there already."""
    content = text(name)
    file = Path(path)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise UsageError(f"{path} is already there; nothing is overwritten: choose a new file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot write it: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(content)
    return file


def _folder() -> list[Path]:
    return [Path(str(file)) for file in resources.files(__name__).iterdir()]
