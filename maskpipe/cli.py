"""The command line: one function per command, no logic. stdout is data, stderr is talk.

Exit codes: 0 clean, 1 findings (verify), 2 could not run, 130 interrupted. What a command needs is imported when it
runs, so that `maskpipe --help` is quick; only probe, explain --model and reference-logps
import torch.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter
from rich.console import Console

from maskpipe.errors import DatasetError, MaskpipeError, UsageError
from maskpipe.recipe_flags import RecipeFlags, resolve

if TYPE_CHECKING:
    from maskpipe.document import Document
    from maskpipe.guard import Limits

CLEAN, FINDINGS, FAILED, INTERRUPTED = 0, 1, 2, 130
NARROWEST = 84
"""Columns of the widest table of numbers, that of `stats`."""


def _version() -> str:
    from maskpipe import __version__

    return __version__


app = App(
    name="maskpipe",
    usage="Usage: maskpipe COMMAND [ARGS]",
    help="""Chats and text to packed Arrow shards in which every token carries the right role and loss flag.

  maskpipe demo
  maskpipe prepare chats.jsonl out --tokenizer ./qwen3
  maskpipe explain chats.jsonl --row 3 --tokenizer ./qwen3
""",
    help_format="plaintext",
    help_epilogue="Exit codes: 0 clean, 1 findings, 2 could not run, 130 interrupted.",
    version=_version,
    suppress_keyboard_interrupt=False,
)
recipe_app = App(
    name="recipe",
    help="Recipes that come with maskpipe, those of trainers, and which keys there are.",
    sort_key=8,
)
app.command(recipe_app)

_INPUT = Group("Input and output", sort_key=0)

TokenizerFlag = Annotated[
    str,
    Parameter(
        "--tokenizer", group=_INPUT, help="Directory with tokenizer.json, a tokenizer.json, or a hub name org/name."
    ),
]
SplitFlag = Annotated[
    str | None, Parameter("--split", group=_INPUT, help="Split of a data set that has several, such as train.")
]
RecipeFile = Annotated[
    Path | None, Parameter("--recipe", group=_INPUT, help="YAML file with recipe keys; flags go before it.")
]
FormatFlag = Annotated[
    Literal["human", "json"], Parameter("--format", group=_INPUT, help="json is for programs: its keys are stable.")
]
Flags = Annotated[RecipeFlags | None, Parameter(name="*")]


@app.command(usage="Usage: maskpipe prepare SOURCE... OUT --tokenizer T [OPTIONS]", sort_key=1)
def prepare(
    *paths: Annotated[
        str,
        Parameter(
            "SOURCE... OUT",
            group=_INPUT,
            help="Files or directories (JSON Lines, JSON, Parquet, Arrow, text, gz, zst), then the new directory.",
        ),
    ],
    tokenizer: TokenizerFlag,
    split: SplitFlag = None,
    recipe: RecipeFile = None,
    workers: Annotated[
        int | None, Parameter(group=_INPUT, help="Processes; one per core by default. The bytes do not depend on it.")
    ] = None,
    record_seconds: Annotated[
        float | None,
        Parameter(group=_INPUT, help="CPU seconds that one record may take: 3 by default, more for long ones."),
    ] = None,
    record_mib: Annotated[
        int | None, Parameter(group=_INPUT, help="Memory that one record may take: 384 by default, more for long ones.")
    ] = None,
    rank: Annotated[
        int | None,
        Parameter(group=_INPUT, help="Of a job on several machines: do the share of this one, from 0. See --world."),
    ] = None,
    world: Annotated[
        int | None,
        Parameter(group=_INPUT, help="How many ranks there are. Then the same command without both finishes OUT."),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(group=_INPUT, negative=(), help="Say what the first 1,000 records would become; write nothing.")
    ] = False,
    proof: Annotated[
        str | None,
        Parameter(group=_INPUT, help="Prove provenance by a second, independent render: 'all' records or the first N."),
    ] = None,
    format: FormatFlag = "human",
    flags: Flags = None,
) -> int:
    """Turn chats and text into a dataset of packed sequences.

    maskpipe prepare chats.jsonl out --tokenizer ./qwen3
    maskpipe prepare a.jsonl.zst b.parquet out --tokenizer ./qwen3 --train-on last_turn
    maskpipe prepare book.txt out --tokenizer ./qwen3 --objective pretrain --packing concat_split
    maskpipe prepare chats.jsonl out --tokenizer ./qwen3 --rank $SLURM_ARRAY_TASK_ID --world 8
    """
    chosen, n_proof = resolve(flags, recipe), _proof(proof)
    from maskpipe import pipeline, ranks, summary
    from maskpipe import trial as trials

    if (rank is None) != (world is None):
        raise UsageError("--rank and --world come together: --rank 0 --world 8 does the first of eight shares")
    if dry_run and rank is not None:
        raise UsageError("--dry-run writes nothing, so there is no share of it to do: leave out --rank and --world")
    if dry_run:
        sources = list(paths[:-1] if len(paths) > 1 else paths)
        if not sources:
            raise UsageError("prepare needs SOURCE; such as: maskpipe prepare chats.jsonl out --tokenizer T --dry-run")
        trial = trials.dry_run(sources, tokenizer=tokenizer, recipe=chosen, split=split, proof=n_proof)
        _print(summary.trial_dict(trial) if format == "json" else str(trial))
        return CLEAN
    limits = _limits(record_seconds, record_mib)
    if len(paths) < 2:
        raise UsageError("prepare needs SOURCE and OUT; for example: maskpipe prepare chats.jsonl out --tokenizer T")
    from maskpipe import progress as showing

    if rank is not None and world is not None:
        with showing.shown() as progress:
            share = ranks.prepare_share(
                list(paths[:-1]), paths[-1], rank=rank, world_size=world, tokenizer=tokenizer, recipe=chosen,
                split=split, workers=workers, proof=n_proof, limits=limits, progress=progress,
            )  # fmt: skip
        _print(summary.share_dict(share) if format == "json" else str(share))
        return CLEAN
    with showing.shown() as progress:
        made = pipeline.prepare(
            list(paths[:-1]), paths[-1], tokenizer=tokenizer, recipe=chosen, split=split, workers=workers,
            proof=n_proof, limits=limits, progress=progress,
        )  # fmt: skip
    _print(summary.dataset_dict(made) if format == "json" else str(made))
    return CLEAN


@app.command(usage="Usage: maskpipe demo [OUT]", sort_key=0)
def demo(
    out: Annotated[
        str | None, Parameter(group=_INPUT, help="New directory; ./demo-out, or the next free number, by default.")
    ] = None,
    /,
) -> int:
    """Run the main job on chats and a tokenizer that come with maskpipe, and show what it made.

    maskpipe demo
    maskpipe demo somewhere/new
    """
    from maskpipe import demo as demonstration

    demonstration.run(Path(out) if out is not None else demonstration.free_name(Path("demo-out")), _stdout())
    return CLEAN


@app.command(usage="Usage: maskpipe explain SOURCE --row N --tokenizer T | OUT --row N --pos P [OPTIONS]", sort_key=2)
def explain(
    source: Annotated[str, Parameter(group=_INPUT, help="File or directory that holds the record, or a dataset.")],
    /,
    *,
    tokenizer: Annotated[
        str | None,
        Parameter(group=_INPUT, help="Directory with tokenizer.json, a tokenizer.json, or a hub name org/name."),
    ] = None,
    row: Annotated[
        int,
        Parameter(group=_INPUT, help="Which record, counted from 0 as rejects.jsonl does; of a dataset, which row."),
    ] = 0,
    pos: Annotated[
        int | None, Parameter(group=_INPUT, help="Of a dataset: which token of the row, to see what it comes from.")
    ] = None,
    char: Annotated[
        str | None,
        Parameter(
            group=_INPUT,
            help="Of a dataset, the other way round: RECORD:MESSAGE:FIELD:CHARACTER, such as 17:2:content:40, to see "
            "which tokens hold it.",
        ),
    ] = None,
    from_source: Annotated[
        list[str] | None,
        Parameter("--source", group=_INPUT, negative=(), help="Of a dataset: what it was prepared from."),
    ] = None,
    split: SplitFlag = None,
    recipe: RecipeFile = None,
    tokens: Annotated[
        bool, Parameter(group=_INPUT, negative=(), help="One line per position, not one per stretch.")
    ] = False,
    full: Annotated[bool, Parameter(group=_INPUT, negative=(), help="Show long stretches uncut.")] = False,
    model: Annotated[
        str | None,
        Parameter(group=_INPUT, help="Directory of a transformers model: what it gives each true next token."),
    ] = None,
    format: FormatFlag = "human",
    flags: Flags = None,
) -> int:
    """Show one record token by token: whose each is, whether it gets loss, and why.

    maskpipe explain chats.jsonl --row 3 --tokenizer ./qwen3
    maskpipe explain chats.jsonl --row 3 --tokenizer out --recipe out/recipe.yaml
    maskpipe explain chats.jsonl --row 3 --tokenizer ./qwen3 --tokens | less
    maskpipe explain chats.jsonl --row 3 --tokenizer ./qwen3 --model ./qwen3 --tokens
    maskpipe explain out --row 4 --pos 312 --source chats.jsonl
    maskpipe explain out --char 17:2:content:40 --source chats.jsonl
    """
    if pos is not None or char is not None:
        return _trace(source, row, pos, char, from_source, split, format)
    if tokenizer is None:
        raise UsageError("explain needs --tokenizer; or, of a dataset, --pos to see what a token comes from")
    chosen = resolve(flags, recipe)
    from maskpipe import explain as explaining
    from maskpipe.fit import check_fit
    from maskpipe.job import encoder_of

    encoder = encoder_of(tokenizer, chosen)
    explanation = explaining.explain(source, row, encoder=encoder, split=split, findings=check_fit(encoder))
    if model is not None:
        explanation.probabilities = _probabilities(model, explanation.documents)
    if format == "json":
        _print(explanation.to_dict())
    else:
        explaining.show(explanation, _stdout(), tokens=tokens, full=full)
    return CLEAN


def _trace(
    out: str, row: int, pos: int | None, char: str | None, source: list[str] | None, split: str | None, format: str
) -> int:
    """A token of a dataset to its characters, or a character to its tokens."""
    import maskpipe
    from maskpipe.auditing import trace

    with maskpipe.open(out) as dataset:
        if char is None:
            assert pos is not None
            found = trace.trace(dataset, row, pos, source=source, split=split)
            _print(found.to_dict() if format == "json" else str(found))
            return CLEAN
        parts = char.split(":")
        if pos is not None or source is None or len(parts) not in (4, 5) or not all(parts):
            raise UsageError("--char takes [SOURCE:]RECORD:MESSAGE:FIELD:CHARACTER and needs --source, without --pos")
        name = parts.pop(0) if len(parts) == 5 else None
        numbers = [parts[0], parts[1], parts[3]]
        if not all(number.isdecimal() for number in numbers):
            raise UsageError(f"--char {char}: record, message and character are numbers counted from 0")
        record, message, character = map(int, numbers)
        tokens = trace.locate(
            dataset, record, message, parts[2], character, source=source, split=split, source_name=name
        )
        if format == "json":
            _print({"tokens": [token.to_dict() for token in tokens]})
        else:
            _print("\n".join(map(str, tokens)) or "no token of the dataset holds this character")
    return CLEAN


def _probabilities(model: str, documents: list[Document]) -> list[Any]:
    """What a model gives the true next tokens of each document."""
    _quiet_hub()
    try:
        from maskpipe.data.model import default_device, load_model
        from maskpipe.losses.model_logps import next_token_probabilities
    except ModuleNotFoundError as error:
        raise UsageError(f"explain --model needs {error.name or 'torch'}: pip install 'maskpipe[probe]'") from None
    loaded = load_model(model, "float32", default_device(None), wanted_by="explain --model")
    return [next_token_probabilities(loaded, document.input_ids) for document in documents]


def _quiet_hub() -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@app.command(usage="Usage: maskpipe stats OUT", sort_key=3)
def stats(out: Annotated[str, Parameter(group=_INPUT, help="A dataset.")], /, *, format: FormatFlag = "human") -> int:
    """Show what a dataset holds: tokens and loss per role and part, fill, verdicts, rejects. Reads the manifest only.

    maskpipe stats out
    maskpipe stats out --format json
    """
    import maskpipe
    from maskpipe import stats as counting

    found = counting.Stats.of(maskpipe.open(out))
    if format == "json":
        _print(found.to_dict())
    else:
        counting.show(found, _stdout())
    return CLEAN


@app.command(usage="Usage: maskpipe verify OUT", sort_key=4)
def verify(out: Annotated[str, Parameter(group=_INPUT, help="A dataset.")], /, *, format: FormatFlag = "human") -> int:
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
            _print({"ok": False, "problem": str(error)})
        else:
            _print(f"damaged   {error}")
        return FINDINGS
    _print(summary.verified_dict(verified) if format == "json" else summary.of_verified(out, verified))
    return CLEAN


@app.command(usage="Usage: maskpipe audit DATA [OPTIONS]", sort_key=4)
def audit(
    data: Annotated[str, Parameter(group=_INPUT, help="A dataset: a directory, or the URI of one.")],
    /,
    *,
    tokenizer: Annotated[
        str | None,
        Parameter(
            group=_INPUT, help="Of data that maskpipe did not prepare: a directory, a tokenizer.json, a hub name."
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        Parameter(group=_INPUT, negative=(), help="What the dataset was prepared from; may be repeated. For --proof."),
    ] = None,
    proof: Annotated[
        str | None,
        Parameter(
            group=_INPUT,
            help="Render and encode 'all' records of --source (the default with it) or N of them again, another way, "
            "and compare every token.",
        ),
    ] = None,
    coverage_only: Annotated[
        bool, Parameter(group=_INPUT, negative=(), help="Show what the manifest says; read and check no row.")
    ] = False,
    report: Annotated[
        Path | None, Parameter(group=_INPUT, help="Write an HTML page with plots and a viewer of tokens to this file.")
    ] = None,
    require: Annotated[
        list[str] | None,
        Parameter(group=_INPUT, negative=(), help="A metric and a number, such as 'loss_share>=0.2'; may be repeated."),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        Parameter(
            group=_INPUT,
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
        proof=_proof(proof),
        coverage_only=coverage_only,
        require=require or (),
    )
    code = found.exit_code(levels)
    if report is not None:
        files.write(report, found.html())
    if format == "json":
        _print(found.to_dict() | {"exit_code": code})
    else:
        terminal.show(found, _stdout())
        if report is not None:
            _print(f"report    {report}")
    return code


@app.command(usage="Usage: maskpipe view OUT [--row R] [OPTIONS]", sort_key=4)
def view(
    out: Annotated[str, Parameter(group=_INPUT, help="A dataset.")],
    /,
    *,
    row: Annotated[
        list[int] | None,
        Parameter(group=_INPUT, negative=(), help="Which packed row, counted from 0; may be repeated. 0 by default."),
    ] = None,
    report: Annotated[
        Path | None,
        Parameter(group=_INPUT, help="Write an HTML page with a viewer instead; without --row of rows worth reading."),
    ] = None,
    tokens: Annotated[
        bool, Parameter(group=_INPUT, negative=(), help="One line per position, not one per stretch.")
    ] = False,
    full: Annotated[bool, Parameter(group=_INPUT, negative=(), help="Show long stretches uncut.")] = False,
    format: FormatFlag = "human",
) -> int:
    """Show packed rows of a dataset token by token: whose each is, whether it gets loss, and why.

    maskpipe view out --row 3
    maskpipe view out --row 3 --row 17 --report rows.html
    """
    import maskpipe
    from maskpipe import explain as explaining
    from maskpipe.auditing import view as viewing
    from maskpipe.auditing.page import files

    dataset = maskpipe.open(out)
    if report is not None:
        files.refuse(report)
        found = maskpipe.audit(dataset, coverage_only=True)
        files.write(report, (found if row is None else viewing.with_rows(found, dataset, row)).html())
        _print({"report": str(report)} if format == "json" else f"report    {report}")
        return CLEAN
    shown = [viewing.explanation(dataset, number) for number in row or [0]]
    if format == "json":
        _print({"rows": [each.to_dict() | {"origins": each.origins} for each in shown]})
    else:
        for each in shown:
            explaining.show(each, _stdout(), tokens=tokens, full=full)
    return CLEAN


@app.command(usage="Usage: maskpipe probe MODEL [OPTIONS]", sort_key=7)
def probe(
    model: Annotated[str, Parameter(group=_INPUT, help="Directory of a transformers model, or a hub name org/name.")],
    /,
    *,
    attn_implementation: Annotated[
        list[str] | None,
        Parameter(
            group=_INPUT, negative=(), help="eager, sdpa, …; may be given again. What the model has, by default."
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        Parameter(group=_INPUT, help="Of the weights; auto: as stored."),
    ] = "float32",
    device: Annotated[
        str | None, Parameter(group=_INPUT, help="cuda where there is one, else cpu, by default.")
    ] = None,
    random_init: Annotated[
        bool, Parameter(group=_INPUT, negative=(), help="Make random weights for its config.json; load none.")
    ] = False,
    sequence_length: Annotated[
        int, Parameter(group=_INPUT, help="Tokens per probed row; more than a sliding window to probe that too.")
    ] = 128,
    seed: Annotated[int, Parameter(group=_INPUT, help="Of the probe's tokens and random weights.")] = 0,
    format: FormatFlag = "human",
) -> int:
    """Change one document of a packed row: do the model's logits for the others stay? Exit code 1 when they do not.

    maskpipe probe ./my-model
    maskpipe probe ./my-model --attn-implementation sdpa --dtype bfloat16 --format json
    """
    _quiet_hub()
    try:
        from maskpipe import data
    except ModuleNotFoundError as error:
        raise UsageError(f"probe needs {error.name or 'torch'}: pip install 'maskpipe[probe]'") from None
    found = data.probe(
        model, attention=attn_implementation, dtype=dtype, device=device, random_init=random_init,
        sequence_length=sequence_length, seed=seed,
    )  # fmt: skip
    _print(found.to_dict() if format == "json" else str(found))
    return FINDINGS if found.leaks else CLEAN if found.probed else FAILED


@app.command(name="reference-logps", usage="Usage: maskpipe reference-logps OUT REF --model DIR [OPTIONS]", sort_key=7)
def reference_logps(
    out: Annotated[str, Parameter(group=_INPUT, help="A dataset.")],
    ref: Annotated[str, Parameter("REF", group=_INPUT, help="New directory.")],
    /,
    *,
    model: Annotated[str, Parameter(group=_INPUT, help="Directory of a transformers model, or a hub name org/name.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        Parameter(group=_INPUT, help="Of the weights; auto: as stored. As the policy's, or the two do not compare."),
    ] = "auto",
    device: Annotated[
        str | None, Parameter(group=_INPUT, help="cuda where there is one, else cpu, by default.")
    ] = None,
    batch_size: Annotated[int, Parameter(group=_INPUT, help="Rows of the dataset per forward pass.")] = 8,
    train_on: Annotated[
        list[str] | None,
        Parameter(
            group=_INPUT, negative=(), help="Tokens that get a value, as for the loader; as prepared by default."
        ),
    ] = None,
    unpacked: Annotated[
        bool,
        Parameter(group=_INPUT, negative=(), help="One document per row, for models that mix packed documents."),
    ] = False,
    format: FormatFlag = "human",
) -> int:
    """Compute what a reference model gives each token with loss, once, for preference losses.

    maskpipe reference-logps out out-ref --model ./sft-model
    """
    _quiet_hub()
    try:
        from maskpipe.losses import write_reference_logps
    except ModuleNotFoundError as error:
        raise UsageError(f"reference-logps needs {error.name or 'torch'}: pip install 'maskpipe[probe]'") from None
    made = write_reference_logps(
        out, ref, model, packed=not unpacked, batch_size=batch_size, train_on=train_on, dtype=dtype, device=device
    )
    _print(made.to_dict() if format == "json" else str(made))
    return CLEAN


@app.command(usage="Usage: maskpipe export OUT --to TARGET DEST", sort_key=5)
def export(
    out: Annotated[str, Parameter(group=_INPUT, help="A dataset.")],
    destination: Annotated[str, Parameter("DEST", group=_INPUT, help="New directory.")],
    /,
    *,
    to: Annotated[
        Literal["hf", "trl", "trl-dpo", "megatron-bridge", "olmo"],
        Parameter(
            group=_INPUT,
            help="hf: Parquet with labels for any trainer; trl: for its SFTTrainer; trl-dpo: pairs for its "
            "DPOTrainer; megatron-bridge: its packed Parquet; olmo: arrays for OLMo-core.",
        ),
    ] = "hf",
    ignore_weights: Annotated[
        bool, Parameter(group=_INPUT, negative=(), help="Leave out source weights other than 0 and 1, and count them.")
    ] = False,
    unpack: Annotated[
        bool, Parameter(group=_INPUT, negative=(), help="hf, trl: one document per row, for trainers that pad or pack.")
    ] = False,
    across_documents: Annotated[
        bool,
        Parameter(
            group=_INPUT, negative=(), help="olmo: rows as they are packed; the model then attends across documents."
        ),
    ] = False,
    allow_lost_targets: Annotated[
        bool,
        Parameter(
            group=_INPUT, negative=(), help="megatron-bridge: go on where its reader takes the loss from some targets."
        ),
    ] = False,
    format: FormatFlag = "human",
) -> int:
    """Write a dataset in a form for trainers that know nothing of maskpipe.

    maskpipe export out --to hf out-hf
    maskpipe export out --to olmo out-olmo
    """
    from maskpipe import exports

    options = exports.Options(
        ignore_weights=ignore_weights, unpack=unpack, across_documents=across_documents,
        allow_lost_targets=allow_lost_targets,
    )  # fmt: skip
    made = exports.export(out, destination, to=to, options=options)
    _print(made.to_dict() if format == "json" else str(made))
    return CLEAN


@app.command(usage="Usage: maskpipe diff A B", sort_key=6)
def diff(
    a: Annotated[str, Parameter("A", group=_INPUT, help="A dataset.")],
    b: Annotated[str, Parameter("B", group=_INPUT, help="Another one.")],
    /,
    *,
    examples: Annotated[int, Parameter(group=_INPUT, help="Records to show.")] = 5,
    format: FormatFlag = "human",
) -> int:
    """Say what two datasets say differently, record by record. Exit code 1 when anything differs.

    maskpipe diff out out-new
    maskpipe diff out out-new --format json
    """
    from maskpipe import diff as comparing

    found = comparing.diff(a, b, examples=examples)
    _print(found.to_dict() if format == "json" else str(found))
    return CLEAN if found.same else FINDINGS


@app.command(usage="Usage: maskpipe repack OUT NEW [--sequence-length N] [--packing METHOD]", sort_key=6)
def repack(
    out: Annotated[str, Parameter(group=_INPUT, help="A dataset.")],
    new: Annotated[str, Parameter(group=_INPUT, help="New directory.")],
    /,
    *,
    sequence_length: Annotated[int | None, Parameter(group=_INPUT, help="Tokens per packed row.")] = None,
    packing: Annotated[
        Literal["best_fit", "first_fit", "concat_split", "none"] | None,
        Parameter(group=_INPUT, help="How documents fill sequences; as it was by default."),
    ] = None,
    format: FormatFlag = "human",
) -> int:
    """Pack the documents of a dataset anew, without tokenizing: the bytes that prepare would make, or a refusal.

    maskpipe repack out out-4k --sequence-length 4096
    maskpipe repack out out-unpacked --packing none
    """
    from maskpipe import repack as repacking

    if sequence_length is None and packing is None:
        raise UsageError(
            "repack needs --sequence-length or --packing; such as: maskpipe repack out out-4k --sequence-length 4096"
        )
    made = repacking.repack(out, new, sequence_length=sequence_length, packing=packing)
    _print(made.to_dict() if format == "json" else str(made))
    return CLEAN


AllowRepeats = Annotated[
    bool, Parameter(group=_INPUT, negative=(), help="Take a source that is there already once more, and count it.")
]


@app.command(usage="Usage: maskpipe merge A B... NEW", sort_key=6)
def merge(
    *paths: Annotated[
        str, Parameter("A B... NEW", group=_INPUT, help="Datasets of one recipe and tokenizer, then the new directory.")
    ],
    allow_repeats: AllowRepeats = False,
    format: FormatFlag = "human",
) -> int:
    """Make one dataset of several that were prepared with the same recipe and tokenizer.

    maskpipe merge out-a out-b out
    """
    from maskpipe import merge as merging

    if len(paths) < 3:
        raise UsageError("merge needs at least two datasets and NEW; such as: maskpipe merge out-a out-b out")
    made = merging.merge(paths[:-1], paths[-1], allow_repeats=allow_repeats)
    _print(made.to_dict() if format == "json" else str(made))
    return CLEAN


@app.command(usage="Usage: maskpipe append OUT SOURCE... NEW", sort_key=6)
def append(
    *paths: Annotated[
        str, Parameter("OUT SOURCE... NEW", group=_INPUT, help="A dataset, new sources, then the new directory.")
    ],
    split: SplitFlag = None,
    workers: Annotated[int | None, Parameter(group=_INPUT, help="Processes; one per core by default.")] = None,
    allow_repeats: AllowRepeats = False,
    format: FormatFlag = "human",
) -> int:
    """Prepare new sources with a dataset's own recipe and tokenizer, and make one dataset of both. OUT stays as it is.

    maskpipe append out more.jsonl out-new
    """
    from maskpipe import merge as merging

    if len(paths) < 3:
        raise UsageError("append needs OUT, SOURCE and NEW; such as: maskpipe append out more.jsonl out-new")
    from maskpipe import progress as showing

    with showing.shown() as progress:
        made = merging.append(
            paths[0], list(paths[1:-1]), paths[-1], split=split, workers=workers, allow_repeats=allow_repeats,
            progress=progress,
        )  # fmt: skip
    _print(made.to_dict() if format == "json" else str(made))
    return CLEAN


@app.command(usage="Usage: maskpipe gc DIR [--delete]", sort_key=7)
def gc(
    directory: Annotated[str, Parameter("DIR", group=_INPUT, help="Where datasets are, or one OUT.partial.")] = ".",
    /,
    *,
    delete: Annotated[
        bool, Parameter(group=_INPUT, negative=(), help="Take the leftovers away; without it they are only listed.")
    ] = False,
    format: FormatFlag = "human",
) -> int:
    """List what killed runs left behind, and take it away. Exit code 1 when something could not be taken away.

    maskpipe gc data
    maskpipe gc data --delete
    """
    from maskpipe import leftovers

    found = leftovers.find(directory)
    problems = {}
    for leftover in [entry for entry in found if delete and not entry.in_use]:
        try:
            leftovers.remove(leftover)
        except UsageError as error:
            problems[leftover.path] = str(error)
    if format == "json":
        entries = [{**entry.to_dict(), "removed": not entry.path.exists()} for entry in found]
        _print({"leftovers": entries, "problems": list(problems.values())})
    else:
        leftovers.show(found, delete, problems, _stdout())
    return FINDINGS if problems else CLEAN


@recipe_app.command(usage="Usage: maskpipe recipe show [NAME] [OPTIONS]")
def show(
    name: Annotated[str | None, Parameter(group=_INPUT, help="A recipe that `maskpipe recipe list` names.")] = None,
    /,
    *,
    recipe: RecipeFile = None,
    flags: Flags = None,
) -> int:
    """Print a recipe that comes with maskpipe, or one as YAML with every key resolved: defaults, file, flags on top.

    maskpipe recipe show reasoning
    maskpipe recipe show > recipe.yaml
    maskpipe recipe show --recipe recipe.yaml --train-on last_turn
    """
    if name is None:
        _print(resolve(flags, recipe).to_yaml().rstrip("\n"))
        return CLEAN
    if recipe is not None or flags is not None:
        raise UsageError("recipe show NAME prints that recipe as it is; copy it to a file to change it")
    from maskpipe import recipes

    _print(recipes.text(name).rstrip("\n"))
    return CLEAN


@recipe_app.command(name="list", usage="Usage: maskpipe recipe list")
def list_recipes(*, format: FormatFlag = "human") -> int:
    """List the recipes that come with maskpipe.

    maskpipe recipe list
    """
    from maskpipe import recipes

    found = {name: recipes.summary(name) for name in recipes.names()}
    _print(found if format == "json" else "\n".join(f"{name:<12}{text}" for name, text in found.items()))
    return CLEAN


@recipe_app.command(usage="Usage: maskpipe recipe copy NAME FILE")
def copy(
    name: Annotated[str, Parameter(group=_INPUT, help="A recipe that `maskpipe recipe list` names.")],
    file: Annotated[Path, Parameter(group=_INPUT, help="New file.")],
    /,
) -> int:
    """Copy a recipe that comes with maskpipe to a file, to change it there.

    maskpipe recipe copy sft recipe.yaml
    """
    from maskpipe import recipes

    _say(f"copied to {recipes.copy(name, file)}; use it with maskpipe prepare --recipe {file}")
    return CLEAN


@recipe_app.command(name="from", usage="Usage: maskpipe recipe from FILE [--kind axolotl|trl]")
def from_file(
    file: Annotated[Path, Parameter(group=_INPUT, help="YAML of axolotl, or of `trl sft`.")],
    /,
    *,
    kind: Annotated[
        Literal["axolotl", "trl"] | None, Parameter(group=_INPUT, help="Whose it is; told from its keys by default.")
    ] = None,
    format: FormatFlag = "human",
) -> int:
    """Print a trainer's configuration as a recipe. What has no equal is refused, with the reason and what to do.

    maskpipe recipe from axolotl.yaml > recipe.yaml
    """
    from maskpipe import recipe_import

    found = recipe_import.read_config(file, kind)
    _print(found.to_dict() if format == "json" else found.to_yaml())
    return CLEAN


@recipe_app.command(usage="Usage: maskpipe recipe keys")
def keys(*, format: FormatFlag = "human") -> int:
    """List the keys of a recipe, with their defaults and what they mean.

    maskpipe recipe keys
    """
    from maskpipe import rules
    from maskpipe.recipe import Recipe
    from maskpipe.recipe_flags import FLAGS, descriptions

    values = Recipe().to_dict()
    if format == "json":
        _print({name: {"default": values[name], "help": text} for name, text in descriptions().items()})
    else:
        texts = {
            name: f"{text} Flag: {FLAGS[name]}." if name in FLAGS else text for name, text in descriptions().items()
        }
        rules.show_keys(values, texts, _stdout())
    return CLEAN


@app.command(usage="Usage: maskpipe rule [CODE]", sort_key=9)
def rule(
    code: Annotated[str | None, Parameter(group=_INPUT, help="Such as MP102; all are listed without one.")] = None,
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
        _print([vars(entry) for entry in found])
    elif code is None:
        rules.show_all(_stdout())
    else:
        rules.show(rules.find(code), _stdout())
    return CLEAN


# -- how all commands talk


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _holds_unicode(stream):
            stream.reconfigure(errors="backslashreplace")  # a locale without these letters shows their numbers
    try:
        sys.exit(_run(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:  # who reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLEAN)


def _run(arguments: list[str]) -> int:
    try:
        code = app(
            arguments or ["--help"],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
            console=Console(soft_wrap=False),
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else CLEAN
    except KeyboardInterrupt as error:
        _say(f"interrupted; nothing was published. {error}".removesuffix(". "))
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except CycloptsError as error:
        command = " ".join(["maskpipe", *(word for word in error.command_chain or () if word)])
        text = " ".join(str(error).split())
        if isinstance(error, MissingArgumentError) and error.argument and error.argument.name not in arguments:
            text = f"{' '.join(command.split()[1:])} needs {error.argument.name}."
        _say(f"error: {text} See: {command} -h")
    except MaskpipeError as error:
        _say(f"error: {error}")
    except OSError as error:
        _say(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
    except MemoryError:
        _say("error: out of memory; try fewer --workers")
    except Exception:
        import traceback

        traceback.print_exc()
        _say("error: this is a bug in maskpipe; please report it with the lines above")
    return FAILED


def _holds_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("_", "-").startswith("utf")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(value: Any) -> None:
    ascii_only = not _holds_unicode(sys.stdout)
    print(value if isinstance(value, str) else json.dumps(value, ensure_ascii=ascii_only, indent=1, allow_nan=False))


class _Results(Console):
    def on_broken_pipe(self) -> None:
        """Who reads our output has seen enough: no finding, so not exit code 1, which is what rich would make of it."""
        raise BrokenPipeError


def _stdout() -> Console:
    """A console for results: as wide as the terminal, 120 columns where there is none, and never so narrow that a table
    would cut its figures."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = _Results(width=width, highlight=False, markup=False, emoji=False)
    console.width = max(console.width, NARROWEST)
    return console


def _limits(seconds: float | None, mib: int | None) -> Limits:
    """--record-seconds and --record-mib as pipeline.prepare takes them."""
    from maskpipe.guard import Limits

    given: dict[str, Any] = {} if seconds is None else {"seconds": seconds}
    return Limits(**given, **({} if mib is None else {"memory": mib << 20}))


def _proof(value: str | None) -> int | None:
    """--proof as pipeline.prepare takes it."""
    if value is None:
        return None
    if value == "all":
        return -1
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"--proof {value}: expected 'all' or a number of records, such as --proof 100")
    return int(value)
