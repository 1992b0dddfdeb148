"""The probe finds models that mix packed documents, and clears those that do not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskpipe import cli
from maskpipe.errors import UsageError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from maskpipe.data import Isolation, probe  # noqa: E402

TRAPS = {"all-ones attention_mask", "no position_ids", "use_cache=True"}


def llama(**changes: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=128, **{**sizes, **changes}))


def mamba() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    return transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=128, **sizes))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def verdicts(found: Isolation) -> dict[tuple[str, str], str]:
    return {(m.attention, m.inputs): m.verdict for m in found.measured}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "llama"
    llama().save_pretrained(path)
    return path


def test_what_as_hf_gives_keeps_documents_apart_and_what_trainers_add_does_not() -> None:
    model = llama().train()
    found = probe(model, attention=["eager", "sdpa"])
    assert not found.leaks and found.probed and model.training
    for name in ("eager", "sdpa"):
        by_inputs = {m.inputs: m for m in found.measured if m.attention == name}
        assert by_inputs["as_hf()"].verdict == by_inputs["as_hf(), 4-D mask"].verdict == "isolated"
        assert by_inputs["as_hf()"].change <= 1e-6 and by_inputs["as_hf()"].tokens == 0
        assert by_inputs["as_hf()"].from_alone <= 1e-6
        for trap in TRAPS:
            assert by_inputs[trap].verdict == "leaks" and by_inputs[trap].change > 1e-3, trap
            assert by_inputs[trap].tokens == 48 + 16  # all of B and C; the rows of a batch stay apart
    assert "Keeps documents apart with batch.as_hf(): attn_implementation='eager' or 'sdpa'." in str(found)


def test_flex_attention_keeps_documents_apart_and_what_is_not_here_is_said() -> None:
    found = probe(llama())
    assert not found.leaks
    by_name = verdicts(found)
    assert by_name["flex_attention", "as_hf()"] == by_name["flex_attention", "as_hf(), block mask"] == "isolated"
    assert by_name["flex_attention", "all-ones attention_mask"] == "leaks"
    if not torch.cuda.is_available():
        assert by_name["flash_attention_2", "as_hf()"] == "unavailable"
        assert "flash_attention_2: needs CUDA" in str(found)


def test_a_state_space_model_leaks() -> None:
    found = probe(mamba(), attention="eager", sequence_length=32)
    assert found.leaks
    (as_hf,) = [m for m in found.measured if m.inputs == "as_hf()"]
    assert as_hf.verdict == "leaks" and as_hf.change > 1e-3 and as_hf.noise < 1e-5
    assert "Train one document per row" in str(found)


def test_a_leak_of_two_tokens_through_a_short_convolution_is_found() -> None:
    torch.manual_seed(0)
    config = transformers.Lfm2Config(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv"], conv_L_cache=3,
    )  # fmt: skip
    found = probe(transformers.Lfm2ForCausalLM(config), attention="sdpa")
    (as_hf,) = [m for m in found.measured if m.inputs == "as_hf()"]
    # B's first two tokens see A; C's first two see B. Two tokens of a window of three.
    assert found.leaks and as_hf.tokens == 4


def test_a_model_that_looks_ahead_leaks_although_padding_reaches_it_too() -> None:
    class LooksAhead(transformers.LlamaForCausalLM):  # type: ignore[misc,name-defined]
        def forward(self, input_ids: Any, **kwargs: Any) -> Any:
            out = super().forward(input_ids, **kwargs)
            out.logits = out.logits + self.model.embed_tokens(input_ids).mean(1, keepdim=True).sum() * 10
            return out

    torch.manual_seed(0)
    found = probe(LooksAhead(llama().config), attention="sdpa")
    assert found.leaks
    assert verdicts(found)["sdpa", "as_hf()"] == "leaks"


def test_a_model_that_looks_ahead_a_little_leaks_too() -> None:
    """XLNet reads in both directions. Of fresh weights padding changes documents by some 1e-4 of the logits, which is
    little and far more than rounding."""
    torch.manual_seed(0)
    config = transformers.XLNetConfig(vocab_size=128, d_model=32, n_layer=1, n_head=4, d_inner=64)
    found = probe(transformers.XLNetLMHeadModel(config), attention="eager", sequence_length=64)
    (as_hf,) = [m for m in found.measured if m.inputs == "as_hf()"]
    assert as_hf.verdict == "leaks" and as_hf.change < 1e-2 and as_hf.noise == 0
    assert as_hf.tokens == 56  # all of A, B and C


def test_the_advice_is_what_the_attention_takes() -> None:
    """OPT looks for no boundaries of its own; a mask that says them helps, for flex_attention a block mask."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=128, hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=32,
        max_position_embeddings=64,
    )  # fmt: skip
    found = str(probe(transformers.OPTForCausalLM(config), attention=["sdpa", "flex_attention"], sequence_length=32))
    assert "LEAKS with 'sdpa' and batch.as_hf(): add attention_mask=batch.attention_mask_4d(dtype)." in found
    assert "LEAKS with 'flex_attention' and batch.as_hf(): add attention_mask=batch.block_mask()." in found


def test_other_positions_than_those_of_the_documents_alone_are_found_without_a_leak() -> None:
    class OffByOne(transformers.GPT2LMHeadModel):  # type: ignore[misc,name-defined]
        def forward(self, input_ids: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return super().forward(input_ids, position_ids=None if position_ids is None else position_ids + 1, **kwargs)

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=128, n_embd=32, n_layer=1, n_head=4, n_positions=256)
    right = probe(transformers.GPT2LMHeadModel(config), attention="sdpa")
    assert verdicts(right)["sdpa", "as_hf()"] == "isolated"
    wrong = probe(OffByOne(config), attention="sdpa")
    assert verdicts(wrong)["sdpa", "as_hf()"] == "differs" and wrong.leaks


def test_a_model_that_refuses_packed_rows_is_not_said_to_be_clean() -> None:
    class Refuses(transformers.LlamaForCausalLM):  # type: ignore[misc,name-defined]
        def forward(self, input_ids: Any, **kwargs: Any) -> Any:
            raise ValueError("cannot keep packed sequences apart")

    found = probe(Refuses(llama().config), attention="sdpa")
    assert not found.leaks and not found.probed
    assert {m.verdict for m in found.measured} == {"refused"}
    assert "cannot keep packed sequences apart" in str(found)


def test_the_same_seed_gives_the_same_figures_and_random_state_stays() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = mamba()
    torch.manual_seed(5)
    first = probe(model, attention="eager", sequence_length=16)
    assert torch.equal(torch.rand(3), expected)
    assert probe(model, attention="eager", sequence_length=16) == first


def test_the_command_exits_0_1_2(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exited:
            cli.main(["probe", *arguments])
        return exited.value.code, *capsys.readouterr()

    code, out, _ = run(
        str(saved), "--attn-implementation", "eager", "--attn-implementation", "sdpa", "--format", "json"
    )
    found = json.loads(out)
    assert code == 0 and found["leaks"] is False and found["dtype"] == "float32"
    assert {m["attention"] for m in found["measured"]} == {"eager", "sdpa"}

    mamba().save_pretrained(tmp_path / "mamba")
    (tmp_path / "mamba" / "model.safetensors").unlink()
    code, _, err = run(str(tmp_path / "mamba"), "--attn-implementation", "eager")
    assert code == 2 and "--random-init needs its config.json only" in err
    code, out, _ = run(
        str(tmp_path / "mamba"), "--random-init", "--sequence-length", "16", "--attn-implementation", "eager"
    )
    assert code == 1 and "LEAKS with 'eager'" in out

    for arguments, message in [
        ((str(tmp_path / "nothing"),), "no directory of a model"),
        ((str(saved), "--attn-implementation", "flash_attention_9"), "'flash_attention_9' cannot be had"),
        ((str(saved), "--sequence-length", "4"), "at least 16"),
    ]:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "") and message in err, err


def test_a_missing_package_is_named_with_its_extra(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"probe needs transformers: pip install 'maskpipe\[probe\]'"):
        probe(saved)
    program = "import sys; sys.modules['torch'] = None; from maskpipe.cli import main; main(['probe', 'model'])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and ran.stdout == ""
    assert "probe needs torch: pip install 'maskpipe[probe]'" in ran.stderr


def test_an_unknown_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(UsageError, match="dtype must be auto or one of"):
        probe(saved, dtype="int8")
