"""Small datasets for tests: documents with varied facts, packed and published the way the pipeline does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskpipe import pack
from maskpipe.document import Document
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role, Verdict
from maskpipe.shards.documents import documents_to_table
from maskpipe.shards.manifest import Manifest, ShardRecord, Source, json_lines
from maskpipe.shards.writer import publish, write_shard

VOCAB_SIZE, PAD_ID = 1000, 7
REJECTS = [{"source": 1, "row": 0, "reason": "bad_json", "message": "no é record \ud800"}]
DROPPED = [{"source": 0, "row": 1, "turn": 3, "policy": "train_on"}]


def chat(length: int, row: int, *, source: int = 0, weighted: bool = False) -> Document:
    """A chat of alternating turns of 5 header, user, … tokens; ids depend on the row."""
    token = np.arange(length)
    message = token // 9
    assistant = message % 2 == 1
    within = token % 9
    header, stop = within < 2, within == 8
    flags = np.where(assistant & ~header, int(Flag.SAMPLED | Flag.LOSS), 0)
    flags[(token % 31 == 17) & (flags > 0)] = int(Flag.STRADDLES)
    flags[token % 47 == 20] |= int(Flag.CUT_BEFORE)
    weights = np.where((token // 4) % 3 == 1, 0.5, np.where(token % 11 == 3, 2.0, 1.0)).astype(np.float32)
    return Document(
        input_ids=(10 + (token * 31 + row * 97) % (VOCAB_SIZE - 10)).astype(np.int32),
        role_ids=np.where(assistant, int(Role.ASSISTANT), int(Role.USER)).astype(np.uint8),
        part_ids=np.select([header, stop], [int(Part.SCAFFOLD), int(Part.STOP)], int(Part.CONTENT)).astype(np.uint8),
        flags=flags.astype(np.uint8),
        message_ids=message.astype(np.int32),
        weights=weights if weighted else None,
        source=source,
        row=row,
        turn=-1 if row % 4 else 1,
        verdicts={1: Verdict.EXACT, 3: Verdict.NO_STOP | Verdict.HISTORY_DIFFERS} if length > 30 else {},
    )


def chats(lengths: Sequence[int]) -> list[Document]:
    return [chat(length, row, weighted=row % 3 == 2) for row, length in enumerate(lengths)]


def publish_documents(
    out: Path,
    documents: Sequence[Document],
    *,
    sequence_length: int = 64,
    rows_per_shard: int = 4,
    method: pack.Method = "best_fit",
    recipe: Recipe | None = None,
    rejects: Sequence[Mapping[str, Any]] = REJECTS,
    dropped: Sequence[Mapping[str, Any]] = DROPPED,
    files: Mapping[str, bytes | Path] | None = None,
    vocab_size: int = VOCAB_SIZE,
) -> Manifest:
    """A dataset of these documents, all of source 0 with one record each; the records of source 1 are the rejects."""
    recipe = recipe or Recipe(sequence_length=sequence_length)
    plan = pack.plan([len(document) for document in documents], sequence_length, method)
    out.mkdir(parents=True)
    shards = write_shards(out, documents, plan, rows_per_shard, recipe=recipe, vocab_size=vocab_size)
    contents: dict[str, bytes | Path] = {
        "rejects.jsonl": json_lines(rejects),
        "dropped.jsonl": json_lines(dropped),
        "chat_template.jinja": b"{{ messages }}",
        **(files or {}),
    }
    reasons = [entry["reason"] for entry in rejects]
    policies = [entry["policy"] for entry in dropped]
    manifest = Manifest.build(
        shards,
        recipe=recipe,
        vocab_size=vocab_size,
        pad_id=PAD_ID,
        sources=[Source("chats.jsonl", "a" * 64, len(documents)), Source("more.jsonl", "b" * 64, len(rejects))],
        records_kept=len(documents),
        rejected={reason: reasons.count(reason) for reason in reasons},
        dropped={policy: policies.count(policy) for policy in policies},
        files=contents,
        role_names=["narrator", "critic"],
    )
    publish(out, manifest, files=contents, card="# A dataset\n", run={"machine": "here"})
    return manifest


def write_shards(
    out: Path, documents: Sequence[Document], plan: pack.Pieces, rows_per_shard: int, *, recipe: Recipe, vocab_size: int
) -> list[ShardRecord]:
    table = documents_to_table(documents)
    records = []
    for index, first in enumerate(range(0, plan.rows, rows_per_shard)):
        bounds = plan.row_offsets[first : first + rows_per_shard + 1]
        of = slice(bounds[0], bounds[-1])
        part = pack.Pieces(plan.documents[of], plan.starts[of], plan.stops[of], bounds - bounds[0])
        records.append(
            write_shard(
                out,
                index,
                table,
                part,
                sequence_length=recipe.sequence_length,
                pad_id=PAD_ID,
                vocab_size=vocab_size,
                recipe_fingerprint=recipe.fingerprint(),
            )
        )
    return records
