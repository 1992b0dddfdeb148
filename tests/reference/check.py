"""The invariants of a row, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence

from maskpipe.roles import Flag, Part, Role
from tests.reference.runs import Facts, expand

ORDER = (
    "document_ends", "run_ends", "role", "part", "flags", "message", "run_crosses_document", "padding_in_document",
    "tokens_after_documents", "padding_facts", "loss_on_first_token", "input_id", "n_loss",
)  # fmt: skip


def increasing(ends: Sequence[int], length: int) -> list[int]:
    """The ends before the first that does not increase or is beyond the row."""
    good: list[int] = []
    for end in ends:
        if not (good[-1] if good else 0) < end <= length:
            break
        good.append(end)
    return good


def violations(
    ids: Sequence[int],
    run_ends: Sequence[int],
    run_facts: Sequence[Facts],
    document_ends: Sequence[int],
    n_loss: int,
    length: int,
    vocab_size: int,
) -> list[tuple[int, str]]:
    """All (position, code) of one row, first one first."""
    found: list[tuple[int, str]] = []
    documents = increasing(document_ends, length)
    if documents != list(document_ends):
        found.append((documents[-1] if documents else 0, "document_ends"))
    ends = increasing(run_ends, length)
    if ends != list(run_ends) or (ends[-1] if ends else 0) != length:
        found.append((ends[-1] if ends else 0, "run_ends"))

    run_of = expand(list(zip(ends, range(len(ends)), strict=True)))
    last = documents[-1] if documents else 0
    first_tokens = [0, *documents[:-1]] if documents else []
    loss = 0
    for position, run in enumerate(run_of):
        role, part, flags, message = run_facts[run]
        wrong = {
            "role": role not in set(Role),
            "part": part not in set(Part),
            "flags": flags not in range(2 * max(Flag)),
            "message": message < -1,
            "run_crosses_document": position in documents and run_of[position - 1] == run,
            "padding_in_document": position < last
            and (role == Role.PADDING or (part == Part.NONE and role != Role.UNKNOWN)),
            "tokens_after_documents": position >= last and role != Role.PADDING,
            "padding_facts": position >= last and role == Role.PADDING and (part, flags, message) != (0, 0, -1),
            "loss_on_first_token": position in first_tokens and bool(flags & Flag.LOSS),
        }
        found += [(position, code) for code, is_wrong in wrong.items() if is_wrong]
        loss += bool(flags & Flag.LOSS)
    found += [(position, "input_id") for position, token in enumerate(ids) if not 0 <= token < vocab_size]
    if loss != n_loss:
        found.append((length, "n_loss"))
    return sorted(found, key=lambda entry: (entry[0], ORDER.index(entry[1])))
