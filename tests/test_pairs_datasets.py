"""Datasets of pairs under everything that prepare and the other commands do to datasets."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maskpipe
from maskpipe import partitions
from maskpipe.branches import encode_all
from maskpipe.chat import read_all
from maskpipe.diff import diff
from maskpipe.document import Document
from maskpipe.encoder import Encoder
from maskpipe.errors import RecordError, UsageError
from maskpipe.explain import explain
from maskpipe.merge import append, merge
from maskpipe.pack import plan
from maskpipe.partitions import Stage, plan_shards, plan_units
from maskpipe.recipe import Recipe
from maskpipe.repack import repack
from maskpipe.roles import Branch, Role
from maskpipe.shards.verify import verify
from maskpipe.sources import limits
from maskpipe.stats import Stats
from tests.reference.pairs import separate_of, shared_size
from tests.test_pairs import PREFERENCE, TOKENIZER, assistant, pair, user

WORDS = ["sea", "tide", "gull", "rope", "sail", "wind", "salt", "fish", "net", "oar"]


def said(random: random.Random, least: int, most: int) -> str:
    return " ".join(random.choice(WORDS) for _ in range(random.randint(least, most)))


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of one turn and of several, some scored, ranked lists, labelled answers, and some that are no pairs."""
    r = random.Random(seed)
    out: list[dict[str, Any]] = []
    for number in range(count):
        history = [user(f"{number} " + said(r, 1, 30))]
        if r.random() < 0.3:
            history += [assistant(said(r, 1, 20)), user(said(r, 1, 10))]
        kind = r.random()
        if kind < 0.5:
            out.append(pair(history, [assistant(said(r, 1, 25))], [assistant(said(r, 1, 25) + " no")]))
            if r.random() < 0.5:
                out[-1] |= {"score_chosen": r.random(), "score_rejected": -r.random()}
        elif kind < 0.65:
            longer = [assistant("a " + said(r, 1, 40)), user(said(r, 1, 9)), assistant(said(r, 1, 9))]
            out.append(pair(history, longer, [assistant("b " + said(r, 1, 40))]))
        elif kind < 0.8:
            answers = [f"{k} " + said(r, 1, 12) for k in range(r.randint(2, 4))]
            out.append({"prompt": history, "completions": answers, "scores": [r.randint(0, 2) for _ in answers]})
        elif kind < 0.95:
            out.append({"prompt": history, "completion": [assistant(said(r, 1, 25))], "label": r.random() < 0.5})
        else:
            out.append(pair(history, [assistant("same")], [assistant("same" if r.random() < 0.7 else "")]))
    return out


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def key(document: Document, *, numbered: bool = False) -> tuple[object, ...]:
    arrays = (document.input_ids, document.role_ids, document.part_ids, document.flags, document.message_ids)
    weights = None if document.weights is None else document.weights.tobytes()
    score = None if document.score is None else float(np.float32(document.score))
    judged = (document.branch, document.parent, score, document.label, document.pair if numbered else None)
    origin = (document.source, document.row, document.turn, tuple(sorted(document.verdicts.items())))
    return (*origin, *judged, weights, *(array.tobytes() for array in arrays))


def bytes_of(directory: Path) -> dict[str, bytes]:
    names = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in names}


def units_of(directory: Path) -> list[list[Document]]:
    """Documents that stand together: those of a pair, each other one alone. Asserts that a pair is whole, in order, in
    one row, and that its number is its own."""
    out: list[list[Document]] = []
    numbers: list[int] = []
    for document in maskpipe.open(directory).documents():
        if document.pair is None:
            assert document.branch is Branch.NONE and document.label is not None
            out.append([document])
        elif out and out[-1][0].pair == document.pair:
            out[-1].append(document)
        else:
            numbers.append(document.pair)
            out.append([document])
    assert len(numbers) == len(set(numbers))
    for unit in out:
        branches = [document.branch for document in unit]
        if unit[0].pair is not None:
            assert branches[-2:] == [Branch.CHOSEN, Branch.REJECTED]
            assert branches[:-2] in ([], [Branch.PROMPT])
            assert [d.parent for d in unit] == ([None, 1, 2] if len(unit) == 3 else [None, None])
        assert len({(document.source, document.row) for document in unit}) == 1
        assert all(document.loss_mask.any() == (document.branch is not Branch.PROMPT) for document in unit)
    for row in maskpipe.open(directory):
        facts = row.documents
        for number in set(facts["pair"].tolist()) - {-1}:
            assert facts["branch"][facts["pair"] == number].tolist() in ([2, 3], [1, 2, 3])
    return out


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few records, partitions of a few chunks, shards of a few rows: every seam is crossed."""
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4 << 10)
    monkeypatch.setattr(partitions, "PARTITION_TOKENS", 3000)
    monkeypatch.setattr(partitions, "PARTITION_SEQUENCES", 1)
    monkeypatch.setattr(Recipe, "shard_bytes", 4 * 256 * 5)


SHORT = PREFERENCE.replace(sequence_length=256)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_what_was_encoded_is_what_is_in_the_shards_for_any_number_of_workers(tmp_path: Path, layout: Any) -> None:
    recipe, rows = SHORT.replace(pair_layout=layout, ranked_pairs="all"), records(90)
    source = write(tmp_path / "a.jsonl", rows)
    made = [
        maskpipe.prepare(source, tmp_path / f"out{n}", tokenizer=TOKENIZER, recipe=recipe, workers=n) for n in (0, 2)
    ]
    assert bytes_of(tmp_path / "out0") == bytes_of(tmp_path / "out2")
    assert sum(name.endswith(".arrow") for name in bytes_of(tmp_path / "out0")) > 2
    encoder, expected, refused = Encoder(TOKENIZER, recipe), Counter[object](), Counter[str]()
    for number, row in enumerate(rows):
        try:
            read = read_all(row, recipe, row=number)
        except RecordError as error:
            refused[error.reason] += 1
            continue
        out = encode_all(encoder, read).encoded
        refused.update([] if out.refused is None else [out.refused.reason])
        expected.update(map(key, out.documents))
    units = units_of(tmp_path / "out0")
    assert Counter(key(document) for unit in units for document in unit) == expected
    manifest = made[0].manifest
    assert manifest.rejected == dict(refused) and manifest.records_kept == len(rows) - refused.total()
    assert made[0].counts["pairs"] == sum(len(unit) > 1 for unit in units)
    assert set(refused) >= {"collapsed", "empty_side"}
    verify(tmp_path / "out0")


@pytest.mark.usefixtures("small_steps")
def test_dedup_split_caps_and_weights_keep_pairs_whole(tmp_path: Path) -> None:
    rows = records(60)
    source, other = write(tmp_path / "a.jsonl", rows + rows[:20]), write(tmp_path / "b.jsonl", records(40, seed=5))
    recipe = SHORT.replace(
        deduplicate=True, validation=0.3, source_caps={other: 30}, source_weights={source: 2.5}, ranked_pairs="all"
    )
    made = maskpipe.prepare([source, other], tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=0)
    sides = {name: units_of(tmp_path / "out" / name) for name in ("train", "validation")}
    for name in sides:
        verify(tmp_path / "out" / name)
    rows_of = {name: {(u[0].source, u[0].row) for u in units} for name, units in sides.items()}
    assert not rows_of["train"] & rows_of["validation"]
    assert made.manifest.left_out["duplicate"] >= 15 and made.manifest.left_out["beyond_cap"] == 10
    times = Counter(tuple(key(document) for document in unit) for unit in sides["train"] if unit[0].source == 0)
    assert set(times.values()) == {2, 3}
    assert set(Counter(tuple(map(key, unit)) for unit in sides["validation"]).values()) == {1}


def test_all_answers_to_one_question_are_on_one_side_of_a_split(tmp_path: Path) -> None:
    rows = [
        pair([user(f"question {k}")], [assistant(f"good {k} {j}")], [assistant(f"bad {k} {j}")])
        for k in range(40)
        for j in range(3)
    ]
    recipe = SHORT.replace(validation=0.4)
    maskpipe.prepare(rows, tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=0)
    asked = [{u[0].row // 3 for u in units_of(tmp_path / "out" / name)} for name in ("train", "validation")]
    assert asked[0] | asked[1] == set(range(40)) and not asked[0] & asked[1]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
@pytest.mark.parametrize("packing", ["best_fit", "first_fit"])
def test_repack_gives_what_prepare_makes(tmp_path: Path, layout: Any, packing: Any) -> None:
    rows = [row for row in records(45) if "completions" not in row]
    source = write(tmp_path / "a.jsonl", rows)
    recipe = SHORT.replace(pair_layout=layout, packing=packing, sequence_length=512)
    maskpipe.prepare(source, tmp_path / "long", tokenizer=TOKENIZER, recipe=recipe, workers=0)
    for length in (400,):
        wanted = recipe.replace(sequence_length=length)
        maskpipe.prepare(source, tmp_path / f"made{length}", tokenizer=TOKENIZER, recipe=wanted, workers=0)
        repack(tmp_path / "long", tmp_path / f"repacked{length}", sequence_length=length)
        assert bytes_of(tmp_path / f"repacked{length}") == bytes_of(tmp_path / f"made{length}")


@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_stats_and_the_card_say_what_a_loop_over_the_documents_counts(tmp_path: Path, layout: Any) -> None:
    rows = records(40)
    recipe = SHORT.replace(pair_layout=layout)
    made = maskpipe.prepare(rows, tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=0)
    units = units_of(tmp_path / "out")
    documents = [document for unit in units for document in unit]
    pairs, shared = sum(len(unit) > 1 for unit in units), sum(len(unit) == 3 for unit in units)
    saved = sum(len(unit[0]) for unit in units if len(unit) == 3)
    tokens, loss = sum(map(len, documents)), sum(int(document.loss_mask.sum()) for document in documents)
    assert made.counts["pairs"] == pairs > 5 and made.counts["pairs_prompt_shared"] == shared
    assert made.counts["tokens_saved_by_sharing"] == saved and bool(saved) == (layout == "shared_prompt")
    found = Stats.of(maskpipe.open(tmp_path / "out")).to_dict()
    assert (found["documents"], found["tokens"], found["loss_tokens"]) == (len(documents), tokens, loss)
    read = found["records"]
    assert read["read"] == len(rows) == read["kept"] + sum(read["rejected"].values()) and read["rejected"]
    for role in (Role.USER, Role.ASSISTANT):
        mine = [document.role_ids == role for document in documents]
        trained = sum(int(document.loss_mask[at].sum()) for document, at in zip(documents, mine, strict=True))
        assert found["roles"][role.name.lower()] == {"tokens": sum(int(at.sum()) for at in mine), "loss": trained}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{len(documents):,} documents" in card and "objective `preference`" in card
    assert f"pairs {pairs:,}" in card and (f"tokens saved by sharing {saved:,}" in card) == bool(saved)


def test_repack_cuts_a_pair_as_prepare_does_and_refuses_what_it_would_reject(tmp_path: Path) -> None:
    turns = [assistant("a " + "sea " * 5), user("and"), assistant("b " + "sea " * 60)]
    rows = [pair([user("q")], turns, [assistant("no " + "gull " * 3)])]
    for layout in ("separate", "shared_prompt"):
        recipe = PREFERENCE.replace(pair_layout=layout)
        out = tmp_path / layout
        maskpipe.prepare(rows, out, tokenizer=TOKENIZER, recipe=recipe, workers=0)
        made = maskpipe.prepare(
            rows,
            tmp_path / f"{layout}100",
            tokenizer=TOKENIZER,
            recipe=recipe.replace(sequence_length=100),
            workers=0,
        )
        repacked = repack(out, tmp_path / f"{layout}re", sequence_length=100)
        assert made.counts["documents_truncated"] == 2 == repacked.counts["documents_truncated"]
        ours, theirs = bytes_of(tmp_path / f"{layout}re"), bytes_of(tmp_path / f"{layout}100")
        assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours)
        with pytest.raises(UsageError, match="prepare would reject it"):
            repack(out, tmp_path / "never", sequence_length=20)


@pytest.mark.usefixtures("small_steps")
def test_repack_keeps_weighted_pairs_and_their_copies(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", records(40))
    recipe = SHORT.replace(source_weights={source: 2.5}, pair_layout="shared_prompt", ranked_pairs="all")
    maskpipe.prepare(source, tmp_path / "a", tokenizer=TOKENIZER, recipe=recipe, workers=0)
    wanted = recipe.replace(sequence_length=320)
    maskpipe.prepare(source, tmp_path / "b", tokenizer=TOKENIZER, recipe=wanted, workers=0)
    repack(tmp_path / "a", tmp_path / "c", sequence_length=320)
    assert bytes_of(tmp_path / "c") == bytes_of(tmp_path / "b")


def test_merge_and_append_number_pairs_on(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", records(20)), write(tmp_path / "b.jsonl", records(20, seed=2))
    for name, source in (("a", first), ("b", second)):
        maskpipe.prepare(source, tmp_path / name, tokenizer=TOKENIZER, recipe=SHORT, workers=0)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    append(tmp_path / "a", second, tmp_path / "a+b", workers=0)
    verify(tmp_path / "ab")
    assert [len(units_of(tmp_path / name)) for name in ("ab", "a+b")] == [
        len(units_of(tmp_path / "a")) + len(units_of(tmp_path / "b"))
    ] * 2
    assert maskpipe.open(tmp_path / "ab").manifest.fingerprint == maskpipe.open(tmp_path / "a+b").manifest.fingerprint


def test_diff_sees_scores_labels_and_answers(tmp_path: Path) -> None:
    rows = records(30)
    scored = next(k for k, row in enumerate(rows) if "score_chosen" in row)
    labelled = next(k for k, row in enumerate(rows) if "label" in row)
    swapped = next(k for k, row in enumerate(rows) if "chosen" in row and k not in (scored, labelled))
    changed = [dict(row) for row in rows]
    changed[scored]["score_chosen"] = 77
    changed[labelled]["label"] = not changed[labelled]["label"]
    changed[swapped]["chosen"], changed[swapped]["rejected"] = changed[swapped]["rejected"], changed[swapped]["chosen"]
    source = tmp_path / "x.jsonl"
    for name, data in (("a", rows), ("b", rows), ("c", changed)):
        write(source, data)
        maskpipe.prepare(str(source), tmp_path / name, tokenizer=TOKENIZER, recipe=SHORT, workers=0)
    assert diff(tmp_path / "a", tmp_path / "b").same
    found = diff(tmp_path / "a", tmp_path / "c", examples=9)
    assert {example["row"] for example in found.examples} == {scored, labelled, swapped}
    assert found.differ["verdicts"] >= 2 and found.differ["tokens"] == 1


def test_a_run_that_stopped_goes_on_to_the_same_bytes(tmp_path: Path, small_steps: None) -> None:
    good = [row for row in records(60) if "chosen" in row and row["chosen"][0]["content"] != "same"]
    source = write(tmp_path / "a.jsonl", [*good, pair([user("q")], [assistant("same")], [assistant("same")])])
    with pytest.raises(RecordError, match="run the same command again"):
        maskpipe.prepare(
            source, tmp_path / "out", tokenizer=TOKENIZER, recipe=SHORT.replace(on_bad_record="stop"), workers=0
        )
    maskpipe.prepare(source, tmp_path / "out", tokenizer=TOKENIZER, recipe=SHORT, workers=0)
    maskpipe.prepare(source, tmp_path / "whole", tokenizer=TOKENIZER, recipe=SHORT, workers=0)
    ours, whole = bytes_of(tmp_path / "out"), bytes_of(tmp_path / "whole")
    assert {name for name in ours if ours[name] != whole[name]} <= {"recipe.yaml", "manifest.json", "manifest.sha256"}
    assert ours == whole


def test_explain_says_whose_answer_it_is_and_what_is_the_prompts(tmp_path: Path) -> None:
    history = [user("q"), assistant("old"), user("r")]
    rows = [{**pair(history, [assistant("yes")], [assistant("no")]), "score_chosen": 2, "score_rejected": 1}]
    for layout in ("separate", "shared_prompt"):
        shown = explain(rows, 0, encoder=Encoder(TOKENIZER, SHORT.replace(pair_layout=layout)))
        assert shown.conversation is not None and len(shown.conversation.messages) == 5  # type: ignore[union-attr]
        documents = shown.to_dict()["documents"]
        assert [(d["branch"], d["score"]) for d in documents][-2:] == [("chosen", 2.0), ("rejected", 1.0)]
        old = [
            t for d in documents for t in d["tokens"] if t["role"] == "assistant" and t["message"] == 1 and t["sampled"]
        ]
        assert old and {t["why"] for t in old} == {"prompt"}
        assert [turn["message"] for turn in shown.to_dict()["turns"]] == [1, 3, 4]
        for document in shown.documents:
            assert np.array_equal(Encoder(TOKENIZER, SHORT).policy.loss(document), document.loss_mask)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1, max_size=30),
    method=st.sampled_from(["best_fit", "first_fit", "none"]),
    cut=st.integers(1, 5),
)
def test_units_are_packed_as_documents_of_their_size_would_be(sizes: list[list[int]], method: Any, cut: int) -> None:
    """The plan of units, against packing their sums; and against it over stages, whose numbers begin anew."""
    recipe = Recipe(objective="preference", sequence_length=90, packing=method)
    lengths = np.array([size for unit in sizes for size in unit], np.int32)
    units = np.repeat(np.arange(len(sizes)), [len(unit) for unit in sizes])
    pieces = plan_units(lengths, units, recipe)
    whole = plan([sum(unit) for unit in sizes], 90, method)
    rows = [
        pieces.documents[a:b].tolist() for a, b in zip(pieces.row_offsets[:-1], pieces.row_offsets[1:], strict=True)
    ]
    expected = [
        [int(k) for unit in whole.documents[a:b] for k in np.flatnonzero(units == unit)]
        for a, b in zip(whole.row_offsets[:-1], whole.row_offsets[1:], strict=True)
    ]
    assert rows == expected
    stages = []
    for first in range(0, len(sizes), cut):
        part = sizes[first : first + cut]
        own = np.repeat(np.arange(len(part)), [len(unit) for unit in part]).astype(np.int32)
        stages.append(Stage(f"s{first}", np.array([s for unit in part for s in unit], np.int32), None, own))
    (shard,) = plan_shards(stages, recipe)
    assert shard.pairs is not None and np.array_equal(shard.pairs, units)
    assert np.array_equal(shard.pieces.documents, pieces.documents)


@pytest.mark.parametrize("template", ["", "no generation prompt", "the answers first"])
def test_a_shared_prompt_and_its_branches_are_both_conversations(template: str) -> None:
    """Against the slow twin, on random pairs, also of templates under which some or all prompts cannot be shared."""
    texts = {
        "no generation prompt": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        "the answers first": "{{ messages | length }} {{ messages[-1].content | length }}\n"
        "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|done|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}",
    }
    recipe = PREFERENCE.replace(ranked_pairs="all", chat_template=texts.get(template), on_history_rewrite="accept")
    encoders = [Encoder(TOKENIZER, recipe.replace(pair_layout=layout)) for layout in ("separate", "shared_prompt")]  # type: ignore[arg-type]
    seen: Counter[str] = Counter()
    for record in records(40, seed=7):
        try:
            read = read_all(record, recipe)
        except RecordError:
            continue
        if read.units()[0][1:]:
            apart, shared = (encode_all(encoder, read).encoded for encoder in encoders)
            assert (apart.refused is None) == (shared.refused is None)
            rest = list(shared.documents)
            for chosen, rejected in zip(apart.documents[::2], apart.documents[1::2], strict=True):
                size = shared_size(chosen, rejected)
                unit = [rest.pop(0) for _ in range(3 if size else 2)]
                assert sum(map(len, unit)) == len(chosen) + len(rejected) - size
                assert [key(document) for document in separate_of(unit)] == [key(chosen), key(rejected)]
                assert not size or (len(unit[0]) == size and not unit[0].loss_mask.any())
                seen["shared" if size else "apart"] += 1
            assert not rest
            assert shared.counts["tokens"] + shared.counts["tokens_saved_by_sharing"] == apart.counts["tokens"]
    assert seen["apart"] if template == "the answers first" else seen["shared"], seen
