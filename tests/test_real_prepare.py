"""Every real chat set goes through the whole preparation: each record and each token is somewhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from maskpipe import demo_data
from maskpipe.encoder import Encoder
from maskpipe.errors import UsageError
from maskpipe.recipe import Recipe
from maskpipe.records import add_records, new_batch
from maskpipe.sources import open_sources
from maskpipe.tokenizer import Tokenizer

RECORDS_PER_FILE = 120


@pytest.mark.shared
def test_the_first_records_of_every_set_are_kept_or_refused_and_no_token_is_lost(shared_data: Path) -> None:
    tokenizer = Tokenizer.load(demo_data.tokenizer())
    table = []
    for path in sorted((shared_data / "chats").rglob("*")):
        if not path.is_file() or path.name in ("LICENSE", "README.md"):
            continue
        plain = path.suffix in (".txt", ".rst")
        recipe = Recipe(on_bad_record="reject", sequence_length=2048, objective="pretrain" if plain else "sft")
        encoder = Encoder(tokenizer, recipe)
        total, lengths = new_batch(), []  # type: ignore[var-annotated]
        try:
            for chunk in open_sources(path, recipe).chunks():
                add_records(encoder, chunk, total, lengths, None, RECORDS_PER_FILE - total.records, None)
                if total.records >= RECORDS_PER_FILE:
                    break
        except UsageError as error:
            table.append((path.name, str(error)))
            continue
        reasons = Counter(entry["reason"] for entry in total.rejects)
        assert total.kept + sum(reasons.values()) == total.records
        gone = sum(
            count
            for name, count in total.counts.items()
            if name == "tokens_truncated" or name.startswith("tokens_dropped_")
        )
        assert sum(lengths) + gone == total.counts["tokens"], path.name
        table.append((path.name, f"{total.records} records, {total.kept} kept, {dict(reasons)}"))
    for name, said in table:
        print(f"{name:60} {said}")
    assert len(table) > 100
