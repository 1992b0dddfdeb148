"""maskpipe export, diff, repack, merge, append, gc: the life of a dataset after prepare."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from maskpipe.cli.app import CLEAN, FINDINGS, INPUT, FormatFlag, SplitFlag, app
from maskpipe.cli.talk import answer, console
from maskpipe.errors import UsageError


@app.command(usage="Usage: maskpipe export OUT --to TARGET DEST", sort_key=5)
def export(
    out: Annotated[str, Parameter(group=INPUT, help="A dataset.")],
    destination: Annotated[str, Parameter("DEST", group=INPUT, help="New directory.")],
    /,
    *,
    to: Annotated[
        Literal["hf", "trl", "trl-dpo", "megatron-bridge", "olmo"],
        Parameter(
            group=INPUT,
            help="hf: Parquet with labels for any trainer; trl: for its SFTTrainer; trl-dpo: pairs for its "
            "DPOTrainer; megatron-bridge: its packed Parquet; olmo: arrays for OLMo-core.",
        ),
    ] = "hf",
    ignore_weights: Annotated[
        bool, Parameter(group=INPUT, negative=(), help="Leave out source weights other than 0 and 1, and count them.")
    ] = False,
    unpack: Annotated[
        bool, Parameter(group=INPUT, negative=(), help="hf, trl: one document per row, for trainers that pad or pack.")
    ] = False,
    across_documents: Annotated[
        bool,
        Parameter(
            group=INPUT, negative=(), help="olmo: rows as they are packed; the model then attends across documents."
        ),
    ] = False,
    allow_lost_targets: Annotated[
        bool,
        Parameter(
            group=INPUT, negative=(), help="megatron-bridge: go on where its reader takes the loss from some targets."
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
    answer(made.to_dict() if format == "json" else str(made))
    return CLEAN


@app.command(usage="Usage: maskpipe diff A B", sort_key=6)
def diff(
    a: Annotated[str, Parameter("A", group=INPUT, help="A dataset.")],
    b: Annotated[str, Parameter("B", group=INPUT, help="Another one.")],
    /,
    *,
    examples: Annotated[int, Parameter(group=INPUT, help="Records to show.")] = 5,
    format: FormatFlag = "human",
) -> int:
    """Say what two datasets say differently, record by record. Exit code 1 when anything differs.

    maskpipe diff out out-new
    maskpipe diff out out-new --format json
    """
    from maskpipe import diff as comparing

    found = comparing.diff(a, b, examples=examples)
    answer(found.to_dict() if format == "json" else str(found))
    return CLEAN if found.same else FINDINGS


@app.command(usage="Usage: maskpipe repack OUT NEW [--sequence-length N] [--packing METHOD]", sort_key=6)
def repack(
    out: Annotated[str, Parameter(group=INPUT, help="A dataset.")],
    new: Annotated[str, Parameter(group=INPUT, help="New directory.")],
    /,
    *,
    sequence_length: Annotated[int | None, Parameter(group=INPUT, help="Tokens per packed row.")] = None,
    packing: Annotated[
        Literal["best_fit", "first_fit", "concat_split", "none"] | None,
        Parameter(group=INPUT, help="How documents fill sequences; as it was by default."),
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
    answer(made.to_dict() if format == "json" else str(made))
    return CLEAN


AllowRepeats = Annotated[
    bool, Parameter(group=INPUT, negative=(), help="Take a source that is there already once more, and count it.")
]


@app.command(usage="Usage: maskpipe merge A B... NEW", sort_key=6)
def merge(
    *paths: Annotated[
        str, Parameter("A B... NEW", group=INPUT, help="Datasets of one recipe and tokenizer, then the new directory.")
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
    answer(made.to_dict() if format == "json" else str(made))
    return CLEAN


@app.command(usage="Usage: maskpipe append OUT SOURCE... NEW", sort_key=6)
def append(
    *paths: Annotated[
        str, Parameter("OUT SOURCE... NEW", group=INPUT, help="A dataset, new sources, then the new directory.")
    ],
    split: SplitFlag = None,
    workers: Annotated[int | None, Parameter(group=INPUT, help="Processes; one per core by default.")] = None,
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
    answer(made.to_dict() if format == "json" else str(made))
    return CLEAN


@app.command(usage="Usage: maskpipe gc DIR [--delete]", sort_key=7)
def gc(
    directory: Annotated[str, Parameter("DIR", group=INPUT, help="Where datasets are, or one OUT.partial.")] = ".",
    /,
    *,
    delete: Annotated[
        bool, Parameter(group=INPUT, negative=(), help="Take the leftovers away; without it they are only listed.")
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
        answer({"leftovers": entries, "problems": list(problems.values())})
    else:
        leftovers.show(found, delete, problems, console())
    return FINDINGS if problems else CLEAN
