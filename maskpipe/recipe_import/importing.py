"""Which trainer a file is for, and its translation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from maskpipe import strict_yaml
from maskpipe.errors import UsageError
from maskpipe.recipe_import import axolotl, trl
from maskpipe.recipe_import.translation import Refusal, Translation

_READERS: Mapping[str, Callable[[Mapping[str, Any], Path, Translation, list[Refusal]], None]] = {
    "axolotl": axolotl.translate,
    "trl": trl.translate,
}


def read_config(path: str | Path, kind: Literal["axolotl", "trl"] | None = None) -> Translation:
    """The translation of a YAML file.

    UsageError when the file cannot be read, has a key that its trainer does not know, or says something that a recipe
    cannot say: then every such key is named, with its value, why, and what to do.
    """
    file = Path(path)
    try:
        values = strict_yaml.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{path}: expected a mapping of keys to values, got {type(values).__name__}")
    out = Translation(kind or _kind(values, str(path)))
    refused: list[Refusal] = []
    try:
        _READERS[out.kind](values, file, out, refused)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if refused:
        listed = "".join(f"\n  {refusal}" for refusal in refused)
        raise UsageError(f"{path}: {len(refused)} of its keys have no equal in a recipe:{listed}")
    _ = out.recipe
    return out


def _kind(values: Mapping[str, Any], path: str) -> str:
    """The trainer that has the more of the keys that only one of the two has."""
    only = {"axolotl": axolotl.KNOWN - trl.KNOWN, "trl": trl.KNOWN - axolotl.KNOWN}
    found = {kind: sum(key in keys for key in values) for kind, keys in only.items()}
    if found["axolotl"] == found["trl"]:
        raise UsageError(f"{path}: cannot tell whose configuration this is; say so with --kind axolotl or --kind trl")
    return max(found, key=lambda kind: found[kind])
