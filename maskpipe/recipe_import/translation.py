"""A configuration on its way to a recipe: each key is taken, and what nobody took is about training or unknown."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from maskpipe.errors import UsageError
from maskpipe.recipe import Recipe


class Refusal(NamedTuple):
    """A key whose value has no equal in a recipe."""

    key: str
    value: Any
    why: str
    do: str

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.value)}: {self.why}; {self.do}"


@dataclass
class Translation:
    """What a configuration means for the data."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    """Recipe keys."""
    sources: list[str] = field(default_factory=list)
    split: str | None = None
    tokenizer: str | None = None
    translated: list[tuple[str, str]] = field(default_factory=list)
    """Key of the file → what it became."""
    notes: list[str] = field(default_factory=list)
    """Where the result says more than the file did, and how."""
    ignored: list[str] = field(default_factory=list)
    """Keys about training, evaluation or logging."""

    @property
    def recipe(self) -> Recipe:
        return Recipe.from_dict(self.values)

    @property
    def command(self) -> str:
        """How to prepare the data with the recipe in recipe.yaml."""
        sources = " ".join(map(shlex.quote, self.sources)) or "SOURCE"
        split = f" --split {shlex.quote(self.split)}" if self.split else ""
        tokenizer = shlex.quote(self.tokenizer) if self.tokenizer else "T"
        return f"maskpipe prepare {sources} OUT --tokenizer {tokenizer}{split} --recipe recipe.yaml"

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "kind": self.kind,
            "recipe": self.recipe.to_dict(),
            "sources": self.sources,
            "split": self.split,
            "tokenizer": self.tokenizer,
            "command": self.command,
            "translated": dict(self.translated),
            "notes": self.notes,
            "ignored": self.ignored,
        }

    def to_yaml(self) -> str:
        """The recipe as YAML, with what became of every key in comments."""
        import yaml

        _ = self.recipe
        lines = [f"# from {self.kind}; prepare the data with", f"#   {self.command}", "#"]
        lines += [f"# {key} -> {text}" for key, text in self.translated]
        lines += [f"# note: {note}" for note in self.notes]
        if self.ignored:
            lines.append(f"# about training, ignored: {', '.join(self.ignored)}")
        body = yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)
        return "\n".join([*(_one_line(line) for line in lines), "", body.rstrip()])


class Keys:
    """The keys of one mapping, taken one by one."""

    def __init__(self, values: Mapping[str, Any], out: Translation, refused: list[Refusal], prefix: str = "") -> None:
        self._values = dict(values)
        self._out, self.refusals, self._prefix = out, refused, prefix
        self._taken: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        """The value, or the trainer's default where the key is absent or null."""
        self._taken.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def has(self, key: str) -> bool:
        """Is the key there, and not null?"""
        return self._values.get(key) is not None

    def translate(self, key: str, default: Any, text: str) -> None:
        """Notes what became of a key, and of the default where it is absent."""
        name = self._prefix + key
        if self.has(key):
            self._out.translated.append((name, text))
        elif default is not None:
            self._out.translated.append((f"{name} (default {shown(default)})", text))

    def refuse(self, key: str, why: str, do: str) -> None:
        self.refusals.append(Refusal(self._prefix + key, self._values.get(key), why, do))

    def refuse_set(self, keys: Sequence[str], why: str, do: str) -> None:
        """Refuses each of these keys that is set to anything but null, false, 0 or nothing."""
        for key in keys:
            if self.take(key) not in (None, False, 0, "", [], {}):
                self.refuse(key, why, do)
            elif key in self._values:
                self._out.ignored.append(f"{self._prefix}{key} (not set)")

    def expect(self, key: str, kind: type | tuple[type, ...], default: Any, words: str) -> Any:
        """take, refused when it has another type."""
        value = self.take(key, default)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
        if value is not None and not fits:
            raise UsageError(f"{self._prefix}{key}: expected {words}, got {shown(value)}")
        return value

    def finish(self, training: frozenset[str], known: frozenset[str]) -> None:
        """Lists what is left as ignored. UsageError for a key that the trainer does not have."""
        for key in self._values:
            if key in self._taken:
                continue
            if key in training:
                self._out.ignored.append(self._prefix + key)
            else:
                close = difflib.get_close_matches(str(key), sorted(training | known | self._taken), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "; take it out if it says nothing about the data"
                raise UsageError(f"{self._prefix}{key}: {self._out.kind} has no such key{hint}")


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))
