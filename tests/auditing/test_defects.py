"""Planted defects: each kind of known bug, put into a dataset that is sealed again, is found under its code."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.auditing import checks
from maskpipe.auditing.known import Known
from maskpipe.auditing.known import learn as really_learn
from maskpipe.auditing.report import level_of
from maskpipe.roles import Branch, Flag, Part, Role, Verdict
from maskpipe.rules import RULES
from maskpipe.shards.format import CHUNKS, REJECTS, VERDICT_DTYPE, WEIGHT_DTYPE
from maskpipe.tokenizer import Tokenizer
from tests import test_audit_mutants
from tests.auditing import forge
from tests.auditing.forge import Row, turns

PLACEMENTS = 25 if os.environ.get("MASKPIPE_LONG") == "1" else 1
BOS = "<|begin|>"


def tokenizer_with_bos() -> Tokenizer:
    """The demo tokenizer with a BOS token that its template writes."""
    files = dict(Tokenizer.load(demo_data.tokenizer()).files)
    config = json.loads(files["tokenizer.json"])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    config["added_tokens"].append({"id": max(t["id"] for t in config["added_tokens"]) + 1, "content": BOS} | plain)
    files["tokenizer.json"] = json.dumps(config).encode()
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    settings["bos_token"] = BOS
    template = Tokenizer.load(demo_data.tokenizer()).chat_template
    files["chat_template.jinja"] = ("{{- bos_token -}}" + (template or "")).encode()
    files["tokenizer_config.json"] = json.dumps(settings).encode()
    return Tokenizer(files, "with-bos")


TOKENIZER = tokenizer_with_bos()
IDS = TOKENIZER.added_tokens
ORDINARY = 1000
LOSS, SAMPLED = np.uint8(Flag.LOSS), np.uint8(Flag.SAMPLED)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats with reasoning, tools, several turns and split documents; one record is rejected."""
    where = tmp_path_factory.mktemp("clean")
    chats = where / "chats.jsonl"
    chats.write_text("".join(demo_data.chats().read_text().splitlines(keepends=True)[:40]) + "{}\n")
    recipe = maskpipe.Recipe(sequence_length=512, on_bad_record="reject")
    maskpipe.prepare(chats, where / "out", tokenizer=TOKENIZER, recipe=recipe, workers=0)
    return where / "out"


@pytest.fixture(scope="module", autouse=True)
def learnt_once() -> Iterator[None]:
    """What template and tokenizer say is learnt once for all datasets of one recipe: it is most of a small audit."""
    known = {}

    def learn(tokenizer: Tokenizer, recipe: maskpipe.Recipe, vocab_size: int) -> Known:
        key = (tokenizer is TOKENIZER, recipe.to_yaml(), vocab_size)
        if not key[0]:
            return really_learn(tokenizer, recipe, vocab_size)
        if key not in known:
            known[key] = really_learn(tokenizer, recipe, vocab_size)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "learn", learn)
        yield


@cache
def _rows_of(path: Path) -> list[Row]:
    return forge.read(path)


def rows_of(path: Path) -> list[Row]:
    """All rows of a dataset, to be changed."""
    return deepcopy(_rows_of(path))


# -- defects of rows: (rows, random) -> whether there was a place for it


def pick(
    rows: list[Row], random: Random, fits: Callable[[Row, int, int, int], bool] = lambda *_: True
) -> tuple[Row, int, int, int]:
    """A trained turn: row, document, start, end."""
    places = [(row, *turn) for row in rows for turn in turns(row) if fits(row, *turn)]
    return random.choice(places)


def long_turn(row: Row, document: int, start: int, end: int) -> bool:
    return end - start > 6


def text_behind(row: Row, document: int, start: int, end: int) -> bool:
    return end < row.bounds()[document][1]


def in_place(row: Row, document: int, start: int, end: int) -> bool:
    return bool(row.documents["turn"][document] < 0)


def document_of(row: Row, document: int) -> slice:
    return slice(*row.bounds()[document])


def content_of(rows: list[Row], random: Random, role: Role) -> tuple[Row, int]:
    """A content token of this role that is not the first of its document."""
    places = []
    for row in rows:
        found = (row.role == role) & (row.part == Part.CONTENT)
        found[[start for start, _ in row.bounds()]] = False
        places += [(row, int(k)) for k in np.flatnonzero(found)]
    return random.choice(places)


def prompt_trained(rows: list[Row], random: Random) -> None:
    row, at = content_of(rows, random, random.choice([Role.USER, Role.SYSTEM]))
    row.flags[at] |= LOSS


def tool_output_trained(rows: list[Row], random: Random) -> None:
    row, at = content_of(rows, random, Role.TOOL)
    row.flags[at] |= LOSS


def header_trained(rows: list[Row], random: Random) -> None:
    row, _, start, _ = pick(rows, random)
    row.flags[start - random.randint(1, 3) : start] |= LOSS


def header_sampled(rows: list[Row], random: Random) -> None:
    row, _, start, _ = pick(rows, random)
    row.flags[start - random.randint(1, 3) : start] |= LOSS | SAMPLED


def header_moved_to_the_turn(rows: list[Row], random: Random) -> None:
    row, _, start, _ = pick(rows, random)
    stop = start - random.randint(1, 3)
    row.flags[stop:start] |= LOSS | SAMPLED
    row.role[stop:start], row.message[stop:start] = Role.ASSISTANT, row.message[start]


def stop_not_trained(rows: list[Row], random: Random) -> None:
    row, _, _, end = pick(rows, random)
    row.flags[end - 1] &= ~LOSS


def stop_is_content(rows: list[Row], random: Random) -> None:
    row, _, _, end = pick(rows, random)
    row.part[end - 1] = Part.CONTENT


def stop_is_not_sampled(rows: list[Row], random: Random) -> None:
    row, _, _, end = pick(rows, random)
    row.flags[end - 1] = 0


def stop_replaced(rows: list[Row], random: Random) -> None:
    row, _, _, end = pick(rows, random)
    row.ids[end - 1] = random.choice([IDS["<|pad|>"], IDS["<|turn|>"], ORDINARY])


def stop_doubled(rows: list[Row], random: Random) -> None:
    row, _, _, end = pick(rows, random, text_behind)
    row.ids[end], row.part[end], row.flags[end] = row.ids[end - 1], Part.STOP, row.flags[end - 1]


def text_after_stop_trained(rows: list[Row], random: Random) -> None:
    row, _, _, end = pick(rows, random, text_behind)
    row.flags[end] |= LOSS


def text_after_stop_sampled(rows: list[Row], random: Random) -> None:
    row, _, _, end = pick(rows, random, text_behind)
    row.flags[end] |= LOSS | SAMPLED


def nothing_trained(rows: list[Row], random: Random) -> None:
    row, document, *_ = pick(rows, random)
    row.flags[document_of(row, document)] &= ~LOSS


def everything_trained(rows: list[Row], random: Random) -> None:
    row, document, *_ = pick(rows, random)
    start, end = row.bounds()[document]
    row.flags[start + 1 : end] |= LOSS


def first_token_trained(rows: list[Row], random: Random) -> None:
    row = random.choice(rows)
    row.flags[random.choice(row.bounds())[0]] |= LOSS


def straddler_trained(rows: list[Row], random: Random) -> None:
    row, _, start, end = pick(rows, random, long_turn)
    row.flags[random.randrange(start, end - 1)] = Flag.STRADDLES | Flag.LOSS


def verdict_of(row: Row, document: int, message: int, verdict: Verdict) -> None:
    known = row.verdicts[document]
    known["verdict"][known["message"] == message] = int(verdict)


def history_differs_in_place(rows: list[Row], random: Random) -> None:
    row, document, start, _ = pick(rows, random, in_place)
    verdict_of(row, document, int(row.message[start]), Verdict.HISTORY_DIFFERS)


def refused_turn_trained(rows: list[Row], random: Random) -> None:
    row, document, start, _ = pick(rows, random)
    verdict_of(row, document, int(row.message[start]), Verdict.REFUSED)


def verdict_missing(rows: list[Row], random: Random) -> None:
    row, document, start, _ = pick(rows, random)
    known = row.verdicts[document]
    row.verdicts[document] = known[known["message"] != row.message[start]]


def empty_reasoning_trained(rows: list[Row], random: Random) -> None:
    row, _, start, _ = pick(rows, random, long_turn)
    row.flags[start : start + 2] |= np.uint8(Flag.EMPTY_REASONING)


def history_of_a_split_document_trained(rows: list[Row], random: Random) -> None:
    places = []
    for row in rows:
        for number, (start, end) in enumerate(row.bounds()):
            turn = row.documents["turn"][number]
            history = (row.role == Role.ASSISTANT) & (row.message != turn) & (turn >= 0)
            places += [(row, int(k)) for k in np.flatnonzero(history[start:end]) + start if k > start]
    row, at = random.choice(places)
    row.flags[at] |= LOSS


def answer_begins_untrained(rows: list[Row], random: Random) -> None:
    row, _, start, _ = pick(rows, random, long_turn)
    row.flags[start : start + random.randint(1, 4)] &= ~LOSS


def answer_begins_unsampled(rows: list[Row], random: Random) -> None:
    def plain(row: Row, document: int, start: int, end: int) -> bool:
        return end - start > 6 and bool(np.all(row.part[start : start + 3] == Part.CONTENT))

    row, _, start, _ = pick(rows, random, plain)
    row.flags[start : start + random.randint(1, 3)] = 0


def hole_in_a_turn(rows: list[Row], random: Random) -> None:
    row, _, start, end = pick(rows, random, long_turn)
    row.flags[random.randrange(start + 1, end - 2)] = 0


def turn_not_sampled(rows: list[Row], random: Random) -> None:
    row, _, start, end = pick(rows, random, in_place)
    row.flags[start:end] = 0


def mask_rolled(by: int) -> Callable[[list[Row], Random], None]:
    def roll(rows: list[Row], random: Random) -> None:
        row, _, start, end = pick(rows, random, text_behind)
        around = slice(start - 1, end + 1)
        loss = np.roll(row.flags[around] & Flag.LOSS, by)
        row.flags[around] = (row.flags[around] & ~LOSS) | loss

    return roll


def user_sampled(rows: list[Row], random: Random) -> None:
    row, at = content_of(rows, random, Role.USER)
    row.flags[at] |= SAMPLED


def weight_0_trained(rows: list[Row], random: Random) -> None:
    row, _, start, end = pick(rows, random)
    row.weights = np.array([(start, end, 0.0)], WEIGHT_DTYPE)


def padded(rows: list[Row], random: Random) -> tuple[Row, int]:
    return random.choice([(row, k) for row in rows for k in range(row.documents["end"][-1], len(row.ids))])


def padding_trained(rows: list[Row], random: Random) -> None:
    row, at = padded(rows, random)
    row.flags[at] |= LOSS


def padding_is_text(rows: list[Row], random: Random) -> None:
    row, at = padded(rows, random)
    row.ids[at] = ORDINARY


def padding_has_a_role(rows: list[Row], random: Random) -> None:
    row, at = padded(rows, random)
    row.role[at], row.part[at] = Role.USER, Part.CONTENT


def role_unknown(rows: list[Row], random: Random) -> None:
    row, at = content_of(rows, random, Role.USER)
    row.role[at] = Role.UNKNOWN


def padding_inside(rows: list[Row], random: Random) -> None:
    row, at = content_of(rows, random, Role.USER)
    row.role[at], row.part[at], row.message[at] = Role.PADDING, Part.NONE, -1


def role_that_does_not_exist(rows: list[Row], random: Random) -> None:
    row, at = content_of(rows, random, Role.USER)
    row.message[at] = -5


def id_outside(rows: list[Row], random: Random) -> None:
    row = random.choice(rows)
    row.ids[random.randrange(len(row.ids))] = random.choice([-1, TOKENIZER.vocab_size, 70_000 & 0xFFFF | 1 << 20])


def control_token_in_content(rows: list[Row], random: Random) -> None:
    row, at = content_of(rows, random, random.choice([Role.USER, Role.TOOL, Role.ASSISTANT]))
    row.ids[at] = IDS[random.choice(["<|turn|>", "<|done|>", "<think>"])]


def bos_missing(rows: list[Row], random: Random) -> None:
    row = random.choice(rows)
    row.ids[random.choice(row.bounds())[0]] = ORDINARY


def bos_doubled(rows: list[Row], random: Random) -> None:
    row = random.choice(rows)
    row.ids[random.choice(row.bounds())[0] + 1] = IDS[BOS]


def border_moved(rows: list[Row], random: Random) -> None:
    row = random.choice([row for row in rows if len(row.documents) > 1])
    number = random.randrange(len(row.documents) - 1)
    row.documents["end"][number] += 1
    row.documents["length"][number] += 1
    row.documents["length"][number + 1] -= 1


def borders_lost(rows: list[Row], random: Random) -> None:
    """Two documents become one: nothing tells that they are two, but a BOS in the middle of the turns."""
    row = random.choice([row for row in rows if len(row.documents) > 1])
    number = random.randrange(len(row.documents) - 1)
    keep = np.arange(len(row.documents)) != number
    row.documents["length"][number + 1] += row.documents["length"][number]
    row.documents = row.documents[keep]
    del row.verdicts[number]


def chat_cut(rows: list[Row], random: Random) -> None:
    row = random.choice(rows)
    row.documents["length"][random.randrange(len(row.documents))] += random.randint(1, 50)


def turns_out_of_order(rows: list[Row], random: Random) -> None:
    places = []
    for row in rows:
        found = turns(row)
        places += [(row, a[0]) for a, b in itertools.pairwise(found) if a[0] == b[0]]
    row, document = random.choice(places)
    own = document_of(row, document)
    low, high = sorted({int(m) for d, s, _ in turns(row) if d == document for m in [row.message[s]]})[:2]
    message = row.message[own]
    row.message[own] = np.select([message == low, message == high], [high, low], message)


def text_behind_the_own_turn(rows: list[Row], random: Random) -> None:
    places = [(row, a) for row in rows for a, b in itertools.pairwise(turns(row)) if a[0] == b[0]]
    row, (document, start, _) = random.choice(places)
    row.documents["turn"][document] = row.message[start]
    own = document_of(row, document)
    later = (row.message[own] > row.message[start]) & (row.role[own] == Role.ASSISTANT)
    row.flags[own][later] = 0


def run_repeats(rows: list[Row], random: Random) -> None:
    row, _, start, end = pick(rows, random, long_turn)
    inside = [
        k for k in range(start + 1, end) if all(f[k] == f[k - 1] for f in (row.role, row.part, row.flags, row.message))
    ]
    row.split_runs = (inside[0],)


def wrong_n_loss(rows: list[Row], random: Random) -> None:
    row = random.choice(rows)
    row.n_loss = int((row.flags & Flag.LOSS > 0).sum()) + random.choice([-1, 1, 7])


def row_twice(rows: list[Row], random: Random) -> None:
    one, two = random.sample(range(len(rows)), 2)
    rows[one] = rows[two]


def row_lost(rows: list[Row], random: Random) -> None:
    del rows[random.randrange(len(rows))]


def reasoning_not_closed(rows: list[Row], random: Random) -> None:
    places = []
    for row in rows:
        for _, start, end in turns(row):
            places += [(row, k) for k in range(start, end) if row.ids[k] in (IDS["</think>"], IDS["<think>"])]
    row, at = random.choice(places)
    row.ids[at] = ORDINARY


@dataclass(frozen=True)
class Kind:
    """One kind of defect, the known bug it is, and the code it must be found under."""

    bug: str
    code: str
    plant: Callable[[list[Row], Random], None]


KINDS = (
    Kind("M21", "MP301", prompt_trained),
    Kind("M32", "MP301", tool_output_trained),
    Kind("M11", "MP302", header_trained),
    Kind("M11", "MP302", header_sampled),
    Kind("M13", "MP302", header_moved_to_the_turn),
    Kind("M05", "MP303", stop_not_trained),
    Kind("M07", "MP303", stop_is_content),
    Kind("M06", "MP303", stop_is_not_sampled),
    Kind("M09", "MP316", stop_replaced),
    Kind("T07", "MP405", stop_doubled),
    Kind("L24", "MP312", text_after_stop_trained),
    Kind("M29", "MP317", text_after_stop_sampled),
    Kind("M01", "MP304", nothing_trained),
    Kind("M02", "MP301", everything_trained),
    Kind("P07", "MP204", first_token_trained),
    Kind("M24", "MP306", straddler_trained),
    Kind("M15", "MP307", history_differs_in_place),
    Kind("M19", "MP308", refused_turn_trained),
    Kind("M04", "MP308", verdict_missing),
    Kind("M12", "MP309", empty_reasoning_trained),
    Kind("M31", "MP310", history_of_a_split_document_trained),
    Kind("M28", "MP311", answer_begins_untrained),
    Kind("M28", "MP311", answer_begins_unsampled),
    Kind("M19", "MP311", hole_in_a_turn),
    Kind("M22", "MP311", turn_not_sampled),
    Kind("L23", "MP312", mask_rolled(1)),
    Kind("M29", "MP302", mask_rolled(-1)),
    Kind("M06", "MP317", user_sampled),
    Kind("M31", "MP313", weight_0_trained),
    Kind("M08", "MP206", padding_trained),
    Kind("P24", "MP207", padding_is_text),
    Kind("P17", "MP207", padding_has_a_role),
    Kind("M02", "MP201", role_unknown),
    Kind("M27", "MP201", padding_inside),
    Kind("T10", "MP213", role_that_does_not_exist),
    Kind("T08", "MP401", id_outside),
    Kind("I01", "MP404", control_token_in_content),
    Kind("T02", "MP402", bos_missing),
    Kind("T01", "MP403", bos_doubled),
    Kind("P18", "MP402", border_moved),
    Kind("P11", "MP214", chat_cut),
    Kind("M30", "MP216", turns_out_of_order),
    Kind("M13", "MP216", text_behind_the_own_turn),
    Kind("P10", "MP213", run_repeats),
    Kind("N03", "MP503", wrong_n_loss),
    Kind("P10", "MP507", row_twice),
    Kind("X08", "MP504", row_lost),
    Kind("M14", "MP406", reasoning_not_closed),
)


def codes(path: Path) -> set[str]:
    return {finding.code for finding in maskpipe.audit(path, tokenizer=TOKENIZER).findings}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.bug}-{kind.plant.__qualname__.split('.')[0]}")
def test_a_planted_defect_is_found_under_its_code(kind: Kind, clean: Path, tmp_path: Path) -> None:
    assert kind.bug in RULES[kind.code].bugs, f"the rule {kind.code} does not name {kind.bug}"
    for number in range(PLACEMENTS):
        rows, random = rows_of(clean), Random(f"{kind.plant.__qualname__} {number}")
        kind.plant(rows, random)
        out = tmp_path / str(number)
        forge.write(clean, out, rows)
        found = codes(out)
        assert kind.code in found, f"placement {number}: found {sorted(found)}"
    print(f"\n{kind.code} {kind.plant.__qualname__.split('.')[0]} ({kind.bug}): {PLACEMENTS} of {PLACEMENTS} found")


def test_the_same_rows_written_anew_are_clean(clean: Path, tmp_path: Path) -> None:
    forge.write(clean, tmp_path / "out", forge.read(clean))
    for path in (clean, tmp_path / "out"):
        report = maskpipe.audit(path)
        assert [str(f) for f in report.findings if level_of(f) != "note"] == []
        assert report.exit_code() == 0


def prepare_pairs(tmp_path: Path, layout: str) -> None:
    """Eight pairs in tmp_path/out, with answers as long as each other."""

    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    pairs = [
        {
            "prompt": [said("user", f"question {k}")],
            "chosen": [said("assistant", f"answer {10 + k}")],
            "rejected": [said("assistant", f"answer {50 + k}")],
        }
        for k in range(1, 9)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe = maskpipe.Recipe(objective="preference", sequence_length=128, pair_layout=layout)  # type: ignore[arg-type]
    maskpipe.prepare(source, tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=0)


@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_clean_pairs_are_clean_and_half_a_pair_is_found(layout: str, tmp_path: Path) -> None:
    prepare_pairs(tmp_path, layout)
    assert codes(tmp_path / "out") == set()
    rows = forge.read(tmp_path / "out")
    chosen, rejected = (int(np.flatnonzero(rows[0].documents["branch"] == branch)[0]) for branch in (2, 3))
    rows[0].documents["branch"][rejected] = 2
    forge.write(tmp_path / "out", tmp_path / "incomplete", rows)
    assert "MP217" in codes(tmp_path / "incomplete")
    assert chosen != rejected


@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_two_answers_that_are_the_same_tokens_are_found(layout: str, tmp_path: Path) -> None:
    prepare_pairs(tmp_path, layout)
    rows = forge.read(tmp_path / "out")
    row = rows[0]
    branches, bounds = row.documents["branch"], row.bounds()
    answers = [
        [
            slice(*bounds[np.flatnonzero((row.documents["pair"] == pair) & (branches == branch))[0]])
            for branch in (Branch.CHOSEN, Branch.REJECTED)
        ]
        for pair in sorted(set(row.documents["pair"].tolist()))
    ]
    alike = [(one, two) for one, two in answers if one.stop - one.start == two.stop - two.start][:PLACEMENTS]
    assert alike
    for number, (one, two) in enumerate(alike):
        made = deepcopy(row)
        made.ids[two] = row.ids[one]
        forge.write(tmp_path / "out", tmp_path / f"collapsed-{number}", [made, *rows[1:]])
        report = maskpipe.audit(tmp_path / f"collapsed-{number}", tokenizer=TOKENIZER)
        assert [(f.code, f.count) for f in report.findings if f.code == "MP322"] == [("MP322", 1)]
        (place,) = (place for f in report.findings if f.code == "MP322" for place in f.places)
        assert (place.start, place.end) == (one.start, one.stop)


# -- defects of files


def byte_changed(out: Path) -> None:
    shard = out / maskpipe.open(out).manifest.shards[0].name
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)


def manifest_counts_more_loss(out: Path) -> None:
    manifest = maskpipe.open(out).manifest
    (shard,) = manifest.shards
    counts = replace(shard.counts, straddles=shard.counts.straddles + 3)
    forge.seal(out, replace(manifest, shards=(replace(shard, counts=counts),)))


def hash_of_a_batch_changed(out: Path) -> None:
    manifest = maskpipe.open(out).manifest
    (shard,) = manifest.shards
    forge.seal(out, replace(manifest, shards=(replace(shard, batches="0" * len(shard.batches)),)))


def reject_not_listed(out: Path) -> None:
    forge.with_file(out, REJECTS, b"")


def reject_that_is_kept(out: Path) -> None:
    (entry,) = forge.json_lines(out, REJECTS)
    forge.with_file(out, REJECTS, (json.dumps({**entry, "row": 0}) + "\n").encode())


def tokens_vanish(out: Path) -> None:
    entries = forge.json_lines(out, CHUNKS)
    entries[0]["counts"]["tokens"] += 10
    forge.with_file(out, CHUNKS, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def recipe_changed(out: Path) -> None:
    raw = (out / "recipe.yaml").read_bytes()
    forge.with_file(out, "recipe.yaml", raw.replace(b"on_too_long: truncate", b"on_too_long: drop"))


def other_fingerprint(out: Path) -> None:
    forge.seal(out, replace(maskpipe.open(out).manifest, fingerprint="0" * 64))


def foreign_file(out: Path) -> None:
    (out / "part-00009-0123456789abcdef.arrow").write_bytes(b"")


FILES = (
    ("S16", "MP501", byte_changed),
    ("S16", "MP501", foreign_file),
    ("S16", "MP501", hash_of_a_batch_changed),
    ("S22", "MP503", manifest_counts_more_loss),
    ("X08", "MP505", reject_not_listed),
    ("X08", "MP504", reject_that_is_kept),
    ("X07", "MP504", tokens_vanish),
    ("C10", "MP516", recipe_changed),
    ("S18", "MP516", other_fingerprint),
)


@pytest.mark.parametrize(("bug", "code", "change"), FILES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_changed_file_is_found_under_its_code(
    bug: str, code: str, change: Callable[[Path], None], clean: Path, tmp_path: Path
) -> None:
    assert bug in RULES[code].bugs or (bug, code) == ("S16", "MP501")
    forge.write(clean, tmp_path / "out", forge.read(clean))
    change(tmp_path / "out")
    assert code in codes(tmp_path / "out")


def test_at_least_forty_kinds_each_tied_to_a_known_bug() -> None:
    assert len(KINDS) >= 40
    assert VERDICT_DTYPE.names == ("message", "verdict")


@pytest.mark.shared
def test_the_bugs_that_kinds_and_rules_name_are_in_the_list_of_known_ones(shared_data: Path) -> None:
    text = (shared_data.parent / "reference" / "known-bugs.md").read_text(encoding="utf-8")
    named = (
        {kind.bug for kind in KINDS} | {bug for bug, _, _ in FILES} | {b for rule in RULES.values() for b in rule.bugs}
    )
    named |= {bug for kind in test_audit_mutants.KINDS.values() for bug in kind.bugs.split()}
    listed = set(re.findall(r"\b[A-Z]\d{1,2}\b", text)) | {name for name in named if "#" in name and name in text}
    assert sorted(named - listed) == []
    assert all(kind.bugs for kind in test_audit_mutants.KINDS.values())
