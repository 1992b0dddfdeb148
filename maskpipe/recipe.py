"""The recipe: everything that decides the bytes of a dataset, apart from the input and the tokenizer.

One frozen dataclass is the Python keyword arguments, the YAML keys, the command line flags, their help and the
provenance record, so the five cannot disagree. Unknown keys are errors.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maskpipe.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How records become sequences. Every field has a default that is safe: wrong labels are refused, not repaired."""

    objective: Literal["sft", "pretrain", "preference"] = "sft"
    """Which tokens can get loss: sft, what `train_on` selects; pretrain, all; preference, responses in pairs."""
    sequence_length: int = 8192
    """Tokens per packed row, at least 2."""
    train_on: tuple[str, ...] = ("assistant",)
    """Selectors, in order; a leading '-' takes away. `assistant`, `assistant.reasoning`, `assistant.tool_call`,
    `assistant.stop`, `tool.content`, `user`, `all`; `last_turn` or `turns:0,2,-1` keep only those assistant turns."""
    train_on_empty_reasoning: bool = False
    """Give loss to an empty reasoning block that the template added by itself."""

    pair_layout: Literal["separate", "shared_prompt"] = "separate"
    """How a pair stands in its row: separate, the prompt before each answer, for any attention; shared_prompt, the
    prompt once, for attention that lets both answers see it."""
    ranked_pairs: Literal["best_worst", "all", "adjacent"] = "best_worst"
    """Which pairs a list of ranked answers makes: the best and the worst; all of unlike rank; neighbours in rank."""

    chat_template: str | None = None
    """Text of a Jinja chat template, or the path of one; None takes the tokenizer's own."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of every render, such as {"enable_thinking": true}; a record's own come on top."""
    clock: str = "2026-01-01T00:00:00"
    """What `strftime_now` shows in templates that print the date (ISO 8601): a setting, so that bytes do not depend on
    the day."""
    on_history_rewrite: Literal["split", "last", "accept", "refuse"] = "split"
    """A turn whose context is not what inference would feed: split, its own document; last, only the last turn is
    trained; accept, train it in place; refuse, no loss."""
    sampled_text: Literal["template", "verbatim"] = "template"
    """What a split turn's tail is: as the template writes it, or the message's own text exactly as given."""
    on_content_lost: Literal["refuse", "count"] = "refuse"
    """Content, tool calls or tool definitions that the template drops, or prints as Python repr."""

    null_content: Literal["keep", "empty"] = "keep"
    """Null content beside tool calls: shown to the template as it is, or as an empty text, for templates that cannot
    take null."""
    content_parts: Literal["keep", "join"] = "keep"
    """Content that is a list of text parts: shown to the template as it is, or joined to one text, for templates that
    print lists as Python repr."""

    control_tokens_in_content: Literal["text", "refuse", "keep"] = "text"
    """Control-token text inside content: encoded as ordinary text, refused, or kept as the control token."""
    control_tokens_allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per role, control tokens that its content may own, such as {"assistant": ["<think>", "</think>"]}."""
    tokenizer_backend: Literal["auto", "tokenizers", "fastokens"] = "auto"
    """Who computes the ids; they are the same with all.
    auto: fastokens where it is installed, proved equal, and pays."""

    on_too_long: Literal["refuse", "drop", "truncate", "split"] = "truncate"
    """Documents longer than a sequence: an error, dropped, cut at a turn border (chats), or split (text only)."""
    packing: Literal["best_fit", "first_fit", "concat_split", "none"] = "best_fit"
    """How documents fill sequences; concat_split cuts documents and is for text only."""

    on_bad_record: Literal["stop", "reject"] = "stop"
    """A record that cannot be read or understood: stop with an error, or list it in rejects.jsonl and go on."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column names of the data → the names maskpipe knows, such as {"dialog": "messages"}."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Role names of the data → the names the template knows, such as {"human": "user"}."""
    source_caps: Mapping[str, int] = field(default_factory=dict)
    """Source as it was named → how many of its records are taken, the first ones, such as {"chats.jsonl": 10000}."""
    source_weights: Mapping[str, float] = field(default_factory=dict)
    """Source as it was named → how often each of its records is taken: 0.25 a quarter of them, chosen by what they say;
    2.5 all twice and half of them a third time."""
    deduplicate: bool = False
    """Keep the first of conversations that are alike in every message, tool and argument; the others are counted."""
    validation: float = 0.0
    """Share of the records set apart as OUT/validation, beside OUT/train: chosen by what they say, so the same ones
    when the data grows, and identical conversations on one side. 0: no split."""
    shard_size: str = "256MiB"
    """How large a shard's ids may be: a number of bytes, or with KiB, MiB or GiB."""

    def __post_init__(self) -> None:
        if isinstance(self.train_on, str):
            object.__setattr__(self, "train_on", tuple(part.strip() for part in self.train_on.split("+")))
        for entry in dataclasses.fields(self):
            _check_type(entry.name, getattr(self, entry.name))
        object.__setattr__(self, "train_on", tuple(self.train_on))
        object.__setattr__(
            self,
            "control_tokens_allowed",
            {role: tuple(tokens) for role, tokens in self.control_tokens_allowed.items()},
        )
        if not 2 <= self.sequence_length < 2**31:
            raise UsageError(f"sequence_length must be at least 2 and below 2^31, got {self.sequence_length}")
        for entry in dataclasses.fields(self):
            choices = _CHOICES.get(entry.name)
            value = getattr(self, entry.name)
            if choices and value not in choices:
                raise UsageError(
                    f"{entry.name} must be one of {', '.join(choices)}; got {value!r}{_nearest(str(value), choices)}"
                )
        _ = self.shard_bytes
        if self.packing == "concat_split" and self.objective != "pretrain":
            raise UsageError(
                "packing='concat_split' cuts documents, so it needs objective='pretrain'; chats are never cut"
            )
        if self.on_too_long == "split" and self.objective != "pretrain":
            raise UsageError(
                "on_too_long='split' cuts documents, so it needs objective='pretrain'; chats are never cut"
            )

    @property
    def shard_bytes(self) -> int:
        """`shard_size` in bytes."""
        match = _SIZE.fullmatch(self.shard_size)
        size = int(match[1]) * _UNITS[match[2]] if match else 0
        if not match or not size:
            raise UsageError(f"shard_size must be a number of bytes such as 256MiB or 1GiB; got {self.shard_size!r}")
        return size

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """A Recipe from YAML or JSON values. UsageError names an unknown key and the nearest known one."""
        known = [entry.name for entry in dataclasses.fields(Recipe)]
        for key in values:
            if key not in known:
                raise UsageError(f"{where}: unknown key {key!r}{_nearest(str(key), known)}")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        try:
            return Recipe(**plain)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """The recipe in a YAML file."""
        from maskpipe import strict_yaml  # late: it would be a tenth of what `maskpipe --help` costs

        try:
            values = strict_yaml.parse(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            own = Path(__file__).parent / "recipes" / f"{path}.yaml"
            hint = f"; for the one that comes with maskpipe: maskpipe recipe copy {path} FILE" if own.is_file() else ""
            raise UsageError(f"{path}: cannot read the recipe: {error.strerror}{hint}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not valid YAML: {error}") from None
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from None
        if not isinstance(values, dict):
            raise UsageError(f"{path}: a recipe is a mapping of keys to values, got {type(values).__name__}")
        return Recipe.from_dict(values, where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON, every field, in the order of definition."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in dataclasses.fields(self)}

    def to_yaml(self) -> str:
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))

    def fingerprint(self) -> str:
        """SHA-256 over the resolved recipe."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


_SIZE = re.compile(r"([0-9]{1,15}) ?(|B|KiB|MiB|GiB)", re.ASCII)
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


_CHOICES: dict[str, tuple[str, ...]] = {
    "objective": ("sft", "pretrain", "preference"),
    "pair_layout": ("separate", "shared_prompt"),
    "ranked_pairs": ("best_worst", "all", "adjacent"),
    "on_history_rewrite": ("split", "last", "accept", "refuse"),
    "sampled_text": ("template", "verbatim"),
    "on_content_lost": ("refuse", "count"),
    "null_content": ("keep", "empty"),
    "content_parts": ("keep", "join"),
    "control_tokens_in_content": ("text", "refuse", "keep"),
    "tokenizer_backend": ("auto", "tokenizers", "fastokens"),
    "on_too_long": ("refuse", "drop", "truncate", "split"),
    "packing": ("best_fit", "first_fit", "concat_split", "none"),
    "on_bad_record": ("stop", "reject"),
}


_TYPES: dict[str, tuple[type[Any] | tuple[type[Any], ...], str]] = {
    "sequence_length": (int, "a whole number"),
    "train_on": ((tuple, list), "a selector or a list of them"),
    "train_on_empty_reasoning": (bool, "true or false"),
    "chat_template": ((str, type(None)), "the text or the path of a template"),
    "clock": (str, "a date and time in quotes, such as '2026-01-01T00:00:00'"),
    "chat_template_kwargs": (Mapping, "a mapping of names to values"),
    "control_tokens_allowed": (Mapping, "a mapping of roles to lists of tokens"),
    "columns": (Mapping, "a mapping of column names"),
    "roles": (Mapping, "a mapping of role names"),
    "source_caps": (Mapping, "a mapping of sources to whole numbers, 1 or more"),
    "source_weights": (Mapping, "a mapping of sources to numbers above 0, at most 1000"),
    "deduplicate": (bool, "true or false"),
    "validation": ((int, float), "a number from 0 to below 1, such as 0.01"),
}


def _check_type(name: str, value: Any) -> None:
    kind, words = _TYPES.get(name, (str, "a word"))
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if name == "train_on":
        fits = fits and all(isinstance(word, str) for word in value)
    elif name in ("columns", "roles"):
        fits = fits and all(isinstance(word, str) for pair in value.items() for word in pair)
    elif name == "source_caps":
        fits = fits and all(isinstance(k, str) and type(n) is int and n >= 1 for k, n in value.items())
    elif name == "source_weights":
        fits = fits and all(isinstance(k, str) and type(n) in (int, float) and 0 < n <= 1000 for k, n in value.items())
    elif name == "validation":
        fits = fits and not isinstance(value, bool) and 0 <= value < 1
    elif name == "control_tokens_allowed":
        fits = fits and all(
            isinstance(tokens, list | tuple) and all(isinstance(token, str) for token in tokens)
            for tokens in value.values()
        )
    if not fits:
        raise UsageError(f"{name} must be {words}; got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def _nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
