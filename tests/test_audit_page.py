"""The audit's page: what a person sees, clicks and searches; and that hostile data is only ever text."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import maskpipe
from maskpipe import cli, demo_data
from maskpipe.auditing import page
from maskpipe.auditing.gallery import Gallery, of_dataset, window
from maskpipe.auditing.page.twin import LONGEST_TEXT, shown, to_script, twin, varints, zigzag
from maskpipe.auditing.report import Met, Report
from maskpipe.auditing.shortlist import ROWS, Shortlist
from maskpipe.auditing.specimens import Bounds, Specimen, of_arrays, texts
from maskpipe.explain import WORDS, Why, reasons
from maskpipe.findings import Finding, Place
from maskpipe.policy import Policy
from maskpipe.roles import Flag, Part, Role
from maskpipe.rules import RULES
from tests import browser
from tests.browser import Page
from tests.made_datasets import publish_documents

HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg/onload=window.pwned=1>",
    "'\"><iframe src=https://example.invalid/>",
    "<!--",
    "]]>",
    "javascript:window.pwned=1",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "\u202eright to left\u202c\u2066x\u2069",
    "nul \x00 bell \x07 escape \x1b[31m",
    "\u2028line\u2029paragraph\ufeff\x7f\x85",
    "lone \ud800 surrogate \udfff",
    "😀👩\u200d👩\u200d👧 🏳️‍🌈",
    "مرحبا بالعالم שלום",
    "Z̸̡̛̘a̴l̵g̶o̷",
    "\u0301 alone",
    "A" * 100_000,
    "&lt;b&gt; &amp; &#60;",
)


def specimen(words: tuple[str, ...] = HOSTILE, row: int = 0, **other: object) -> Specimen:
    """A row whose tokens have these texts."""
    n = len(words)
    made = of_arrays(np.arange(n, dtype=np.int32), np.arange(n) % 2, row, title="made", chosen=("random",))
    return replace(made, texts=list(words), **other)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "demo <b>&"
    maskpipe.prepare(
        demo_data.chats(), out, tokenizer=demo_data.tokenizer(), recipe=maskpipe.Recipe(sequence_length=512), workers=0
    )
    return out


@pytest.fixture(scope="module")
def report(dataset: Path) -> Report:
    """A clean dataset's, with two findings made up."""
    found = (
        Finding("MP301", "a prompt has loss", 2, (Place(row=3, start=40, end=50), Place(row=9, start=7, end=8))),
        Finding("MP401", HOSTILE[0], 1, (Place(row=5, source=HOSTILE[1], field=HOSTILE[9]),)),
    )
    return maskpipe.audit(dataset).with_findings(found)


# -- which rows


def test_rows_with_findings_come_first_then_extremes_then_kinds_then_chance() -> None:
    shortlist = Shortlist("seed")
    for row in range(100):
        shortlist.add(row, tokens=100, loss=row, longest=50 + (row == 70), kinds=["role tool"] if row >= 60 else [])
    places = tuple(Place(row=row) for row in (11, 12, 13))
    findings = [Finding("MP301", "x", 3, places), Finding("MP302", "y", 1, (Place(row=20),))]
    chosen = shortlist.rows(findings)
    assert {11: ("MP301",), 12: ("MP301",), 20: ("MP302",)}.items() <= chosen.items()
    assert 13 not in chosen, "two rows of one code are enough"
    assert "least loss" in chosen[0] and "most loss" in chosen[99] and "longest document" in chosen[70]
    assert "role tool" in chosen[60]
    assert sum("random" in reasons for reasons in chosen.values()) == 4
    assert list(chosen) == sorted(chosen)
    assert list(shortlist.rows(findings, limit=2)) == [11, 20], "one of each code before a second of any"


def test_the_same_rows_in_any_order() -> None:
    rows = np.random.default_rng(0).permutation(500).tolist()
    one, other = Shortlist("a"), Shortlist("a")
    for row in rows:
        one.add(row, tokens=10 + row % 7, loss=row % 5)
    for row in sorted(rows):
        other.add(row, tokens=10 + row % 7, loss=row % 5)
    assert one.rows() == other.rows()
    assert one.candidates() == set(one.rows())


def test_a_row_of_ours_has_the_reasons_that_explain_gives(dataset: Path, report: Report) -> None:
    assert report.gallery is not None
    opened = maskpipe.open(dataset)
    policy = Policy.of(maskpipe.Recipe.from_dict(opened.manifest.recipe))
    shown, missing = report.gallery.specimens(report.findings)
    assert missing == [] and 0 < len(shown) <= ROWS
    documents = list(opened.documents())
    per_row = [len(row.documents) for row in opened]
    for each in shown:
        first = sum(per_row[: each.row])
        want = [Why(w) for d in documents[first : first + per_row[each.row]] for w in reasons(d, policy)]
        got = [Why(w) for w in each.why]
        assert got == want + [Why.PADDING] * (len(each) - len(want))
        assert [w < 32 for w in got] == (opened[each.row].loss_mask > 0).tolist()
        text = "".join(each.texts[: each.documents[-1].end])
        assert text == opened_text(opened, each.row), "texts are the row's own, characters of several tokens whole"


def opened_text(opened: maskpipe.Dataset, row: int) -> str:
    sequence = opened[row]
    return maskpipe.Tokenizer.load(opened.path).decode(sequence.input_ids[: sequence.cu_seqlens[-1]])


def test_ids_outside_the_vocabulary_are_shown_as_such() -> None:
    tokenizer = maskpipe.Tokenizer.load(demo_data.tokenizer())
    ids = np.array([5, tokenizer.vocab_size, -1, 10**9], np.int64)
    found = texts(ids, tokenizer)
    assert found[1:] == [f"⟨no token {id}⟩" for id in ids[1:].tolist()]
    assert texts(ids, None) == [f"⟨{id}⟩" for id in ids.tolist()]


def test_a_character_of_several_tokens_stands_at_the_first() -> None:
    tokenizer = maskpipe.Tokenizer.load(demo_data.tokenizer())
    ids = tokenizer.ids(["a 𐍈😀é"])[0]
    found = texts(ids, tokenizer)
    assert "".join(found) == "a 𐍈😀é" and "" in found
    half = texts(ids[:-3] if found[-3:] == ["", "", ""] else ids[: found.index("")], tokenizer)
    assert half[-1] == "\ufffd" or "".join(half) in "a 𐍈😀é"


def test_a_long_row_is_shown_around_its_first_finding() -> None:
    n = 300_000
    found = Finding("MP301", "x", 1, (Place(row=0, start=200_000, end=200_001),))
    row = of_arrays(np.zeros(n, np.int32), np.zeros(n), 0, findings=[found])
    part = window(row)
    assert len(part) == 65536 and part.first == 200_000 - 16384 and part.length == n
    assert part.marks[0].start == 200_000


def test_rows_that_do_not_fit_are_said_to_be_missing() -> None:
    shortlist = Shortlist()
    for row in range(10):
        shortlist.add(row, tokens=65536, loss=row)
    gallery = Gallery(
        shortlist.rows, lambda row, chosen, findings: of_arrays(np.zeros(65536, np.int32), np.zeros(65536), row)
    )
    shown, missing = gallery.specimens()
    assert len(shown) == 4 and len(shown) + len(missing) == len(shortlist.rows())


# -- the file


def test_rows_of_other_tools_are_shown_with_what_was_learnt_of_them(dataset: Path, tmp_path: Path) -> None:
    from maskpipe.exports import Options, export

    export(dataset, tmp_path / "theirs", to="hf", options=Options(ignore_weights=True))
    report = maskpipe.audit(tmp_path / "theirs", tokenizer=demo_data.tokenizer())
    assert report.gallery is not None
    shown_rows, missing = report.gallery.specimens(report.findings)
    assert len(shown_rows) >= 5 and missing == []
    opened = maskpipe.open(dataset)
    for each in shown_rows:
        own = opened[each.row]
        filled = int(own.cu_seqlens[-1])
        assert np.array_equal(each.input_ids[:filled], own.input_ids[:filled])
        assert np.array_equal(each.loss_mask[:filled], own.loss_mask[:filled] > 0)
        assert [bounds.end for bounds in each.documents] == own.cu_seqlens[1:].tolist()
        known = each.role_ids[:filled] != Role.UNKNOWN
        assert known.any()
        said = (each.role_ids[:filled] == Role.ASSISTANT) & (each.loss_mask[:filled])
        assert (own.role_ids[:filled][said] == Role.ASSISTANT).all()
        assert {Why(w) for w in each.why} <= {Why.GIVEN, Why.GIVEN_NONE, Why.PADDING}
    assert report.html() == maskpipe.audit(tmp_path / "theirs", tokenizer=demo_data.tokenizer()).html()


def test_batches_are_read_once_and_rows_worth_reading_are_kept() -> None:
    generator = np.random.default_rng(0)
    batches = []
    for _ in range(30):
        ids = generator.integers(10, 500, (4, 64))
        batches.append({"input_ids": ids, "labels": np.where(generator.random((4, 64)) < 0.3, ids, -100)})
    batches[7]["labels"][2] = -100
    report = maskpipe.audit_batches(iter(batches), demo_data.tokenizer())
    assert report.gallery is not None
    shown_rows, _ = report.gallery.specimens(report.findings)
    found = {row.row: row for row in shown_rows}
    assert 30 in found and not found[30].loss_mask.any() and "MP304" in found[30].chosen
    for number, row in found.items():
        assert np.array_equal(row.input_ids, batches[number // 4]["input_ids"][number % 4])
    assert "row 30" in report.html()


def test_a_row_that_the_format_does_not_allow_is_shown_all_the_same(
    dataset: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.gallery is not None
    before = report.gallery.specimens(report.findings)[0]
    monkeypatch.setattr("maskpipe.shards.reader.check", lambda *_, **__: "row 0, token 0: made up")
    opened = maskpipe.open(dataset)
    with pytest.raises(maskpipe.DatasetError, match="made up"):
        opened[3]
    look = of_dataset(opened).look
    for row in before:
        again = look(row.row, row.chosen, report.findings)
        assert again is not None and again.texts == row.texts and np.array_equal(again.why, row.why)


def test_trained_prompts_are_found_and_marked_where_they_are(dataset: Path, tmp_path: Path) -> None:
    opened = maskpipe.open(dataset)
    documents = list(opened.documents())
    victim = next(k for k, document in enumerate(documents) if (document.role_ids == Role.USER).sum() > 5)
    content = (documents[victim].role_ids == Role.USER) & (documents[victim].part_ids == Part.CONTENT)
    flags = np.where(content, documents[victim].flags | Flag.LOSS, documents[victim].flags).astype(np.uint8)
    documents[victim] = replace(documents[victim], flags=flags)
    size = opened.manifest.vocab_size
    publish_documents(tmp_path / "bad", documents, sequence_length=512, vocab_size=size)
    report = maskpipe.audit(tmp_path / "bad")
    wrong = [finding for finding in report.errors if any(place.start >= 0 for place in finding.places)]
    assert wrong, [str(finding) for finding in report.findings]
    assert report.gallery is not None
    shown_rows, _ = report.gallery.specimens(report.findings)
    row = next(row for row in shown_rows if any(mark.code == wrong[0].code for mark in row.marks))
    mark = next(mark for mark in row.marks if mark.code == wrong[0].code)
    assert row.loss_mask[mark.start : mark.end].all() and (row.role_ids[mark.start : mark.end] == Role.USER).all()
    html = report.html()
    assert f'href="#row-{row.row}:{mark.start}"' in html
    assert "Do not train on this yet" in html


def test_the_sentence_never_promises_more_than_was_checked(report: Report) -> None:
    def said(*findings: Finding, **other: object) -> str:
        made = replace(report, findings=findings, gallery=None, **other)  # type: ignore[arg-type]
        return made.html().split("<header")[1].split("</header>")[0]

    assert "Every check passed" in said()
    assert "not all could be checked (MP515)" in said(Finding("MP515", "no tokenizer"))
    assert "Every check passed" not in said(Finding("MP515", "no tokenizer"))
    assert "Counted, not checked" in said(checked=False)
    assert "Do not train on this yet" in said(Finding("MP301", "x", 2))
    warning = next(code for code, rule in RULES.items() if rule.level == "warning")
    assert "Look before you train" in said(Finding(warning, "x"))
    assert "Not what was required" in said(requirements=(Met("loss_share>=0.9", 0.4, False),))


def test_the_page_says_what_coverage_counts(dataset: Path) -> None:
    report = maskpipe.audit(dataset)
    html, values = report.html(), report.coverage.values
    for title in (
        "Trained share of each document", "Trained share of each row", "Tokens by role", "Tokens by message",
        "Length of documents", "Trained tokens per row", "Documents per row", "Balance over ranks", "Tokens by script",
        "Tokens by role and part", "How trained turns end", "Most common first and last trained tokens of turns",
        "Turns by verdict", "Records", "Sources",
    ):  # fmt: skip
        assert f">{title}<" in html, title
    share = values["histograms"]["loss_share_per_document"]
    assert html.count(" documents</title>") >= np.count_nonzero(share["counts"])
    for role, cell in values["roles"].items():
        assert f"<title>{role}: {cell['loss']:,} of {cell['tokens']:,} tokens trained</title>" in html
    ids = [attributes["id"] for _, attributes in parsed(html).seen if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_report_gives_the_same_bytes(dataset: Path, report: Report) -> None:
    again = replace(maskpipe.audit(dataset), findings=report.findings)
    assert report.html() == again.html()


def test_the_numbers_of_the_twin_come_back(report: Report) -> None:
    assert report.gallery is not None
    shown_rows, _ = report.gallery.specimens(report.findings)
    value = json.loads(to_script(twin(shown_rows)))
    for each, row in zip(shown_rows, value["rows"], strict=True):
        symbols = read(row["symbols"])
        assert [value["texts"][k] for k in symbols] == [shown(text) for text in each.texts]
        assert np.array_equal(np.array(read(value["ids"]))[symbols], each.input_ids)
        runs, message, facts, messages = read(row["runs"]), -1, [], []
        for length, fact, step in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
            message += -(step + 1) // 2 if step & 1 else step // 2
            facts += [value["facts"][fact]] * length
            messages += [message] * length
        want = np.stack([each.role_ids, each.part_ids, each.flags, each.why], axis=1)
        assert facts == want.tolist() and messages == each.message_ids.tolist()


def read(text: str) -> list[int]:
    """The inverse of varints."""
    import base64

    out, value, shift = [], 0, 0
    for byte in base64.b64decode(text):
        value |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            out.append(value)
            value = shift = 0
    return out


def test_varints_hold_every_number() -> None:
    numbers = [0, 1, 127, 128, 16383, 16384, 2**31, 2**32 - 1, 2**40]
    assert read(varints(numbers)) == numbers
    assert [zigzag(n) for n in (0, -1, 1, -2, 2)] == [0, 1, 2, 3, 4]


class Tags(HTMLParser):
    """Elements and attributes of a page, and what stands in it as text."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(html: str) -> Tags:
    out = Tags()
    out.feed(html)
    return out


ALLOWED_LINKS = re.compile(r"#[\w:-]*")


def hostile_report(kind: str = HOSTILE[0]) -> Report:
    everywhere = Place(row=0, start=0, end=3, source=HOSTILE[1], record=1, field=HOSTILE[3], file=HOSTILE[4])
    elsewhere = Place(file=HOSTILE[0], source=HOSTILE[11])
    findings = [Finding("MP301", text, 1, (everywhere, elsewhere)) for text in HOSTILE]
    bounds = (Bounds(5, HOSTILE[1], HOSTILE[:3], ((0, HOSTILE[2]),)), Bounds(len(HOSTILE), HOSTILE[0]))
    one = specimen(documents=bounds, file=HOSTILE[4], chosen=HOSTILE[:4])
    gallery = Gallery(lambda findings, limit: {0: HOSTILE[:3]}, lambda row, chosen, found: one)
    return Report(HOSTILE[1], HOSTILE[0], kind, 1, 9, tuple(findings), gallery=gallery)


def test_no_string_of_the_data_becomes_markup() -> None:
    for report in (hostile_report(), hostile_report("maskpipe")):
        html = report.html()
        html.encode()  # no lone surrogates
        assert "\x00" not in html and "\u202e" not in html and "\x1b" not in html
        tags = parsed(html).seen
        names = {tag for tag, _ in tags}
        assert not names & {"img", "iframe", "object", "embed", "link", "base", "form", "video", "audio"}
        assert sum(tag == "script" for tag, _ in tags) == 2
        for tag, attributes in tags:
            assert not [name for name in attributes if name.startswith("on")], tag
            assert "style" not in attributes
            assert "src" not in attributes
            if "href" in attributes:
                assert ALLOWED_LINKS.fullmatch(attributes["href"] or "")


def test_a_fragment_has_no_script_and_escapes() -> None:
    html = hostile_report()._repr_html_()
    assert {tag for tag, _ in parsed(html).seen} <= {"div", "b", "span", "table", "tr", "td", "th"}
    assert "window.pwned" in "".join(parsed(html).words)


def test_long_texts_of_tokens_are_cut_and_say_so() -> None:
    assert shown("A" * 100_000) == "A" * LONGEST_TEXT + f"… {100_000 - LONGEST_TEXT:,} more characters"
    assert len(hostile_report().html()) < 260_000


def test_marks_that_stand_alone_get_a_circle_and_controls_a_picture() -> None:
    assert shown("\u0301 x") == "◌\u0301 x"
    assert shown("\x00\x1b\u202e\n\t") == "␀␛<U+202E>\n⇥"


def test_twenty_rows_of_8192_tokens_take_less_than_2_5_mb() -> None:
    tokenizer = maskpipe.Tokenizer.load(demo_data.tokenizer())
    generator = np.random.default_rng(3)
    rows = []
    for row in range(20):
        ids = generator.integers(0, tokenizer.vocab_size, 8192)
        made = of_arrays(ids, generator.integers(0, 2, 8192), row, tokenizer=tokenizer)
        roles = np.repeat(generator.integers(1, 4, 1024), 8).astype(np.uint8)
        rows.append(replace(made, role_ids=roles, message_ids=np.repeat(np.arange(1024, dtype=np.int32) % 40, 8)))
    size = len(page.html(Report("x", "x", "x", 20, 20 * 8192), rows).encode())
    print(f"20 rows of 8,192 random tokens with random loss: {size / 1e6:.2f} MB")
    assert size <= 2_500_000


def command(dataset: Path, out: Path) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", str(dataset), "--report", str(out)])
    return ended.value.code


def test_the_command_writes_a_page_and_overwrites_nothing_else(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    for _ in range(2):  # its own page may be written anew
        assert command(dataset, out) == 0
    assert str(out) in capsys.readouterr().out
    assert out.read_text(encoding="utf-8") == maskpipe.audit(dataset).html()
    other = tmp_path / "thesis.html"
    other.write_text("<html>mine</html>")
    for bad in (other, tmp_path, tmp_path / "no" / "where.html"):
        assert command(dataset, bad) == 2
    assert other.read_text() == "<html>mine</html>"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "thesis.html"]


def test_view_shows_rows_in_a_terminal_and_as_a_page(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")

    def view(*arguments: object) -> object:
        with pytest.raises(SystemExit) as ended:
            cli.main(["view", str(dataset), *map(str, arguments)])
        return ended.value.code

    sequence = maskpipe.open(dataset)[2]
    assert view("--row", 2) == 0
    out = capsys.readouterr().out
    assert f"in {len(sequence.documents)} document" in out and f"{sequence.n_loss:,} with loss" in out
    for facts in sequence.documents:
        assert f"chats.jsonl record {facts['row']}" in out
    assert "⟦" in out and "header: supplied by the generation prompt" in out
    assert view("--row", 2, "--row", 0, "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["row"] for row in rows] == [2, 0]
    tokens = [token for document in rows[0]["documents"] for token in document["tokens"]]
    assert [token["loss"] for token in tokens] == (sequence.loss_mask[: len(tokens)] > 0).tolist()
    page_file = tmp_path / "rows.html"
    assert view("--row", 2, "--row", 0, "--report", page_file) == 0
    html = page_file.read_text(encoding="utf-8")
    found = json.loads(re.findall(r'<script type="application/json" id="specimens">(.*?)</script>', html)[0])
    assert [row["row"] for row in found["rows"]] == [0, 2]
    assert view("--report", page_file) == 0
    assert len(page_file.read_text(encoding="utf-8")) > len(html), "rows worth reading"
    assert view("--row", 99) == 2
    assert "has no row 99" in capsys.readouterr().err


# -- in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if browser.CHROMIUM is None:
        pytest.skip("needs Chromium")
    with browser.chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "report.html"
    out.write_text(report.html(), encoding="utf-8")
    return out


def details(chromium: Page) -> dict[str, str]:
    names = chromium.run("[...document.querySelectorAll('#details dt')].map(e => e.innerText)")
    values = chromium.run("[...document.querySelectorAll('#details dd')].map(e => e.innerText)")
    return dict(zip(names, values, strict=True))


def test_a_page_opens_without_problems_and_asks_for_nothing(chromium: Page, file: Path) -> None:
    chromium.open(file)
    assert chromium.requests == [file.resolve().as_uri()]
    assert chromium.problems == []
    assert chromium.text(".verdict p").startswith("Do not train on this yet: prompt trained")
    assert chromium.count("#rows li") > 3 and chromium.count("#stream .turn") > 3


def test_every_token_says_why(chromium: Page, file: Path, report: Report) -> None:
    assert report.gallery is not None
    one = next(s for s in report.gallery.specimens(report.findings)[0] if s.row == 3)
    loss = np.flatnonzero(one.flags & Flag.LOSS)
    for position in (0, int(loss[0]), int(loss[-1]), one.documents[-1].end - 1):
        chromium.open(file, hash=f"#row-3:{position}")
        found = details(chromium)
        assert found["why"] == WORDS[Why(one.why[position])]
        assert found["trained"] == ("yes" if position in loss else "no")
        assert found["id"] == str(one.input_ids[position])
        assert found["role"] == Role(one.role_ids[position]).name.lower()
        assert found["part"] == Part(one.part_ids[position]).name.lower()
        assert chromium.count("#stream i.on") == 1


def test_hover_says_why_and_trained_text_is_underlined(chromium: Page, file: Path) -> None:
    chromium.open(file, hash="#row-3")
    chromium.key("t")
    chromium.move("#stream i.on")
    chromium.wait("!document.getElementById('tip').hidden")
    assert chromium.text("#tip").startswith("● trained: ") or chromium.text("#tip").startswith("trained: ")
    style = "getComputedStyle(document.querySelector('#stream i.on').parentElement).textDecorationLine"
    assert chromium.run(style) == "underline"
    untrained = "getComputedStyle(document.querySelector('#stream span.p:not(.t)'))"
    assert chromium.run(f"{untrained}.textDecorationLine") == "none"
    assert chromium.run(f"{untrained}.borderBottomStyle") == "dotted"


def test_a_finding_leads_to_its_tokens(chromium: Page, file: Path) -> None:
    chromium.open(file)
    chromium.run("document.querySelector('#MP301 .places a').scrollIntoView({block: 'center'})")
    chromium.move("#MP301 .places a", click=True)
    chromium.wait("document.querySelector('#row-title').innerText === 'row 3'")
    assert chromium.run("[...document.querySelectorAll('#stream i.mark')].map(e => e.position)") == list(range(40, 50))
    assert details(chromium)["finding"] == "MP301 a prompt has loss"
    box = chromium.run("(() => { const b = document.querySelector('i.on').getBoundingClientRect(); return b.top })()")
    assert 0 < box < 900, "it is on the screen"


def test_search_finds_text_across_tokens_and_ids(chromium: Page, file: Path, report: Report) -> None:
    assert report.gallery is not None
    rows, _ = report.gallery.specimens(report.findings)
    hay = ["".join(shown(text) for text in row.texts).lower() for row in rows]
    wanted = "".join(rows[0].texts[60:64]).lower()
    assert wanted.strip()
    chromium.open(file)
    chromium.key("/")
    chromium.type(wanted)
    chromium.key("Enter")
    chromium.wait("document.getElementById('found').innerText !== ''")
    total = int(re.findall(r"\d+", chromium.text("#found"))[0])
    assert total == sum(text.count(wanted) for text in hay), wanted
    assert chromium.count("#stream i.hit") > 0
    target = int(rows[0].input_ids[30])
    chromium.run("document.getElementById('search').value = ''")
    chromium.run("document.getElementById('search').focus()")
    chromium.type(f"#{target}")
    chromium.key("Enter")
    total = sum(int((row.input_ids[: row.documents[-1].end] == target).sum()) for row in rows)
    chromium.wait(f"document.getElementById('found').innerText.startsWith('{total:,} ')")
    assert details(chromium)["id"] == str(target)
    chromium.key("Escape")
    chromium.key("m")
    assert details(chromium)["id"] == str(target), "the next match"


def test_filters_show_what_passes_and_fade_the_rest(chromium: Page, file: Path, report: Report) -> None:
    assert report.gallery is not None
    rows, _ = report.gallery.specimens(report.findings)
    chromium.open(file)

    def choose(name: str, value: int | str) -> None:
        chromium.run(
            f"(() => {{ const s = document.getElementById('f-{name}'); s.value = '{value}'; s.onchange() }})()"
        )

    choose("role", int(Role.ASSISTANT))
    choose("loss", 0)
    want = sum(int(((r.role_ids == Role.ASSISTANT) & (r.flags & Flag.LOSS == 0)).sum()) for r in rows)
    assert chromium.text("#found").startswith(f"{want:,} tokens in")
    assert details(chromium)["role"] == "assistant" and details(chromium)["trained"] == "no"
    assert chromium.count("#stream .turn.folded") > 0
    chromium.wait("document.querySelectorAll('#stream i.off').length > 0")
    choose("part", int(Part.STOP))
    choose("loss", 1)
    want = sum(int(((r.part_ids == Part.STOP) & (r.flags & Flag.LOSS > 0)).sum()) for r in rows)
    assert chromium.text("#found").startswith(f"{want:,} token")
    chromium.run("document.getElementById('reset').click()")
    assert chromium.text("#found") == "" and chromium.count("#stream i.off") == 0
    choose("code", "MP301")
    assert chromium.text("#found") == f"11 tokens in 2 of {len(rows)} rows"


def test_keys_go_to_rows_trained_runs_documents_and_findings(chromium: Page, file: Path, report: Report) -> None:
    assert report.gallery is not None
    rows, _ = report.gallery.specimens(report.findings)
    chromium.open(file)

    def at() -> tuple[str, int]:
        return chromium.text("#row-title"), int(chromium.run("document.querySelector('#stream i.on')?.position ?? -1"))

    titles = [row.title for row in rows]
    chromium.key("n")
    assert at()[0] == titles[1]
    chromium.key("p")
    chromium.key("p")
    assert at()[0] == titles[-1], "round the corner"
    chromium.key("n")
    assert at() == (titles[0], -1)
    starts = [(row.title, k) for row in rows for k in np.flatnonzero(np.diff(row.loss_mask.astype(int)) > 0) + 1]
    for want in starts[:4]:
        chromium.key("t")
        assert at() == want
    chromium.key("T")
    assert at() == starts[2]
    chromium.open(file)
    ends = [bounds.end for bounds in rows[0].documents[:-1]]
    for want in [(titles[0], end) for end in (0, *ends)] + [(titles[1], 0)]:
        chromium.key("d")
        assert at() == want
    chromium.key("ArrowRight")
    assert at() == (titles[1], 1)
    chromium.open(file)
    for want in (("row 3", 40), ("row 5", 0), ("row 9", 7), ("row 3", 40)):
        chromium.key("f")
        assert at() == want


def test_hostile_text_is_shown_and_does_nothing(chromium: Page, tmp_path: Path) -> None:
    out = tmp_path / "hostile.html"
    out.write_text(hostile_report().html(), encoding="utf-8")
    chromium.open(out)
    chromium.key("t")
    chromium.move("#stream i.on")
    assert chromium.run("window.pwned") is None
    assert chromium.requests == [out.resolve().as_uri()]
    assert chromium.problems == []
    assert chromium.count("img, iframe, object, embed") == 0
    seen = chromium.text("#stream")
    for text in ("</script><script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>", "&lt;b&gt;"):
        assert text in seen
    assert "<U+202E>" in seen and "␀" in seen and "<U+D800>" in seen
    chromium.key("/")
    chromium.type("<img src=x")
    chromium.key("Enter")
    chromium.wait("document.getElementById('found').innerText.startsWith('1 match in')")
    assert chromium.run("window.pwned") is None


def test_even_a_script_or_an_image_that_got_in_would_do_nothing(chromium: Page, tmp_path: Path, report: Report) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        inside = (
            f"<script>window.pwned=1</script><img src='{url}' onerror='window.pwned=1'><link rel=stylesheet href={url}>"
        )
        out = tmp_path / "injected.html"
        out.write_text(report.html().replace("<main>", "<main>" + inside), encoding="utf-8")
        chromium.open(out)
        chromium.run(f"fetch('{url}').catch(() => 0)")
        assert chromium.run("window.pwned") is None
        with pytest.raises(TimeoutError):
            server.accept()
    assert chromium.count("#stream .turn") > 0, "the page's own script runs"


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_by_preference_and_by_the_switch(chromium: Page, file: Path, dark: bool) -> None:
    chromium.open(file, dark=dark)
    brightness = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    )
    assert (chromium.run(brightness) < 200) == dark
    chromium.run("document.getElementById('theme').click()")
    assert (chromium.run(brightness) < 200) != dark


def test_a_phone_needs_no_sideways_scrolling(chromium: Page, file: Path) -> None:
    chromium.open(file, width=390, height=844, hash="#row-3:45")
    assert chromium.run("document.documentElement.scrollWidth") <= 390
    sheet = chromium.run("document.querySelector('.inspector').getBoundingClientRect().top")
    token = chromium.run("document.querySelector('i.on').getBoundingClientRect().bottom")
    assert 0 < token < sheet, "what covers the lower half does not cover the token"
    chromium.move("#close", click=True)
    assert chromium.run("getComputedStyle(document.querySelector('.inspector')).display") == "none"


def test_a_row_of_131072_tokens_is_drawn_only_where_it_is_seen(chromium: Page, tmp_path: Path) -> None:
    n = 131_072
    words = ["word ", "and\n", "more "] * (n // 3 + 1)
    row = replace(of_arrays(np.arange(n) % 3, np.arange(n) // 100 % 2, 0), texts=words[:n])
    out = tmp_path / "long.html"
    out.write_text(page.html(Report("long", "long", "npy", 1, n), [row]), encoding="utf-8")
    chromium.open(out)
    assert 0 < chromium.count("#stream i") < 20_000
    chromium.run("document.querySelector('#stream').scrollTop = 1e9")
    chromium.wait("[...document.querySelectorAll('#stream i')].some(e => e.position > 131000)")
    assert chromium.problems == []
