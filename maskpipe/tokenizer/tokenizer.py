"""Tokenizer: which ids does a text have, and which bytes does each token cover.

    text       <|im_start|> u s e r \\n H i <|im_end|>
    content                             ^^^                 characters that came from data
    tokens     [<|im_start|>][user][\\n][Hi][<|im_end|>]      ids of the `tokenizers` library for the whole text
    byte_ends        12        16   17   19     29          from the vocabulary alone; compared with the text

The whole text is encoded once (a long one in blocks, with the ids of the whole). Two things change that, and both are
counted: a control token inside content is encoded as the ordinary text it is, and a cut (the end of a generation
prompt) is kept where encoding would bridge it.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from maskpipe import _core
from maskpipe.errors import TokenizerError
from maskpipe.tokenizer import library
from maskpipe.tokenizer.added_tokens import AddedTokens, Occurrence, Owned, Scan
from maskpipe.tokenizer.files import (
    chat_template_of,
    configured_tokens,
    generation_stops_of,
    parsed,
    read,
    settings_of,
    special_tokens_of,
)
from maskpipe.tokenizer.library import Library
from maskpipe.tokenizer.nfc import nfc_groups
from maskpipe.tokenizer.positions import (
    NO_INT32,
    NO_INT64,
    Content,
    Int32,
    Int64,
    byte_positions,
    content_in_bytes,
    ends_of_offsets,
    in_characters,
    utf8,
)
from maskpipe.tokenizer.stretches import pieces_between, without_control
from maskpipe.tokenizer.vocabulary import (
    AddedToken,
    Lead,
    adds_space,
    check_config,
    entry_bytes,
    flat_table,
    parts,
    space_mark,
)

WINDOWS_KEPT = 4096
BLOCK = 8192
"""Characters, and bytes: longer texts go to the library in blocks of at least so many, where they can."""
ORDINARY, CONTROL, ODD = range(3)
"""AddedKind of csrc/align.h."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """The tokens of one text of b bytes in UTF-8. Token k covers the bytes [byte_ends[k - 1], byte_ends[k])."""

    input_ids: Int32  # [n]
    byte_ends: Int64  # [n] never descending, the last is b; n is 0 where the tokenizer makes nothing of the text.
    # Zero-width tokens: a space that the tokenizer adds, and all but the last of tokens that share characters which
    # the normaliser rewrote.
    cut_before: tuple[int, ...] = ()
    """Indices of tokens before which encoding was cut, where the cut changed something; ascending. What a later prompt
    encodes to then differs from what stands before it."""
    neutralised: tuple[tuple[int, int, str], ...] = ()
    """Control tokens in content that were encoded as ordinary text: (start, end) in characters of the text, token."""
    counts: dict[str, int] = field(default_factory=dict)
    """What happened, where it happened at all: `control_tokens_neutralised`, `kept` (control tokens that content was
    allowed), `cuts`, `marks` (U+2581 in the text, taken as spaces), `nfc_rewritten` (bytes of the text that the
    normaliser rewrote), `offsets_fallback` (tokens whose span comes from the library's offsets)."""


class Stretch(NamedTuple):
    """A range of the text and its tokens; byte positions are those of the whole text."""

    begin: int
    ids: Int32
    ends: Int64
    occurrences: list[Occurrence]
    tokens: list[int]
    """Per occurrence the index of its token."""
    stray: list[int]
    """Tokens with a control id that stand at no occurrence."""


class Tokenizer:
    """One tokenizer.json and what its folder says about chats. Not for sharing between threads."""

    @staticmethod
    def load(path_or_name: str | os.PathLike[str]) -> Tokenizer:
        """From a directory with tokenizer.json, from a tokenizer.json alone, or from a hub name like "org/name".

        Only a name with a slash that is no path goes over the network, for the small files in FILES.
        UsageError when there is no such thing, TokenizerError when it cannot be used.
        """
        return Tokenizer(*read(path_or_name))

    def __init__(self, files: dict[str, bytes], name: str = "") -> None:
        """From the contents of files named as in FILES; "tokenizer.json" must be there."""
        self.name = name
        self.files = dict(sorted(files.items()))
        digest = hashlib.sha256()
        for file, data in self.files.items():
            digest.update(f"{file}\0{len(data)}\0".encode())
            digest.update(data)
        self.fingerprint = digest.hexdigest()
        config = check_config(parsed(self.files, "tokenizer.json", name), name)
        self._library = library.load(self.files["tokenizer.json"].decode(), config, name)
        settings = settings_of(self.files, name)
        missing = configured_tokens(settings, self._library.added)
        self._has_more_tokens = bool(missing)
        if missing:
            self._library = self._library.with_added(missing)
        self._added = {token.content: token for token in self._library.added}
        self.added_tokens = {token.content: token.id for token in self._added.values()}
        self.special = frozenset(token.content for token in self._added.values() if token.special)
        self.swallows_before = frozenset(token.content for token in self._added.values() if token.lstrip)
        """Added tokens that take white space before them with them."""
        entries = entry_bytes(config)
        self.vocab_size = max([*entries, *self.added_tokens.values()], default=-1) + 1

        self._windows: dict[tuple[Lead, bytes], Int32] = {}
        self.control, self._stretches = without_control(config, self._library)
        """Added tokens that content may not write unless it is allowed to; and tokenizers of text that make none."""
        self._adds_space = adds_space(config)
        self._mark = space_mark(config).encode()
        self._nfc = any(parts(config.get("normalizer"), "NFC"))
        unknown = config["model"].get("unk_token")
        if config["model"].get("unk_id") is not None:
            unknown = config["model"]["vocab"][config["model"]["unk_id"]][0]
        self.unknown_id = None if unknown is None else self._library.id_of(unknown)

        for token in self._added.values():
            entries.setdefault(token.id, token.content.encode())
        self._bytes = [entries.get(id, b"") for id in range(self.vocab_size)]
        control = np.zeros(self.vocab_size, dtype=np.uint8)
        control[[self.added_tokens[content] for content in sorted(self.control)]] = 1
        self._table = _core.TokenTable(*flat_table(self._bytes), control)
        rewrites = any(parts(config.get("normalizer")))
        self._scanner = AddedTokens(
            self._scanned(), self.control, lambda lead: self._stretches.of(lead).normalizer if rewrites else None
        )
        self._prepare_plain()
        self.special_tokens = special_tokens_of(settings)
        """Names as templates know them ("eos_token") → text; only those that are set."""
        self.bos_token = self.special_tokens.get("bos_token", "")
        self.eos_token = self.special_tokens.get("eos_token", "")
        ids = [self._library.id_of(self.special_tokens.get(key, "")) for key in ("pad_token", "eos_token")]
        self.pad_id: int = next((id for id in ids if id is not None), 0)
        self.chat_template = chat_template_of(self.files, settings)
        stops = [self.eos_token] if self.eos_token else []
        for id in generation_stops_of(self.files, name):
            content = self._library.token_of(id) if 0 <= id < self.vocab_size else None
            if content is not None and content not in stops:
                stops.append(content)
        self.stop_tokens = tuple(stops)

    def _prepare_plain(self) -> None:
        """What the fast way needs; it is for tokenizers that look for added tokens in the raw text only."""
        self._strings: _core.Strings | None = None
        self.alphabet: _core.Alphabet | None = None
        """The same for the core; None where the fast way is not for this tokenizer."""
        if self._scanner.rewrites or self._scanner.normalised.tokens:
            return
        tokens = self._scanner.raw.tokens
        self._strings = self._scanner.raw.strings
        self._string_ids = np.array([token.id for token in tokens], np.int32)
        self._string_kinds = np.array(
            [
                ODD
                if token.lstrip or token.rstrip or token.single_word
                else CONTROL
                if token.content in self.control
                else ORDINARY
                for token in tokens
            ],
            np.uint8,
        )
        self.alphabet = _core.Alphabet(
            self._table, self._strings, self._string_ids, self._string_kinds, self._adds_space, self._mark
        )

    def _scanned(self) -> list[AddedToken]:
        """The tokens that have to be located: control tokens, and ordinary ones that could hide one or swallow text."""
        characters = set("".join(self.control))
        return [
            token
            for token in self._added.values()
            if token.content in self.control
            or self._adds_space
            or token.lstrip
            or token.rstrip
            or not characters.isdisjoint(token.content)
        ]

    # Small questions

    def token_bytes(self, id: int) -> bytes:
        """The bytes that token `id` stands for; b"" for an id without a token. IndexError outside the vocabulary."""
        if id < 0:
            raise IndexError(f"id {id} is negative")
        return self._bytes[id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, control tokens included; U+FFFD where the bytes are no UTF-8.

        A space that the tokenizer puts before a text is shown: it belongs to the first token.
        """
        return b"".join(self._bytes[int(id)] for id in ids).decode("utf-8", "replace")

    def is_control(self, text: str) -> bool:
        """Whether this text, all of it, is one control token."""
        return text in self.control

    def find_control(self, text: str) -> list[tuple[int, int, str]]:
        """Every control token that the tokenizer finds in the text: (start, end, token), characters, ascending."""
        raw = utf8(text)
        accepted = Scan(raw, self._scanner).find(0, len(raw), "start", None).accepted
        return in_characters(text, raw, [o for o in accepted if o.token.content in self.control])

    # Encoding

    def library_json(self) -> str:
        """tokenizer.json of this tokenizer, with the tokens that the settings add."""
        return self._library.json() if self._has_more_tokens else self.files["tokenizer.json"].decode()

    @property
    def model(self) -> Any:
        """The library's model, for other tokenizers of the same file."""
        return self._library.model

    def ids(self, texts: Sequence[str]) -> list[Int32]:
        """The ids of each text, taken whole, as the library makes them; control tokens wherever their text stands."""
        return [
            self._library.ids([text])[0]
            if len(text) <= BLOCK
            else np.concatenate(self._library.ids(self._blocks(text)))
            for text in texts
        ]

    def _blocks(self, text: str) -> list[str]:
        """A text in blocks whose ids, one after the other, are its own: the library's cost per character grows with the
        text. Each begins with an added token that is found in the raw text and takes nothing beside it, where the
        library starts anew; a tokenizer that has others is not trusted with it."""
        if self._strings is None or (self._string_kinds == ODD).any():
            return [text]
        raw = utf8(text)
        blocks, at = [], 0
        for occurrence in Scan(raw, self._scanner).find(0, len(raw), "start", None).accepted:
            if occurrence.start - at >= BLOCK:
                blocks.append(raw[at : occurrence.start].decode())
                at = occurrence.start
        return [*blocks, raw[at:].decode()]

    def encode(
        self, text: str, *, content: Sequence[tuple[int, int, frozenset[str] | None]] = (), cuts: Sequence[int] = ()
    ) -> Encoding:
        """The tokens of `text`, exactly as the library encodes it whole, without any token that it does not hold.

        content  (start, end, allowed) in characters, not overlapping: text that came from data. A control token that
                 touches such a range counts as one only if it lies wholly inside it and `allowed` holds it.
        cuts     ascending character positions where a generation prompt ends. Where the ids of the prompt alone are
                 no prefix, they replace what stands before the cut, and the rest goes on after it.

        RecordError (lone_surrogate) for text that is no Unicode, UsageError for ranges or cuts that make no sense,
        TokenizerError when spans or the control tokens of content cannot be established.
        """
        raw = utf8(text)
        return self.encode_bytes(
            text, raw, content_in_bytes(text, raw, content), byte_positions(text, raw, cuts), self.ids([text])[0]
        )

    def encode_bytes(self, text: str, raw: bytes, content: Content, cuts: Sequence[int], ids: Int32) -> Encoding:
        """As `encode`, for a text whose UTF-8 `raw` and `ids` are known; content and cuts in bytes, cuts ascending."""
        if not raw:
            return Encoding(NO_INT32, NO_INT64)
        if self._strings is not None:
            plain = _core.align_plain(
                ids,
                self._table,
                raw,
                self._strings,
                self._string_ids,
                self._string_kinds,
                content.starts,
                content.ends,
                np.array(cuts, np.int64),
                self._adds_space,
                self._mark,
            )
            if plain is not None and self._same_with_cuts(raw, ids, plain):
                return Encoding(ids, plain.ends, counts={"marks": plain.marks} if plain.marks else {})
        return self._encode(text, raw, content.owned(), cuts, ids)

    def _same_with_cuts(self, raw: bytes, ids: Int32, plain: _core.Plain) -> bool:
        """Whether every prompt that ends at a cut has ids that the whole text begins with."""
        for cut, start, token in zip(plain.cuts, plain.window_starts, plain.window_tokens, strict=True):
            prompt = self._window(raw, start, cut, [], "after_token" if token else "start")
            after = token + len(prompt)
            if after > len(ids) or (after > token and plain.ends[after - 1] != cut):
                return False
            if ids[token:after].tobytes() != prompt.tobytes():
                return False
        return True

    def _encode(self, text: str, raw: bytes, owned: Owned | None, cuts: Sequence[int], ids: Int32) -> Encoding:
        """The slow way, for any text."""
        counts: Counter[str] = Counter()
        scan = Scan(raw, self._scanner)
        found = scan.find(0, len(raw), "start", owned)
        stretch = None if found.rejected else self._encode_whole(text, raw, ids, found.accepted, owned, counts)
        if stretch is None:
            stretch = self._encode_range(raw, 0, len(raw), found.accepted, "start", owned, counts)
        cut_before: list[int] = []
        if cuts:
            stretch = self._cut(scan, stretch, cuts, owned, cut_before, counts)
        if owned is not None:
            counts["kept"] = sum(
                owned.touches(o.core_start, o.core_end) and o.token.content in self.control for o in stretch.occurrences
            )
        counts["control_tokens_neutralised"] = len(found.rejected)
        counts["cuts"] = len(cut_before)
        ends = stretch.ends
        if len(ends) and ends[-1] != len(raw):  # text after the last token that is no token belongs to it
            ends = ends.copy()
            ends[ends == ends[-1]] = len(raw)
        return Encoding(
            stretch.ids,
            ends,
            tuple(cut_before),
            tuple(in_characters(text, raw, found.rejected)),
            {key: count for key, count in sorted(counts.items()) if count},
        )

    def _encode_whole(
        self,
        text: str,
        raw: bytes,
        ids: Int32,
        occurrences: list[Occurrence],
        owned: Owned | None,
        counts: Counter[str],
    ) -> Stretch | None:
        """The library's own encoding of the whole text; None when content made a control token that is not located."""
        trial: Counter[str] = Counter()
        stretch = self._spans(raw, 0, len(raw), ids, occurrences, NO_INT32, "start", trial)
        if stretch is None:  # it is not plain which tokens belong to which piece
            trial.clear()
            stretch = self._encode_range(raw, 0, len(raw), occurrences, "start", None, trial)
            if not np.array_equal(stretch.ids, ids):
                offsets = self._offsets(self._library, text, ids)
                if offsets is None or owned is not None:
                    raise TokenizerError(
                        f"{self.name}: the added tokens of this tokenizer cannot be located exactly, so content cannot "
                        f"be kept apart from the template in {text[:200]!r}"
                    )
                trial = Counter(offsets_fallback=len(ids))
                stretch = Stretch(0, ids, ends_of_offsets(offsets, text), [], [], [])
        if owned is not None and self._from_content(stretch, owned):
            return None
        counts.update(trial)
        return stretch

    def _from_content(self, stretch: Stretch, owned: Owned) -> list[int]:
        """Tokens with a control id that hold text of content and stand where none was accepted."""
        return [
            k
            for k in stretch.stray
            if stretch.ids[k] != self.unknown_id
            and owned.touches(int(stretch.ends[k - 1]) if k else stretch.begin, int(stretch.ends[k]))
        ]

    def _encode_range(
        self,
        raw: bytes,
        begin: int,
        end: int,
        occurrences: list[Occurrence],
        lead: Lead,
        owned: Owned | None,
        counts: Counter[str],
    ) -> Stretch:
        """A range whose added tokens are decided: each piece as the library encodes it inside the text."""
        ids, tokens = self._range_ids(raw, begin, end, occurrences, lead)
        stretch = self._spans(raw, begin, end, ids, occurrences, np.array(tokens, np.int32), lead, counts)
        if stretch is None:
            raise TokenizerError(f"{self.name}: tokens cannot be mapped to the text {raw[begin:end][:200]!r}")
        if owned is not None and (made := self._from_content(stretch, owned)):
            token = self._library.token_of(int(stretch.ids[made[0]]))
            raise TokenizerError(
                f"{self.name}: cannot neutralise {token!r} in content: the vocabulary makes it from ordinary text. "
                "Allow it in content, or use a vocabulary without it."
            )
        return stretch

    def _range_ids(
        self, raw: bytes, begin: int, end: int, occurrences: list[Occurrence], lead: Lead
    ) -> tuple[Int32, list[int]]:
        """(ids, token index of each occurrence)."""
        pieces = pieces_between(begin, end, occurrences, lead)
        texts: dict[Lead, list[str]] = {}
        for piece in pieces:
            texts.setdefault(piece.lead, []).append(raw[piece.start : piece.end].decode())
        encoded = {lead: iter(self._stretches.of(lead).ids(batch)) for lead, batch in texts.items()}
        parts_of_ids: list[Int32] = []
        tokens: list[int] = []
        count, next_piece = 0, 0
        for occurrence in [*occurrences, None]:
            if next_piece < len(pieces) and (occurrence is None or pieces[next_piece].end <= occurrence.start):
                parts_of_ids.append(next(encoded[pieces[next_piece].lead]))
                count += len(parts_of_ids[-1])
                next_piece += 1
            if occurrence is not None:
                parts_of_ids.append(np.array([occurrence.token.id], np.int32))
                tokens.append(count)
                count += 1
        return (np.concatenate(parts_of_ids) if parts_of_ids else NO_INT32), tokens

    # Spans

    def _spans(
        self,
        raw: bytes,
        begin: int,
        end: int,
        ids: Int32,
        occurrences: list[Occurrence],
        tokens: Int32,
        lead: Lead,
        counts: Counter[str],
    ) -> Stretch | None:
        """Byte spans of the ids of one range; None when the occurrences are not found among them."""
        text = raw if begin == 0 and end == len(raw) else raw[begin:end]
        placed = _core.token_ends(
            ids,
            self._table,
            text,
            np.array([o.start - begin for o in occurrences], np.int64),
            np.array([o.end - begin for o in occurrences], np.int64),
            np.array([o.token.id for o in occurrences], np.int32),
            tokens,
            self._adds_space,
            self._mark,
        )
        if not placed.in_step:
            return None
        ends = placed.ends
        counts["marks"] += placed.marks
        if len(placed.failed):
            leads = {piece.start: piece.lead for piece in pieces_between(begin, end, occurrences, lead)}
            for first, after, start, stop in placed.failed.reshape(-1, 4).tolist():
                piece = leads.get(begin + start)
                mapped = piece and self._piece_ends(text[start:stop], ids[first:after], piece, counts)
                if mapped is None:
                    return None
                ends[first:after] = mapped + start
        if begin:
            ends = ends + begin
        return Stretch(begin, ids, ends, occurrences, placed.occurrence_tokens.tolist(), placed.stray.tolist())

    def _piece_ends(self, raw: bytes, ids: Int32, lead: Lead, counts: Counter[str]) -> Int64 | None:
        """Byte ends in a piece whose tokens do not print its bytes: rewritten or unknown text. None: not to be had."""
        text = raw.decode()
        if self._nfc and (nfc := unicodedata.normalize("NFC", text)) != text:
            mapped = self._nfc_ends(text, nfc, ids, counts)
            if mapped is not None:
                return mapped
        offsets = self._offsets(self._stretches.of(lead), text, ids)
        if offsets is None:
            return None
        counts["offsets_fallback"] += len(ids)
        return ends_of_offsets(offsets, text)

    def _nfc_ends(self, text: str, nfc: str, ids: Int32, counts: Counter[str]) -> Int64 | None:
        """Ends in the text as it stands, from ends in its NFC form: character groups that NFC maps alone correspond."""
        placed = _core.token_ends(
            ids, self._table, nfc.encode(), NO_INT64, NO_INT64, NO_INT32, NO_INT32, self._adds_space, self._mark
        )
        groups = nfc_groups(text)
        if len(placed.failed) or "".join(group for _, group in groups) != nfc:
            return None
        counts["marks"] += placed.marks
        to_text = [0]
        for source, group in groups:
            begin, size = to_text[-1], len(source.encode())
            if source == group:
                to_text.extend(range(begin + 1, begin + size + 1))
            else:  # a token that ends inside the group covers none of it; the one that ends it covers it all
                to_text.extend([begin] * (len(group.encode()) - 1) + [begin + size])
                counts["nfc_rewritten"] += size
        return np.array(to_text, np.int64)[placed.ends]

    def _offsets(self, library: Library, text: str, ids: Int32) -> list[tuple[int, int]] | None:
        """The library's character offsets, if it makes the same ids of this text."""
        own, offsets = library.offsets(text)
        return offsets if own == ids.tolist() else None

    # Cuts

    def _cut(
        self,
        scan: Scan,
        whole: Stretch,
        cuts: Sequence[int],
        owned: Owned | None,
        cut_before: list[int],
        counts: Counter[str],
    ) -> Stretch:
        """`whole` with every cut kept that changes something.

        What stands before an added token does not change what follows it. So only the end of the prompt is encoded
        again, from the last added token before the cut, and after the cut only what reaches to the next one.
        """
        raw = scan.raw
        since, since_token = 0, 0  # the last cut that changed something
        for cut in cuts:
            if not 0 < cut < len(raw):
                continue
            _, ids, ends, occurrences, tokens, _ = whole
            before = bisect_right(occurrences, cut, key=lambda occurrence: occurrence.end)
            lead: Lead
            if before and tokens[before - 1] >= since_token:
                last = occurrences[before - 1]
                start, token = last.end, tokens[before - 1] + 1
                lead = "after_normalized" if last.token.normalized else "after_token"
            else:
                before = bisect_left(tokens, since_token)
                start, token = since, since_token
                lead = "cut" if since else "start"
            alone = scan.find(start, cut, lead, owned).accepted if scan.may_hold(start, cut) else []
            prompt = self._window(raw, start, cut, alone, lead)
            after = token + len(prompt)
            same = after <= len(ids) and bool((ids[token:after] == prompt).all())
            if same and (after == token or ends[after - 1] == cut):
                continue
            head = self._encode_range(raw, start, cut, alone, lead, owned, counts)
            following = scan.find(cut, len(raw), "cut", owned).accepted
            join, meet = 0, bisect_left(occurrences, cut, key=lambda occurrence: occurrence.start)
            while join < len(following) and meet < len(occurrences) and following[join] != occurrences[meet]:
                if following[join].start < occurrences[meet].start:
                    join += 1
                else:
                    meet += 1
            if join < len(following) and meet < len(occurrences):
                stop, rest = following[join].start, tokens[meet]
            else:
                join, meet, stop, rest = len(following), len(occurrences), len(raw), len(ids)
            tail = self._encode_range(raw, cut, stop, following[:join], "cut", owned, counts)
            since, since_token = cut, token + len(head.ids)
            shift = since_token + len(tail.ids) - rest
            whole = Stretch(
                0,
                np.concatenate([ids[:token], head.ids, tail.ids, ids[rest:]]),
                np.concatenate([ends[:token], head.ends, tail.ends, ends[rest:]]),
                [*occurrences[:before], *head.occurrences, *tail.occurrences, *occurrences[meet:]],
                [
                    *tokens[:before],
                    *(token + k for k in head.tokens),
                    *(since_token + k for k in tail.tokens),
                    *(shift + k for k in tokens[meet:]),
                ],
                [],
            )
            cut_before.append(since_token)
        return whole

    def _window(self, raw: bytes, start: int, cut: int, occurrences: list[Occurrence], lead: Lead) -> Int32:
        """Ids of the end of a prompt. Mostly the same few characters, so they are kept."""
        if occurrences or cut - start > 256:
            return self._range_ids(raw, start, cut, occurrences, lead)[0]
        key = (lead, raw[start:cut])
        if key not in self._windows:
            if len(self._windows) >= WINDOWS_KEPT:
                self._windows.clear()
                if self.alphabet is not None:
                    self.alphabet.forget_windows()
            self._windows[key] = self._range_ids(raw, start, cut, [], lead)[0]
            if self.alphabet is not None and lead in ("start", "after_token"):
                self.alphabet.add_window(key[1], lead == "after_token", self._windows[key])
        return self._windows[key]
