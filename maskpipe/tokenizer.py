"""Tokenizer: which ids does a text have, which bytes does each token cover, which text may become a control token.

    text      <|im_start|> u s e r \\n H i <|im_end|>
    content                            ^^^                   characters that came from data
    tokens    [<|im_start|>][user][\\n][Hi][<|im_end|>]      ids of the `tokenizers` library for the whole text
    byte_ends       12         16   17   19     29           from the vocabulary alone; compared with the text

The whole text is encoded once. Only two things change that, and both are counted: a control token inside content is
encoded as the ordinary text it is, and a cut (the end of a generation prompt) is kept where a token would bridge it.
Beyond the library's own encoding this costs about 5 % (benchmarks/bench_tokenizer.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from maskpipe import _core
from maskpipe.errors import RecordError, TokenizerError, UsageError
from maskpipe.vocabulary import (
    AddedToken,
    Config,
    Lead,
    adds_space,
    check_config,
    entry_bytes,
    flat_table,
    parts,
    space_mark,
    stretch_config,
    without_entries,
)

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Characters with the Unicode property White_Space: what lstrip and rstrip tokens swallow."""
WINDOWS_KEPT = 4096


@dataclass(frozen=True, eq=False)
class Encoding:
    """The tokens of one text of b bytes in UTF-8. Token k covers the bytes [byte_ends[k - 1], byte_ends[k])."""

    input_ids: Int32  # [n]
    byte_ends: Int64  # [n] never descending; the last is b. n is 0 where the tokenizer makes nothing of the text
    cut_before: tuple[int, ...] = ()
    """Indices of tokens before which encoding was cut, where the cut changed something; ascending."""
    neutralised: tuple[tuple[int, int, str], ...] = ()
    """Control tokens in content that were encoded as ordinary text: (start, end) in characters of the text, token."""
    counts: dict[str, int] = field(default_factory=dict)
    """What happened, where it happened at all: `neutralised`, `kept` (control tokens that content was allowed),
    `cuts`, `marks` (U+2581 in the text, taken as spaces), `nfc_rewritten` (bytes of the text that the normaliser
    rewrote), `offsets_fallback` (tokens whose span comes from the library's offsets)."""


class Occurrence(NamedTuple):
    """An added token in the text; bytes. The core is its own text, without whitespace that it swallowed."""

    start: int
    end: int
    core_start: int
    core_end: int
    token: AddedToken


class Piece(NamedTuple):
    """Text between two occurrences, a cut or an end; bytes."""

    start: int
    end: int
    lead: Lead
    prepend: bool


@dataclass(frozen=True)
class Owned:
    """The byte ranges that came from data, ascending, and the control tokens that each may hold."""

    starts: list[int]
    ends: list[int]
    allowed: list[frozenset[str]]

    def touches(self, start: int, end: int) -> bool:
        i = bisect_right(self.ends, start)
        return i < len(self.starts) and self.starts[i] < end

    def accepts(self, occurrence: Occurrence) -> bool:
        """Wholly in the template's text, or wholly in one range that may hold it."""
        start, end = occurrence.core_start, occurrence.core_end
        i = bisect_right(self.ends, start)
        if i == len(self.starts) or self.starts[i] >= end:
            return True
        return self.starts[i] <= start and end <= self.ends[i] and occurrence.token.content in self.allowed[i]


@dataclass
class Found:
    """Added tokens located in a range of the text."""

    accepted: list[Occurrence] = field(default_factory=list)
    rejected: list[Occurrence] = field(default_factory=list)


class Stretch(NamedTuple):
    """A range of the text and its tokens; byte positions are those of the whole text."""

    ids: Int32
    ends: Int64
    occurrences: list[Occurrence]
    occurrence_tokens: list[int]
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
        path = Path(path_or_name)
        if path.is_dir():
            files = {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
            if "tokenizer.json" not in files:
                raise UsageError(
                    f"{path}: no tokenizer.json in this directory. Save a fast tokenizer there "
                    "(`save_pretrained` writes one), or name another directory."
                )
            return Tokenizer(files, name=path.resolve().name)
        if path.is_file():
            return Tokenizer({"tokenizer.json": path.read_bytes()}, name=path.resolve().parent.name)
        name = os.fspath(path_or_name)
        if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
            raise UsageError(
                f"{name}: no such file or directory. Give a directory with tokenizer.json, a tokenizer.json, "
                "or a hub name like org/name."
            )
        return Tokenizer(_download(name), name=name)

    def __init__(self, files: dict[str, bytes], name: str = "") -> None:
        """From the contents of files named as in FILES; "tokenizer.json" must be there."""
        self.name = name
        self.files = dict(sorted(files.items()))
        digest = hashlib.sha256()
        for file, data in self.files.items():
            digest.update(f"{file}\0{len(data)}\0".encode())
            digest.update(data)
        self.fingerprint = digest.hexdigest()
        config = check_config(self._json("tokenizer.json"), name)
        self._config: Config = {key: config.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")}
        try:
            self._library = tokenizers.Tokenizer.from_str(self.files["tokenizer.json"].decode())
        except Exception as error:
            raise TokenizerError(f"{name}: the tokenizers library cannot load tokenizer.json: {error}") from error
        self._library.no_truncation()
        self._library.no_padding()
        self._added = {
            token.content: AddedToken(
                id, token.content, token.special, token.normalized, token.lstrip, token.rstrip, token.single_word
            )
            for id, token in sorted(self._library.get_added_tokens_decoder().items())
        }
        self.added_tokens = {token.content: token.id for token in self._added.values()}
        self.special = frozenset(token.content for token in self._added.values() if token.special)
        entries = entry_bytes(config)
        self.vocab_size = max([*entries, *self.added_tokens.values()], default=-1) + 1

        self._stretches: dict[str, Any] = {}
        self._windows: dict[tuple[Lead, bool, bytes], Int32] = {}
        self._model = self._library.model
        self._ordinary: list[AddedToken] = []
        self._choose_control(config)
        self._adds_space = adds_space(config)
        self._mark = space_mark(config).encode()
        self._normalises = any(parts(config.get("normalizer")))
        self._nfc = any(parts(config.get("normalizer"), "NFC"))
        unknown = config["model"].get("unk_token")
        if config["model"].get("unk_id") is not None:
            unknown = config["model"]["vocab"][config["model"]["unk_id"]][0]
        self._unknown_id = self._library.token_to_id(unknown) if unknown is not None else None

        for token in self._added.values():
            entries.setdefault(token.id, token.content.encode())
        self._bytes = [entries.get(id, b"") for id in range(self.vocab_size)]
        control = np.zeros(self.vocab_size, dtype=np.uint8)
        control[[self._added[content].id for content in sorted(self.control)]] = 1
        self._control_ids = frozenset(self._added[content].id for content in self.control)
        self._table = _core.TokenTable(*flat_table(self._bytes), control)
        self._locate_added()
        self._read_chat_files()

    # What the files say

    def _json(self, file: str) -> Any:
        try:
            return json.loads(self.files[file])
        except KeyError:
            raise UsageError(f"{self.name}: there is no {file}") from None
        except ValueError as error:
            raise TokenizerError(f"{self.name}: {file} is no valid JSON: {error}") from error

    def _choose_control(self, config: Config) -> None:
        """Sets `control`: every added token, except those that are ordinary vocabulary.

        Ordinary is what is not flagged special and what the model makes of the same text by itself (Gemma lists runs
        of newlines): no one can tell such a token from plain text, so it is encoded as in any text.
        """
        tokens = list(self._added.values())
        made: list[set[int]] = [set() for _ in tokens]
        alone = [True for _ in tokens]
        for lead in ("start", "cut"):
            stretch = self._stretch(lead, lead == "start")
            for i, encoded in enumerate(stretch.encode_batch([t.content for t in tokens], add_special_tokens=False)):
                made[i].update(encoded.ids)
                alone[i] = alone[i] and (encoded.ids == [tokens[i].id] or lead == "start")
        self._ordinary = [t for i, t in enumerate(tokens) if not t.special and alone[i]]
        ordinary = {token.content for token in self._ordinary}
        self.control = frozenset(token.content for token in tokens) - ordinary
        """Added tokens that data may not write unless it is allowed to."""
        self._stretches.clear()
        reached = frozenset(t.content for i, t in enumerate(tokens) if t.content in self.control and t.id in made[i])
        if reached:
            slim = without_entries(config, reached)
            slim = {key: slim[key] for key in ("version", "model") if key in slim}
            self._model = tokenizers.Tokenizer.from_str(json.dumps(slim)).model

    def _locate_added(self) -> None:
        """Builds the scanners: one for tokens looked for in the raw text, one for those in normalised text."""
        characters = set("".join(self.control))
        kept = [
            token
            for token in self._added.values()
            if token.content in self.control
            or self._adds_space
            or token.lstrip
            or token.rstrip
            or characters & set(token.content)
        ]
        # An ordinary token that shares no character with a control token neither hides one nor needs to be found.
        self._raw_tokens = [token for token in kept if not token.normalized]
        normalised: dict[bytes, AddedToken] = {}
        for token in kept:
            if token.normalized:
                content = token.content
                if self._normalises:
                    content = self._library.normalizer.normalize_str(content)
                if content:
                    normalised[content.encode()] = token
        self._normalised_tokens = list(normalised.values())
        self._normalised_sizes = [len(content) for content in normalised]
        self._raw_strings = _core.Strings([token.content.encode() for token in self._raw_tokens])
        self._normalised_strings = _core.Strings(list(normalised))
        self._raw_sizes = [len(token.content.encode()) for token in self._raw_tokens]

    def _read_chat_files(self) -> None:
        settings = self._json("tokenizer_config.json") if "tokenizer_config.json" in self.files else {}
        special = self._json("special_tokens_map.json") if "special_tokens_map.json" in self.files else {}
        generation = self._json("generation_config.json") if "generation_config.json" in self.files else {}
        for file, value in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
            if not isinstance(value, dict):
                raise TokenizerError(f"{self.name}: {file} is no JSON object")

        def named(key: str) -> str:
            value = settings.get(key) or special.get(key) or ""
            return str(value.get("content", "")) if isinstance(value, dict) else str(value)

        kinds = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        self.special_tokens = {key: named(key) for key in kinds if named(key)}
        """What transformers shows to chat templates by these names."""
        self.bos_token = named("bos_token")
        self.eos_token = named("eos_token")
        pad = self._library.token_to_id(named("pad_token")) if named("pad_token") else None
        eos = self._library.token_to_id(self.eos_token) if self.eos_token else None
        self.pad_id = int(pad if pad is not None else eos if eos is not None else 0)
        self.chat_template: str | None = None
        template = settings.get("chat_template")
        if "chat_template.jinja" in self.files:
            self.chat_template = self.files["chat_template.jinja"].decode()
        elif isinstance(template, str):
            self.chat_template = template
        elif isinstance(template, list):
            templates = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            self.chat_template = templates.get("default")
        ids = generation.get("eos_token_id") if isinstance(generation, dict) else None
        stops = [self.eos_token] if self.eos_token else []
        for id in ids if isinstance(ids, list) else [ids]:
            content = self._library.id_to_token(id) if isinstance(id, int) and 0 <= id < self.vocab_size else None
            if content is not None and content not in stops:
                stops.append(content)
        self.stop_tokens = tuple(stops)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that token `id` stands for; b"" for ids without a token. IndexError outside the vocabulary."""
        if id < 0:
            raise IndexError(f"id {id} is negative")
        return self._bytes[id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, special tokens included; U+FFFD where bytes are no UTF-8.

        A space that the tokenizer puts before every text is part of the text here: it belongs to the first token.
        """
        return b"".join(self._bytes[int(id)] for id in ids).decode("utf-8", "replace")

    def is_control(self, text: str) -> bool:
        """Whether this text, all of it, is one control token."""
        return text in self.control

    def find_control(self, text: str) -> list[tuple[int, int, str]]:
        """Every control token that the tokenizer finds in the text: (start, end, token), characters, ascending."""
        raw = _utf8(text)
        found = self._find(_Text(raw, self), 0, len(raw), None)
        return self._characters(text, raw, [o for o in found.accepted if o.token.content in self.control])

    def _characters(self, text: str, raw: bytes, occurrences: list[Occurrence]) -> list[tuple[int, int, str]]:
        def position(byte: int) -> int:
            return byte if len(raw) == len(text) else len(raw[:byte].decode())

        return [(position(o.core_start), position(o.core_end), o.token.content) for o in occurrences]

    # Encoding

    def encode(
        self,
        text: str,
        *,
        content: Sequence[tuple[int, int, frozenset[str] | None]] = (),
        cuts: Sequence[int] = (),
    ) -> Encoding:
        """The tokens of `text`, exactly as the library encodes it whole, without any token that it does not hold.

        content  (start, end, allowed) in characters, not overlapping: text that came from data. A control token that
                 touches such a range counts as one only if it lies wholly inside it and `allowed` holds it.
        cuts     ascending character positions where a generation prompt ends. Where the ids of the prompt alone are
                 no prefix, they replace what stands before the cut, and the rest goes on after it.

        RecordError (lone_surrogate) for text that is no Unicode, UsageError for ranges or cuts that make no sense,
        TokenizerError when spans or a content's control token cannot be established.
        """
        raw = _utf8(text)
        if not raw:
            return Encoding(np.zeros(0, np.int32), np.zeros(0, np.int64))
        owned, cut_bytes = self._positions(text, raw, content, cuts)
        counts: Counter[str] = Counter()
        scan = _Text(raw, self)
        found = self._find(scan, 0, len(raw), owned)
        whole: Stretch | None = None
        if not found.rejected:
            whole = self._encode_whole(text, raw, found.accepted, owned, counts)
        if whole is None:
            whole = self._encode_range(raw, 0, len(raw), found.accepted, "start", owned, counts)
        cut_before: list[int] = []
        if cut_bytes:
            whole = self._cut(scan, whole, cut_bytes, owned, cut_before, counts)
        if owned is not None:
            counts["kept"] += sum(
                o.token.content in self.control and owned.touches(o.core_start, o.core_end) for o in whole.occurrences
            )
        neutralised = self._characters(text, raw, found.rejected)
        counts["neutralised"] += len(neutralised)
        counts["cuts"] += len(cut_before)
        ends = whole.ends
        if len(ends) and ends[-1] != len(raw):  # what follows the last token and is no token belongs to it
            ends = ends.copy()
            ends[ends == ends[-1]] = len(raw)
        return Encoding(
            whole.ids, ends, tuple(cut_before), tuple(neutralised), {k: n for k, n in sorted(counts.items()) if n}
        )

    def _positions(
        self,
        text: str,
        raw: bytes,
        content: Sequence[tuple[int, int, frozenset[str] | None]],
        cuts: Sequence[int],
    ) -> tuple[Owned | None, list[int]]:
        ranges = sorted((start, end, allowed or frozenset()) for start, end, allowed in content if start != end)
        flat = [position for start, end, _ in ranges for position in (start, end)]
        if flat != sorted(flat) or (flat and (flat[0] < 0 or flat[-1] > len(text))):
            raise UsageError(f"content ranges overlap, are reversed or leave the text of {len(text)} characters")
        if list(cuts) != sorted(cuts) or (cuts and (cuts[0] < 0 or cuts[-1] > len(text))):
            raise UsageError(f"cuts {list(cuts)} do not ascend or leave the text of {len(text)} characters")
        cut_bytes = list(cuts)
        if len(raw) != len(text):
            flat = _core.char_to_byte(raw, np.array(flat, np.int64)).tolist()
            cut_bytes = _core.char_to_byte(raw, np.array(cut_bytes, np.int64)).tolist()
        owned = Owned(flat[::2], flat[1::2], [allowed for _, _, allowed in ranges]) if ranges else None
        return owned, sorted(set(cut_bytes))

    def _encode_whole(
        self, text: str, raw: bytes, occurrences: list[Occurrence], owned: Owned | None, counts: Counter[str]
    ) -> Stretch | None:
        """The library's own encoding of the whole text; None when content made a control token nobody located."""
        ids = _ids(self._library, [text])[0]
        trial: Counter[str] = Counter()
        stretch = self._spans(raw, 0, len(raw), ids, occurrences, "start", trial)
        if stretch is None:
            encoded = self._offsets(self._library, text, ids)
            if encoded is None or owned is not None:
                raise TokenizerError(
                    f"{self.name}: control tokens of this tokenizer cannot be located in the text exactly, "
                    "so content cannot be kept apart from the template; use another tokenizer.json"
                )
            ends = _ends_of_offsets(encoded, text, 0, len(raw))
            trial["offsets_fallback"] += len(ids)
            stretch = Stretch(ids, ends, [], [], [])
        if owned is not None and self._from_content(stretch, owned):
            return None
        counts.update(trial)
        return stretch

    def _from_content(self, stretch: Stretch, owned: Owned) -> list[int]:
        """Tokens with a control id that hold text of content and stand where none was accepted."""
        begin = stretch.occurrences[0].start if stretch.occurrences else 0
        return [
            k
            for k in stretch.stray
            if stretch.ids[k] != self._unknown_id
            and owned.touches(int(stretch.ends[k - 1]) if k else min(begin, int(stretch.ends[k])), int(stretch.ends[k]))
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
        prepend: bool = True,
    ) -> Stretch:
        """A range whose added tokens are decided, piece by piece, as the library encodes it inside the text."""
        ids = self._range_ids(raw, begin, end, occurrences, lead, prepend)
        stretch = self._spans(raw, begin, end, ids, occurrences, lead, counts, prepend)
        if stretch is None:
            raise TokenizerError(f"{self.name}: tokens cannot be mapped to the text {raw[begin:end][:200]!r}")
        if owned is not None and (made := self._from_content(stretch, owned)):
            token = self._library.id_to_token(int(stretch.ids[made[0]]))
            raise TokenizerError(
                f"{self.name}: cannot neutralise {token!r} in content: the vocabulary makes it from ordinary text. "
                "Allow it in content, or use a vocabulary without it."
            )
        return stretch

    def _pieces(self, begin: int, end: int, occurrences: list[Occurrence], lead: Lead, prepend: bool) -> list[Piece]:
        """The text between the occurrences; not the empty pieces, of which the library makes nothing."""
        pieces = []
        for occurrence in occurrences:
            if begin < occurrence.start:
                pieces.append(Piece(begin, occurrence.start, lead, prepend))
            begin, lead, prepend = occurrence.end, "inner", not occurrence.token.normalized
        if begin < end:
            pieces.append(Piece(begin, end, lead, prepend))
        return pieces

    def _range_ids(
        self, raw: bytes, begin: int, end: int, occurrences: list[Occurrence], lead: Lead, prepend: bool
    ) -> Int32:
        pieces = self._pieces(begin, end, occurrences, lead, prepend)
        texts: dict[tuple[Lead, bool], list[str]] = {}
        for piece in pieces:
            texts.setdefault((piece.lead, piece.prepend), []).append(raw[piece.start : piece.end].decode())
        encoded = {key: iter(_ids(self._stretch(*key), batch)) for key, batch in texts.items()}
        tokens: list[tuple[int, Int32]] = [(o.start, np.array([o.token.id], np.int32)) for o in occurrences]
        tokens += [(piece.start, next(encoded[piece.lead, piece.prepend])) for piece in pieces]
        tokens.sort(key=lambda entry: entry[0])
        return np.concatenate([ids for _, ids in tokens]) if tokens else np.zeros(0, np.int32)

    def _stretch(self, lead: Lead, prepend: bool) -> Any:
        """A library tokenizer that knows no control tokens and encodes a stretch as it is encoded inside a text."""
        normalizer, pre_tokenizer = stretch_config(self._config, lead, prepend)
        key = json.dumps([normalizer, pre_tokenizer])
        if key not in self._stretches:
            empty = {"type": "BPE", "vocab": {}, "merges": []}
            shell = tokenizers.Tokenizer.from_str(
                json.dumps({"version": "1.0", "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": empty})
            )
            shell.model = self._model
            shell.add_tokens(
                [
                    tokenizers.AddedToken(
                        token.content,
                        single_word=token.single_word,
                        lstrip=token.lstrip,
                        rstrip=token.rstrip,
                        normalized=token.normalized,
                    )
                    for token in self._ordinary
                ]
            )
            self._stretches[key] = shell
        return self._stretches[key]

    # Spans

    def _spans(
        self,
        raw: bytes,
        begin: int,
        end: int,
        ids: Int32,
        occurrences: list[Occurrence],
        lead: Lead,
        counts: Counter[str],
        prepend: bool = True,
    ) -> Stretch | None:
        """Byte spans of the ids of one range; None when the occurrences are not found among them."""
        text = raw if (begin, end) == (0, len(raw)) else raw[begin:end]
        positions = np.array([(o.start - begin, o.end - begin) for o in occurrences], np.int64).reshape(-1, 2)
        placed = _core.token_ends(
            ids,
            self._table,
            text,
            np.ascontiguousarray(positions[:, 0]),
            np.ascontiguousarray(positions[:, 1]),
            np.array([o.token.id for o in occurrences], np.int32),
            self._adds_space,
            self._mark,
        )
        if not placed.in_step:
            return None
        ends = placed.ends
        counts["marks"] += placed.marks
        leads = {piece.start: piece for piece in self._pieces(begin, end, occurrences, lead, prepend)}
        for first, after, start, stop in placed.failed.reshape(-1, 4).tolist():
            piece = leads.get(begin + start)
            text_ends = None if piece is None else self._piece_ends(text[start:stop], ids[first:after], piece, counts)
            if text_ends is None:
                return None
            ends[first:after] = start + text_ends
        return Stretch(
            ids, ends + begin if begin else ends, occurrences, placed.occurrence_tokens.tolist(), placed.stray.tolist()
        )

    def _piece_ends(self, raw: bytes, ids: Int32, piece: Piece, counts: Counter[str]) -> Int64 | None:
        """Byte ends in a piece whose tokens do not print its bytes: normalised or unknown text. None: not to be had."""
        text = raw.decode()
        if self._nfc and (nfc := unicodedata.normalize("NFC", text)) != text:
            mapped = self._nfc_ends(text, nfc, ids, counts)
            if mapped is not None:
                return mapped
        offsets = self._offsets(self._stretch(piece.lead, piece.prepend), text, ids)
        if offsets is None:
            return None
        counts["offsets_fallback"] += len(ids)
        return _ends_of_offsets(offsets, text, 0, len(raw))

    def _nfc_ends(self, text: str, nfc: str, ids: Int32, counts: Counter[str]) -> Int64 | None:
        """Ends in the text as it stands, from ends in its NFC form: character groups that NFC maps alone correspond."""
        none = np.zeros(0, np.int64)
        placed = _core.token_ends(
            ids, self._table, nfc.encode(), none, none, np.zeros(0, np.int32), self._adds_space, self._mark
        )
        groups = nfc_groups(text)
        if len(placed.failed) or "".join(group for _, group in groups) != nfc:
            return None
        counts["marks"] += placed.marks
        to_text: list[int] = [0]
        for source, group in groups:
            begin, size = to_text[-1], len(source.encode())
            if source == group:
                to_text.extend(range(begin + 1, begin + size + 1))
            else:  # a token that ends inside the group covers none of it; the one that ends it covers it all
                to_text.extend([begin] * (len(group.encode()) - 1) + [begin + size])
                counts["nfc_rewritten"] += size
        return np.array(to_text, np.int64)[placed.ends]

    def _offsets(self, library: Any, text: str, ids: Int32) -> list[tuple[int, int]] | None:
        """The library's character offsets, if it makes the same ids of this text."""
        encoded = library.encode(text, add_special_tokens=False)
        if encoded.ids != ids.tolist():
            return None
        offsets = getattr(encoded, "offsets", None)
        if offsets is None:
            raise TokenizerError(
                f"{self.name}: this tokenizer rewrites text, and the installed tokenizers library has no offsets to "
                "say how; install tokenizers<1, or use a tokenizer whose tokens spell the text"
            )
        return list(offsets)

    # Locating added tokens

    def _find(self, scan: _Text, begin: int, end: int, owned: Owned | None) -> Found:
        """The added tokens that the library finds in raw[begin:end] taken alone, less those that content may not have.

        First the tokens of the raw text, leftmost and longest; then, in the normalised pieces between them, the others.
        """
        found = Found()
        accepts = owned.accepts if owned is not None else None
        starts, strings = scan.raw_hits
        _choose(scan.raw, starts, strings, self._raw_tokens, self._raw_sizes, begin, end, self._judge(accepts), found)
        if not self._normalised_tokens:
            return found
        bounds = [begin, *(p for o in found.accepted for p in (o.start, o.end)), end]
        for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
            if start < stop:
                self._find_normalised(scan, start, stop, accepts, found)
        found.accepted.sort()
        found.rejected.sort()
        return found

    def _judge(self, accepts: Callable[[Occurrence], bool] | None) -> Callable[[Occurrence], bool] | None:
        if accepts is None:
            return None
        return lambda occurrence: occurrence.token.content not in self.control or accepts(occurrence)

    def _find_normalised(
        self, scan: _Text, begin: int, end: int, accepts: Callable[[Occurrence], bool] | None, found: Found
    ) -> None:
        judge = self._judge(accepts)
        if self._normalises:
            text = scan.raw[begin:end].decode()
            mapped = tokenizers.NormalizedString(text)
            self._library.normalizer.normalize(mapped)
            if mapped.normalized != text:
                return self._find_mapped(text, mapped, begin, judge, found)
        starts, strings = scan.normalised_hits
        _choose(scan.raw, starts, strings, self._normalised_tokens, self._normalised_sizes, begin, end, judge, found)
        return None

    def _find_mapped(
        self, text: str, mapped: Any, begin: int, judge: Callable[[Occurrence], bool] | None, found: Found
    ) -> None:
        """Tokens in normalised text, with positions carried back through the library's own alignment."""
        normalised = mapped.normalized.encode()

        def back(occurrence: Occurrence) -> Occurrence:
            start = len(normalised[: occurrence.start].decode())
            end = len(normalised[: occurrence.end].decode())
            tail = mapped.slice((start, len(mapped.normalized))).original if start else text
            first = len(text) - len(tail)
            last = len(mapped.slice((0, end)).original)
            first_byte, last_byte = begin + len(text[:first].encode()), begin + len(text[:last].encode())
            core = text[first:last].rfind(occurrence.token.content)
            if core < 0:
                return Occurrence(first_byte, last_byte, first_byte, last_byte, occurrence.token)
            core_start = begin + len(text[: first + core].encode())
            core_end = core_start + len(occurrence.token.content.encode())
            return Occurrence(first_byte, last_byte, core_start, core_end, occurrence.token)

        here = Found()
        starts, strings = (hits.tolist() for hits in self._normalised_strings.find(normalised))
        _choose(
            normalised,
            starts,
            strings,
            self._normalised_tokens,
            self._normalised_sizes,
            0,
            len(normalised),
            None if judge is None else (lambda occurrence: judge(back(occurrence))),
            here,
        )
        found.accepted += map(back, here.accepted)
        found.rejected += map(back, here.rejected)

    # Cuts

    def _cut(
        self,
        scan: _Text,
        whole: Stretch,
        cuts: list[int],
        owned: Owned | None,
        cut_before: list[int],
        counts: Counter[str],
    ) -> Stretch:
        """`whole` with every cut kept that changes something.

        What stands before a control token does not change what follows it, so the prompt is encoded again only from
        the last one before the cut.
        """
        raw = scan.raw
        since, since_token = 0, 0  # the last cut that changed something
        for cut in cuts:
            if not 0 < cut < len(raw):
                continue
            ids, ends, occurrences, tokens, _ = whole
            before = 0
            while before < len(occurrences) and occurrences[before].end <= cut:
                before += 1
            last = occurrences[before - 1] if before else None
            if last is not None and last.end >= since and tokens[before - 1] >= since_token:
                start, token, lead, prepend = last.end, tokens[before - 1] + 1, "inner", not last.token.normalized
            else:
                before = sum(o.end <= since for o in occurrences[:before])
                start, token = since, since_token
                lead, prepend = ("cut", False) if since else ("start", True)
            alone = self._find(scan, start, cut, owned).accepted if scan.hits_between(start, cut) else []
            prompt = self._window(raw, start, cut, alone, lead, prepend)  # type: ignore[arg-type]
            after = token + len(prompt)
            same = after <= len(ids) and np.array_equal(ids[token:after], prompt)
            if same and (not len(prompt) or ends[after - 1] == cut):
                continue
            head = self._encode_range(raw, start, cut, alone, lead, owned, counts, prepend)  # type: ignore[arg-type]
            following = self._find(scan, cut, len(raw), owned).accepted
            known = {(o.start, o.end, o.token.id): i for i, o in enumerate(occurrences)}
            join = next(
                (i for i, o in enumerate(following) if (o.start, o.end, o.token.id) in known and o.start >= cut),
                len(following),
            )
            if join < len(following):
                meet = known[following[join].start, following[join].end, following[join].token.id]
                stop, rest = following[join].start, tokens[meet]
            else:
                meet, stop, rest = len(occurrences), len(raw), len(ids)
            tail = self._encode_range(raw, cut, stop, following[:join], "cut", owned, counts, False)
            since, since_token = cut, token + len(head.ids)
            shift = since_token + len(tail.ids) - rest
            whole = Stretch(
                np.concatenate([ids[:token], head.ids, tail.ids, ids[rest:]]),
                np.concatenate([ends[:token], head.ends, tail.ends, ends[rest:]]),
                [*occurrences[:before], *head.occurrences, *tail.occurrences, *occurrences[meet:]],
                [
                    *tokens[:before],
                    *(token + k for k in head.occurrence_tokens),
                    *(since_token + k for k in tail.occurrence_tokens),
                    *(shift + k for k in tokens[meet:]),
                ],
                [],
            )
            cut_before.append(since_token)
        return whole

    def _window(
        self, raw: bytes, start: int, cut: int, occurrences: list[Occurrence], lead: Lead, prepend: bool
    ) -> Int32:
        """Ids of the end of a prompt. Mostly the same few characters, so they are kept."""
        if occurrences or cut - start > 256:
            return self._range_ids(raw, start, cut, occurrences, lead, prepend)
        key = (lead, prepend, raw[start:cut])
        if key not in self._windows:
            if len(self._windows) >= WINDOWS_KEPT:
                self._windows.clear()
            self._windows[key] = self._range_ids(raw, start, cut, [], lead, prepend)
        return self._windows[key]


class _Text:
    """A text and every place where an added token's string stands in it, looked up once."""

    def __init__(self, raw: bytes, tokenizer: Tokenizer) -> None:
        self.raw = raw
        self._tokenizer = tokenizer

    @cached_property
    def raw_hits(self) -> tuple[list[int], list[int]]:
        starts, strings = self._tokenizer._raw_strings.find(self.raw)
        return starts.tolist(), strings.tolist()

    @cached_property
    def normalised_hits(self) -> tuple[list[int], list[int]]:
        starts, strings = self._tokenizer._normalised_strings.find(self.raw)
        return starts.tolist(), strings.tolist()

    def hits_between(self, start: int, end: int) -> bool:
        """Whether an added token could lie in raw[start:end]."""
        if self._tokenizer._normalises and self._tokenizer._normalised_tokens:
            return True
        return any(
            bisect_left(starts, start) < bisect_left(starts, end) for starts, _ in (self.raw_hits, self.normalised_hits)
        )


def _choose(
    raw: bytes,
    starts: list[int],
    strings: list[int],
    tokens: list[AddedToken],
    sizes: list[int],
    begin: int,
    end: int,
    judge: Callable[[Occurrence], bool] | None,
    found: Found,
) -> None:
    """From all hits those that the library takes in raw[begin:end]: leftmost, then longest, of what `judge` accepts."""
    at = taken = reported = begin
    for i in range(bisect_left(starts, begin), len(starts)):
        start = starts[i]
        if start >= end:
            break
        stop = start + sizes[strings[i]]
        if start < at or stop > end:
            continue
        token = tokens[strings[i]]
        single = not token.single_word or not (
            _word(raw, start, begin, backward=True) or _word(raw, stop, end, backward=False)
        )
        left, right = start, stop
        if token.lstrip:
            left = max(taken, begin + len(raw[begin:start].decode().rstrip(WHITE_SPACE).encode()))
        if token.rstrip:
            after = raw[stop:end].decode()
            right = stop + len(after.encode()) - len(after.lstrip(WHITE_SPACE).encode())
        occurrence = Occurrence(max(left, taken), max(right, taken), start, stop, token)
        if judge is not None and not judge(occurrence):
            if single and stop > reported:
                found.rejected.append(occurrence)
                reported = stop
            continue
        at = stop  # the library does not look again inside a match that is no single word
        if single:
            taken = occurrence.end
            found.accepted.append(occurrence)


def _word(raw: bytes, position: int, limit: int, *, backward: bool) -> bool:
    """Whether a word character stands before (after) `position`, looking no further than `limit`."""
    if position == limit:
        return False
    if backward:
        character = raw[max(limit, position - 4) : position].decode(errors="ignore")[-1]
    else:
        character = raw[position : min(limit, position + 4)].decode(errors="ignore")[0]
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or character in "\u200c\u200d" or character.isalpha()


def nfc_groups(text: str) -> list[tuple[str, str]]:
    """(text, NFC of it) of the smallest groups of characters that can be normalised one by one."""
    groups: list[tuple[str, str]] = []
    group = ""
    normal = ""
    for character in text:
        alone = unicodedata.normalize("NFC", character)
        starts_anew = not unicodedata.combining(character) and not unicodedata.combining(alone[0])
        if group and starts_anew and unicodedata.normalize("NFC", group + character) == normal + alone:
            groups.append((group, normal))
            group = ""
        group += character
        normal = alone if group == character else unicodedata.normalize("NFC", group)
    if group:
        groups.append((group, normal))
    return groups


def _ends_of_offsets(offsets: list[tuple[int, int]], text: str, begin: int, end: int) -> Int64:
    """Byte ends of tokens from character offsets. Text that no token claims goes to the token after it, at the end to
    the last one; tokens that share characters are zero-width until the last of them."""
    characters = []
    reached = 0
    for i, (_, stop) in enumerate(offsets):
        if i + 1 < len(offsets):
            stop = min(stop, offsets[i + 1][0])
        reached = max(reached, stop)
        characters.append(reached)
    if characters:
        characters[-1] = len(text)
    return begin + _core.char_to_byte(text.encode(), np.array(characters, np.int64))


def _ids(library: Any, texts: list[str]) -> list[Int32]:
    encode = getattr(library, "encode_batch_fast", library.encode_batch)
    return [np.array(encoded.ids, dtype=np.int32) for encoded in encode(texts, add_special_tokens=False)]


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, which no "
            "tokenizer can encode; repair the record (often half of an escaped emoji) or skip it",
            reason="lone_surrogate",
        ) from None


def _download(name: str) -> dict[str, bytes]:
    from huggingface_hub import hf_hub_download  # not needed for anything local
    from huggingface_hub.errors import EntryNotFoundError

    files = {}
    for file in FILES:
        try:
            files[file] = Path(hf_hub_download(name, file)).read_bytes()
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise UsageError(
                f"{name}: no such directory, and the hub did not give {file}: {error}. "
                "Give a local directory with tokenizer.json, or check the name and the connection."
            ) from error
    if "tokenizer.json" not in files:
        raise UsageError(f"{name}: the hub has no tokenizer.json for it; convert it to a fast tokenizer first")
    return files
