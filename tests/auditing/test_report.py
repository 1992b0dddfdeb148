"""The report's contract: docs/AUDIT.md is true, requirements and exit codes do what they say."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

import maskpipe
from maskpipe import demo_data
from maskpipe.auditing import terminal
from maskpipe.auditing.copies import Copies
from maskpipe.auditing.report import Report
from maskpipe.auditing.requirements import METRICS, measure, parse
from maskpipe.errors import UsageError
from maskpipe.findings import Finding, Place
from maskpipe.rules import RULES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "AUDIT.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("report") / "out"
    recipe = maskpipe.Recipe(sequence_length=1024)
    maskpipe.prepare(demo_data.chats(), out, tokenizer=demo_data.tokenizer(), recipe=recipe, workers=0)
    return maskpipe.audit(out)


def test_the_page_lists_every_code_with_its_name_and_level_and_no_other() -> None:
    listed = set(re.findall(r"^\| (MP\d{3}) \| (\S+) \| (error|warning|note) \|", PAGE, re.MULTILINE))
    assert listed == {(rule.code, rule.name, rule.level) for rule in RULES.values()}


def test_every_rule_says_all_and_names_are_unique() -> None:
    assert len({rule.name for rule in RULES.values()}) == len(RULES)
    for rule in RULES.values():
        assert rule.what and rule.why and rule.do and rule.example, rule.code


def test_the_page_names_every_metric_and_every_key(report: Report) -> None:
    assert set(re.findall(r"^\| `([a-z_]+)` \| ", PAGE, re.MULTILINE)) >= set(METRICS)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    for key in (*values, *values["coverage"], *values["coverage"]["histograms"]):
        assert f"`{key}`" in PAGE, key


def test_what_is_usual_in_sft_is_said_of_sft_alone(report: Report, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Say {k}.", "chosen": f"It is {k}.", "rejected": "No."} for k in range(4)]
    recipe = maskpipe.Recipe(sequence_length=1024, objective="preference")
    maskpipe.prepare(pairs, tmp_path / "pairs", tokenizer=demo_data.tokenizer(), recipe=recipe, workers=0)
    for audited, usual in ((report, True), (maskpipe.audit(tmp_path / "pairs"), False)):
        console = Console(file=io.StringIO(), width=200)
        terminal.show(audited, console)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("typical of SFT" in printed) == usual and "of a document's tokens with loss: mean" in printed
        assert ("SFT: usually 30-70 %" in audited.html()) == usual
        assert ("usual in SFT" in audited.html()) == usual


def test_the_ci_examples_are_yaml() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 2 and all(isinstance(yaml.safe_load(example), dict) for example in examples)


def test_every_metric_has_a_value_of_an_own_dataset(report: Report) -> None:
    for metric in METRICS:
        assert measure(report, metric) is not None, metric
    assert measure(report, "loss_share.assistant") == pytest.approx(
        measure(report, "loss_tokens.assistant") / measure(report, "tokens.assistant")  # type: ignore[operator]
    )


@pytest.mark.parametrize(
    ("text", "holds"),
    [("loss_share>=0.2", True), ("loss_share >= 90%", False), ("errors==0", True), ("count.MP513>0", True),
     ("loss_tokens.user=0", True), ("loss_share.other>=0", False)],
)  # fmt: skip
def test_requirements_decide_the_exit_code(report: Report, text: str, holds: bool) -> None:
    assert report.requiring([parse(text)]).exit_code() == int(not holds)


@pytest.mark.parametrize(
    ("text", "said"),
    [("los_share>=0.2", "did you mean loss_share"), ("loss_share", "expected METRIC"), ("fill>=x", "no number"),
     ("fill>=nan", "no number"), ("count.MP999>0", "no metric"), ("loss_share.robot>0", "no metric")],
)  # fmt: skip
def test_a_requirement_that_is_none_is_an_error(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text)


def test_findings_fail_from_a_level_on_or_by_code() -> None:
    made = Report("x", "x", "maskpipe", 1, 1, (Finding("MP314", "w"), Finding("MP508", "n")))
    assert made.exit_code() == 1
    assert made.exit_code(["error"]) == 0
    assert made.exit_code(["never"]) == 0
    assert made.exit_code(["note"]) == 1
    assert made.exit_code(["error", "MP508"]) == 1
    assert made.exit_code(["mp314"]) == 1
    with pytest.raises(UsageError, match="expected error"):
        made.exit_code(["severe"])


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_view_fits_and_says_all(report: Report, width: int) -> None:
    hostile = Finding("MP301", "text \x1b[31m [bold]x[/bold]", 3, (Place(row=3, start=5, end=9),))
    out = io.StringIO()
    terminal.show(report.with_findings([hostile]), Console(file=out, width=width, markup=False, highlight=False))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in out.getvalue() and "[bold]" in out.getvalue()
    text = " ".join(out.getvalue().split())
    assert all(word in text for word in ("assistant", "MP301", "row 3:5-9", "MP319", "signals per row", "<|done|>"))


def test_a_notebook_shows_the_report_with_everything_escaped(report: Report) -> None:
    page = report.with_findings([Finding("MP301", "<script>x</script>")])._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_copies_are_found_the_same_in_memory_and_through_files() -> None:
    random = np.random.default_rng(1)
    hashes = random.integers(0, 400, 3000).astype(np.uint64) << np.uint64(55)
    origins = random.integers(0, 50, 3000).astype(np.uint64)
    results = []
    for held in (100, 10_000):
        copies = Copies(held)
        for first in range(0, 3000, 70):
            of = slice(first, first + 70)
            rows, tokens = np.arange(3000)[of], np.ones(3000, np.int32)[of]
            copies.add(hashes[of], origins[of], rows, tokens)
        results.append(copies.find(max_rows=5))
        copies.close()
    seen: dict[int, set[int]] = {}
    repeats = copied = 0
    for one, two in zip(hashes.tolist(), origins.tolist(), strict=True):
        known = seen.setdefault(one, set())
        repeats += two in known
        copied += bool(known) and two not in known
        known.add(two)
    assert [(found.copies, found.repeats) for found in results] == [(copied, repeats)] * 2
    assert results[0] == results[1]
