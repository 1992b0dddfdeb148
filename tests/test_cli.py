"""Exit codes, messages and the JSON contract of each command; stdout is data, stderr is talk."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskpipe import cli, demo_data, rules
from maskpipe.recipe import Recipe
from maskpipe.recipe_flags import RecipeFlags, descriptions, resolve

CHATS, TOKENIZER = str(demo_data.chats()), str(demo_data.tokenizer())
SMALL = ("--tokenizer", TOKENIZER, "--sequence-length", "1024", "--workers", "1")


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process."""

    def runs(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(int(str(ended.value.code)), out, err)

    return runs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "out"
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepare", CHATS, str(out), *SMALL])
    assert ended.value.code == 0
    return out


# -- help


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    program = "from maskpipe.cli import main\nmain(['--help'])"
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) <= 0.5
    heavy = "{'torch', 'numpy', 'pyarrow', 'tokenizers', 'jinja2', 'transformers', 'datasets'}"
    program = f"import sys, maskpipe.cli\nassert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_python_m_is_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "maskpipe", "rule", "MP102"], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("MP102 no-stop-token")


@pytest.mark.parametrize(
    "command",
    [
        "prepare",
        "demo",
        "explain",
        "stats",
        "verify",
        "audit",
        "export",
        "gc",
        "rule",
        "diff",
        "repack",
        "merge",
        "append",
    ],
)
def test_every_help_begins_with_examples(command: str, run: Any) -> None:
    ran = run(command, "-h")
    assert ran.code == 0
    assert f"maskpipe {command}" in ran.out.split("╭")[0].split("\n", 2)[2]


def test_every_recipe_field_is_a_flag_and_says_what_its_docstring_says(run: Any) -> None:
    text = run("prepare", "-h").out
    words = " ".join(text.replace("│", " ").split())
    pairs = {"chat_template_kwargs": "template-arg", "control_tokens_allowed": "allow-control", "columns": "map"}
    for field in fields(Recipe):
        pairs |= {"roles": "map-role", "source_caps": "source-cap", "source_weights": "source-weight"}
        name = pairs.get(field.name, field.name.replace("_", "-"))
        assert f"--{name}" in words
        assert descriptions()[field.name].split(":")[0][:30] in words
    assert {field.name for field in fields(RecipeFlags)} == {field.name for field in fields(Recipe)}


def test_no_arguments_shows_help_and_version_is_said(run: Any) -> None:
    assert "Commands" in run().out
    assert run("--version").out.strip() == "0.1.0"


# -- usage errors: exit 2, one sentence, no traceback, nothing on stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prepare", "a", "b", "--tokenizer", "t", "--sequnce-length", "3"], "--sequence-length"),
        (["prepare", "a", "b", "--tokenizer", "t", "--packing", "bestfit"], 'Did you mean "best_fit"?'),
        (["prepare", "a", "b", "--tokenizer", "t", "--sequence-length", "8k"], "8k"),
        (["prepare", "a", "b"], "prepare needs --tokenizer."),
        (["prepare", "a", "b", "--tokenizer"], "--tokenizer requires an argument"),
        (["prepare", "a", "b", "--tokenizer", CHATS], "chats.jsonl: no tokenizer.json"),
        (["prepare", "a", "--tokenizer", "t"], "SOURCE and OUT"),
        (["prepare", "a", "b", "--tokenizer", "t", "--train-on", "asistant"], "did you mean 'assistant'?"),
        (["prepare", "a", "b", "--tokenizer", "t", "--train-on", "tool.contents"], "did you mean 'tool.content'?"),
        (["prepare", "a", "b", "--tokenizer", "t", "--train-on", "xyzzy"], "'xyzzy' is no selector; selectors are"),
        (["prepare", "a", "b", "--tokenizer", "t", "--train-on", "turns:x"], "turns:0,2,-1"),
        (["prepare", "a", "b", "--tokenizer", "t", "--map", "dialog"], "expected OLD=NEW"),
        (["prepare", "a", "b", "--tokenizer", "t", "--allow-control", "<think>"], "expected ROLE=TOKEN"),
        (["prepare", "a", "b", "--tokenizer", "t", "--proof", "some"], "--proof some"),
        (["prepare", "a", "b", "--tokenizer", "t", "--recipe", "/no/recipe.yaml"], "/no/recipe.yaml"),
        (["prepare", "a", "b", "--tokenizer", "t", "--recipe", "reasoning"], "maskpipe recipe copy reasoning FILE"),
        (["prepare", "a", "b", "--tokenizer", "/no/such/tokenizer"], "/no/such/tokenizer: no such file"),
        (["prepare", "/no/a.jsonl", "/no/b", "--tokenizer", TOKENIZER], "/no/a.jsonl: no such file"),
        (["prepare", CHATS, "/no/b", "--tokenizer", TOKENIZER, "--chat-template", "/no/t.jinja"], "/no/t.jinja"),
        (["prepare", CHATS, "b", "--tokenizer", TOKENIZER, "--objective", "preference"], "which answer is preferred"),
        (["prepare", CHATS, "b", "--tokenizer", TOKENIZER, "--workers", "-1"], "workers must be at least 1"),
        (["explain", CHATS, "--row", "78", "--tokenizer", TOKENIZER], "it has 78"),
        (["explain", CHATS, "--row", "x", "--tokenizer", TOKENIZER], "--row"),
        (["stats", "/no/such"], "/no/such"),
        (["audit", CHATS, "--tokenizer", TOKENIZER], "--dry-run"),
        (["verify", "/no/such"], "/no/such: no dataset here"),
        (["verify", TOKENIZER], "no manifest.json"),
        (["export", "/no/such", "/no/dest"], "/no/such"),
        (["export", "a", "b", "--to", "webdataset"], "webdataset"),
        (["rule", "MP100"], "no rule 'MP100'; did you mean MP"),
        (["explode"], 'Unknown command "explode"'),
        (["stats", "a", "--format", "yaml"], "yaml"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_usage_errors_exit_2_with_one_sentence(
    arguments: list[str], says: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sequnce_length: 5", "unknown key 'sequnce_length'; did you mean 'sequence_length'?"),
        ("sequence_length: many", "sequence_length must be a whole number"),
        ("sequence_length: true", "sequence_length must be a whole number"),
        ("columns: [a]", "columns must be a mapping"),
        ("control_tokens_allowed: {assistant: <think>}", "mapping of roles to lists"),
        ("train_on: [1]", "train_on must be"),
        ("clock: 2026-01-01T00:00:00", "in quotes"),
        ("train_on: [a", "not valid YAML"),
        ("- a", "a recipe is a mapping"),
        ("packing: bestfit", "did you mean 'best_fit'?"),
        (b"\xff\xfe\x00", "not valid YAML"),
    ],
)
def test_a_recipe_that_is_wrong_is_named_with_file_and_key(
    text: str | bytes, says: str, run: Any, tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    ran = run("recipe", "show", "--recipe", file)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {file}: ")
    assert says in ran.err
    assert ran.err.count("\n") == 1


def test_advice_is_given_once_and_says_why_nothing_can_be_trained(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "robot", "content": "a"}]}\n', encoding="utf-8")
    assert run("prepare", tmp_path / "a.jsonl", tmp_path / "out", *SMALL).err.count("--on-bad-record reject") == 1
    (tmp_path / "b.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n', encoding="utf-8")
    assert "it has no assistant message" in run("prepare", tmp_path / "b.jsonl", tmp_path / "out", *SMALL).err


def test_a_long_text_that_loses_its_end_says_how_to_keep_it(run: Any, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("It was a dark and stormy night. " * 200, encoding="utf-8")
    flags = ("--objective", "pretrain", "--tokenizer", TOKENIZER, "--sequence-length", "64")
    for dry in ((), ("--dry-run",)):
        hint = "--packing concat_split or --on-too-long split keeps all"
        assert hint in run("prepare", tmp_path / "book.txt", tmp_path / "out", *flags, *dry).out
    kept = run("prepare", tmp_path / "book.txt", tmp_path / "whole", *flags, "--packing", "concat_split")
    assert hint not in kept.out
    assert "0 cut or dropped" in kept.out


def test_a_bad_record_exits_2_and_publishes_nothing(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [}\n', encoding="utf-8")
    ran = run("prepare", tmp_path / "a.jsonl", tmp_path / "out", *SMALL)
    assert (ran.code, ran.out) == (2, "")
    assert "a.jsonl:1" in ran.err
    assert "--on-bad-record reject" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_output_that_is_there_is_refused(run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ran = run("prepare", CHATS, tmp_path, *SMALL)
    assert ran.code == 2
    assert "already there" in ran.err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_what_is_a_bug_is_said_to_be_one(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(code: str | None) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(rules, "find", breaks)
    ran = run("rule", "MP101")
    assert ran.code == 2
    assert "deep inside" in ran.err
    assert "this is a bug in maskpipe" in ran.err


# -- flags and files make one recipe


def test_flags_go_before_the_file_and_mappings_merge(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("sequence_length: 64\npacking: first_fit\ncolumns: {a: messages, b: tools}\n")
    ran = run(
        "recipe", "show", "--recipe", file, "--sequence-length", "128", "--map", "b=ignore", "--map", "c=system",
        "--train-on", "assistant+-assistant.stop", "--train-on", "last_turn", "--allow-control", "assistant=<think>",
        "--allow-control", "assistant=</think>", "--template-arg", "enable_thinking=false", "--template-arg",
        "effort=low", "--map-role", "bot=assistant", "--train-on-empty-reasoning",
    )  # fmt: skip
    values = yaml.safe_load(ran.out)
    assert values["sequence_length"] == 128
    assert values["packing"] == "first_fit"
    assert values["columns"] == {"a": "messages", "b": "ignore", "c": "system"}
    assert values["train_on"] == ["assistant", "-assistant.stop", "last_turn"]
    assert values["control_tokens_allowed"] == {"assistant": ["<think>", "</think>"]}
    assert values["chat_template_kwargs"] == {"enable_thinking": False, "effort": "low"}
    assert values["roles"] == {"bot": "assistant"}
    assert values["train_on_empty_reasoning"] is True


def test_recipe_show_prints_the_defaults_and_reads_itself(run: Any, tmp_path: Path) -> None:
    text = run("recipe", "show").out
    assert yaml.safe_load(text) == Recipe().to_dict()
    (tmp_path / "r.yaml").write_text(text)
    assert resolve(None, tmp_path / "r.yaml") == Recipe()


def test_recipe_list_and_rule_list_everything(run: Any) -> None:
    keys = json.loads(run("recipe", "keys", "--format", "json").out)
    assert list(keys) == [field.name for field in fields(Recipe)]
    assert all(entry["help"] for entry in keys.values())
    human = run("recipe", "keys").out
    assert all(f"{name}: " in human for name in keys)
    listed = run("rule").out
    assert all(code in listed for code in rules.RULES)
    (one,) = json.loads(run("rule", "mp101", "--format", "json").out)
    assert set(one) == {"code", "name", "what", "why", "do", "level", "example", "bugs"}
    assert len(json.loads(run("rule", "--format", "json").out)) == len(rules.RULES)


def test_recipes_by_name_and_from_trainers(run: Any, tmp_path: Path) -> None:
    listed = json.loads(run("recipe", "list", "--format", "json").out)
    assert "reasoning" in listed and "reasoning" in run("recipe", "list").out
    copied = run("recipe", "copy", "sft", tmp_path / "sft.yaml")
    assert (copied.code, copied.out) == (0, "")
    assert (tmp_path / "sft.yaml").read_text() == run("recipe", "show", "sft").out
    assert run("recipe", "copy", "sft", tmp_path / "sft.yaml").code == 2
    assert run("recipe", "show", "sft", "--sequence-length", "4").code == 2

    config = tmp_path / "trl.yaml"
    config.write_text("dataset_name: chats.jsonl\nassistant_only_loss: true\nmax_length: 700\nbf16: true\n")
    ran = run("recipe", "from", config)
    assert (ran.code, ran.err) == (0, "")
    (tmp_path / "recipe.yaml").write_text(ran.out)
    assert resolve(None, tmp_path / "recipe.yaml").sequence_length == 700
    assert json.loads(run("recipe", "from", config, "--format", "json").out)["ignored"] == ["bf16"]
    config.write_text("assistant_only_loss: false\nmax_length: 700\n")
    refused = run("recipe", "from", config)
    assert (refused.code, refused.out) == (2, "")
    assert "assistant_only_loss: false: " in refused.err


# -- the main job


def test_prepare_says_what_it_made_on_stdout_only(run: Any, tmp_path: Path) -> None:
    ran = run("prepare", CHATS, tmp_path / "out", *SMALL)
    assert (ran.code, ran.err) == (0, "")
    labels = [line[:10].strip() for line in ran.out.splitlines() if line[:10].strip()]
    assert labels[0] == "prepared"
    assert labels[-1] == "next"
    assert {"loss", "signals", "packing", "turns", "control", "lost", "rejects", "checked"} <= set(labels)


def test_prepare_json_has_stable_keys(run: Any, tmp_path: Path) -> None:
    values = json.loads(run("prepare", CHATS, tmp_path / "out", *SMALL, "--format", "json").out)
    assert list(values) == [
        "path", "fingerprint", "sequence_length", "shards", "records", "dropped", "sequences", "documents", "tokens",
        "loss_tokens", "loss_share", "signals_per_sequence", "fill", "counts", "findings", "rejects", "seconds",
    ]  # fmt: skip
    assert values["records"] == {"read": 78, "kept": 78, "rejected": {}, "left_out": {}}


def test_dry_run_predicts_what_prepare_makes_and_writes_nothing(
    run: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trial = json.loads(run("prepare", CHATS, "out", *SMALL, "--dry-run", "--format", "json").out)
    made = json.loads(run("stats", dataset, "--format", "json").out)
    for name in ("sequences", "documents", "tokens", "loss_tokens", "loss_share", "fill", "sequence_length"):
        assert trial[name] == made[name]
    assert trial["complete"] is True
    assert 0.8 < trial["projected_bytes"] / made["bytes"] < 1.2
    assert "nothing was written" in run("prepare", CHATS, "out", *SMALL, "--dry-run").out
    assert list(tmp_path.iterdir()) == []


def test_rejects_are_said_with_reason_and_first_example(run: Any, tmp_path: Path) -> None:
    good = demo_data.chats().read_bytes().split(b"\n")[0]
    (tmp_path / "a.jsonl").write_bytes(good + b'\n{"a": 1}\n{"messages": [}\n{"b": 1}\n')
    ran = run("prepare", tmp_path / "a.jsonl", tmp_path / "out", *SMALL, "--on-bad-record", "reject")
    assert ran.code == 0
    assert "3 of 4 records; list in" in ran.out
    assert "2 unknown_shape, first: a.jsonl:2: " in ran.out
    assert "records: 4 read = 1 kept + 3 rejected" in ran.out


def test_the_dataset_carries_what_explain_needs(run: Any, dataset: Path) -> None:
    ran = run("explain", CHATS, "--row", "1", "--tokenizer", dataset, "--recipe", dataset / "recipe.yaml")
    assert (ran.code, ran.err) == (0, "")
    assert "⟦A lock keeper" in ran.out
    values = json.loads(run("explain", CHATS, "--row", "1", "--tokenizer", TOKENIZER, "--format", "json").out)
    assert values["place"] == "chats.jsonl:2"


def test_stats_json_adds_up(run: Any, dataset: Path) -> None:
    values = json.loads(run("stats", dataset, "--format", "json").out)
    assert sum(kind["tokens"] for kind in values["kinds"].values()) == values["tokens"]
    assert sum(kind["loss"] for kind in values["kinds"].values()) == values["loss_tokens"]
    assert sum(role["loss"] for role in values["roles"].values()) == values["loss_tokens"]
    assert values["tokens"] + values["padding"] == values["sequences"] * values["sequence_length"]
    assert values["records"]["read"] == 78
    human = run("stats", dataset).out
    assert "pretraining" in human
    assert "1,023" in human
    assert f"{100 * values['loss_share']:.1f} % of its" in human


def test_verify_exits_1_on_damage(run: Any, dataset: Path, tmp_path: Path) -> None:
    ran = run("verify", dataset)
    assert (ran.code, ran.out.splitlines()[0][:8]) == (0, "verified")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in dataset.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "rejects.jsonl").write_bytes(b"\n")
    ran = run("verify", copy)
    assert ran.code == 1
    assert "rejects.jsonl" in ran.out
    values = json.loads(run("verify", copy, "--format", "json").out)
    assert values["ok"] is False
    assert json.loads(run("verify", dataset, "--format", "json").out)["ok"] is True


def test_export_says_what_it_wrote_and_refuses_what_is_there(run: Any, dataset: Path, tmp_path: Path) -> None:
    arguments = ("export", dataset, "--to", "hf", tmp_path / "hf", "--ignore-weights", "--format", "json")
    values = json.loads(run(*arguments).out)
    assert values["sequences"] > 0
    ran = run(*arguments)
    assert ran.code == 2
    assert "already there" in ran.err


def test_demo_makes_a_dataset_explains_it_and_never_overwrites(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("demo")
    assert ran.code == 0
    assert ran.out.index("prepared") < ran.out.index("assistant turn") < ran.out.index("\nnext\n")
    (tmp_path / "demo-out" / "mine").write_text("mine")
    assert run("demo").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-out", "demo-out-2"]
    (tmp_path / "demo-out" / "mine").unlink()
    commands = [line.strip() for line in ran.out.split("\nnext\n")[1].splitlines()]
    assert len(commands) >= 3
    assert run(*commands[0].split()[1:]).code == 0


def test_control_c_is_130_and_leaves_what_is_finished(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Why? " * 200}, {"role": "assistant", "content": "A."}]}
    (tmp_path / "chats").mkdir()
    for number in range(300):  # each file is a chunk at least
        (tmp_path / "chats" / f"{number:03d}.jsonl").write_text((json.dumps(chat) + "\n") * 200, encoding="utf-8")
    command = [sys.executable, "-m", "maskpipe", "prepare", tmp_path / "chats", tmp_path / "out", *SMALL[:-1], "2"]
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out.partial/commits/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == (
        f"interrupted; nothing was published. What is finished is kept in {tmp_path}/out.partial: run the same command "
        "again to go on\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats", "out.partial"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.3, 0.37, 0.43, 0.47, 0.6, 0.9])
def test_control_c_at_any_moment_is_130_and_no_traceback(tmp_path: Path, delay: float) -> None:
    command = [sys.executable, "-m", "maskpipe", "prepare", CHATS, str(tmp_path / "out"), *SMALL]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not Path(f"/proc/{process.pid}/maps").read_text().count("libc"):  # Python itself has not begun before
        time.sleep(0.001)
    begun = _cpu_seconds(process.pid)
    while process.poll() is None and _cpu_seconds(process.pid) - begun < delay:
        time.sleep(0.002)  # CPU seconds: the moment means the same on a busy machine
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it was done before
        assert (tmp_path / "out" / "manifest.json").is_file()
        return
    assert (process.returncode, out) == (130, "")
    assert err.startswith("interrupted; nothing was published") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_control_c_reaches_no_process_that_is_still_starting(tmp_path: Path) -> None:
    program = f"""
import json, signal
from multiprocessing import util
import maskpipe
held, spawn = [], util.spawnv_passfds
def spied(path, arguments, descriptors):
    held.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return spawn(path, arguments, descriptors)
util.spawnv_passfds = spied
maskpipe.prepare({CHATS!r}, {str(tmp_path / "out")!r}, tokenizer={TOKENIZER!r}, workers=1)
print(json.dumps(held))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(ran.stdout) == [True, True]  # the resource tracker and the fork server


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_reader_that_has_seen_enough_is_no_error(dataset: Path) -> None:
    command = f"{sys.executable} -m maskpipe explain {CHATS} --row 71 --tokenizer {TOKENIZER} | head -1"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("chats.jsonl:72")


def _ran(dataset: Path, words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f"{sys.executable} -m maskpipe {words.replace('OUT', str(dataset))}"
    return subprocess.run(["bash", "-c", command], capture_output=True, env=os.environ | environment, timeout=120)


def test_a_narrow_terminal_cuts_no_figure(dataset: Path) -> None:
    wide, narrow = (_ran(dataset, "stats OUT", COLUMNS=columns) for columns in ("200", "40"))
    figures = re.findall(r"[\d,.]+", wide.stdout.decode())
    assert sorted(re.findall(r"[\d,.]+", narrow.stdout.decode())) == sorted(figures)
    assert "…" not in narrow.stdout.decode()


def test_a_locale_without_the_letters_and_a_closed_stdout_are_no_crash(dataset: Path) -> None:
    said = {"PYTHONIOENCODING": "ascii"}
    shown = _ran(dataset, "view OUT --row 1", **said)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"\\u27e6" in shown.stdout  # the bracket before what is trained
    values = json.loads(_ran(dataset, "view OUT --row 1 --format json", **said).stdout.decode("ascii"))
    assert values == json.loads(_ran(dataset, "view OUT --row 1 --format json", PYTHONIOENCODING="utf-8").stdout)
    closed = _ran(dataset, "stats OUT >&-")
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_the_commands_that_make_datasets_of_datasets(tmp_path: Path, run: Any) -> None:
    chats, tokenizer = demo_data.chats(), demo_data.tokenizer()
    lines = chats.read_bytes().splitlines(keepends=True)
    more = tmp_path / "more.jsonl"
    more.write_bytes(b"".join(lines[:9]))
    out = tmp_path / "out"
    assert run("prepare", chats, out, "--tokenizer", tokenizer, "--sequence-length", 1024, "--workers", 1).code == 0

    made = run("repack", out, tmp_path / "longer", "--sequence-length", 2048, "--format", "json")
    assert made.code == 0
    assert json.loads(made.out)["before"]["sequence_length"] == 1024
    assert run("repack", out, tmp_path / "none").code == 2

    found = run("diff", out, tmp_path / "longer")
    assert found.code == 1
    assert "recipe    sequence_length: 1024 -> 2048" in found.out
    assert run("diff", out, out).code == 0
    assert json.loads(run("diff", out, tmp_path / "longer", "--format", "json").out)["records"]["same"] == len(lines)
    assert run("diff", out, tmp_path).code == 2

    assert run("append", out, more, tmp_path / "new", "--workers", 1).code == 0
    verified = run("verify", tmp_path / "new")
    assert verified.code == 0
    again = run("merge", out, tmp_path / "new", tmp_path / "twice")
    assert again.code == 2
    assert "--allow-repeats" in again.err
    merged = json.loads(run("merge", out, out, tmp_path / "twice", "--allow-repeats", "--format", "json").out)
    assert (merged["repeated_sources"], merged["records"]) == (["chats.jsonl"], 2 * len(lines))
