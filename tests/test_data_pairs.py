"""Preference pairs in a batch, both layouts; and what a batch says of its whole step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe import pack
from maskpipe.document import Document
from maskpipe.errors import DatasetError, UsageError
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role
from maskpipe.shards import rows as rows_module
from maskpipe.shards.documents import documents_to_table, table_columns
from maskpipe.shards.format import Branch
from maskpipe.shards.manifest import Manifest, Source
from maskpipe.shards.rows import Rows
from maskpipe.shards.writer import _lay_out, publish, write_rows
from tests.made_datasets import chats, publish_documents
from tests.test_pairs import PREFERENCE, TOKENIZER
from tests.test_pairs_datasets import records

torch = pytest.importorskip("torch")
from maskpipe.data import Batch, Loader  # noqa: E402
from maskpipe.losses import LossPlan, global_denominator  # noqa: E402

LENGTH = 64
PAIRS = [(9, 5, 7), (4, 12, 3), (10, 6, 6), (1, 1, 2), (13, 3, 2), (8, 2, 5), (6, 17, 4)]
"""Tokens of prompt, chosen and rejected."""


def ids(pair: int, side: int, size: int) -> Any:
    return (10 + (np.arange(size) * 31 + pair * 97 + side * 301) % 900).astype(np.int32)


def document(pair: int, tokens: Any, prompt: int) -> Document:
    """Everything after the first `prompt` tokens has loss."""
    after = np.arange(len(tokens)) >= prompt
    return Document(
        input_ids=tokens,
        role_ids=np.where(after, int(Role.ASSISTANT), int(Role.USER)).astype(np.uint8),
        part_ids=np.full(len(tokens), int(Part.CONTENT), np.uint8),
        flags=np.where(after, int(Flag.SAMPLED | Flag.LOSS), 0).astype(np.uint8),
        message_ids=after.astype(np.int32),
        weights=None,
        source=0,
        row=pair,
        turn=-1,
        verdicts={},
    )


def publish_pairs(out: Path, monkeypatch: pytest.MonkeyPatch, *, shared: bool) -> Path:
    """Two pairs per row. Where the prompt is shared, the first token of a branch keeps its loss."""
    documents: list[Document] = []
    facts: list[tuple[int, int, int]] = []
    offsets = [0]
    for pair, (prompt, chosen, rejected) in enumerate(PAIRS):
        before = ids(pair, 0, prompt)
        sides = ((Branch.CHOSEN, ids(pair, 1, chosen)), (Branch.REJECTED, ids(pair, 2, rejected)))
        if shared:
            documents.append(document(pair, before, prompt))
            facts.append((pair, Branch.PROMPT, 0))
        for number, (branch, tokens) in enumerate(sides):
            documents.append(document(pair, tokens if shared else np.concatenate([before, tokens]), shared or prompt))
            facts.append((pair, branch, number + 1 if shared else 0))
        if pair % 2 or pair == len(PAIRS) - 1:
            offsets.append(len(documents))
    lengths = np.array([len(d) for d in documents], np.int32)
    pieces = pack.Pieces(np.arange(len(documents)), np.zeros(len(documents), np.int32), lengths, np.array(offsets))
    columns = table_columns(documents_to_table(documents))
    pairs, branches, parents = np.array(facts).T
    columns.facts["pair"], columns.facts["branch"], columns.facts["parent"] = pairs, branches, parents
    recipe = Recipe(sequence_length=LENGTH)
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "check", lambda *_a, **_k: None)
        rows = (with_first_tokens(rows) for rows in _lay_out(columns, pieces, LENGTH, 7))
        shard = write_rows(
            out, 0, rows, sequence_length=LENGTH, pad_id=7, vocab_size=1000, recipe_fingerprint=recipe.fingerprint()
        )  # fmt: skip
    files = {"rejects.jsonl": b"", "dropped.jsonl": b"", "chat_template.jinja": b"{{ messages }}"}
    manifest = Manifest.build(
        [shard], recipe=recipe, vocab_size=1000, pad_id=7, sources=[Source("pairs.jsonl", "a" * 64, len(PAIRS))],
        records_kept=len(PAIRS), rejected={}, dropped={}, files=files, role_names=[],
    )  # fmt: skip
    publish(out, manifest, files=files, card="# Pairs\n", run={})
    return out


def with_first_tokens(rows: Rows) -> Rows:
    """A branch that continues a prompt is trained from its first token on, which layout has cleared. One run per token,
    which is more than the format allows and says the same."""
    runs, n_loss = [], rows.n_loss.copy()
    for r in range(len(rows)):
        of_row = rows.runs[rows.run_offsets[r] : rows.run_offsets[r + 1]]
        dense = np.repeat(of_row, np.diff(of_row["end"], prepend=0))
        dense["end"] = np.arange(1, LENGTH + 1)
        documents = rows.documents[rows.document_offsets[r] : rows.document_offsets[r + 1]]
        starts = np.append(0, documents["end"])[:-1][documents["parent"] > 0]
        dense["flags"][starts] |= int(Flag.LOSS)
        n_loss[r] += len(starts)
        runs.append(dense)
    offsets = np.arange(len(rows) + 1) * LENGTH
    return replace(rows, runs=np.concatenate(runs), run_offsets=offsets, n_loss=n_loss)


def read(path: Path, **arguments: Any) -> Batch:
    batch: Batch = next(Loader(path, global_batch_size=4, shuffle=False, threads=0, **arguments))
    return batch


@pytest.fixture
def separate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    return read(publish_pairs(tmp_path / "separate", monkeypatch, shared=False))


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    return read(publish_pairs(tmp_path / "shared", monkeypatch, shared=True))


def model(attention: str) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=LENGTH, attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def pair_logps(net: torch.nn.Module, batch: Batch, **inputs: Any) -> tuple[Any, Any]:
    """Σ log p and lengths of both sides [pairs, 2], by a plan and full logits."""
    plan = LossPlan.from_batch(batch)
    with torch.no_grad():
        logps = net(**inputs).logits.view(-1, 1000).log_softmax(-1)[plan.rows, plan.targets]
    assert plan.segments is not None and plan.pairs is not None
    sums = torch.zeros(plan.num_segments).index_add(0, plan.segments, logps)
    lengths = torch.bincount(plan.segments, minlength=plan.num_segments)
    return sums[plan.pairs], lengths[plan.pairs]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_layouts_give_each_pair_the_same_log_probabilities(separate: Batch, shared: Batch, attention: str) -> None:
    net = model(attention)
    assert (separate.shared, shared.shared) == (False, True)
    expected, lengths = pair_logps(net, separate, **separate.as_hf(labels=False))
    got, got_lengths = pair_logps(net, shared, **shared.as_hf(labels=False, mask_dtype=torch.float32))
    assert lengths.tolist() == got_lengths.tolist() == [[chosen, rejected] for _, chosen, rejected in PAIRS]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)
    leaking = {**shared.as_hf(labels=False, mask_dtype=torch.float32), "attention_mask": None}
    assert (pair_logps(net, shared, **leaking)[0] - expected).abs().max() > 0.01


def test_where_segments_stand_in_a_shared_row(shared: Batch, tmp_path: Path) -> None:
    """Against a loop over tokens; and the same whether the core or torch makes it."""
    derived = read(tmp_path / "shared", columns=())
    torch.testing.assert_close(derived.position_ids, shared.position_ids, rtol=0, atol=0)
    mask, predictors = shared.attention_mask_4d(), shared.predictors
    assert predictors is not None
    starts, lengths = shared.cu_seqlens[:-1].tolist(), shared.cu_seqlens.diff().tolist()
    seen = torch.zeros_like(mask)
    for s, (start, length, parent) in enumerate(zip(starts, lengths, shared.parents.tolist(), strict=True)):
        row, at = divmod(start, LENGTH)
        prompt = (starts[s - parent] % LENGTH, lengths[s - parent]) if parent else (at, 0)
        real = int(shared.segment_numbers[s]) > 0
        for k in range(length):
            t = at + k
            assert int(shared.position_ids[row, t]) == prompt[1] + k
            before = t - 1 if k else prompt[0] + prompt[1] - 1 if parent else -1
            assert int(predictors[row, t]) == (before if real else -1)
            seen[row, 0, t, at : t + 1] = True
            seen[row, 0, t, prompt[0] : prompt[0] + prompt[1]] = True
    assert torch.equal(mask, seen)
    blocks, line = shared.block_mask(block_size=16), torch.arange(LENGTH)
    for b in range(len(shared)):
        at_b = blocks.mask_mod(torch.tensor(b), torch.tensor(0), line[:, None], line[None, :])
        assert torch.equal(at_b, mask[b, 0])


def test_padded_branches_are_those_of_the_other_layout(separate: Batch, shared: Batch) -> None:
    one, other = separate.as_padded(7), shared.as_padded(7)
    assert one["input_ids"].shape == other["input_ids"].shape == (2 * len(PAIRS), 23)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_what_a_shared_prompt_cannot_say_is_refused(shared: Batch, separate: Batch) -> None:
    with pytest.raises(UsageError, match=r"LossPlan\.from_batch"):
        _ = shared.targets
    with pytest.raises(UsageError, match=r"LossPlan\.from_batch"):
        shared.as_hf(mask_dtype=torch.float32)
    with pytest.raises(UsageError, match="mask_dtype"):
        shared.as_hf(labels=False)
    with pytest.raises(UsageError, match="floating"):
        separate.as_hf(mask_dtype=torch.int64)
    assert "cu_seq_lens_q" in separate.as_hf() and separate.predictors is None


def test_a_moved_shared_batch_says_the_same(shared: Batch) -> None:
    moved = shared.to("meta")
    for name in ("prompt_ids", "predictors", "position_ids"):
        assert getattr(moved, name).dtype == getattr(shared, name).dtype
        assert getattr(moved, name).shape == shared.input_ids.shape


def test_labels_of_pairs_are_not_decided_anew(tmp_path: Path) -> None:
    recipe = Recipe(sequence_length=LENGTH, objective="preference")
    publish_documents(tmp_path / "d", chats([20, 30]), sequence_length=LENGTH, recipe=recipe)
    with pytest.raises(UsageError, match="preference"):
        Loader(tmp_path / "d", global_batch_size=1, train_on="assistant")


@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_scores_and_thumbs_of_the_data_reach_batch_and_plan(tmp_path: Path, layout: Any) -> None:
    """Against what the shards say, by another reader; NaN and -1 where they say nothing, also in padding."""
    recipe = PREFERENCE.replace(sequence_length=256, pair_layout=layout, ranked_pairs="all")
    maskpipe.prepare(records(90), tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=0)
    rows = list(maskpipe.open(tmp_path / "out"))
    scored = thumbs = margins = 0
    for batch in Loader(tmp_path / "out", global_batch_size=3, epochs=1, remainder="pad", threads=0):
        facts = [rows[row].documents for row in batch.rows.tolist() if row >= 0]
        expected = {name: np.concatenate([of_row[name] for of_row in facts]) for name in ("score", "label")}
        real = batch.segment_numbers > 0
        assert batch.scores.dtype == torch.float32 and batch.desirable.dtype == torch.int8
        np.testing.assert_array_equal(batch.scores[real].numpy(), expected["score"])
        np.testing.assert_array_equal(batch.desirable[real].numpy(), expected["label"])
        assert batch.scores[~real].isnan().all() and (batch.desirable[~real] == -1).all()
        assert batch.thumb_denominator == (expected["label"] >= 0).sum()
        plan = LossPlan.from_batch(batch)
        for of_plan, of_batch, nothing in (
            (plan.scores, batch.scores[real], batch.scores.isnan().all()),
            (plan.desirable, batch.desirable[real], (batch.desirable < 0).all()),
        ):
            assert nothing if of_plan is None else torch.equal(of_plan.nan_to_num(7), of_batch.nan_to_num(7))
        if plan.pairs is not None and plan.scores is not None:
            chosen, rejected = (expected["score"][plan.pairs[:, side].numpy()] for side in (0, 1))
            np.testing.assert_array_equal(plan.margins.numpy(), chosen - rejected)
            margins += int((plan.margins > 0).sum())
        moved = batch.to("meta")
        assert moved.scores.shape == moved.desirable.shape == batch.pairs.shape
        scored, thumbs = scored + int(batch.scores.isfinite().sum()), thumbs + int((batch.desirable >= 0).sum())
    assert scored > 20 and thumbs > 10 and margins > 10


def test_a_batch_without_scores_has_no_margins(separate: Batch) -> None:
    plan = LossPlan.from_batch(separate)
    assert plan.scores is None and plan.desirable is None and separate.thumb_denominator == 0
    with pytest.raises(UsageError, match="margins"):
        _ = plan.margins
    with pytest.raises(UsageError, match="one per document"):
        replace(plan, scores=torch.zeros(1))


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """The core reads hostile files too: an infinite score with a hash that fits."""
    documents = [replace(chat, score=float("inf")) for chat in chats([20, 30])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "check", lambda *_a, **_k: None)
        publish_documents(tmp_path / "d", documents, sequence_length=LENGTH)
    with pytest.raises(DatasetError, match="score is not finite"):
        next(Loader(tmp_path / "d", global_batch_size=1))


# The whole step


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "weighted"
    publish_documents(path, chats([20, 30, 64, 10, 5, 40, 33, 21] * 7), sequence_length=LENGTH, rows_per_shard=5)
    return path


def steps(path: Path, world: int, batch_size: int, **arguments: Any) -> Iterator[list[Batch]]:
    """The batches of all ranks and micro-batches, step by step."""
    ranks = [
        Loader(path, global_batch_size=12, batch_size=batch_size, rank=rank, world_size=world, epochs=1, **arguments)
        for rank in range(world)
    ]
    for _ in range(len(ranks[0]) // (12 // world // batch_size)):
        yield [next(loader) for loader in ranks for _ in range(12 // world // batch_size)]


@pytest.mark.parametrize(("world", "batch_size", "threads"), [(1, 12, 0), (1, 3, 0), (2, 6, 2), (3, 2, 0), (12, 1, 1)])
@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_every_batch_knows_the_denominator_of_its_step(
    weighted: Path, world: int, batch_size: int, threads: int, remainder: Any
) -> None:
    expected = [
        (batch.n_loss, float(global_denominator([LossPlan.from_labels(batch.labels, weights=batch.loss_weights)])))
        for (batch,) in steps(weighted, 1, 12, threads=0, remainder=remainder)
    ]
    assert len(expected) > 1
    got = list(steps(weighted, world, batch_size, threads=threads, remainder=remainder))
    for batches, (tokens, weight) in zip(got, expected, strict=True):
        totals = {batch.step for batch in batches}
        assert len(totals) == 1  # the same bits everywhere, or ranks would part
        (total,) = totals
        assert total is not None
        assert total.tokens == tokens == sum(batch.n_loss for batch in batches)
        assert total.weight == pytest.approx(weight, rel=1e-12)
        plans = [LossPlan.from_batch(batch) for batch in batches]
        assert {(plan.denominator, plan.replicas) for plan in plans} == {(total.weight, world)}
        assert sum(float(plan.weight_sum) for plan in plans) == pytest.approx(total.weight, rel=1e-12)


def test_the_denominator_survives_a_resume_inside_a_step(weighted: Path) -> None:
    loader = Loader(weighted, global_batch_size=12, batch_size=3, threads=2)
    first = next(loader)
    again = Loader(weighted, global_batch_size=12, batch_size=3, threads=0)
    again.load_state_dict(loader.state_dict())
    assert next(again).step == first.step == next(loader).step


def test_pairs_of_the_step_are_counted(shared: Batch, tmp_path: Path) -> None:
    assert shared.pair_denominator == len(PAIRS)
    half = Loader(tmp_path / "shared", global_batch_size=4, rank=1, world_size=2, shuffle=False)
    assert next(half).pair_denominator == len(PAIRS)


def test_totals_can_be_left_out(weighted: Path) -> None:
    batch = next(Loader(weighted, global_batch_size=12, batch_size=3, step_totals=False))
    assert (batch.step, batch.loss_denominator, batch.pair_denominator) == (None, None, None)
    assert LossPlan.from_batch(batch).denominator is None
    assert LossPlan.from_batch(batch, denominator=5.0, replicas=2).replicas == 2
