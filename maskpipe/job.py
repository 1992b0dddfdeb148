"""What a run is asked to make: its recipe and tokenizer, the identity that a rerun recognises, and how a run that is
stopped can go on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import maskpipe
from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError, RecordError, TemplateError, TokenizerError, UsageError
from maskpipe.partial import JOB, Partial, partial_of
from maskpipe.recipe import Recipe
from maskpipe.selection import EMPTY_SPLIT_SIDE, NOTHING_LEFT, TRAIN, VALIDATION
from maskpipe.shards.format import (
    CARD_FILE,
    CHUNKS,
    DROPPED,
    DUPLICATES,
    FORMAT_VERSION,
    LABEL_VERSION,
    MANIFEST,
    MANIFEST_HASH,
    RECIPE,
    REJECTS,
    RUN_FILE,
    sequence_schema,
)
from maskpipe.sources import Sources, open_sources
from maskpipe.template.spans import read_template
from maskpipe.tokenizer import Tokenizer

TEMPLATE = "template.jinja"


def resolve(recipe: Recipe | None, tokenizer: Tokenizer | str | Path) -> tuple[Recipe, Tokenizer]:
    """The recipe with the template's text in it, and the tokenizer."""
    recipe = recipe or Recipe()
    if recipe.chat_template is not None:
        recipe = recipe.replace(chat_template=read_template(recipe.chat_template))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    return recipe, tokenizer


@dataclass(frozen=True)
class Job:
    """One preparation, by all that decides its bytes."""

    recipe: Recipe
    """Says nothing of who computes the ids: that is no part of what the dataset is."""
    backend: str
    """Who was asked to."""
    tokenizer: Tokenizer
    sources: Sources
    identity: dict[str, Any]
    name: str
    """SHA-256 of the identity."""

    @property
    def worker_recipe(self) -> Recipe:
        """With who was asked to compute the ids."""
        return self.recipe.replace(tokenizer_backend=self.backend)


def describe(source: Any, tokenizer: Tokenizer | str | Path, recipe: Recipe | None, split: str | None) -> Job:
    """The job that `prepare` and its ranks are asked for; opens the sources, reads nothing of them."""
    asked, tokenizer = resolve(recipe, tokenizer)
    recipe = asked.replace(tokenizer_backend="auto")
    sources = open_sources(source, recipe, split=split)
    identity = identify(recipe, tokenizer, sources, split)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Job(recipe, asked.tokenizer_backend, tokenizer, sources, identity, name)


def encoder_of(tokenizer: Tokenizer | str | Path, recipe: Recipe | None = None) -> Encoder:
    """What `prepare` would encode records with. Raises what `prepare` raises before it reads anything."""
    recipe, tokenizer = resolve(recipe, tokenizer)
    encoder = Encoder(tokenizer, recipe)
    if recipe.objective != "pretrain":
        _ = encoder.template  # a missing one is said before anything is read
    return encoder


def is_published(final: Path) -> bool:
    """A run was killed between publishing and taking its OUT.partial away."""
    partial = partial_of(final)
    return bool(published_manifests(final)) and (partial / JOB).is_file() and not (partial / "dataset").exists()


def published_manifests(final: Path) -> list[Path]:
    """Those of a dataset: one, or one per side."""
    return [path for side in ("", TRAIN, VALIDATION) if (path := final / side / MANIFEST).is_file()]


def identify(recipe: Recipe, tokenizer: Tokenizer, sources: Sources, split: str | None) -> dict[str, Any]:
    """All that decides the bytes, apart from the text of the input: that is in the names of the tasks.

    `on_bad_record` is not in it: what is finished had no bad record or listed them, and holds either way. So a run that
    stopped at one goes on with `--on-bad-record reject`.
    """
    values = recipe.to_dict()
    del values["on_bad_record"]
    return {
        "recipe": values,
        "tokenizer": {name: hashlib.sha256(content).hexdigest() for name, content in tokenizer.files.items()},
        "sources": sources.names,
        "split": split,
        "format": ".".join(map(str, FORMAT_VERSION)),
        "label_version": LABEL_VERSION,
        "columns": sequence_schema(recipe.sequence_length).names,
        "versions": {**versions(), "python": ".".join(platform.python_version_tuple()[:2])},
    }


def published_names(tokenizer: Tokenizer, recipe: Recipe) -> list[str]:
    template = [] if recipe.chat_template is None else [TEMPLATE]
    template += [DUPLICATES] if recipe.deduplicate else []
    return [MANIFEST, MANIFEST_HASH, RECIPE, REJECTS, DROPPED, CHUNKS, CARD_FILE, RUN_FILE, *template, *tokenizer.files]


def versions() -> dict[str, str]:
    names = ("tokenizers", "jinja2", "pyarrow", "numpy")
    return {"maskpipe": maskpipe.__version__, **{name: importlib.metadata.version(name) for name in names}}


def stopped(partial: Partial, error: BaseException) -> BaseException:
    """What to raise for an error that ended a run, with how to go on; and the partial left so that one can."""
    with suppress(OSError):
        partial.sweep_temporary()
    of_all = isinstance(error, RecordError) and error.reason in (NOTHING_LEFT, EMPTY_SPLIT_SIDE)
    if of_all or partial.is_empty():  # where all was read and it came to nothing, there is nothing to go on with
        with suppress(OSError):
            partial.remove()
        kept = ""
    else:
        kept = f"What is finished is kept in {partial.path}: run the same command again to go on"
    if isinstance(error, OSError) and not isinstance(error, MaskpipeError):
        again = kept or "Nothing is left of this run"
        return MaskpipeError(f"{error.filename or 'input or output'}: {error.strerror or error}. {again}")
    if not kept:
        return error
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(kept)
    if isinstance(error, RecordError):
        kept += " once that is mended"
        error = RecordError(f"{error}. {kept}", error.reason)
    elif isinstance(error, MaskpipeError):
        error = type(error)(f"{error}. {kept}")
    if isinstance(error, RecordError | UsageError | TemplateError | TokenizerError):
        with suppress(OSError):
            partial.stop(str(error))
    return error
