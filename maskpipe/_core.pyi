"""Types of the C++ module. What each function promises stands in the header of the same name in csrc/.

Arrays are one-dimensional, contiguous and of exactly the dtype given here, else TypeError or ValueError that names the
argument; results are fresh arrays. Wrong values are ValueError, saying where. The GIL is released while working.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeVar, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import CapsuleType

_Int32 = npt.NDArray[np.int32]
_Int64 = npt.NDArray[np.int64]
_UInt8 = npt.NDArray[np.uint8]
_Bool = npt.NDArray[np.bool_]
_Batch = TypeVar("_Batch")

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

class Plain(NamedTuple):
    """The usual text."""

    ends: _Int64  # [tokens]
    marks: int
    cuts: list[int]
    window_starts: list[int]
    window_tokens: list[int]

def align_plain(
    ids: _Int32,
    table: TokenTable,
    text: bytes,
    strings: Strings,
    string_ids: _Int32,
    kinds: _UInt8,
    owned_starts: _Int64,
    owned_ends: _Int64,
    cuts: _Int64,
    prefix_space: bool,
    space_mark: bytes,
) -> Plain | None:
    """The span of each token of a text whose added tokens the template alone wrote; None for any other text."""

# csrc/spans.h

class SpanColumns(NamedTuple):
    ends: _Int64  # [spans] in bytes
    roles: _UInt8
    parts: _UInt8
    messages: _Int32
    flags: _UInt8
    """Flag.SAMPLED and Flag.EMPTY_REASONING."""

class SpanTable:
    """The spans of a text, from the origins of its characters and the turns in it."""

    def __init__(
        self,
        origins: Sequence[tuple[int, int, int, int, int]],
        leaves: Sequence[tuple[int, int, int, int]],
        roles: Sequence[int],
        turns: Sequence[tuple[int, int, int, int, int, int, int]],
        text: bytes,
    ) -> None: ...
    def columns(self) -> SpanColumns: ...
    def content(self) -> tuple[_Int64, _Int64, _UInt8]:
        """(starts, ends, roles) [ranges]: bytes that came from data."""

class TokenFacts(NamedTuple):
    """Facts of tokens."""

    roles: _UInt8  # [tokens]
    parts: _UInt8  # [tokens]
    flags: _UInt8  # [tokens]
    messages: _Int32  # [tokens]
    straddling: int
    straddling_parts: int

def token_facts(token_ends: _Int64, spans: SpanTable, cut_before: _Int32) -> TokenFacts:
    """What each token takes from the spans that it touches."""

# csrc/turns.h

class Located(NamedTuple):
    roles: _UInt8  # [ids]
    marks: _UInt8  # [ids] bits of Mark
    states: _UInt8  # [documents]
    bos: _Int32  # [documents]
    from_start: _UInt8  # [documents]
    turns: _Int64  # [4 * turns] document, start, end, stop (-1: none)
    openings: _Int64
    beginnings: _Int64

class DocumentStarts(NamedTuple):
    starts: _Bool
    wrong: _Int64

def count_marked(marked: _Bool, starts: _Int64, ends: _Int64) -> _Int64: ...
def count_values(values: _UInt8, marked: _Bool) -> _Int64: ...
def listed(ids: _Int32, table: _Bool) -> _Bool: ...
def marked_at_ends(marked: _Bool, offsets: _Int64) -> _Bool: ...
def first_marked(marked: _Bool, offsets: _Int64) -> _Bool: ...
def behind_last_marked(marked: _Bool, starts: _Int64, ends: _Int64) -> _Int64: ...
def mark_ranges(size: int, starts: _Int64, ends: _Int64) -> _Bool: ...
def starts_of_positions(positions: _Int64, real: _Bool, alone: _Bool, offsets: _Int64) -> DocumentStarts: ...
def starts_of_numbers(numbers: _Int64, real: _Bool, alone: _Bool, offsets: _Int64) -> DocumentStarts: ...
def locate_turns(
    ids: _Int32,
    starts: _Int64,
    ends: _Int64,
    joints: _Int32,
    joint_roles: _UInt8,
    joint_marks: _UInt8,
    joint_offsets: _Int64,
    from_roles: _UInt8,
    to_roles: _UInt8,
    needed: _Int32,
    control: _UInt8,
    allowed: npt.NDArray[np.uint16],
    bos: SupportsIndex,
    empty: _Int32,
    empty_offsets: _Int64,
) -> Located:
    """Where the turns of conversations stand in ids, by the joints that a template writes between contents."""

# csrc/engine.h, csrc/usual.h

class TemplateInput:
    """Messages, tools, documents and keyword arguments as a template is given them; their leaves as `wrap` has them."""

    def __init__(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        documents: list[Any] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> None: ...
    def leaves(self) -> list[tuple[int, int, int, int]]:
        """(role, part, message, end of inline reasoning) of each."""

class TurnHabits:
    """What `usual_turn` looks for: the header without white space around, tokens, and empty reasoning blocks."""

    def __init__(
        self, header: str, finals: Sequence[str], middles: Sequence[str], empty_blocks: Sequence[str]
    ) -> None: ...
    def remember(
        self,
        is_last: bool,
        tail: str,
        own: int,
        alone: str,
        alone_own: int,
        stop: tuple[int, int] | None,
        most: int,
    ) -> None:
        """What was found about the stop token between these literal texts (`Shown.usual_turn` says which): its place in
        `tail`, None where such a turn is not usual. Forgets the others when there are `most`."""

class Shown:
    """A render: its text, and origins as render.Trace has them. ValueError where Python has to do it."""

    def __init__(
        self, program: TemplateProgram, input: TemplateInput, count: int, add_generation_prompt: bool
    ) -> None: ...
    def text(self) -> str: ...
    def origins(self) -> tuple[tuple[int, int, int, int, int], ...]: ...
    def nulls(self) -> list[int]:
        """Messages at which null was printed as None, -1 for none."""

    def needs_comparison(self, one_in: int) -> bool:
        """Was a node that it ran not compared often enough, or does its text's hash choose it, as one in so many?"""

    def shows_all(self) -> bool:
        """Is every leaf shown, white space and role names aside? Where it is not known, no."""

    def usual_turn(
        self, index: int, habits: TurnHabits, one_in: int
    ) -> tuple[int, int, int, str, int, str, int] | Literal[False] | None:
        """(start, end of its own text, characters of an empty reasoning block, the literal text after it and how much
        of that is its own, the same where the turn is last); None for a turn that is not usual. Renders its prompt and
        the turn as the last one; False where the tracker has to make these too before they are trusted, as
        `needs_comparison` says; `one_in` is 0 when it did. ValueError unless this shows all messages without a
        prompt."""

    def spans(self, turns: Sequence[tuple[int, int, int, int, int, int, int]], text: bytes) -> SpanTable:
        """As SpanTable; `text` is its text in UTF-8."""

class TemplateProgram:
    """A chat template as nodes (op, numbers, text, kids) of csrc/engine.h."""

    def __init__(
        self,
        root: tuple[str, tuple[int, ...], str, tuple[Any, ...]],
        slots: int,
        clock: Sequence[tuple[str, str]],
        special: Sequence[tuple[str, str]],
    ) -> None: ...
    def render(self, input: TemplateInput, count: int, add_generation_prompt: bool) -> Shown | None:
        """The first `count` messages; None where Python has to do it."""

    def timed(self, on: bool) -> float:
        """From now on, is the time spent in renders to be measured? Returns what was until now: seconds of processor
        time."""

    def agree(self, shown: Shown) -> None:
        """It was compared with the tracker, and is the same."""

# csrc/loss.h

class LossRule:
    """A parsed policy: selectors (add, role, part), -1 for any."""

    def __init__(self, selectors: Sequence[tuple[int, int, int]], everything: bool, empty_reasoning: bool) -> None: ...

def kinds(parts: _UInt8, flags: _UInt8, messages: _Int32) -> _UInt8:
    """[tokens] the part that each token belongs to, wrappers with what they wrap."""

def mark_loss(
    rule: LossRule,
    roles: _UInt8,
    parts: _UInt8,
    flags: _UInt8,
    messages: _Int32,
    weights: npt.NDArray[np.float32] | None,
    none: bool,
    own: SupportsIndex,
    trainable: Sequence[int],
) -> _UInt8:
    """[tokens] the flags, with Flag.LOSS where the rule says so and nowhere else."""

# csrc/order.h

def rows_at(
    rows: _Int64,
    blocks: _Int64,
    windows: _Int64,
    shuffle: bool,
    keys: npt.NDArray[np.uint64],
    sources: _Int32,
    counts: _Int64,
) -> _Int64:
    """The row that stands at counts[k] of source sources[k]. Per source: its rows, rows of a block, blocks of a window
    (0: all), and four key words, one source after the other."""

class Interleaved(NamedTuple):
    sources: _Int32  # [positions]
    counts_before: _Int64  # [positions] of the source, before this position
    credits: _Int64  # [sources] after all positions
    counts: _Int64  # [sources]

def interleave(rates: _Int64, credits: _Int64, counts: _Int64, positions: SupportsIndex) -> Interleaved:
    """The next sources of a mixture; what each got is less than 1 from its share at every prefix."""

# csrc/reader.h

class Pool:
    """Pieces of memory of one size; a piece comes back when the last array or tensor over it is gone."""

    def __init__(self, size: SupportsIndex) -> None: ...
    def take(self) -> _UInt8:
        """[size], aligned to 64 bytes, with whatever was in it."""

class Reader:
    """Reads rows of datasets in threads of its own."""

    def __init__(
        self,
        sources: list[tuple[str, list[str], _Int64, _Int64, list[str], list[str], int, int]],
        sequence_length: SupportsIndex,
        threads: SupportsIndex,
        verify: str,
        io: str,
        random_access: bool,
        cache_bytes: SupportsIndex,
        open_files: SupportsIndex,
        policy: tuple[LossRule, list[int] | None, bool] | None,
        weights: npt.NDArray[np.float32],
    ) -> None:
        """A source is (directory, names, sizes, rows, regions, batches, batch_rows, pad_id); a policy (rule, turns,
        accept_rewritten); weights are [256 * 8] by role and part."""

    def blocks_decoded(self) -> int: ...
    def close_file(self, source: SupportsIndex, number: SupportsIndex) -> None:
        """Gives up the open file of a shard; it is opened again when it is needed. IndexError when there is none."""

# csrc/ipc.h

def footer_size(tail: bytes, file_size: SupportsIndex) -> int:
    """Bytes of the footer of an Arrow file, of its last 10 bytes. ValueError when there is none."""

def read_footer(footer: bytes, limit: SupportsIndex) -> list[tuple[int, int, int]]:
    """Offset, length of the metadata and of the body of each record batch, one after the other. ValueError when one
    begins in the one before it or ends after `limit`."""

def ids_place(metadata: bytes, body: SupportsIndex) -> tuple[int, int]:
    """Offset in the body, and length, of the ids of a record batch. ValueError when it is none of format v1."""

# csrc/stream.h

_Place = tuple[tuple[int, ...], tuple[int, ...], int, int]
"""counts, credits, position, within"""

# Of a batch that is read and proved (`given`, as it is in what Stream.next gives). ValueError for another capsule.

def delivered_fact(given: CapsuleType, name: str) -> CapsuleType:
    """As DLPack: sources int32, rows int64 [rows]; cu_seqlens int32 [segments + 1]; segment_numbers, parents int32,
    branches uint8, pairs int64, scores float32, desirable int8 [segments]; run_ends int32, run_roles, run_parts,
    run_loss uint8, run_weights float32 [runs]."""

def delivered_place(given: CapsuleType) -> _Place:
    """Where the run stands after it."""

def delivered_numbers(given: CapsuleType) -> tuple[int, int, bool]:
    """Tokens of the longest segment, tokens with loss, and whether a segment continues a prompt."""

def delivered_whole(given: CapsuleType) -> tuple[int, int, float, int] | None:
    """Of its global batch on all ranks: tokens with loss, pairs, sum of weights, documents with a thumb."""

def delivered_address(given: CapsuleType) -> int:
    """Where its memory begins."""

class Stream:
    """Batches of a run, one after the other. Stand somewhere before anything else."""

    def __init__(
        self,
        reader: Reader,
        rows: _Int64,
        blocks: _Int64,
        windows: _Int64,
        shuffle: bool,
        keys: npt.NDArray[np.uint64],
        global_batch: SupportsIndex,
        ranks: SupportsIndex,
        rank: SupportsIndex,
        batch: SupportsIndex,
        pad: bool,
        totals: bool,
        columns: dict[str, int],
        size: SupportsIndex,
        slots: Pool | Callable[[], _UInt8],
    ) -> None:
        """rows to keys as for rows_at. columns: where each that is wanted begins in a piece of `size` bytes, which
        slots gives."""

    def stand(self, place: _Place, rates: _Int64, end: SupportsIndex) -> None:
        """Goes on from a place. rates: of the mixture; end: sum of the counts where the pass ends, -1 for never."""

    def place(self) -> _Place:
        """After the batch that was given out last, or where it was told to stand."""

    def place_after(self, given: SupportsIndex) -> _Place:
        """The same, but without the last batch where more than `given` were given out since then."""

    def plan(self, place: _Place) -> tuple[_Int32, _Int64, _Place] | None:
        """Sources and rows of this rank's slice of the global batch after a place, and the place after it; None at the
        end of the pass."""

    def submit(self) -> bool:
        """Begins to read one more batch; False at the end of the pass."""

    def ahead(self) -> int: ...
    def next(
        self, depth: SupportsIndex, make: Callable[[CapsuleType], Any], kind: type[_Batch], run: object
    ) -> _Batch | None:
        """The oldest batch, with `depth` on their way; None at the end of the pass. It is an object of `kind`, made
        without its __init__, with these attributes: by their names, the dense columns over its memory, [rows,
        sequence_length] each, which `make` makes of DLPack; _given, for delivered_fact and the like; _run, as it
        was given here.
        RuntimeError, naming shard, region and rows, when a byte is not what it should be."""

# csrc/audit.h

class AuditedRows(NamedTuple):
    """What the rows of one call hold; documents of malformed rows are left out."""

    document_tokens: _Int32
    document_loss: _Int32
    document_turns: _Int32  # trained ones
    document_hash: npt.NDArray[np.uint64]  # of the ids
    document_origin: npt.NDArray[np.uint64]  # of source, record, turn, place and messages
    document_row: _Int64
    turn_first: _Int32  # [trained turns] ids
    turn_last: _Int32
    turn_stop: _Int32  # -1 without a stop, -2 where what is trained is in no turn
    turn_stop_trained: _UInt8

class Audit:
    """Looks at rows and keeps what it found; `ids`, `allowed` and `marks` have vocab_size entries."""

    def __init__(
        self,
        policy: tuple[LossRule, list[int] | None, bool],
        sequence_length: SupportsIndex,
        vocab_size: SupportsIndex,
        pad_id: SupportsIndex,
        ids: npt.NDArray[np.uint16],
        allowed: npt.NDArray[np.uint16],
        marks: npt.NDArray[np.int8],
        mark_bounds: list[tuple[int, int]],
        headers: list[list[int]],
        chat_bos: tuple[int, int],
        text_bos: tuple[int, int],
        stops_known: bool,
        may_cut: bool,
        max_places: SupportsIndex,
    ) -> None: ...
    def add(
        self,
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
        sources: _Int32,
        records: _Int64,
        turns: _Int32,
        starts: _Int32,
        lengths: _Int32,
        pairs: _Int64,
        branches: _UInt8,
        parents: _Int32,
        verdict_messages: _Int32,
        verdicts: _UInt8,
        verdict_offsets: _Int64,
        weight_starts: _Int32,
        weight_ends: _Int32,
        weights: npt.NDArray[np.float32],
        weight_offsets: _Int64,
        first_row: SupportsIndex,
    ) -> AuditedRows:
        """The rows that begin with row `first_row` of the dataset."""

    def counts(self) -> dict[str, int]:
        """Defect (csrc/audit.h) → how often."""

    def places(self) -> list[tuple[str, int, int, int, int]]:
        """(defect, row, start, end, document of the row or -1), at most max_places of each defect."""

    def kinds(self) -> _Int64:
        """[10 * 7, 3] by role * 7 + part (role 255 is 9): tokens, sampled, with loss."""

    def by_message(self) -> _Int64:
        """[1026, 3] of message -1, 0 … 1023, and above."""

    def by_source(self) -> _Int64:
        """[sources, 3]"""

    def by_script(self) -> _Int64:
        """[256, 3] by the high byte of `ids`; sampled is 0."""

# csrc/usual_record.h

class Documents:
    """Documents on their way into a table."""

    def __init__(self) -> None: ...
    def add(
        self,
        ids: _Int32,
        roles: _UInt8,
        parts: _UInt8,
        flags: _UInt8,
        messages: _Int32,
        turns: Sequence[int],
        verdicts: Sequence[int],
    ) -> None:
        """One more; five arrays [tokens], and message and verdict of each turn. ValueError when lengths differ."""

    def last(self) -> tuple[_Int32, _UInt8, _UInt8, _UInt8, _Int32]:
        """The first five of the document that was added last. IndexError when there is none."""

    def take(self) -> tuple[_Int32, _UInt8, _UInt8, _UInt8, _Int32, _Int64, _Int32, _UInt8, _Int64]:
        """(ids, roles, parts, flags, messages [tokens], offsets [documents + 1]; messages and verdicts of turns, their
        offsets [documents + 1]); none is left."""

class Alphabet:
    """What align_plain takes beside a text, and the ids of the ends of prompts."""

    def __init__(
        self,
        table: TokenTable,
        strings: Strings,
        string_ids: _Int32,
        string_kinds: _UInt8,
        prefix_space: bool,
        space_mark: bytes,
    ) -> None: ...
    def add_window(self, text: bytes, after_token: bool, ids: _Int32) -> None:
        """The ids of a text behind an added token, or at the start of a text."""

    def forget_windows(self) -> None: ...

class Draft:
    """A usual record before its text is tokenized."""

    def text(self) -> str: ...
    def size(self) -> int:
        """Bytes of the text in UTF-8."""

    def turns(self) -> list[int]:
        """Messages of its assistant turns, ascending."""

    def is_chosen(self, one_in: int) -> bool:
        """Is it one of so many, by the hash of its text?"""

class UsualRecords:
    def __init__(
        self,
        program: TemplateProgram,
        alphabet: Alphabet,
        rule: LossRule,
        turns: Sequence[int] | None,
        trains_others: bool,
        keeps_control: bool,
        sequence_length: int,
        max_text: int,
        one_in: int,
        columns: Sequence[str],
        max_messages: int,
    ) -> None: ...
    def read(self, line: bytes, habits: TurnHabits) -> Draft | None:
        """The draft of a line of JSON; None where the record is not usual."""

    def draft(self, input: TemplateInput, habits: TurnHabits) -> Draft | None: ...
    def settle(self, draft: Draft, ids: _Int32, documents: Documents) -> bool:
        """Adds its document; False, and nothing added, where it is not usual."""

    def counted(self) -> tuple[int, int, int, int, int, int]:
        """(tokens, with loss, straddling, straddling parts, marks, turns) of what was settled since the last time."""
