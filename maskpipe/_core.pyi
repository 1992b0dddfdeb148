"""Types of the C++ module. What each function promises stands in the header of the same name in csrc/.

Arrays are one-dimensional, contiguous and of exactly the dtype given here, else TypeError or ValueError that names the
argument; results are fresh arrays. Wrong values are ValueError, saying where. The GIL is released while working.
"""

from typing import NamedTuple, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

_Int32 = npt.NDArray[np.int32]
_Int64 = npt.NDArray[np.int64]
_UInt8 = npt.NDArray[np.uint8]

# csrc/pack.h

def best_fit(lengths: _Int32, capacity: SupportsIndex) -> tuple[_Int64, _Int64]:
    """(order [documents], offsets [bins + 1]): documents of bin b are order[offsets[b]:offsets[b + 1]]."""

def first_fit(lengths: _Int32, capacity: SupportsIndex) -> tuple[_Int64, _Int64]: ...

# csrc/runs.h

class Runs(NamedTuple):
    """Runs of documents; ends are relative to the document."""

    run_ends: _Int32  # [runs]
    run_roles: _UInt8  # [runs]
    run_parts: _UInt8  # [runs]
    run_flags: _UInt8  # [runs]
    run_messages: _Int32  # [runs]
    run_offsets: _Int64  # [documents + 1]

def encode_runs(roles: _UInt8, parts: _UInt8, flags: _UInt8, messages: _Int32, offsets: _Int64) -> Runs:
    """The fewest runs of dense facts [tokens]; tokens of document d are offsets[d]:offsets[d + 1]."""

@overload
def expand_runs(run_ends: _Int32, values: _UInt8, run_offsets: _Int64, lengths: _Int64 | SupportsIndex) -> _UInt8:
    """The value of each token, group after group; `lengths` is one per group, or one number for all."""

@overload
def expand_runs(run_ends: _Int32, values: _Int32, run_offsets: _Int64, lengths: _Int64 | SupportsIndex) -> _Int32: ...

# csrc/layout.h

class Rows(NamedTuple):
    """Rows of exactly sequence_length tokens; ends are relative to the row."""

    input_ids: _Int32  # [rows * sequence_length]
    run_ends: _Int32  # [runs]
    run_roles: _UInt8  # [runs]
    run_parts: _UInt8  # [runs]
    run_flags: _UInt8  # [runs]
    run_messages: _Int32  # [runs]
    row_run_offsets: _Int64  # [rows + 1]
    n_loss: _Int32  # [rows]
    piece_ends: _Int32  # [pieces]

def lay_out(
    ids: _Int32,
    id_offsets: _Int64,
    run_ends: _Int32,
    run_roles: _UInt8,
    run_parts: _UInt8,
    run_flags: _UInt8,
    run_messages: _Int32,
    run_offsets: _Int64,
    piece_documents: _Int64,
    piece_starts: _Int32,
    piece_stops: _Int32,
    row_offsets: _Int64,
    sequence_length: SupportsIndex,
    pad_id: SupportsIndex,
) -> Rows:
    """Rows of the planned pieces, then padding; the first token of each piece has Flag.LOSS cleared."""

# csrc/check.h

class Violation(NamedTuple):
    row: int
    position: int
    """Token in the row; sequence_length for what concerns the row as a whole."""
    code: str
    message: str

def check_rows(
    input_ids: _Int32,
    run_ends: _Int32,
    run_roles: _UInt8,
    run_parts: _UInt8,
    run_flags: _UInt8,
    run_messages: _Int32,
    row_run_offsets: _Int64,
    document_ends: _Int32,
    row_document_offsets: _Int64,
    n_loss: _Int32,
    sequence_length: SupportsIndex,
    vocab_size: SupportsIndex,
) -> Violation | None:
    """The first broken invariant in order of row and position, or None."""

# csrc/align.h

class Strings:
    """A set of byte strings that can be found in a text."""

    def __init__(self, strings: list[bytes]) -> None: ...
    def find(self, text: bytes) -> tuple[_Int64, _Int32]:
        """(starts [hits], string indices [hits]) of all hits, overlapping ones too; longest first at equal starts."""

class TokenTable:
    """The bytes of id i are bytes[offsets[i]:offsets[i + 1]]; control[i] is 1 for the id of a control token."""

    def __init__(self, offsets: _Int64, bytes: _UInt8, control: _UInt8) -> None: ...

class TokenEnds(NamedTuple):
    """Byte spans of tokens."""

    ends: _Int64  # [tokens]
    occurrence_tokens: _Int32  # [occurrences]
    stray: _Int32
    """Control ids at no occurrence: token indices."""
    failed: _Int64
    """Pieces whose bytes do not come out, four values each: tokens from, to; bytes from, to."""
    marks: int
    in_step: bool

def token_ends(
    ids: _Int32,
    table: TokenTable,
    text: bytes,
    starts: _Int64,
    ends: _Int64,
    occurrence_ids: _Int32,
    known_tokens: _Int32,
    prefix_space: bool,
    space_mark: bytes,
) -> TokenEnds:
    """The span of each token: the running sum of its byte length, compared with the text."""

def align_facts(token_ends: _Int64, span_ends: _Int64) -> tuple[_Int32, _Int32]:
    """(first, last) [tokens]: indices of the first and the last span that each token touches."""

def char_to_byte(text: bytes, positions: _Int64) -> _Int64:
    """Byte position of each character position in UTF-8 text; positions never descend."""
