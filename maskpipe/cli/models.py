"""maskpipe probe, reference-logps: what needs a model, and so torch."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from maskpipe.cli.app import CLEAN, FAILED, FINDINGS, INPUT, FormatFlag, app
from maskpipe.cli.talk import answer, quiet_hub
from maskpipe.errors import UsageError


@app.command(usage="Usage: maskpipe probe MODEL [OPTIONS]", sort_key=7)
def probe(
    model: Annotated[str, Parameter(group=INPUT, help="Directory of a transformers model, or a hub name org/name.")],
    /,
    *,
    attn_implementation: Annotated[
        list[str] | None,
        Parameter(group=INPUT, negative=(), help="eager, sdpa, …; may be given again. What the model has, by default."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        Parameter(group=INPUT, help="Of the weights; auto: as stored."),
    ] = "float32",
    device: Annotated[str | None, Parameter(group=INPUT, help="cuda where there is one, else cpu, by default.")] = None,
    random_init: Annotated[
        bool, Parameter(group=INPUT, negative=(), help="Make random weights for its config.json; load none.")
    ] = False,
    sequence_length: Annotated[
        int, Parameter(group=INPUT, help="Tokens per probed row; more than a sliding window to probe that too.")
    ] = 128,
    seed: Annotated[int, Parameter(group=INPUT, help="Of the probe's tokens and random weights.")] = 0,
    format: FormatFlag = "human",
) -> int:
    """Change one document of a packed row: do the model's logits for the others stay? Exit code 1 when they do not.

    maskpipe probe ./my-model
    maskpipe probe ./my-model --attn-implementation sdpa --dtype bfloat16 --format json
    """
    quiet_hub()
    try:
        from maskpipe import data
    except ModuleNotFoundError as error:
        raise UsageError(f"probe needs {error.name or 'torch'}: pip install 'maskpipe[probe]'") from None
    found = data.probe(
        model, attention=attn_implementation, dtype=dtype, device=device, random_init=random_init,
        sequence_length=sequence_length, seed=seed,
    )  # fmt: skip
    answer(found.to_dict() if format == "json" else str(found))
    return FINDINGS if found.leaks else CLEAN if found.probed else FAILED


@app.command(name="reference-logps", usage="Usage: maskpipe reference-logps OUT REF --model DIR [OPTIONS]", sort_key=7)
def reference_logps(
    out: Annotated[str, Parameter(group=INPUT, help="A dataset.")],
    ref: Annotated[str, Parameter("REF", group=INPUT, help="New directory.")],
    /,
    *,
    model: Annotated[str, Parameter(group=INPUT, help="Directory of a transformers model, or a hub name org/name.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        Parameter(group=INPUT, help="Of the weights; auto: as stored. As the policy's, or the two do not compare."),
    ] = "auto",
    device: Annotated[str | None, Parameter(group=INPUT, help="cuda where there is one, else cpu, by default.")] = None,
    batch_size: Annotated[int, Parameter(group=INPUT, help="Rows of the dataset per forward pass.")] = 8,
    train_on: Annotated[
        list[str] | None,
        Parameter(group=INPUT, negative=(), help="Tokens that get a value, as for the loader; as prepared by default."),
    ] = None,
    unpacked: Annotated[
        bool,
        Parameter(group=INPUT, negative=(), help="One document per row, for models that mix packed documents."),
    ] = False,
    format: FormatFlag = "human",
) -> int:
    """Compute what a reference model gives each token with loss, once, for preference losses.

    maskpipe reference-logps out out-ref --model ./sft-model
    """
    quiet_hub()
    try:
        from maskpipe.losses import write_reference_logps
    except ModuleNotFoundError as error:
        raise UsageError(f"reference-logps needs {error.name or 'torch'}: pip install 'maskpipe[probe]'") from None
    made = write_reference_logps(
        out, ref, model, packed=not unpacked, batch_size=batch_size, train_on=train_on, dtype=dtype, device=device
    )
    answer(made.to_dict() if format == "json" else str(made))
    return CLEAN
