"""maskpipe audit, verify, stats, rule: is a dataset what it says, and what does it hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from maskpipe.cli.app import CLEAN, FINDINGS, INPUT, FormatFlag, app, proof_count
from maskpipe.cli.talk import answer, console
from maskpipe.errors import DatasetError, UsageError


@app.command(usage="Usage: maskpipe audit DATA [OPTIONS]", sort_key=4)
def audit(
    data: Annotated[str, Parameter(group=INPUT, help="A dataset: a directory, or the URI of one.")],
    /,
    *,
    tokenizer: Annotated[
        str | None,
        Parameter(
            group=INPUT, help="Of data that maskpipe did not prepare: a directory, a tokenizer.json, a hub name."
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        Parameter(group=INPUT, negative=(), help="What the dataset was prepared from; may be repeated. For --proof."),
    ] = None,
    proof: Annotated[
        str | None,
        Parameter(
            group=INPUT,
            help="Render and encode 'all' records of --source (the default with it) or N of them again, another way, "
            "and compare every token.",
        ),
    ] = None,
    coverage_only: Annotated[
        bool, Parameter(group=INPUT, negative=(), help="Show what the manifest says; read and check no row.")
    ] = False,
    report: Annotated[
        Path | None, Parameter(group=INPUT, help="Write an HTML page with plots and a viewer of tokens to this file.")
    ] = None,
    require: Annotated[
        list[str] | None,
        Parameter(group=INPUT, negative=(), help="A metric and a number, such as 'loss_share>=0.2'; may be repeated."),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        Parameter(
            group=INPUT,
            negative=(),
            help="Exit 1 from this level on (error, warning, note, never), or for a code; may be repeated. "
            "warning by default.",
        ),
    ] = None,
    format: FormatFlag = "human",
) -> int:
    """Check every token of a dataset, and show what it holds. Exit code 1 for findings and requirements that fail.

    maskpipe audit out --report report.html
    maskpipe audit out --require 'loss_share>=0.2' --fail-on error
    maskpipe audit out --source chats.jsonl --proof all
    maskpipe audit theirs --tokenizer ./qwen3 --format json
    """  # fmt: skip
    import maskpipe
    from maskpipe.auditing import terminal
    from maskpipe.auditing.page import files
    from maskpipe.auditing.report import FAIL_ON

    levels = fail_on or [FAIL_ON]
    if report is not None:
        files.refuse(report)
    found = maskpipe.audit(
        data,
        tokenizer=tokenizer,
        source=source,
        proof=proof_count(proof),
        coverage_only=coverage_only,
        require=require or (),
    )
    code = found.exit_code(levels)
    if report is not None:
        files.write(report, found.html())
    if format == "json":
        answer(found.to_dict() | {"exit_code": code})
    else:
        terminal.show(found, console())
        if report is not None:
            answer(f"report    {report}")
    return code


@app.command(usage="Usage: maskpipe verify OUT", sort_key=4)
def verify(out: Annotated[str, Parameter(group=INPUT, help="A dataset.")], /, *, format: FormatFlag = "human") -> int:
    """Check every byte and every rule of a dataset. Exit code 1 when something is not as it was written.

    maskpipe verify out
    maskpipe verify out --format json
    """
    from maskpipe import summary
    from maskpipe.shards.verify import verify as check

    there = ("manifest.json", "manifest.sha256", "train/manifest.json")
    if not any((Path(out) / name).exists() for name in there):
        raise UsageError(f"{out}: no dataset here (no manifest.json); name the directory that `maskpipe prepare` made")
    try:
        verified = check(out)
    except DatasetError as error:
        if format == "json":
            answer({"ok": False, "problem": str(error)})
        else:
            answer(f"damaged   {error}")
        return FINDINGS
    answer(summary.verified_dict(verified) if format == "json" else summary.of_verified(out, verified))
    return CLEAN


@app.command(usage="Usage: maskpipe stats OUT", sort_key=3)
def stats(out: Annotated[str, Parameter(group=INPUT, help="A dataset.")], /, *, format: FormatFlag = "human") -> int:
    """Show what a dataset holds: tokens and loss per role and part, fill, verdicts, rejects. Reads the manifest only.

    maskpipe stats out
    maskpipe stats out --format json
    """
    import maskpipe
    from maskpipe import stats as counting

    found = counting.Stats.of(maskpipe.open(out))
    if format == "json":
        answer(found.to_dict())
    else:
        counting.show(found, console())
    return CLEAN


@app.command(usage="Usage: maskpipe rule [CODE]", sort_key=9)
def rule(
    code: Annotated[str | None, Parameter(group=INPUT, help="Such as MP102; all are listed without one.")] = None,
    /,
    *,
    format: FormatFlag = "human",
) -> int:
    """Explain a finding by its code: what it means, why it matters, what to do.

    maskpipe rule MP102
    maskpipe rule
    """
    from maskpipe import rules

    if format == "json":
        found = [rules.find(code)] if code is not None else list(rules.RULES.values())
        answer([vars(entry) for entry in found])
    elif code is None:
        rules.show_all(console())
    else:
        rules.show(rules.find(code), console())
    return CLEAN
