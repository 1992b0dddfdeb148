"""The core's audit counts what its slow twin counts, whatever the facts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import _core
from maskpipe.auditing.checks import core_arguments
from maskpipe.auditing.defects import DEFECTS
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role, Verdict
from maskpipe.rules import RULES
from maskpipe.shards.format import DOCUMENT_DTYPE, NULLS, VERDICT_DTYPE, WEIGHT_DTYPE
from tests.auditing.forge import Row, to_rows
from tests.reference import audit as slow

VOCABULARY, CONTROL, STOP, UNKNOWN = 20, 3, 4, 5
RECIPES = (
    Recipe(),
    Recipe(train_on="assistant+-assistant.reasoning"),
    Recipe(train_on="last_turn"),
    Recipe(train_on="assistant+tool.content", on_history_rewrite="accept"),
    Recipe(train_on="turns:0", train_on_empty_reasoning=True),
    Recipe(objective="pretrain"),
)

tokens = st.tuples(
    st.integers(0, VOCABULARY - 1),
    st.sampled_from([3, 3, 3, 3, 2, 2, 4, 7, 8, 255, 0]),
    st.sampled_from([1, 1, 1, 2, 3, 4, 5, 5, 6, 6, 0]),
    st.sampled_from([0, 0, 1, 3, 3, 3, 2, 4, 6, 16, 17, 19]),
    st.sampled_from([-1, 0, 1, 1, 1, 2, 3, 3]),
)
stretches = st.lists(st.tuples(tokens, st.integers(1, 3)), min_size=1, max_size=12)
verdicts = st.dictionaries(st.sampled_from([1, 2, 3]), st.sampled_from([0, 0, 1, 2, 4, 3]), max_size=3)
documents = st.tuples(stretches, verdicts, st.sampled_from([-1, -1, 1, 3]), st.booleans(), st.booleans())


def made_row(given_documents: list[tuple], padding: int) -> tuple[Row, list]:  # type: ignore[type-arg]
    """A row of these documents, and what the twin needs of each."""
    dense: list[slow.Token] = []
    facts = np.zeros(len(given_documents), DOCUMENT_DTYPE)
    for name, missing in NULLS.items():
        facts[name] = missing
    known, weights, out = [], [], []
    for k, (parts, judged, turn, piece, weightless) in enumerate(given_documents):
        own = [token for token, n in parts for _ in range(n)]
        start = len(dense)
        dense += own
        facts[k] = (len(dense), 0, k, turn, 0, len(own) + piece, -1, 0, 0, np.nan, -1)
        known.append(np.array(sorted(judged.items()), VERDICT_DTYPE))
        half = start + len(own) // 2
        if weightless and half > start:
            weights.append((start, half, 0.0))
        zero = [0.0 if weightless and start + j < half else 1.0 for j in range(len(own))]
        out.append((own, turn, {m: Verdict(v) for m, v in judged.items()}, zero, piece))
    dense += [(9, 0, 0, 0, -1)] * padding
    columns = [np.array(column) for column in zip(*dense, strict=True)]
    row = Row(
        columns[0].astype(np.int32), *(column.astype(np.uint8) for column in columns[1:4]),
        columns[4].astype(np.int32), facts, known, np.array(weights, WEIGHT_DTYPE),
    )  # fmt: skip
    return row, out


@settings(deadline=None, max_examples=400)
@given(st.lists(documents, min_size=1, max_size=3), st.integers(0, 4), st.sampled_from(RECIPES))
def test_the_core_counts_what_the_slow_twin_counts(given_documents: list, padding: int, recipe: Recipe) -> None:  # type: ignore[type-arg]
    row, expected = made_row(given_documents, padding)
    policy = Policy.of(recipe)
    ids = np.zeros(VOCABULARY, np.uint16)
    ids[CONTROL], ids[STOP], ids[UNKNOWN] = 1, 4, 16
    audit = _core.Audit(
        (policy.rule, None if policy.turns is None else list(policy.turns), policy.accept_rewritten), len(row.ids),
        VOCABULARY, 9, ids, np.zeros(VOCABULARY, np.uint16), np.zeros(VOCABULARY, np.int8), [(0, 0)], [], (-1, -1),
        (-1, -1), True, False, 5,
    )  # fmt: skip
    audited = audit.add(**core_arguments(to_rows([row])), first_row=7)
    total: Counter[str] = Counter()
    for own, turn, judged, weights, piece in expected:
        total += slow.document(
            own, policy, turn, judged, weights, piece=piece, control=frozenset([CONTROL]), stops=frozenset([STOP]),
            unknown=UNKNOWN,
        )  # fmt: skip
    assert {name: n for name, n in audit.counts().items() if n} == dict(total)
    assert {name for name, *_ in audit.places()} == set(total)
    assert all(place[1] == 7 and 0 <= place[2] < place[3] <= len(row.ids) for place in audit.places())
    assert audited.document_tokens.tolist() == [len(own) for own, *_ in expected]
    assert audited.document_loss.tolist() == [sum(t[3] & Flag.LOSS > 0 for t in own) for own, *_ in expected]
    kinds = audit.kinds().reshape(10, 7, 3)
    assert kinds[:, :, 0].sum() == len(row.ids)
    assert kinds[:, :, 2].sum() == audited.document_loss.sum()
    assert kinds[9, :, 0].sum() == sum(t[1] == Role.UNKNOWN for own, *_ in expected for t in own)
    assert kinds[Role.ASSISTANT, Part.STOP, 0] == sum(t[1:3] == (3, 6) for own, *_ in expected for t in own)


def test_every_defect_of_the_core_has_a_code() -> None:
    zeros = np.zeros(1, np.uint16)
    policy = (Policy.of(Recipe()).rule, None, False)
    audit = _core.Audit(
        policy, 2, 1, 0, zeros, zeros, np.zeros(1, np.int8), [(0, 0)], [], (-1, -1), (-1, -1), False, False, 1
    )
    assert set(audit.counts()) == set(DEFECTS)
    assert {defect.code for defect in DEFECTS.values()} <= set(RULES)


def test_tables_of_another_size_are_refused() -> None:
    policy = (Policy.of(Recipe()).rule, None, False)
    zeros = np.zeros(3, np.uint16)
    with pytest.raises(ValueError, match="vocab_size entries"):
        _core.Audit(
            policy, 2, 4, 0, zeros, zeros, np.zeros(3, np.int8), [(0, 0)], [], (-1, -1), (-1, -1), False, False, 1
        )
