"""The YAML of `trl sft`: SFTConfig, ScriptArguments, ModelConfig and DatasetMixtureConfig of TRL 1.16."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from maskpipe.recipe_import.translation import Keys, Refusal, Translation

TRAINING = frozenset(
    resources.files("maskpipe.recipe_import").joinpath("trl_training_keys.txt").read_text(encoding="utf-8").split()
)
"""Keys that decide nothing about which tokens get loss."""
DATA = frozenset(
    (
        "max_length", "packing", "packing_strategy", "assistant_only_loss", "completion_only_loss", "truncation_mode",
        "eos_token", "chat_template_path", "dataset_text_field", "dataset_kwargs", "dataset_name", "dataset_config",
        "dataset_train_split", "datasets", "test_split_size", "model_name_or_path", "model_revision",
    )
)  # fmt: skip
KNOWN = TRAINING | DATA


def translate(values: Mapping[str, Any], path: Path, out: Translation, refused: list[Refusal]) -> None:
    """Fills `out`; what cannot be said goes to `refused`."""
    keys = Keys(values, out, refused)
    _what_gets_loss(keys, out)
    _lengths(values, keys, out)
    _template(keys, path, out)
    _sources(keys, out)
    keys.refuse_set(
        ("dataset_kwargs",), "skips or changes the preparation of the data", "take it out, or prepare by hand"
    )
    keys.refuse_set(
        ("eos_token",), "changes the tokenizer", "save the changed tokenizer and give its directory to --tokenizer"
    )
    keys.refuse_set(
        ("test_split_size",), "splits at random", "split the data by hand: which records are held out must be the same"
    )
    keys.finish(TRAINING, KNOWN)


def _what_gets_loss(keys: Keys, out: Translation) -> None:
    assistant = keys.expect("assistant_only_loss", bool, False, "true or false")
    completion = keys.expect("completion_only_loss", bool, None, "true or false")
    if assistant:
        out.values["train_on"] = ["assistant"]
        keys.translate("assistant_only_loss", False, "train_on: assistant")
        if completion:
            out.values["train_on"] = ["assistant", "last_turn"]
            keys.translate("completion_only_loss", None, "train_on: last_turn, the completion")
        elif keys.has("completion_only_loss"):
            keys.translate("completion_only_loss", None, "nothing to add: all assistant turns")
    elif completion:
        out.values["train_on"] = ["assistant", "last_turn"]
        keys.translate("completion_only_loss", None, "train_on: assistant+last_turn, the completion")
        out.notes.append("a completion of several assistant messages is trained in its last one only")
    elif completion is False:
        out.values["train_on"] = ["all"]
        keys.translate("completion_only_loss", None, "train_on: all")
    else:
        keys.refuse(
            "assistant_only_loss",
            "without it TRL trains every token of messages, but only the completion of prompt/completion data, and the "
            "file does not say which it has",
            "set assistant_only_loss: true, or completion_only_loss: true (completions) or false (every token)",
        )


def _lengths(values: Mapping[str, Any], keys: Keys, out: Translation) -> None:
    length = keys.expect("max_length", int, 1024, "a number of tokens")
    if "max_length" in values and values["max_length"] is None:
        keys.refuse("max_length", "rows of a dataset have a length", "give a number of tokens")
    else:
        out.values["sequence_length"] = length
        keys.translate("max_length", 1024, "sequence_length")
    packing = keys.expect("packing", bool, False, "true or false")
    strategy = keys.expect("packing_strategy", str, "bfd", "a word")
    if not packing:
        out.values["packing"] = "none"
        keys.translate("packing", False, "packing: none")
    elif strategy == "bfd":
        out.values["packing"] = "best_fit"
        keys.translate("packing", False, "packing: best_fit")
        keys.translate("packing_strategy", "bfd", "packing: best_fit")
    else:
        keys.refuse(
            "packing_strategy", "it cuts documents anywhere, and chats are never cut here",
            "use bfd, or for plain text objective: pretrain with packing: concat_split",
        )  # fmt: skip
    mode = keys.expect("truncation_mode", str, "keep_start", "a word")
    if mode != "keep_start":
        keys.refuse("truncation_mode", "the beginning of a document is never cut off", "use keep_start")
        return
    out.values["on_too_long"] = "refuse"
    keys.translate("truncation_mode", "keep_start", "on_too_long: refuse")
    out.notes.append(
        "TRL cuts longer documents anywhere; here they are rejected and listed, so all others are as TRL has them. "
        "on_too_long: truncate keeps whole turns instead"
    )


def _template(keys: Keys, path: Path, out: Translation) -> None:
    template = keys.expect("chat_template_path", str, None, "a path")
    if template is None:
        return
    if not template.endswith((".jinja", ".j2", ".jinja2")):
        keys.refuse("chat_template_path", "it names a tokenizer", "give that tokenizer's template as a .jinja file")
        return
    beside = path.parent / template
    out.values["chat_template"] = str(beside if beside.is_file() else template)
    keys.translate("chat_template_path", None, "chat_template")


def _sources(keys: Keys, out: Translation) -> None:
    if keys.has("model_name_or_path"):
        out.tokenizer = keys.expect("model_name_or_path", str, None, "a name or path")
        keys.translate("model_name_or_path", None, "--tokenizer")
    keys.take("model_name_or_path")
    if keys.take("model_revision", "main") != "main":
        keys.refuse("model_revision", "the tokenizer may differ", "download that revision and give its directory")
    elif keys.has("model_revision"):
        keys.translate("model_revision", None, "the main revision")
    text_field = keys.expect("dataset_text_field", str, "text", "a column name")
    if text_field != "text":
        keys.refuse(
            "dataset_text_field", "TRL adds an eos token to plain text, which a recipe never does",
            "for text that ends with its eos: objective: pretrain and columns: {" + text_field + ": text}",
        )  # fmt: skip
    elif keys.has("dataset_text_field"):
        keys.translate("dataset_text_field", None, "nothing: only plain text has it")
    name = keys.expect("dataset_name", str, None, "a name or path")
    split = keys.expect("dataset_train_split", str, "train", "the name of a split")
    keys.refuse_set(("dataset_config",), "a source has no configuration name", "give the files themselves")
    mixture = keys.expect("datasets", list, [], "a list")
    if name is not None:
        out.sources.append(name)
        out.split = split
        keys.translate("dataset_name", None, "SOURCE")
        keys.translate("dataset_train_split", "train", "--split")
    elif keys.has("dataset_train_split"):
        keys.translate("dataset_train_split", None, "nothing: it is the split of dataset_name")
    for number, entry in enumerate(mixture):
        _mixture_entry(keys, out, number, entry)


def _mixture_entry(keys: Keys, out: Translation, number: int, entry: Any) -> None:
    where = f"datasets[{number}]."
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        keys.refuse("datasets", f"entry {number} has no path", "give it one")
        return
    own = Keys(entry, out, keys.refusals, where)
    files = own.take("data_files")
    path = own.take("path")
    if files is not None and path in ("json", "parquet", "text", "csv", "arrow"):
        out.sources += files if isinstance(files, list) else [files]
        own.translate("data_files", None, "SOURCE")
        own.translate("path", None, "nothing: files are recognised")
    elif files is not None:
        own.refuse("data_files", "picks files of a data set", "download them and give their paths")
    else:
        out.sources.append(path)
        own.translate("path", None, "SOURCE")
    split = own.take("split", "train")
    if out.split not in (None, split):
        own.refuse("split", f"another entry has split {out.split}", "prepare them apart and merge the datasets")
    out.split = split
    own.translate("split", "train", "--split")
    own.refuse_set(("name", "data_dir"), "a source has no configuration name", "give the files themselves")
    own.refuse_set(("fraction",), "takes records at random", "cut the data by hand")
    own.refuse_set(("columns",), "chooses columns", "give files that have only these")
    own.finish(frozenset(), frozenset(("path", "name", "data_dir", "data_files", "split", "columns", "fraction")))
