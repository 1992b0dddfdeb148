"""maskpipe explain, view: why each token is trained, or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from maskpipe.cli.app import CLEAN, INPUT, Flags, FormatFlag, RecipeFile, SplitFlag, app
from maskpipe.cli.talk import answer, console, quiet_hub
from maskpipe.errors import UsageError
from maskpipe.recipe_flags import resolve

if TYPE_CHECKING:
    from maskpipe.document import Document


@app.command(usage="Usage: maskpipe explain SOURCE --row N --tokenizer T | OUT --row N --pos P [OPTIONS]", sort_key=2)
def explain(
    source: Annotated[str, Parameter(group=INPUT, help="File or directory that holds the record, or a dataset.")],
    /,
    *,
    tokenizer: Annotated[
        str | None,
        Parameter(group=INPUT, help="Directory with tokenizer.json, a tokenizer.json, or a hub name org/name."),
    ] = None,
    row: Annotated[
        int,
        Parameter(group=INPUT, help="Which record, counted from 0 as rejects.jsonl does; of a dataset, which row."),
    ] = 0,
    pos: Annotated[
        int | None, Parameter(group=INPUT, help="Of a dataset: which token of the row, to see what it comes from.")
    ] = None,
    char: Annotated[
        str | None,
        Parameter(
            group=INPUT,
            help="Of a dataset, the other way round: RECORD:MESSAGE:FIELD:CHARACTER, such as 17:2:content:40, to see "
            "which tokens hold it.",
        ),
    ] = None,
    from_source: Annotated[
        list[str] | None,
        Parameter("--source", group=INPUT, negative=(), help="Of a dataset: what it was prepared from."),
    ] = None,
    split: SplitFlag = None,
    recipe: RecipeFile = None,
    tokens: Annotated[
        bool, Parameter(group=INPUT, negative=(), help="One line per position, not one per stretch.")
    ] = False,
    full: Annotated[bool, Parameter(group=INPUT, negative=(), help="Show long stretches uncut.")] = False,
    model: Annotated[
        str | None,
        Parameter(group=INPUT, help="Directory of a transformers model: what it gives each true next token."),
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
        answer(explanation.to_dict())
    else:
        explaining.show(explanation, console(), tokens=tokens, full=full)
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
            answer(found.to_dict() if format == "json" else str(found))
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
            answer({"tokens": [token.to_dict() for token in tokens]})
        else:
            answer("\n".join(map(str, tokens)) or "no token of the dataset holds this character")
    return CLEAN


def _probabilities(model: str, documents: list[Document]) -> list[Any]:
    """What a model gives the true next tokens of each document."""
    quiet_hub()
    try:
        from maskpipe.data.model import default_device, load_model
        from maskpipe.losses.model_logps import next_token_probabilities
    except ModuleNotFoundError as error:
        raise UsageError(f"explain --model needs {error.name or 'torch'}: pip install 'maskpipe[probe]'") from None
    loaded = load_model(model, "float32", default_device(None), wanted_by="explain --model")
    return [next_token_probabilities(loaded, document.input_ids) for document in documents]


@app.command(usage="Usage: maskpipe view OUT [--row R] [OPTIONS]", sort_key=4)
def view(
    out: Annotated[str, Parameter(group=INPUT, help="A dataset.")],
    /,
    *,
    row: Annotated[
        list[int] | None,
        Parameter(group=INPUT, negative=(), help="Which packed row, counted from 0; may be repeated. 0 by default."),
    ] = None,
    report: Annotated[
        Path | None,
        Parameter(group=INPUT, help="Write an HTML page with a viewer instead; without --row of rows worth reading."),
    ] = None,
    tokens: Annotated[
        bool, Parameter(group=INPUT, negative=(), help="One line per position, not one per stretch.")
    ] = False,
    full: Annotated[bool, Parameter(group=INPUT, negative=(), help="Show long stretches uncut.")] = False,
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
        answer({"report": str(report)} if format == "json" else f"report    {report}")
        return CLEAN
    shown = [viewing.explanation(dataset, number) for number in row or [0]]
    if format == "json":
        answer({"rows": [each.to_dict() | {"origins": each.origins} for each in shown]})
    else:
        for each in shown:
            explaining.show(each, console(), tokens=tokens, full=full)
    return CLEAN
