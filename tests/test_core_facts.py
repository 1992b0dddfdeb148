"""The few values of roles.py that the core knows (csrc/facts.h) are those of roles.py."""

from __future__ import annotations

import numpy as np
import pytest

from maskpipe import _core
from maskpipe.roles import Flag, Part, Role


def one_token(role: int = Role.TEXT, part: int = Part.CONTENT, flags: int = 0) -> str | None:
    """The code of what check_rows finds in one row that is a document of two tokens, the second with these facts."""
    found = _core.check_rows(
        np.zeros(2, np.int32),
        np.array([1, 2], np.int32),
        np.array([Role.TEXT, role], np.uint8),
        np.array([Part.CONTENT, part], np.uint8),
        np.array([0, flags], np.uint8),
        np.zeros(2, np.int32),
        np.array([0, 2]),
        np.array([2], np.int32),
        np.array([0, 1]),
        np.array([1 if flags & Flag.LOSS else 0], np.int32),
        2,
        1,
    )
    return None if found is None else found.code


def test_every_value_of_roles_py_is_known_and_no_other() -> None:
    for value in range(256):
        known_role = "padding_in_document" if value == Role.PADDING else None
        assert one_token(role=value) == (known_role if value in set(Role) else "role"), f"role {value}"
        known_part = "padding_in_document" if value == Part.NONE else None
        assert one_token(part=value) == (known_part if value in set(Part) else "part"), f"part {value}"
        assert one_token(flags=value) == (None if value & ~sum(Flag) == 0 else "flags"), f"flags {value}"


@pytest.mark.parametrize("flags", range(32))
def test_layout_clears_loss_alone_and_pads_with_padding(flags: int) -> None:
    rows = _core.lay_out(
        np.array([5], np.int32), np.array([0, 1]),
        np.array([1], np.int32), np.array([Role.USER], np.uint8), np.array([Part.CONTENT], np.uint8),
        np.array([flags], np.uint8), np.array([3], np.int32), np.array([0, 1]),
        np.array([0]), np.array([0], np.int32), np.array([1], np.int32), np.array([0, 1]), 2, 9,
    )  # fmt: skip
    assert rows.input_ids.tolist() == [5, 9]
    assert rows.run_roles.tolist() == [Role.USER, Role.PADDING]
    assert rows.run_parts.tolist() == [Part.CONTENT, Part.NONE]
    assert rows.run_flags.tolist() == [flags & ~Flag.LOSS, 0]
    assert rows.run_messages.tolist() == [3, -1]
    assert rows.n_loss.tolist() == [0]
