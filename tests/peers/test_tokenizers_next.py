"""The tokenizers library of 1.0, which has ids and nothing else: the same tokens, spans and refusals, or an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from maskpipe import demo_data
from maskpipe.errors import MaskpipeError
from maskpipe.proof_texts import proof_texts
from maskpipe.tokenizer import Tokenizer
from tests.made_tokenizers import MADE, config_of

VERSION = "1.0.0rc3"
ROOT = Path(__file__).parents[2]
REFUSALS = ("install tokenizers<1", "the tokenizers library cannot load tokenizer.json")


def encodings(tokenizer: Tokenizer) -> list[Any]:
    """Everything that is said of hostile texts: plain, as content from somewhere on, and with a cut."""
    out: list[Any] = []
    for number, text in enumerate(proof_texts(sorted(tokenizer.added_tokens))):
        at = number % (len(text) + 1)
        for content, cuts in (([], []), ([(at, len(text), None)], []), ([(0, at, None)], [at])):
            try:
                said = tokenizer.encode(text, content=content, cuts=cuts)
            except MaskpipeError as error:
                out.append(str(error))
                continue
            counts = sorted(said.counts.items())
            out.append([said.input_ids.tolist(), said.byte_ends.tolist(), said.cut_before, said.neutralised, counts])
    return json.loads(json.dumps(out))  # type: ignore[no-any-return]


def everything(files: dict[str, str]) -> dict[str, Any]:
    """Name → what a tokenizer.json with no more to it says, or why it is refused."""
    out: dict[str, Any] = {}
    for name, text in files.items():
        try:
            tokenizer = Tokenizer({"tokenizer.json": text.encode(), "tokenizer_config.json": SETTINGS}, name)
        except MaskpipeError as error:
            out[name] = str(error)
            continue
        out[name] = {
            "added": sorted(tokenizer.added_tokens.items()),
            "control": sorted(tokenizer.control),
            "vocab_size": tokenizer.vocab_size,
            "stops": list(tokenizer.stop_tokens),
            "encodings": encodings(tokenizer),
        }
    return json.loads(json.dumps(out))  # type: ignore[no-any-return]


SETTINGS = b'{"eos_token": "<|added by the settings|>"}'


@cache
def texts() -> dict[str, str]:
    made = {name: json.dumps(config_of(name)) for name in MADE}
    return {**made, "demo": (demo_data.tokenizer() / "tokenizer.json").read_text(encoding="utf-8")}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with the other version says."""
    there = tmp_path_factory.mktemp("tokenizers")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(there)]
    got = subprocess.run([*command, f"tokenizers=={VERSION}"], capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"tokenizers {VERSION} is not to be had: {got.stderr[-200:]}")
    (there / "texts.json").write_text(json.dumps(texts()), encoding="utf-8")
    program = (
        "import json, sys, types, tokenizers, pathlib\n"
        "assert tokenizers.__version__.startswith('1.'), tokenizers.__version__\n"
        "made = types.ModuleType('tests.made_tokenizers'); made.MADE = {}; made.config_of = None\n"
        "sys.modules['tests.made_tokenizers'] = made  # it trains tokenizers, which only the older version can\n"
        "from tests.peers.test_tokenizers_next import everything\n"
        "texts = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding='utf-8'))\n"
        "print(json.dumps(everything(texts)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(there), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", program, str(there / "texts.json")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted(["demo", *MADE]))
def test_the_next_version_says_the_same_or_why_not(name: str, theirs: dict[str, Any]) -> None:
    ours = everything({name: texts()[name]})[name]
    there = theirs[name]
    if isinstance(there, str):
        assert any(refusal in there for refusal in REFUSALS), there
        return
    assert {key: there[key] for key in ours if key != "encodings"} == {
        key: ours[key] for key in ours if key != "encodings"
    }
    compared = 0
    for mine, other in zip(ours["encodings"], there["encodings"], strict=True):
        if isinstance(other, str) and REFUSALS[0] in other:
            continue
        assert other == mine
        compared += 1
    if name == "demo":
        assert compared == len(ours["encodings"])


def test_most_tokenizers_are_not_refused(theirs: dict[str, Any]) -> None:
    assert sum(not isinstance(said, str) for said in theirs.values()) > len(theirs) / 2
