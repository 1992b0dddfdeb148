"""The YAML of axolotl 0.21."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from maskpipe.recipe_import.translation import Keys, Refusal, Translation

TRAINING = frozenset(
    resources.files("maskpipe.recipe_import").joinpath("axolotl_training_keys.txt").read_text(encoding="utf-8").split()
)
"""Keys that decide nothing about which tokens get loss."""
_REFUSED = {
    ("rl", "reward_model", "process_reward_model"): (
        "preference and reward data are prepared by another objective", "prepare that data apart",
    ),
    ("default_system_message",): ("adds a message that the data does not have", "add it to the data or the template"),
    ("special_tokens", "tokens", "added_tokens_overrides"): (
        "changes the tokenizer", "save the changed tokenizer and give its directory to --tokenizer",
    ),
    ("tokenizer_legacy", "tokenizer_use_mistral_common", "tokenizer_type"): (
        "chooses another tokenizer implementation", "give a directory with tokenizer.json to --tokenizer",
    ),
    ("test_datasets",): ("is data for evaluation", "prepare it apart, with the same recipe"),
    ("val_set_size",): ("holds records out at random", "hold them out by hand, so that they are the same ones"),
    ("dataset_shard_idx", "dataset_shard_num"): ("takes a part of the data", "cut the data by hand"),
    ("use_pose", "pose_max_context_len", "pose_num_chunks", "pose_split_on_token_ids"): (
        "changes positions at random", "leave it to the trainer",
    ),
    ("diffusion_lm", "ebft", "role_boundaries"): ("changes which tokens get loss, or how", "train with axolotl itself"),
    ("max_packed_sequence_len",): ("is an old name", "use sequence_len and sample_packing"),
    ("max_prompt_len", "min_sample_len"): ("drops records by length", "filter the data by hand"),
    ("pretraining_sample_concatenation", "pretraining_dataset"): (
        "streams text and adds an eos token to each, which a recipe never does",
        "write texts that end with their eos to files, and use objective: pretrain",
    ),
    ("skip_prepare_dataset",): ("says that the data is tokenized already", "give the text it was made from"),
    ("processor_type", "processor_kwargs", "image_size", "image_resize_algorithm"): (
        "is about images", "images, audio and video are not supported",
    ),
    ("plugins",): ("may change the data", "take out those that do not, and prepare by hand what the others do"),
}  # fmt: skip
_DATASET_REFUSED = {
    (
        "input_transform", "conversation", "input_format", "logprobs_field", "temperature", "field_human",
        "field_model",
    ): (
        "belongs to a prompt style that is not translated", "use type: chat_template",
    ),
    ("shards", "shards_idx", "weight"): ("takes a part of the data", "cut the data by hand"),
    ("name",): ("a source has no configuration name", "give the files themselves"),
    ("revision",): ("names a version of a hub data set", "download that version and give its files"),
    ("drop_system_message",): ("takes a message out of the data", "take it out of the data"),
    ("split_thinking", "field_thinking", "template_thinking_key"): (
        "changes where reasoning stands", "put it in reasoning_content or thinking, which are recognised",
    ),
    ("message_field_training_detail",): ("chooses characters inside a message", "train with axolotl itself"),
    ("field",): ("belongs to plain text", "use objective: pretrain and columns"),
    ("message_field_role", "message_field_content"): (
        "is an old name", "use message_property_mappings",
    ),
}  # fmt: skip
_OTHER = frozenset(
    (
        "base_model", "tokenizer_config", "revision_of_model", "sequence_len", "sample_packing",
        "excess_length_strategy", "train_on_inputs", "chat_template", "chat_template_jinja",
        "chat_template_kwargs", "eot_tokens", "datasets", "dataset_exact_deduplication",
    )
)  # fmt: skip
KNOWN = TRAINING | _OTHER | frozenset(key for keys in _REFUSED for key in keys)
_DEFAULT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
                  "tool": "tool"}  # fmt: skip


def translate(values: Mapping[str, Any], path: Path, out: Translation, refused: list[Refusal]) -> None:
    """Fills `out`; what cannot be said goes to `refused`."""
    keys = Keys(values, out, refused)
    for names, (why, do) in _REFUSED.items():
        keys.refuse_set(names, why, do)
    _tokenizer(keys, out)
    _lengths(keys, out)
    template = _template(keys, path, out)
    if keys.expect("train_on_inputs", bool, False, "true or false"):
        keys.refuse(
            "train_on_inputs", "axolotl then trains the text of every turn but not what the template writes around it",
            "set it to false, and afterwards train_on: [assistant, user, system, tool] for the text of all turns",
        )  # fmt: skip
    else:
        keys.translate("train_on_inputs", False, "train_on: assistant")
    keys.refuse_set(
        ("dataset_exact_deduplication",), "drops repeated records", "see `maskpipe prepare -h` on duplicates"
    )
    stops = keys.expect("eot_tokens", list, None, "a list of tokens")
    if stops:
        keys.translate(
            "eot_tokens", None, "nothing: the token that the template writes behind a turn is found and checked"
        )
    entries = keys.expect("datasets", list, [], "a list")
    if not entries:
        keys.refuse("datasets", "there is no data", "give at least one entry with path and type: chat_template")
    settings: list[tuple[int, dict[str, Any]]] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            keys.refuse("datasets", f"entry {number} is no mapping", "give it path and type")
            continue
        own = Keys(entry, out, refused, f"datasets[{number}].")
        settings.append((number, _dataset(own, path, out, template)))
        own.finish(frozenset(("trust_remote_code", "preprocess_shards", "ds_type")), _DATASET_KNOWN)
    for number, one in settings[1:]:
        for key in sorted({**settings[0][1], **one}):
            if one.get(key) != settings[0][1].get(key):
                keys.refuse(
                    "datasets", f"entries {settings[0][0]} and {number} differ in what becomes {key}",
                    "write a file for each, prepare them apart and merge the datasets",
                )  # fmt: skip
    if settings:
        out.values.update(settings[0][1])
    keys.finish(TRAINING, KNOWN)


def _tokenizer(keys: Keys, out: Translation) -> None:
    name = keys.expect("tokenizer_config", str, None, "a name or path")
    base = keys.expect("base_model", str, None, "a name or path")
    out.tokenizer = name or base
    keys.translate("tokenizer_config", None, "--tokenizer")
    keys.translate(
        "base_model", None, "--tokenizer" if name is None else "nothing: tokenizer_config names the tokenizer"
    )
    keys.refuse_set(("revision_of_model",), "the tokenizer may differ", "download that revision, give its directory")


def _lengths(keys: Keys, out: Translation) -> None:
    out.values["sequence_length"] = keys.expect("sequence_len", int, 512, "a number of tokens")
    keys.translate("sequence_len", 512, "sequence_length")
    packing = keys.expect("sample_packing", bool, False, "true or false")
    out.values["packing"] = "best_fit" if packing else "none"
    keys.translate("sample_packing", False, f"packing: {out.values['packing']}")
    strategy = keys.expect("excess_length_strategy", str, "drop", "a word")
    if strategy == "drop":
        out.values["on_too_long"] = "drop"
        keys.translate("excess_length_strategy", "drop", "on_too_long: drop")
    elif strategy == "raise":
        out.values["on_too_long"] = "refuse"
        keys.translate("excess_length_strategy", None, "on_too_long: refuse")
        out.notes.append("axolotl stops at the first document that is too long; here each is rejected and listed")
    else:
        keys.refuse(
            "excess_length_strategy", "it cuts documents anywhere",
            "use drop, and afterwards on_too_long: truncate, which keeps whole turns",
        )  # fmt: skip


def _template(keys: Keys, path: Path, out: Translation) -> str | None:
    """The chat template of all data sets; None is the tokenizer's own."""
    template = _read_template(keys, path, out)
    arguments = keys.expect("chat_template_kwargs", dict, None, "a mapping")
    if arguments:
        out.values["chat_template_kwargs"] = arguments
        keys.translate("chat_template_kwargs", None, "chat_template_kwargs")
    return template


def _read_template(keys: Keys, path: Path, out: Translation) -> str | None:
    name = keys.expect("chat_template", str, None, "a name")
    text = keys.expect("chat_template_jinja", str, None, "a template or a path")
    if text is not None and name in (None, "jinja"):
        keys.translate("chat_template", None, "chat_template")
        keys.translate("chat_template_jinja", None, "chat_template")
        beside = path.parent / text if "\n" not in text and len(text) < 1000 else None
        return str(beside) if beside is not None and beside.is_file() else text
    if text is not None:
        keys.refuse("chat_template_jinja", f"chat_template is {name}", "leave one of them out")
    if name == "tokenizer_default":
        keys.translate("chat_template", None, "nothing: the tokenizer's own template")
    elif name is not None:
        keys.refuse(
            "chat_template", "it is a template of axolotl's own",
            "write it to a file and give that as chat_template_jinja, or use tokenizer_default",
        )  # fmt: skip
    return None


_DATASET_KNOWN = frozenset(
    (
        "path", "data_files", "split", "type", "chat_template", "chat_template_jinja", "roles_to_train", "train_on_eos",
        "train_on_eot", "roles", "field_messages", "field_tools", "message_property_mappings", "message_field_training",
        *(key for keys in _DATASET_REFUSED for key in keys),
    )
)  # fmt: skip


def _dataset(own: Keys, path: Path, out: Translation, template: str | None) -> dict[str, Any]:
    """What one entry of `datasets` means for the recipe."""
    for names, (why, do) in _DATASET_REFUSED.items():
        own.refuse_set(names, why, do)
    kind = own.take("type")
    if kind != "chat_template":
        own.refuse("type", "it builds prompts of its own", "use type: chat_template, whose prompts the template writes")
    else:
        own.translate("type", None, "nothing: chats are recognised")
    _source(own, out)
    values: dict[str, Any] = {"train_on": _train_on(own)}
    if own.has("chat_template") or own.has("chat_template_jinja"):
        template = _read_template(own, path, out)
    else:
        own.take("chat_template"), own.take("chat_template_jinja")
    if template is not None:
        values["chat_template"] = template
    columns = {}
    for key, target in (("field_messages", "messages"), ("field_tools", "tools")):
        name = own.expect(key, str, target, "a column name")
        if name != target:
            columns[name] = target
        own.translate(key, None, f"columns: {name} is {target}" if name != target else "nothing: the usual name")
    if columns:
        values["columns"] = columns
    roles = _roles(own)
    if roles:
        values["roles"] = roles
    mapping = own.expect("message_property_mappings", dict, None, "a mapping")
    if mapping is not None:
        if mapping in ({"role": "role", "content": "content"}, {"role": "from", "content": "value"}):
            own.translate("message_property_mappings", None, "nothing: role/content and from/value are recognised")
        else:
            own.refuse("message_property_mappings", "fields of messages are not renamed", "rename them in the data")
    training = own.expect("message_field_training", str, None, "a field name")
    if training is not None:
        if training == "train":
            own.translate("message_field_training", None, "nothing: `train` of a message is its weight")
        else:
            own.refuse("message_field_training", "a message's own flag is called train", "rename it in the data")
    return values


def _source(own: Keys, out: Translation) -> None:
    name, files = own.expect("path", str, None, "a path or name"), own.take("data_files")
    if name is None:
        own.refuse("path", "there is no data", "give a file, a directory or a hub name")
    elif files is not None and name in ("json", "parquet", "text", "csv", "arrow"):
        out.sources += files if isinstance(files, list) else [files]
        own.translate("data_files", None, "SOURCE")
        own.translate("path", None, "nothing: files are recognised")
    elif files is not None:
        own.refuse("data_files", "picks files of a data set", "download them and give their paths")
    else:
        out.sources.append(name)
        own.translate("path", None, "SOURCE")
    split = own.expect("split", str, "train", "the name of a split")
    if out.split not in (None, split):
        own.refuse("split", f"another entry has split {out.split}", "prepare them apart and merge the datasets")
    out.split = split
    own.translate("split", "train", "--split")


def _train_on(own: Keys) -> list[str]:
    roles = own.expect("roles_to_train", list, ["assistant"], "a list of roles")
    if [_DEFAULT_ROLES.get(role, role) for role in roles] != ["assistant"]:
        own.refuse(
            "roles_to_train", "axolotl then also trains the tokens that end turns of these roles",
            "leave assistant alone, and afterwards add e.g. tool.content to train_on",
        )  # fmt: skip
    else:
        own.translate("roles_to_train", ["assistant"], "train_on: assistant")
    eos = own.expect("train_on_eos", str, "turn", "a word")
    eot = own.expect("train_on_eot", str, eos, "a word")
    if eos != eot:
        own.refuse("train_on_eot", f"train_on_eos is {eos}; a turn has one stop token here", "set both alike")
    elif eos == "turn":
        own.translate("train_on_eos", "turn", "train_on: the stop token of each turn, as assistant says")
        own.translate("train_on_eot", None, "train_on: the stop token of each turn, as assistant says")
        return ["assistant"]
    elif eos == "none":
        own.translate("train_on_eos", None, "train_on: without assistant.stop")
        own.translate("train_on_eot", None, "train_on: without assistant.stop")
        return ["assistant", "-assistant.stop"]
    else:
        own.refuse("train_on_eos", "stop tokens are trained in every trained turn or in none", "use turn or none")
    return ["assistant"]


def _roles(own: Keys) -> dict[str, str]:
    given = own.expect("roles", dict, None, "a mapping of role → names in the data")
    if given is None:
        return {}
    own.translate("roles", None, "roles")
    return {
        str(name): str(role)
        for role, names in given.items()
        for name in (names if isinstance(names, list) else [names])
        if _DEFAULT_ROLES.get(str(name)) != role
    }
