"""fastokens makes the ids of tokenizers, or it is not used: proved on load, on the data, and as the run goes on."""

from __future__ import annotations

import json
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe import Recipe, Tokenizer, backends, demo_data
from maskpipe.backends import CHECKED_ONE_IN, Fastokens, engage
from maskpipe.encoder import Encoder
from maskpipe.errors import TokenizerError, UsageError
from maskpipe.proof_texts import proof_texts
from maskpipe.sources import limits
from tests.conversations import assistant, user
from tests.made_tokenizers import MADE, made

fastokens = pytest.importorskip("fastokens")

REAL = ("bert-base-uncased", "deepseek-v3", "gemma-3", "gpt2", "llama-3.1", "mistral-v0.1", "mistral-v3", "qwen3")
REFUSED = ("bert-base-uncased", "mistral-v3")
"""fastokens 0.3.5 has neither their normaliser nor their pre-tokenizer."""


def test_the_proof_holds_every_kind_of_text_and_every_control_token() -> None:
    texts = proof_texts(["<|a|>", "<|b|>"])
    whole = "".join(texts)
    assert len(texts) > 1000
    assert texts == proof_texts(["<|a|>", "<|b|>"])
    assert {"", " ", "<|a|>", "a<|b|>b"} <= set(texts)
    for character in "é漢🎉אक\u0301\u200d\u2028\x00\ufeff▁":
        assert character in whole
    whole.encode()  # no lone surrogates


@pytest.mark.parametrize("name", MADE)
def test_a_made_tokenizer_has_equal_ids_or_is_refused_with_the_reason(name: str) -> None:
    try:
        fast = engage(made(name))
    except TokenizerError as error:
        assert "fastokens" in str(error) and "--tokenizer-backend tokenizers" in str(error)
        return
    texts = ["<|im_start|>user\nHi<|im_end|>\n", "two  spaces", "", "é漢🎉"]
    for ids, expected in zip(fast.ids(texts), made(name).ids(texts), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == expected.tolist()


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_a_real_tokenizer_has_equal_ids_or_is_refused_with_the_reason(name: str, shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / name)
    if name in REFUSED:
        with pytest.raises(TokenizerError, match=r"cannot load this tokenizer: .*unsupported"):
            engage(tokenizer)
        return
    naughty = json.loads((shared_data / "chats" / "blns" / "blns.json").read_text(encoding="utf-8"))
    lines = (shared_data / "chats" / "text").rglob("*.txt")
    engage(tokenizer, [*naughty, *(path.read_text(encoding="utf-8")[:20000] for path in sorted(lines))])


# A backend that lies


class Lying:
    """fastokens, with another id in the texts that `lies` picks."""

    def __init__(self, library: Any, lies: Callable[[str], bool]) -> None:
        self._library, self._lies = library, lies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def encode_batch_flat(self, texts: list[str]) -> tuple[bytes, bytes]:
        ids, offsets = self._library.encode_batch_flat(texts)
        tokens, places = np.frombuffer(ids, np.uint32).copy(), np.frombuffer(offsets, np.uint64).astype(int)
        for text, start, end in zip(texts, places, places[1:], strict=False):
            if self._lies(text) and end > start:
                tokens[end - 1] = 0 if tokens[end - 1] else 1
        return tokens.tobytes(), offsets


@pytest.fixture
def lie(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[str], bool]], None]]:
    def make(lies: Callable[[str], bool]) -> None:
        real = fastokens.Tokenizer.from_json_str
        fake = types.SimpleNamespace(from_json_str=lambda text: Lying(real(text), lies))
        monkeypatch.setattr(fastokens, "Tokenizer", fake)

    yield make


DEMO = Tokenizer.load(demo_data.tokenizer())


@pytest.mark.parametrize("text", ["體字", "1234567890", "👩‍👩‍👧‍👦", "e\u0301", " \n"])
def test_a_backend_that_lies_about_one_kind_of_text_is_caught_by_the_proof(text: str, lie: Any) -> None:
    lie(lambda given: text in given)
    with pytest.raises(TokenizerError, match="fastokens makes other ids than tokenizers of the text"):
        engage(DEMO)


def test_a_backend_that_lies_about_the_users_data_is_caught_by_the_sample(lie: Any) -> None:
    lie(lambda given: "Zqx" in given)
    engage(DEMO)
    with pytest.raises(TokenizerError, match="other ids than tokenizers of the text 'a Zqx b'"):
        engage(DEMO, ["a Zqx b"])


def test_a_backend_that_lies_later_is_caught_within_a_few_texts(lie: Any) -> None:
    lie(lambda given: "Zqx" in given)
    fast = engage(DEMO)
    texts = [f"Zqx {number}" for number in range(4000)]
    checked = [text for text in texts if zlib.crc32(text.encode()) % CHECKED_ONE_IN == 0]
    assert 5 <= len(checked) <= 40
    fast.ids([text for text in texts if text not in checked])
    with pytest.raises(TokenizerError, match="other ids"):
        fast.ids(texts)


@pytest.mark.parametrize("how", ["error", "offsets"])
def test_a_backend_that_fails_is_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Fastokens(DEMO)

    def fails(texts: list[str]) -> tuple[bytes, bytes]:
        if how == "error":
            raise RuntimeError("panicked")
        return np.zeros(3, np.uint32).tobytes(), np.array([0, 9], np.uint64).tobytes()

    fast._library = types.SimpleNamespace(encode_batch_flat=fails)
    with pytest.raises(TokenizerError, match=r"panicked|offsets that do not fit"):
        fast.ids(["a"])


# What a run does


def encoder(backend: str) -> Encoder:
    return Encoder(DEMO, Recipe(tokenizer_backend=backend))  # type: ignore[arg-type]


def test_auto_falls_back_with_the_reason_and_the_name_alone_does_not(lie: Any) -> None:
    lie(lambda given: "Zqx" in given)
    assert encoder("auto").choose_backend(["fine"]).used == "fastokens"
    backend = encoder("auto").choose_backend(["a Zqx"])
    assert (backend.used, backend.refused) == ("tokenizers", True)
    assert "other ids" in backend.reason
    with pytest.raises(TokenizerError, match="other ids"):
        encoder("fastokens").choose_backend(["a Zqx"])
    assert encoder("tokenizers").choose_backend(["a Zqx"]) == backends.Backend()


def test_without_fastokens_auto_says_so_and_its_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fastokens", None)
    backend = encoder("auto").choose_backend([])
    assert (backend.used, backend.refused) == ("tokenizers", False)
    assert "cannot be imported" in backend.reason
    with pytest.raises(UsageError, match=r"pip install maskpipe\[fast\]"):
        encoder("fastokens")


def chats(size: int) -> list[dict[str, Any]]:
    return [
        {"messages": [user(f"Say {n} <|done|> é"), assistant(f"{n}, as asked: 漢字 {'x' * (n % 50)}")]}
        for n in range(size)
    ]


@pytest.mark.parametrize("backend", ["auto", "fastokens"])
def test_a_dataset_has_the_same_bytes_whoever_computed_the_ids(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4 << 10)
    made_by = {}
    for name in ("tokenizers", backend):
        recipe = Recipe(sequence_length=512, tokenizer_backend=name)  # type: ignore[arg-type]
        maskpipe.prepare(chats(100), tmp_path / name, tokenizer=DEMO, recipe=recipe, workers=0)
        made_by[name] = json.loads((tmp_path / name / "run.json").read_text())["backend"]["used"]
    assert made_by == {"tokenizers": "tokenizers", backend: "fastokens"}
    for file in sorted(path.name for path in (tmp_path / "tokenizers").iterdir()):
        if file != "run.json":
            assert (tmp_path / "tokenizers" / file).read_bytes() == (tmp_path / backend / file).read_bytes(), file


def test_a_run_falls_back_and_says_so(tmp_path: Path, lie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4 << 10)
    lie(lambda given: "漢字 xxxxx" in given)
    prepared = maskpipe.prepare(chats(100), tmp_path / "out", tokenizer=DEMO, workers=0)
    run = json.loads((tmp_path / "out" / "run.json").read_text())["backend"]
    assert run["used"] == "tokenizers"
    assert "fastokens makes other ids" in run["reason"]
    assert "ids       by tokenizers: fastokens makes other ids" in str(prepared)


def test_a_lie_that_comes_out_later_stops_the_run_and_the_next_one_takes_nothing_over(
    tmp_path: Path, lie: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4 << 10)
    monkeypatch.setattr(backends, "CHECKED_ONE_IN", 1)
    lie(lambda given: "90, as asked" in given)
    with pytest.raises(TokenizerError, match="--tokenizer-backend tokenizers"):
        maskpipe.prepare(chats(100), tmp_path / "out", tokenizer=DEMO, workers=0)
    assert not (tmp_path / "out").exists()
    recipe = Recipe(tokenizer_backend="tokenizers")
    maskpipe.prepare(chats(100), tmp_path / "out", tokenizer=DEMO, recipe=recipe, workers=0)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["backend"]["used"] == "tokenizers"
    assert not run["tasks"]["found"].get("map")
