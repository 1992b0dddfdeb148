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
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tmp_path_factory.mktemp("proof"), DEMO / "chats.jsonl")


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


def test_every_token_of_the_demo_is_proved(dataset: Dataset) -> None:
    proof = prove(dataset, DEMO / "chats.jsonl")
    assert codes(proof) == set() and not proof.cannot
    assert proof.tokens == dataset.manifest.totals.n_tokens
    assert proof.documents == dataset.manifest.totals.documents
    assert proof.records == dataset.manifest.records_kept


def test_a_sample_is_spread_and_the_same_each_time(dataset: Dataset) -> None:
    first, second = (prove(dataset, DEMO / "chats.jsonl", records=9) for _ in range(2))
    assert first.records == 9 and first.documents >= 9 and codes(first) == set()
    assert first.to_dict() == second.to_dict()


def test_the_public_way_and_the_command_say_the_same(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    from maskpipe.cli import main

    report = maskpipe.audit(dataset.path, source=DEMO / "chats.jsonl", proof=-1)
    assert report.proof.tokens == dataset.manifest.totals.n_tokens
    argv = ["audit", str(dataset.path), "--source", str(DEMO / "chats.jsonl"), "--proof", "all", "--format", "json"]
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["proof"] == report.proof.to_dict()


def test_a_proof_needs_its_source(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="give that as source"):
        maskpipe.audit(dataset.path, proof=-1)


# -- changed facts


def trained(document: Document, *, role: int = Role.ASSISTANT) -> int:
    """A token in the middle of the document with this role, content."""
    found = np.flatnonzero((document.role_ids == role) & (document.part_ids == Part.CONTENT))
    return int(found[len(found) // 2])


def plain(documents: list[Document], number: int) -> int:
    """The index of a document of one question and answer or more, with no turn apart."""
    fitting = [
        k
        for k, document in enumerate(documents)
        if document.turn < 0
        and all(
            np.count_nonzero((document.role_ids == role) & (document.part_ids == Part.CONTENT)) > 5
            for role in (Role.USER, Role.ASSISTANT)
        )
    ]
    return fitting[number]


def with_value(document: Document, name: str, at: int, value: int) -> Document:
    values = getattr(document, name).copy()
    values[at] = value
    return replace(document, **{name: values})


def _role(documents: list[Document]) -> tuple[int, int]:
    k = plain(documents, 3)
    at = trained(documents[k], role=Role.USER)
    documents[k] = with_value(documents[k], "role_ids", at, Role.ASSISTANT)
    return documents[k].row, at


def _part(documents: list[Document]) -> tuple[int, int]:
    k = plain(documents, 6)
    at = trained(documents[k])
    documents[k] = with_value(documents[k], "part_ids", at, Part.SCAFFOLD)
    return documents[k].row, at


def _sampled(documents: list[Document]) -> tuple[int, int]:
    k = plain(documents, 9)
    at = trained(documents[k], role=Role.USER)
    documents[k] = with_value(documents[k], "flags", at, int(documents[k].flags[at]) ^ Flag.SAMPLED)
    return documents[k].row, at


def _header(documents: list[Document]) -> tuple[int, int]:
    """The last token before the first sampled one: the prompt's."""
    k = plain(documents, 12)
    at = int(np.argmax(documents[k].sampled)) - 1
    documents[k] = with_value(documents[k], "flags", at, Flag.SAMPLED)
    return documents[k].row, at


def _stop(documents: list[Document]) -> tuple[int, int]:
    k = plain(documents, 15)
    at = int(np.flatnonzero(documents[k].part_ids == Part.STOP)[0])
    documents[k] = with_value(documents[k], "flags", at, 0)
    return documents[k].row, at


def _loss(documents: list[Document]) -> tuple[int, int]:
    k = plain(documents, 18)
    at = trained(documents[k])
    documents[k] = with_value(documents[k], "flags", at, int(documents[k].flags[at]) ^ Flag.LOSS)
    return documents[k].row, at


def _message(documents: list[Document]) -> tuple[int, int]:
    k = plain(documents, 21)
    at = trained(documents[k])
    documents[k] = with_value(documents[k], "message_ids", at, int(documents[k].message_ids[at]) + 2)
    return documents[k].row, at


def _id(documents: list[Document]) -> tuple[int, int]:
    k = plain(documents, 24)
    at = trained(documents[k])
    ids = documents[k].input_ids
    documents[k] = with_value(documents[k], "input_ids", at, int(ids[at]) ^ 1)
    return documents[k].row, at


def _weight(documents: list[Document]) -> tuple[int, int]:
    k = plain(documents, 27)
    at = trained(documents[k])
    weights = np.ones(len(documents[k]), np.float32)
    weights[at] = 0.5
    documents[k] = replace(documents[k], weights=weights)
    return documents[k].row, at


def _verdict(documents: list[Document]) -> tuple[int, int]:
    k = next(k for k, document in enumerate(documents) if document.verdicts and document.turn < 0)
    message = min(documents[k].verdicts)
    changed = documents[k].verdicts[message] ^ Verdict.NO_STOP
    documents[k] = replace(documents[k], verdicts={**documents[k].verdicts, message: changed})
    return documents[k].row, -1


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("MP605", _role),
        ("MP605", _part),
        ("MP607", _sampled),
        ("MP607", _header),
        ("MP607", _stop),
        ("MP608", _loss),
        ("MP606", _message),
        ("MP604", _id),
        ("MP609", _weight),
        ("MP610", _verdict),
    ],
)
def test_one_changed_fact_is_found_where_it_is(
    dataset: Dataset, tmp_path: Path, code: str, change: Callable[[list[Document]], tuple[int, int]]
) -> None:
    where: list[tuple[int, int]] = []
    changed = republished(dataset, tmp_path / "changed", lambda documents: where.append(change(documents)))
    proof = prove(changed, DEMO / "chats.jsonl")
    row, at = where[0]
    assert code in codes(proof)
    assert codes(proof) <= {code, "MP608"}, "one fact, and the loss that follows from it"
    assert proof.differ == 1
    found = of(proof, code)
    assert found.count == 1
    place = found.places[0]
    assert (place.source, place.record) == ("chats.jsonl", row)
    if at >= 0:
        sequence = changed[place.row]
        bounds = [0, *sequence.documents["end"].tolist()]
        k = int(np.searchsorted(bounds, place.start, "right")) - 1
        assert place.start - bounds[k] == at and place.end == place.start + 1
        assert int(sequence.documents["row"][k]) == row


def test_an_id_with_the_same_text_is_found(dataset: Dataset, tmp_path: Path) -> None:
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
    proof = prove(changed, DEMO / "chats.jsonl")
    assert codes(proof) == {"MP604"} and of(proof, "MP604").count == 2


def test_a_document_of_another_record_is_found(dataset: Dataset, tmp_path: Path) -> None:
    def change(documents: list[Document]) -> None:
        documents[10] = replace(documents[10], row=documents[11].row)

    changed = republished(dataset, tmp_path / "changed", change)
    proof = prove(changed, DEMO / "chats.jsonl")
    assert "MP602" in codes(proof)
    assert of(proof, "MP602").places[0].record == list(dataset.documents())[11].row


def test_a_document_that_is_not_there_is_found(dataset: Dataset, tmp_path: Path) -> None:
    documents = list(dataset.documents())
    k = next(k for k, document in enumerate(documents) if document.turn >= 0)
    rest = [d for n, d in enumerate(documents) if n != k]
    assert any(d.row == documents[k].row for d in rest), "its record has another document"
    changed = republished(dataset, tmp_path / "changed", lambda found: found.pop(k))
    proof = prove(changed, DEMO / "chats.jsonl")
    assert codes(proof) == {"MP603"}
    assert of(proof, "MP603").places[0].record == documents[k].row
    assert of(proof, "MP603").places[0].message == documents[k].turn


def test_another_source_is_a_finding_and_nothing_is_proved(dataset: Dataset, tmp_path: Path) -> None:
    text = (DEMO / "chats.jsonl").read_text(encoding="utf-8")
    (tmp_path / "chats.jsonl").write_text(text.replace("e", "a", 1), encoding="utf-8")
    proof = prove(dataset, tmp_path / "chats.jsonl")
    assert codes(proof) == {"MP601"} and proof.documents == 0
    assert proof.cannot == {"the source changed": dataset.manifest.totals.documents}
    assert proof.cannot_tokens == dataset.manifest.totals.n_tokens
