"""Presets are recipes; a trainer's configuration is translated, listed as ignored, or refused: never dropped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import maskpipe
from maskpipe import demo_data, recipes
from maskpipe.errors import UsageError
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.recipe_import import axolotl, read_config, trl

# -- presets


@pytest.mark.parametrize("name", recipes.names())
def test_a_preset_is_a_recipe_with_a_comment_for_a_person(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(recipes.copy(name, tmp_path / "recipe.yaml"))
    Policy.of(recipe)
    assert recipes.summary(name).endswith((".", "would give it."))
    assert recipes.text(name).count("\n#") >= 2
    values = yaml.safe_load(recipes.text(name))
    assert set(values) <= {field.name for field in dataclasses.fields(Recipe)}
    assert all(recipe.to_dict()[key] == value for key, value in values.items())


@pytest.mark.parametrize("name", sorted(set(recipes.names()) - {"pretrain", "preference"}))
def test_a_preset_for_chats_prepares_chats(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(recipes.copy(name, tmp_path / "recipe.yaml"))
    made = maskpipe.prepare(
        demo_data.chats(), tmp_path / "out", tokenizer=demo_data.tokenizer(), recipe=recipe, workers=1
    )
    assert made.manifest.totals.n_loss > 0


def test_the_preset_for_pairs_prepares_pairs(tmp_path: Path) -> None:
    recipe = Recipe.load(recipes.copy("preference", tmp_path / "recipe.yaml"))
    rows = [{"prompt": f"Say {k}", "chosen": f"{k}", "rejected": "No"} for k in range(5)]
    made = maskpipe.prepare(rows, tmp_path / "out", tokenizer=demo_data.tokenizer(), recipe=recipe, workers=1)
    assert made.counts["pairs"] == 5 and made.manifest.totals.n_loss > 0


def test_the_preset_for_text_prepares_text(tmp_path: Path) -> None:
    recipe = Recipe.load(recipes.copy("pretrain", tmp_path / "recipe.yaml"))
    made = maskpipe.prepare(
        demo_data.prose(), tmp_path / "out", tokenizer=demo_data.tokenizer(), recipe=recipe, workers=1
    )
    assert made.manifest.totals.n_loss > 0


def test_a_preset_that_is_none_and_a_file_that_is_there(tmp_path: Path) -> None:
    assert recipes.names() == ["last-turn", "preference", "pretrain", "reasoning", "sft", "tools"]
    with pytest.raises(UsageError, match="did you mean 'reasoning'"):
        recipes.text("reasonning")
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        recipes.copy("sft", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "mine"


# -- axolotl

AXOLOTL: dict[str, Any] = {
    "base_model": "Qwen/Qwen3-0.6B",
    "sequence_len": 4096,
    "sample_packing": True,
    "chat_template": "tokenizer_default",
    "datasets": [{"path": "chats.jsonl", "type": "chat_template", "field_messages": "dialog"}],
    "learning_rate": 0.0002,
    "num_epochs": 3,
    "wandb_project": "x",
    "val_set_size": 0,
}
TRL: dict[str, Any] = {
    "model_name_or_path": "Qwen/Qwen3-0.6B",
    "dataset_name": "org/chats",
    "max_length": 4096,
    "packing": True,
    "assistant_only_loss": True,
    "learning_rate": 0.0002,
}


def written(tmp_path: Path, values: dict[str, Any]) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path / "config.yaml"


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with a key set; `datasets.x` sets x of the first data set."""
    out: dict[str, Any] = json.loads(json.dumps(values))
    where = out
    if key.startswith("datasets."):
        where, key = out["datasets"][0], key.removeprefix("datasets.")
    where[key] = value
    return out


def test_an_axolotl_file_becomes_a_recipe_and_a_command(tmp_path: Path) -> None:
    found = read_config(written(tmp_path, AXOLOTL))
    assert found.kind == "axolotl"
    assert found.recipe == Recipe(
        sequence_length=4096, packing="best_fit", on_too_long="drop", train_on=("assistant",),
        columns={"dialog": "messages"},
    )  # fmt: skip
    assert (found.sources, found.split, found.tokenizer) == (["chats.jsonl"], "train", "Qwen/Qwen3-0.6B")
    assert sorted(found.ignored) == ["learning_rate", "num_epochs", "val_set_size (not set)", "wandb_project"]
    text = found.to_yaml()
    assert Recipe.from_dict(yaml.safe_load(text)) == found.recipe
    assert "#   maskpipe prepare chats.jsonl OUT --tokenizer Qwen/Qwen3-0.6B --split train --recipe" in text
    assert '# excess_length_strategy (default "drop") -> on_too_long: drop' in text


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("sequence_len", None, "sequence_length", 512),
        ("sample_packing", None, "packing", "none"),
        ("excess_length_strategy", "raise", "on_too_long", "refuse"),
        ("chat_template_kwargs", {"enable_thinking": False}, "chat_template_kwargs", {"enable_thinking": False}),
        ("datasets.train_on_eos", "none", "train_on", ("assistant", "-assistant.stop")),
        ("datasets.roles_to_train", ["gpt"], "train_on", ("assistant",)),
        ("datasets.roles", {"user": ["human", "customer"]}, "roles", {"customer": "user"}),
        ("datasets.field_tools", "functions", "columns", {"dialog": "messages", "functions": "tools"}),
        ("datasets.message_property_mappings", {"role": "from", "content": "value"}, "train_on", ("assistant",)),
        ("datasets.message_field_training", "train", "train_on", ("assistant",)),
    ],
)
def test_what_axolotl_says_and_a_recipe_can(key: str, value: Any, field: str, expected: Any, tmp_path: Path) -> None:
    found = read_config(written(tmp_path, changed(AXOLOTL, key, value)))
    assert getattr(found.recipe, field) == expected


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("train_on_inputs", True, "the text of every turn"),
        ("chat_template", "chatml", "a template of axolotl's own"),
        ("excess_length_strategy", "truncate", "cuts documents anywhere"),
        ("rl", "dpo", "another objective"),
        ("val_set_size", 0.01, "at random"),
        ("special_tokens", {"eos_token": "</s>"}, "changes the tokenizer"),
        ("plugins", ["axolotl.integrations.liger.LigerPlugin"], "may change the data"),
        ("datasets.type", "alpaca", "builds prompts of its own"),
        ("datasets.roles_to_train", ["assistant", "user"], "end turns of these roles"),
        ("datasets.train_on_eos", "all", "every trained turn or in none"),
        ("datasets.train_on_eot", "none", "one stop token"),
        ("datasets.message_property_mappings", {"role": "r", "content": "c"}, "not renamed"),
        ("datasets.message_field_training_detail", "detail", "characters inside a message"),
        ("datasets.weight", 0.5, "takes a part"),
        ("datasets.drop_system_message", True, "takes a message out"),
    ],
)
def test_what_axolotl_says_and_a_recipe_cannot(key: str, value: Any, why: str, tmp_path: Path) -> None:
    """The refusal names the key, its value, why, and what to do."""
    name = key.replace("datasets.", "datasets[0].")
    with pytest.raises(UsageError) as caught:
        read_config(written(tmp_path, changed(AXOLOTL, key, value)))
    line = next(line for line in str(caught.value).split("\n") if line.strip().startswith(f"{name}:"))
    assert json.dumps(value, sort_keys=True) in line and why in line and "; " in line


def test_all_refusals_come_at_once(tmp_path: Path) -> None:
    values = changed(changed(AXOLOTL, "rl", "dpo"), "train_on_inputs", True)
    with pytest.raises(UsageError, match="2 of its keys have no equal"):
        read_config(written(tmp_path, values))


def test_data_sets_that_want_different_recipes_are_refused(tmp_path: Path) -> None:
    values = changed(AXOLOTL, "chat_template", "tokenizer_default")
    values["datasets"].append({"path": "more.jsonl", "type": "chat_template", "train_on_eos": "none"})
    with pytest.raises(UsageError) as caught:
        read_config(written(tmp_path, values))
    assert "differ in what becomes columns" in str(caught.value)
    assert "differ in what becomes train_on" in str(caught.value)
    values["datasets"][1] = {**values["datasets"][0], "path": "more.jsonl"}
    assert read_config(written(tmp_path, values)).sources == ["chats.jsonl", "more.jsonl"]


def test_a_template_is_taken_from_the_text_or_the_file_beside(tmp_path: Path) -> None:
    values = changed(changed(AXOLOTL, "chat_template", "jinja"), "chat_template_jinja", "{{ messages }}")
    assert read_config(written(tmp_path, values)).recipe.chat_template == "{{ messages }}"
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    values["chat_template_jinja"] = "chat.jinja"
    assert read_config(written(tmp_path, values)).recipe.chat_template == str(tmp_path / "chat.jinja")


def test_the_translated_recipe_prepares_what_the_file_means(tmp_path: Path) -> None:
    """Down to the tokens: stop tokens have loss, or with train_on_eos none they have not."""
    record = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    loss = {}
    for eos in ("turn", "none"):
        values = changed(AXOLOTL, "datasets.train_on_eos", eos)
        del values["datasets"][0]["field_messages"]
        recipe = read_config(written(tmp_path, values)).recipe
        made = maskpipe.prepare([record], tmp_path / eos, tokenizer=demo_data.tokenizer(), recipe=recipe, workers=1)
        loss[eos] = dict(made.manifest.totals.loss)
    assert loss["turn"]["assistant.stop"] == 1
    assert {**loss["none"], "assistant.stop": 1} == loss["turn"]


# -- trl


def test_a_trl_file_becomes_a_recipe(tmp_path: Path) -> None:
    found = read_config(written(tmp_path, TRL))
    assert found.kind == "trl"
    assert found.recipe == Recipe(sequence_length=4096, packing="best_fit", on_too_long="refuse")
    assert (found.sources, found.split, found.tokenizer) == (["org/chats"], "train", "Qwen/Qwen3-0.6B")
    assert found.ignored == ["learning_rate"]
    assert any("keeps whole turns" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"assistant_only_loss": True}, ("assistant",)),
        ({"assistant_only_loss": False, "completion_only_loss": True}, ("assistant", "last_turn")),
        ({"assistant_only_loss": True, "completion_only_loss": True}, ("assistant", "last_turn")),
        ({"assistant_only_loss": None, "completion_only_loss": False}, ("all",)),
    ],
)
def test_what_trl_gives_loss_to(change: dict[str, Any], expected: tuple[str, ...], tmp_path: Path) -> None:
    assert read_config(written(tmp_path, {**TRL, **change})).recipe.train_on == expected


def test_trl_defaults_are_written_out(tmp_path: Path) -> None:
    values = {"model_name_or_path": "m", "dataset_name": "d", "assistant_only_loss": True}
    found = read_config(written(tmp_path, values))
    assert (found.recipe.sequence_length, found.recipe.packing) == (1024, "none")
    assert ("max_length (default 1024)", "sequence_length") in found.translated


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"assistant_only_loss": False}, "assistant_only_loss"),
        ({"max_length": None}, "max_length"),
        ({"packing_strategy": "wrapped"}, "packing_strategy"),
        ({"truncation_mode": "keep_end"}, "truncation_mode"),
        ({"eos_token": "<|im_end|>"}, "eos_token"),
        ({"chat_template_path": "org/model"}, "chat_template_path"),
        ({"dataset_text_field": "body"}, "dataset_text_field"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "dataset_kwargs"),
        ({"dataset_config": "en"}, "dataset_config"),
        ({"model_revision": "abc"}, "model_revision"),
        ({"test_split_size": 0.1}, "test_split_size"),
        ({"datasets": [{"path": "a", "fraction": 0.5}]}, "datasets[0].fraction"),
    ],
)
def test_what_trl_says_and_a_recipe_cannot(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_config(written(tmp_path, {**TRL, **change}))
    assert f"\n  {key}: " in str(caught.value)


# -- every key of the trainers has its place


def test_every_key_of_trl_is_known() -> None:
    module = pytest.importorskip("trl", reason="needs trl")
    scripts = pytest.importorskip("trl.scripts.utils", reason="needs trl")
    classes = (module.SFTConfig, module.ScriptArguments, module.ModelConfig, scripts.DatasetMixtureConfig)
    assert {field.name for one in classes for field in dataclasses.fields(one)} == trl.KNOWN
    assert not trl.TRAINING & trl.DATA


def test_the_defaults_of_trl_are_those_that_are_written_out() -> None:
    module = pytest.importorskip("trl", reason="needs trl")
    defaults = {field.name: field.default for field in dataclasses.fields(module.SFTConfig)}
    assert (defaults["max_length"], defaults["packing"], defaults["packing_strategy"]) == (1024, False, "bfd")
    assert (defaults["assistant_only_loss"], defaults["completion_only_loss"]) == (False, None)
    assert defaults["truncation_mode"] == "keep_start"


@pytest.mark.parametrize(("module", "base"), [(axolotl, AXOLOTL), (trl, TRL)])
def test_every_known_key_is_translated_ignored_or_refused(module: Any, base: dict[str, Any], tmp_path: Path) -> None:
    kind = module.__name__.rpartition(".")[2]
    for key in sorted(module.KNOWN - base.keys()):
        try:
            found = read_config(written(tmp_path, {**base, key: "a value"}), kind)
        except UsageError as error:
            assert key in str(error), key
            continue
        said = [name for name, _ in found.translated] + found.ignored
        assert any(name == key or name.startswith(f"{key} ") for name in said), key


@pytest.mark.parametrize(("module", "base"), [(axolotl, AXOLOTL), (trl, TRL)])
def test_an_unknown_key_names_the_nearest(module: Any, base: dict[str, Any], tmp_path: Path) -> None:
    kind = module.__name__.rpartition(".")[2]
    with pytest.raises(UsageError, match="no such key; did you mean 'learning_rate'"):
        read_config(written(tmp_path, {**base, "learning_rat": 1}), kind)
    with pytest.raises(UsageError, match=r"config\.yaml: .*expected a"):
        read_config(written(tmp_path, {**base, "sequence_len": "x", "max_length": "x"}), kind)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- a\n", "expected a mapping"),
        ("a: [\n", "not valid YAML"),
        ("learning_rate: 1\n", "cannot tell whose"),
        ("a: &x 1\nb: *x\n", "aliases"),
    ],
)
def test_files_that_are_no_configuration(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=match):
        read_config(tmp_path / "c.yaml")
    with pytest.raises(UsageError, match="cannot read it"):
        read_config(tmp_path / "none.yaml")
