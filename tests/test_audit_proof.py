"""The proof against the source: agrees with what prepare makes, and finds every fact that is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe import pack
from maskpipe.auditing.proof import Proof, prove
from maskpipe.auditing.trace import locate, trace
from maskpipe.document import Document
from maskpipe.errors import UsageError
from maskpipe.findings import Finding
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role, Verdict
from maskpipe.shards.documents import documents_to_table
from maskpipe.shards.manifest import Manifest
from maskpipe.shards.reader import Dataset
from maskpipe.shards.writer import publish, write_shard

DEMO = Path(maskpipe.__file__).parent / "demo_data"
TOKENIZER = DEMO / "tokenizer"
LENGTH = 512


def prepared(tmp: Path, source: Path, name: str = "out", **recipe: Any) -> Dataset:
    made = {"chat_template": str(DEMO / "chat_template.jinja")} if (DEMO / "chat_template.jinja").is_file() else {}
    wanted = Recipe(**{"sequence_length": LENGTH, "on_bad_record": "reject", **made, **recipe})
    maskpipe.prepare(str(source), str(tmp / name), tokenizer=str(TOKENIZER), recipe=wanted, workers=1)
    return maskpipe.open(tmp / name)


def written(tmp: Path, records: Sequence[Any], name: str = "chats.jsonl") -> Path:
    path = tmp / name
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proof") / "chats.jsonl"
    path.write_bytes(b"".join((DEMO / "chats.jsonl").read_bytes().splitlines(keepends=True)[:40]))
    return path


@pytest.fixture(scope="module")
def dataset(source: Path) -> Dataset:
    return prepared(source.parent, source)


def republished(dataset: Dataset, out: Path, change: Callable[[list[Document]], None]) -> Dataset:
    """A dataset with changed facts in which every hash and count is right."""
    documents = list(dataset.documents())
    change(documents)
    known = dataset.manifest
    plan = pack.plan([len(document) for document in documents], known.sequence_length, "best_fit")
    out.mkdir()
    record = write_shard(
        out, 0, documents_to_table(documents), plan, sequence_length=known.sequence_length, pad_id=known.pad_id,
        vocab_size=known.vocab_size, recipe_fingerprint=known.recipe_sha256,
    )  # fmt: skip
    files: dict[str, bytes | Path] = {
        file.name: (dataset.path / file.name).read_bytes() for file in known.files if file.name != "recipe.yaml"
    }
    manifest = Manifest.build(
        [record], recipe=Recipe.from_dict(known.recipe), vocab_size=known.vocab_size, pad_id=known.pad_id,
        sources=known.sources, records_kept=known.records_kept, rejected=known.rejected, dropped=known.dropped,
        files=files, role_names=known.role_names,
    )  # fmt: skip
    publish(out, manifest, files=files, card="# changed\n", run={})
    return maskpipe.open(out)


def codes(proof: Proof) -> set[str]:
    return {finding.code for finding in proof.findings if finding.code != "MP611"}


def of(proof: Proof, code: str) -> Finding:
    return next(finding for finding in proof.findings if finding.code == code)


# -- clean data


def test_every_token_of_the_demo_is_proved(dataset: Dataset, source: Path) -> None:
    proof = prove(dataset, source)
    assert codes(proof) == set() and not proof.cannot
    assert proof.tokens == dataset.manifest.totals.n_tokens
    assert proof.documents == dataset.manifest.totals.documents
    assert proof.records == dataset.manifest.records_kept


def test_a_sample_is_spread_and_the_same_each_time(dataset: Dataset, source: Path) -> None:
    first, second = (prove(dataset, source, records=9) for _ in range(2))
    assert first.records == 9 and first.documents >= 9 and codes(first) == set()
    assert first.to_dict() == second.to_dict()


def test_the_public_way_and_the_command_say_the_same(
    dataset: Dataset, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from maskpipe.cli import main

    report = maskpipe.audit(dataset.path, source=source, proof=-1)
    assert report.proof.tokens == dataset.manifest.totals.n_tokens
    argv = ["audit", str(dataset.path), "--source", str(source), "--proof", "all", "--format", "json"]
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["proof"] == report.proof.to_dict()


def test_a_proof_needs_its_source(dataset: Dataset, source: Path) -> None:
    with pytest.raises(UsageError, match="give that as source"):
        maskpipe.audit(dataset.path, proof=-1)


# -- changed facts


Random = np.random.Generator
Changed = tuple[Document, int] | None
"""A document with one fact changed, and the token whose fact it was; None where it has no such token."""


def some(document: Document, random: Random, role: int = Role.ASSISTANT, part: int = Part.CONTENT) -> int | None:
    """A token with this role and part, but not the first of the document."""
    found = np.flatnonzero((document.role_ids[1:] == role) & (document.part_ids[1:] == part)) + 1
    return int(random.choice(found)) if len(found) else None


def with_value(document: Document, name: str, at: int | None, value: Callable[[int], int]) -> Changed:
    if at is None:
        return None
    values = getattr(document, name).copy()
    before = int(values[at])
    values[at] = value(before)
    if values[at] == before:
        return None
    return replace(document, **{name: values}), at


def _role(document: Document, random: Random) -> Changed:
    return with_value(document, "role_ids", some(document, random, Role.USER), lambda _: Role.ASSISTANT)


def _part(document: Document, random: Random) -> Changed:
    return with_value(document, "part_ids", some(document, random), lambda _: Part.REASONING)


def _sampled(document: Document, random: Random) -> Changed:
    return with_value(document, "flags", some(document, random, Role.USER), lambda flags: flags ^ Flag.SAMPLED)


def _not_sampled(document: Document, random: Random) -> Changed:
    return with_value(document, "flags", some(document, random), lambda flags: 0)


def _header(document: Document, random: Random) -> Changed:
    """The last token of a prompt."""
    starts = np.flatnonzero(np.diff(document.sampled.astype(int)) > 0)
    return with_value(document, "flags", int(random.choice(starts)), lambda flags: flags | Flag.SAMPLED)


def _stop(document: Document, random: Random) -> Changed:
    return with_value(document, "flags", some(document, random, part=Part.STOP), lambda flags: 0)


def _loss(document: Document, random: Random) -> Changed:
    return with_value(document, "flags", some(document, random), lambda flags: flags ^ Flag.LOSS)


def _loss_on_user(document: Document, random: Random) -> Changed:
    return with_value(document, "flags", some(document, random, Role.USER), lambda flags: flags ^ Flag.LOSS)


def _message(document: Document, random: Random) -> Changed:
    return with_value(document, "message_ids", some(document, random), lambda message: message + 2)


def _id(document: Document, random: Random) -> Changed:
    return with_value(document, "input_ids", some(document, random), lambda id: id ^ 1)


def _weight(document: Document, random: Random) -> Changed:
    at = some(document, random)
    if at is None:
        return None
    weights = np.ones(len(document), np.float32) if document.weights is None else document.weights.copy()
    weights[at] = weights[at] / 2 + 0.25
    return replace(document, weights=weights), at


def _verdict(document: Document, random: Random) -> Changed:
    if not document.verdicts:
        return None
    message = int(random.choice(sorted(document.verdicts)))
    changed = document.verdicts[message] ^ Verdict.NO_STOP
    return replace(document, verdicts={**document.verdicts, message: changed}), -1


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("MP605", _role),
        ("MP605", _part),
        ("MP607", _sampled),
        ("MP607", _not_sampled),
        ("MP607", _header),
        ("MP607", _stop),
        ("MP608", _loss),
        ("MP608", _loss_on_user),
        ("MP606", _message),
        ("MP604", _id),
        ("MP609", _weight),
        ("MP610", _verdict),
    ],
)
def test_every_changed_fact_is_found_where_it_is(
    dataset: Dataset, source: Path, tmp_path: Path, code: str, change: Callable[[Document, Random], Changed]
) -> None:
    """One fact in each document, hashes and counts rewritten: at least 25 places, each found under its code."""
    random = np.random.default_rng(602_214)
    where: set[tuple[int, int, int]] = set()

    def change_all(documents: list[Document]) -> None:
        for k, document in enumerate(documents):
            made = change(document, random)
            if made is not None:
                documents[k] = made[0]
                where.add((document.row, document.turn, made[1]))

    changed = republished(dataset, tmp_path / "changed", change_all)
    proof = prove(changed, source)
    assert len(where) >= 25
    assert proof.differ == len(where) and of(proof, code).count == len(where)
    assert codes(proof) <= {code, "MP608"}, "one fact, and the loss that follows from it"
    assert proof.documents == dataset.manifest.totals.documents - len(where)
    for place in of(proof, code).places:
        sequence = changed[place.row]
        bounds = [0, *sequence.documents["end"].tolist()]
        k = int(np.searchsorted(bounds, place.start, "right")) - 1
        entry = sequence.documents[k]
        assert (place.source, place.record) == ("chats.jsonl", int(entry["row"]))
        assert place.file in {shard.name for shard in changed.manifest.shards}
        at = -1 if code == "MP610" else place.start - bounds[k]
        assert (place.record, int(entry["turn"]), at) in where
        assert code == "MP610" or place.end == place.start + 1


def test_an_id_with_the_same_text_is_found(dataset: Dataset, source: Path, tmp_path: Path) -> None:
    """Two tokens that spell what one spells: the text is the same, the ids are not."""
    tokenizer = maskpipe.Tokenizer.load(dataset.path)
    spelt = {tokenizer.token_bytes(k): k for k in range(tokenizer.vocab_size)}

    def change(documents: list[Document]) -> None:
        for k, document in enumerate(documents):
            for at in np.flatnonzero((document.part_ids == Part.CONTENT)[:-1]).tolist():
                both = b"".join(tokenizer.token_bytes(int(i)) for i in document.input_ids[at : at + 2])
                for cut in range(1, len(both)):
                    first, second = spelt.get(both[:cut]), spelt.get(both[cut:])
                    if first is not None and second is not None and first != document.input_ids[at]:
                        ids = document.input_ids.copy()
                        ids[at : at + 2] = first, second
                        documents[k] = replace(document, input_ids=ids)
                        return
        raise AssertionError("no such pair of tokens")

    changed = republished(dataset, tmp_path / "changed", change)
    proof = prove(changed, source)
    assert codes(proof) == {"MP604"} and of(proof, "MP604").count == 2


def test_a_document_of_another_record_is_found(dataset: Dataset, source: Path, tmp_path: Path) -> None:
    def change(documents: list[Document]) -> None:
        documents[10] = replace(documents[10], row=documents[11].row)

    changed = republished(dataset, tmp_path / "changed", change)
    proof = prove(changed, source)
    assert "MP602" in codes(proof)
    assert of(proof, "MP602").places[0].record == list(dataset.documents())[11].row


def test_a_document_that_is_not_there_is_found(dataset: Dataset, source: Path, tmp_path: Path) -> None:
    documents = list(dataset.documents())
    k = next(k for k, document in enumerate(documents) if document.turn >= 0)
    rest = [d for n, d in enumerate(documents) if n != k]
    assert any(d.row == documents[k].row for d in rest), "its record has another document"
    changed = republished(dataset, tmp_path / "changed", lambda found: found.pop(k))
    proof = prove(changed, source)
    assert codes(proof) == {"MP603"}
    assert of(proof, "MP603").places[0].record == documents[k].row
    assert of(proof, "MP603").places[0].message == documents[k].turn


def test_another_source_is_a_finding_and_nothing_is_proved(dataset: Dataset, source: Path, tmp_path: Path) -> None:
    text = (source).read_text(encoding="utf-8")
    (tmp_path / "chats.jsonl").write_text(text.replace("e", "a", 1), encoding="utf-8")
    proof = prove(dataset, tmp_path / "chats.jsonl")
    assert codes(proof) == {"MP601"} and proof.documents == 0
    assert proof.cannot == {"the source changed": dataset.manifest.totals.documents}
    assert proof.cannot_tokens == dataset.manifest.totals.n_tokens


# -- a token to its characters and back


def test_a_token_is_traced_to_its_characters_and_back(dataset: Dataset, source: Path) -> None:
    records = [json.loads(line) for line in (source).read_bytes().splitlines()]
    seen = 0
    assistant = [np.flatnonzero(dataset[row].sampled) for row in range(3)]
    for row, position in ((0, int(assistant[0][3])), (2, int(assistant[2][-9])), (0, 0), (1, 77)):
        found = trace(dataset, row, position, source=source)
        assert found.id == dataset[row].input_ids[position] and found.row == row
        if not found.origins:
            assert found.from_template or found.unknown
            continue
        seen += 1
        origin = found.origins[0]
        assert origin.text in found.text or found.text in origin.text
        held: Any = records[found.record]
        for step in origin.in_record.replace("]", "").replace("[", ".").split("."):
            held = held[int(step) if step.isdecimal() else step]
        size = origin.end - origin.start
        assert held[origin.record_start : origin.record_start + size] == origin.text
        message, _, field = origin.field.removeprefix("messages[").partition("].")
        back = locate(dataset, found.record, int(message), field, origin.start, source=source)
        assert (row, position) in [(token.row, token.position) for token in back]
    assert seen >= 2


def test_a_trace_without_the_source_shows_facts_and_says_what_is_missing(dataset: Dataset, source: Path) -> None:
    found = trace(dataset, 0, 5)
    assert not found.origins and "--source" in found.unknown and found.record >= 0
    with pytest.raises(UsageError, match="has rows 0 to"):
        trace(dataset, len(dataset), 0)
    with pytest.raises(UsageError, match="has positions 0 to"):
        trace(dataset, 0, LENGTH)


def test_a_trace_refuses_another_source(dataset: Dataset, source: Path, tmp_path: Path) -> None:
    written(tmp_path, [{"messages": [{"role": "user", "content": "x"}]}])
    with pytest.raises(UsageError, match="is not the file that was prepared"):
        trace(dataset, 0, 5, source=tmp_path / "chats.jsonl")


def test_the_command_traces_both_ways(dataset: Dataset, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maskpipe.cli import main

    def said(*argv: str) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["explain", str(dataset.path), "--source", str(source), *argv, "--format", "json"])
        assert ended.value.code == 0
        return json.loads(capsys.readouterr().out)

    there = said("--char", "3:1:content:5")["tokens"][0]
    back = said("--row", str(there["row"]), "--pos", str(there["position"]))
    assert back["record"] == 3 and back["id"] == there["id"]
    assert back["origins"][0]["field"] == "messages[1].content"
    assert back["origins"][0]["start"] <= 5 < back["origins"][0]["end"]


# -- what chats may hold


def chat(*said: Any) -> dict[str, Any]:
    """Messages of user and assistant in turn; a pair is a text and its weight."""
    messages = []
    for number, text in enumerate(said):
        content, weight = text if isinstance(text, tuple) else (text, None)
        message = {"role": "assistant" if number % 2 else "user", "content": content}
        messages.append(message if weight is None else {**message, "weight": weight})
    return {"messages": messages}


CHATS: list[dict[str, Any]] = [
    chat("Say <|im_end|> and <|im_start|>.", "<|im_end|> it is."),
    chat("  e\u0301 café \u1112\u1161\u11ab\n\n", "\n o\u0308 🙂 ok \n"),
    chat("a", ("b", 0.5), "c", "d", "e", ("f", 0)),
    chat("a", "b " * 90, "c", "long " * 400),
    chat("<user> & {{ x }} [INST]", "<think>\nwell\n</think>\n\nyes"),
    {"prompt": "p", "completions": ["one", "two"]},
]


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"train_on": ("assistant", "last_turn")},
        {"train_on": ("assistant", "user.content", "-assistant.stop")},
        {"train_on": ("all",)},
        {"on_history_rewrite": "accept"},
        {"control_tokens_in_content": "keep"},
        {"control_tokens_allowed": {"assistant": ["<|im_end|>"]}},
        {"objective": "pretrain", "packing": "concat_split"},
    ],
    ids=str,
)
def test_what_is_hard_is_proved_too(tmp_path: Path, recipe: dict[str, Any]) -> None:
    """Spelled-out control tokens, NFC, weights, truncation, inline reasoning, several conversations in a record."""
    source = written(tmp_path, CHATS)
    dataset = prepared(tmp_path, source, **recipe)
    proof = prove(dataset, source)
    assert codes(proof) == set() and not proof.cannot
    assert proof.tokens == dataset.manifest.totals.n_tokens > 0


def test_a_prompt_and_a_turn_of_which_not_as_much_can_be_exchanged_are_proved_as_one_document(tmp_path: Path) -> None:
    """The template strips the turn's content of newlines when it is last, which the prompt does not show."""
    template = (
        "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{%- if m.role == 'assistant' and loop.last -%}"
        "\n<think>\n\n</think>\n\n{{ m.content.lstrip('\n') }}{%- else -%}\n{{ m.content }}{%- endif -%}"
        "<|im_end|>\n{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
    )
    record = chat("a", '\n\n"quoted"\n', "b", "done")
    source = written(tmp_path, [record])
    dataset = prepared(tmp_path, source, chat_template=template)
    proof = prove(dataset, source)
    assert codes(proof) == set() and not proof.cannot and proof.documents == 2


@pytest.mark.parametrize("recipe", [{}, {"on_too_long": "split"}, {"packing": "concat_split"}], ids=str)
def test_plain_text_is_proved(tmp_path: Path, recipe: dict[str, Any]) -> None:
    texts = [{"text": "Short."}, {"text": "Long <|im_start|> text. " * 300}, {"text": "e\u0301" * 5}]
    source = written(tmp_path, texts)
    dataset = prepared(tmp_path, source, objective="pretrain", **recipe)
    proof = prove(dataset, source)
    assert codes(proof) == set() and not proof.cannot
    assert proof.tokens == dataset.manifest.totals.n_tokens > 0


def test_answers_with_a_label_are_proved(tmp_path: Path) -> None:
    labelled = [{"prompt": chat("a", "b", "c")["messages"], "completion": [answer("d")], "label": True}]
    source = written(tmp_path, labelled)
    dataset = prepared(tmp_path, source, objective="preference")
    proof = prove(dataset, source)
    assert codes(proof) == set() and not proof.cannot and proof.tokens == dataset.manifest.totals.n_tokens > 0


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIRS = [
    {"prompt": "p", "chosen": "one", "rejected": "two"},
    {"prompt": chat("a", "b", "c")["messages"], "chosen": [answer("d e f")], "rejected": [answer("g")]},
]


@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_preference_pairs_are_proved_and_what_is_changed_in_them_is_found(tmp_path: Path, layout: str) -> None:
    source = written(tmp_path, PAIRS)
    dataset = prepared(tmp_path, source, objective="preference", pair_layout=layout)
    proof = prove(dataset, source)
    assert codes(proof) == set() and not proof.cannot
    assert proof.tokens == dataset.manifest.totals.n_tokens > 0
    assert proof.documents == dataset.manifest.totals.documents
    other = [PAIRS[0], {**PAIRS[1], "chosen": [answer("d f f")]}]
    folder = tmp_path / "other"
    folder.mkdir()
    changed = prepared(folder, written(folder, other), objective="preference", pair_layout=layout)
    claims = replace(changed.manifest, sources=dataset.manifest.sources)
    found = prove(Dataset(changed.path, claims), source)
    assert codes(found) & {"MP602", "MP604"} and found.differ >= 1


def test_what_cannot_be_proved_is_counted_with_its_reason(tmp_path: Path) -> None:
    """A template that looks at single characters of the data prints something else for stand-ins."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | length if 'e' in m.content else 'none' }}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    source = written(
        tmp_path, [{"messages": [{"role": "user", "content": "see"}, {"role": "assistant", "content": "e"}]}]
    )
    dataset = prepared(tmp_path, source, chat_template=template)
    proof = prove(dataset, source)
    why = "the template prints something else when characters of the data are exchanged"
    assert proof.documents == 0 and codes(proof) == set()
    assert proof.cannot == {why: dataset.manifest.totals.documents}
    assert proof.cannot_tokens == dataset.manifest.totals.n_tokens
    assert of(proof, "MP611").count == dataset.manifest.totals.documents
