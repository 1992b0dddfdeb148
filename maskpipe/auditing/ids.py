"""Ids and the characters that each covers, on the offsets path: the tokenizers library's own offsets, no byte sums.

The whole text is encoded once. Where data holds control tokens it is encoded piece by piece instead, between those that
the template wrote, by a tokenizer that knows no control tokens. Where a prompt ends inside what the whole text's tokens
bridge, the prompt's own ids stand before the cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from maskpipe.auditing.exchange import CannotProveError
from maskpipe.errors import UsageError
from maskpipe.tokenizer import Tokenizer
from maskpipe.tokenizer.library import HAS_PARTS

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]
_WINDOWS = 4096
_WORDS = 1 << 20
_TOGETHER = 64
"""Texts that go to the tokenizer together."""


@dataclass(frozen=True, eq=False)
class Spelled:
    """The tokens of one text; token k covers the characters [starts[k], ends[k]). Tokens that are parts of one
    character all cover it."""

    ids: Int32  # [n]
    starts: Int32  # [n]
    ends: Int32  # [n]
    cuts: tuple[int, ...] = ()
    """Tokens before which the encoding was cut, where that changed something."""
    neutralised: int = 0
    """Control tokens of the data that were encoded as text."""

    def __len__(self) -> int:
        return len(self.ids)


class Speller:
    """The offsets path of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, keep_control: bool) -> None:
        if not HAS_PARTS:
            raise UsageError(
                f"the proof takes offsets from the library, and tokenizers {tokenizers.__version__} has none; "
                "install tokenizers<1 to prove a dataset, whichever version it was prepared with"
            )
        self._config: dict[str, Any] = json.loads(tokenizer.library_json())
        self._config["post_processor"] = None  # it adds tokens, and trims offsets
        self._model = tokenizer.model
        if hasattr(self._model, "_resize_cache"):  # words it remembers; 10,000 as it comes
            self._model._resize_cache(_WORDS)
        self._whole = self._complete()
        added = [entry for entry in self._config["added_tokens"] if entry["content"] in tokenizer.control]
        self._control = {entry["content"]: entry for entry in added}
        self._odd = {e["content"] for e in added if e["lstrip"] or e["rstrip"] or e["single_word"] or e["normalized"]}
        self._control_ids = frozenset(entry["id"] for entry in added)
        self._is_control = np.zeros(max([tokenizer.vocab_size, *(e["id"] + 1 for e in added)]), bool)
        self._is_control[sorted(self._control_ids)] = True
        self._keep = keep_control
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) or "(?!)")
        self._slim: Any = None
        self._onward: Any = None
        self._windows: dict[tuple[str, str], tuple[int, ...]] = {}
        self._space = _adds_space(self._config)

    def spell(self, texts: Sequence[str]) -> list[Spelled]:
        """The tokens of each text, taken whole."""
        return [_spelled(encoding, 0) for encoding in self._whole.encode_batch(list(texts), add_special_tokens=False)]

    def spell_flat(self, texts: Sequence[str]) -> tuple[Int32, Int32, Int32, list[int]]:
        """As `spell`, for many texts: ids, starts and ends of all their tokens, one text behind the other, and how
        many tokens each has."""
        sizes, ids, offsets = [], [], []
        for start in range(0, len(texts), _TOGETHER):
            made = self._whole.encode_batch(list(texts[start : start + _TOGETHER]), add_special_tokens=False)
            own = [len(encoding) for encoding in made]
            count = sum(own)
            ids.append(np.fromiter(chain.from_iterable(encoding.ids for encoding in made), np.int32, count))
            both = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in made))
            offsets.append(np.fromiter(both, np.int32, 2 * count).reshape(-1, 2))
            sizes += own
        spans = np.concatenate([np.zeros((0, 2), np.int32), *offsets])
        return np.concatenate([np.zeros(0, np.int32), *ids]), spans[:, 0], spans[:, 1], sizes

    def is_control(self, ids: Int32) -> Bool:
        """[n] which of these are control tokens."""
        out: Bool = self._is_control[ids]
        return out

    def holds_control(self, text: str) -> bool:
        """Does a control token stand in the text?"""
        return self._pattern.search(text) is not None

    def behind_control(self, text: str) -> int:
        """Where the last control token of the text ends, -1 where it has none."""
        ends = [match.end() for match in self._pattern.finditer(text)]
        return ends[-1] if ends else -1

    def window(self, tail: str) -> tuple[int, ...] | None:
        """The ids of what a prompt has behind its last control token; None where another one is among them."""
        ids = self._window(tail, "after a token", False)
        return None if self._is_control[list(ids)].any() else ids

    def settle(
        self, text: str, whole: Spelled, data: Bool, allowed: Sequence[frozenset[str]] | None, cuts: Sequence[int]
    ) -> Spelled:
        """The tokens of a text whose characters in `data` [n] came from data, with the prompts' ends kept.

        allowed: per character the control tokens that it may be part of; None where none may be.
        """
        out = whole
        found: list[tuple[int, int, str]] | None = None
        if not self._keep and self._from_data(text, whole, data, allowed):
            found = self._found(text, data, allowed)
            out = self._piece_by_piece(text, found, 0, len(text))
            if self._from_data(text, out, data, allowed):
                raise CannotProveError("the vocabulary makes control tokens from ordinary text")
        for cut in cuts:
            out = self._keep_cut(text, out, cut, found)
        return out

    def _from_data(self, text: str, spelled: Spelled, data: Bool, allowed: Sequence[frozenset[str]] | None) -> bool:
        """Does a control token hold a character of the data that may hold none?"""
        control = np.flatnonzero(self._is_control[spelled.ids])
        for k in control.tolist():
            start, end = int(spelled.starts[k]), int(spelled.ends[k])
            if data[start:end].any():
                content = text[start:end].strip()
                inside = bool(data[start:end].all())
                if allowed is None or not inside or not all(content in allowed[at] for at in range(start, end)):
                    return True
        return False

    def _found(self, text: str, data: Bool, allowed: Sequence[frozenset[str]] | None) -> list[tuple[int, int, str]]:
        """The control tokens of a text that the template wrote, or the data may write; left to right, longest first."""
        if self._odd or self._space:
            raise CannotProveError("control tokens in data, with a tokenizer whose added tokens take text with them")
        words = sorted(self._control, key=len, reverse=True)
        out = []
        at = 0
        while (match := self._pattern.search(text, at)) is not None:
            begin = match.start()
            at = begin + 1
            for word in words:
                end = begin + len(word)
                if not text.startswith(word, begin):
                    continue
                touched = data[begin:end]
                if not touched.any() or (
                    touched.all() and allowed is not None and all(word in allowed[k] for k in range(begin, end))
                ):
                    out.append((begin, end, word))
                    at = end
                    break
        return out

    def _piece_by_piece(self, text: str, found: Sequence[tuple[int, int, str]], at: int, stop: int) -> Spelled:
        """text[at:stop], in which these are its control tokens."""
        parts: list[Spelled] = []
        for start, end, word in [*found, (stop, stop, "")]:
            if start > at:
                parts.append(_spelled(self._without_control.encode(text[at:start], add_special_tokens=False), at))
            if word:
                one = np.array([start, end], np.int32)
                parts.append(Spelled(np.array([self._control[word]["id"]], np.int32), one[:1], one[1:]))
            at = end
        return _joined(parts, (), 1)

    def _complete(self) -> Any:
        """What the configuration says. The model, most of it by far, is read once for all."""
        try:
            return self._alike(self._config, frozenset())
        except CannotProveError:  # added tokens have ids that depend on what stands in the file
            library = tokenizers.Tokenizer.from_str(json.dumps(self._config))
            library.no_truncation()
            library.no_padding()
            self._model = library.model
            return library

    @property
    def _without_control(self) -> Any:
        if self._slim is None:
            self._slim = self._alike(self._config, frozenset(self._control))
        return self._slim

    @property
    def _going_on(self) -> Any:
        """Encodes what follows a cut: no space is put before it."""
        if self._onward is None:
            self._onward = self._alike(_without_spaces(self._config), frozenset())
        return self._onward

    def _alike(self, config: dict[str, Any], without: frozenset[str]) -> Any:
        """A tokenizer of the same model with this configuration, and without these added tokens."""
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        parts = {name: config.get(name) for name in ("normalizer", "pre_tokenizer")}
        library = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "model": empty, **parts}))
        library.model = self._model
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        added = [entry for entry in config["added_tokens"] if entry["content"] not in without]
        library.add_tokens(  # in order, which decides their ids where the model lacks them
            [tokenizers.AddedToken(entry["content"], **{name: entry[name] for name in flags}) for entry in added]
        )
        if not without and any(library.token_to_id(e["content"]) != e["id"] for e in config["added_tokens"]):
            raise CannotProveError("the tokenizer's added tokens have ids of their own that cannot be given again")
        return library

    def _keep_cut(self, text: str, spelled: Spelled, cut: int, found: Sequence[tuple[int, int, str]] | None) -> Spelled:
        """The same with the prompt's own ids before `cut`. What stands before a control token changes nothing behind
        it, so only the text from the last one before the cut is looked at."""
        if not 0 < cut < len(text):
            return spelled
        after = int(np.searchsorted(spelled.ends, cut, side="right"))
        since = spelled.cuts[-1] if spelled.cuts else 0
        control = np.flatnonzero(self._is_control[spelled.ids[since:after]])
        token, begin = (since, int(spelled.starts[since]) if since < len(spelled) else 0)
        lead = "going on" if since else "start"
        if len(control):
            token = since + int(control[-1]) + 1
            begin, lead = int(spelled.ends[token - 1]), "after a token"
        tail = text[begin:cut]
        prompt = self._window(tail, lead, found is not None)
        same = spelled.ids[token : token + len(prompt)]
        behind = token + len(prompt)
        alike = len(same) == len(prompt) and bool(np.all(same == np.array(prompt, np.int32)))
        at_border = behind == token or (
            alike and int(spelled.ends[behind - 1]) == cut and (behind == len(spelled) or spelled.starts[behind] >= cut)
        )
        if alike and at_border:
            return spelled
        if self._space and lead != "start":
            raise CannotProveError("a prompt ends inside a token, with a tokenizer that adds spaces")
        if found is None:
            head = _spelled(self._whole.encode(tail, add_special_tokens=False), begin)
            rest = _spelled(self._going_on.encode(text[cut:], add_special_tokens=False), cut)
        else:
            head = self._piece_by_piece(text, [one for one in found if begin <= one[0] and one[1] <= cut], begin, cut)
            rest = self._piece_by_piece(text, [one for one in found if one[0] >= cut], cut, len(text))
        before = Spelled(spelled.ids[:token], spelled.starts[:token], spelled.ends[:token])
        return _joined([before, head, rest], (*spelled.cuts, token + len(head)), spelled.neutralised)

    def _window(self, tail: str, lead: str, slim: bool) -> tuple[int, ...]:
        key = (lead + str(slim), tail)
        if key not in self._windows or len(tail) > 256:
            if len(self._windows) >= _WINDOWS:
                self._windows.clear()
            library = self._without_control if slim else self._going_on if lead == "going on" else self._whole
            if lead == "after a token" and self._space and self._control:
                word = next((w for w in self._control if w not in self._odd), "")
                ids = library.encode(word + tail, add_special_tokens=False).ids[1:] if word and not slim else []
            else:
                ids = library.encode(tail, add_special_tokens=False).ids
            self._windows[key] = tuple(ids)
        return self._windows[key]


def _spelled(encoding: Any, at: int) -> Spelled:
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    return Spelled(np.array(encoding.ids, np.int32), offsets[:, 0] + np.int32(at), offsets[:, 1] + np.int32(at))


def _joined(parts: Sequence[Spelled], cuts: tuple[int, ...], neutralised: int) -> Spelled:
    none = np.zeros(0, np.int32)
    return Spelled(
        np.concatenate([none, *(part.ids for part in parts)]),
        np.concatenate([none, *(part.starts for part in parts)]),
        np.concatenate([none, *(part.ends for part in parts)]),
        cuts,
        neutralised,
    )


def _parts(value: Any, kind: str) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        own = [value] if value.get("type") == kind else []
        return own + [part for entry in value.values() for part in _parts(entry, kind)]
    return [part for entry in value for part in _parts(entry, kind)] if isinstance(value, list) else []


def _adds_space(config: dict[str, Any]) -> bool:
    """Does the tokenizer put a space before text?"""
    spaces = _parts(config.get("normalizer"), "Prepend")
    spaces += [p for p in _parts(config.get("pre_tokenizer"), "Metaspace") if p.get("prepend_scheme") != "never"]
    spaces += [p for p in _parts(config.get("pre_tokenizer"), "ByteLevel") if p.get("add_prefix_space")]
    return bool(spaces)


def _without_spaces(config: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(config))
    for part in _parts(changed.get("normalizer"), "Prepend"):
        part["prepend"] = ""
    for part in _parts(changed.get("pre_tokenizer"), "Metaspace"):
        part["prepend_scheme"] = "never"
    for part in _parts(changed.get("pre_tokenizer"), "ByteLevel"):
        part["add_prefix_space"] = False
    return changed
