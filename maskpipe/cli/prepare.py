"""maskpipe prepare, demo: sources become a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from maskpipe.cli.app import CLEAN, INPUT, Flags, FormatFlag, RecipeFile, SplitFlag, TokenizerFlag, app, proof_count
from maskpipe.cli.talk import answer, console
from maskpipe.errors import UsageError
from maskpipe.recipe_flags import resolve

if TYPE_CHECKING:
    from maskpipe.guard import Limits


@app.command(usage="Usage: maskpipe prepare SOURCE... OUT --tokenizer T [OPTIONS]", sort_key=1)
def prepare(
    *paths: Annotated[
        str,
        Parameter(
            "SOURCE... OUT",
            group=INPUT,
            help="Files or directories (JSON Lines, JSON, Parquet, Arrow, text, gz, zst), then the new directory.",
        ),
    ],
    tokenizer: TokenizerFlag,
    split: SplitFlag = None,
    recipe: RecipeFile = None,
    workers: Annotated[
        int | None, Parameter(group=INPUT, help="Processes; one per core by default. The bytes do not depend on it.")
    ] = None,
    record_seconds: Annotated[
        float | None,
        Parameter(group=INPUT, help="CPU seconds that one record may take: 3 by default, more for long ones."),
    ] = None,
    record_mib: Annotated[
        int | None, Parameter(group=INPUT, help="Memory that one record may take: 384 by default, more for long ones.")
    ] = None,
    rank: Annotated[
        int | None,
        Parameter(group=INPUT, help="Of a job on several machines: do the share of this one, from 0. See --world."),
    ] = None,
    world: Annotated[
        int | None,
        Parameter(group=INPUT, help="How many ranks there are. Then the same command without both finishes OUT."),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(group=INPUT, negative=(), help="Say what the first 1,000 records would become; write nothing.")
    ] = False,
    proof: Annotated[
        str | None,
        Parameter(group=INPUT, help="Prove provenance by a second, independent render: 'all' records or the first N."),
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
    chosen, n_proof = resolve(flags, recipe), proof_count(proof)
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
        answer(summary.trial_dict(trial) if format == "json" else str(trial))
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
        answer(summary.share_dict(share) if format == "json" else str(share))
        return CLEAN
    with showing.shown() as progress:
        made = pipeline.prepare(
            list(paths[:-1]), paths[-1], tokenizer=tokenizer, recipe=chosen, split=split, workers=workers,
            proof=n_proof, limits=limits, progress=progress,
        )  # fmt: skip
    answer(summary.dataset_dict(made) if format == "json" else str(made))
    return CLEAN


@app.command(usage="Usage: maskpipe demo [OUT]", sort_key=0)
def demo(
    out: Annotated[
        str | None, Parameter(group=INPUT, help="New directory; ./demo-out, or the next free number, by default.")
    ] = None,
    /,
) -> int:
    """Run the main job on chats and a tokenizer that come with maskpipe, and show what it made.

    maskpipe demo
    maskpipe demo somewhere/new
    """
    from maskpipe import demo as demonstration

    demonstration.run(Path(out) if out is not None else demonstration.free_name(Path("demo-out")), console())
    return CLEAN


def _limits(seconds: float | None, mib: int | None) -> Limits:
    """--record-seconds and --record-mib as pipeline.prepare takes them."""
    from maskpipe.guard import Limits

    given: dict[str, Any] = {} if seconds is None else {"seconds": seconds}
    return Limits(**given, **({} if mib is None else {"memory": mib << 20}))
