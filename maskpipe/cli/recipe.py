"""maskpipe recipe: those that come with maskpipe, those of trainers, and which keys there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from maskpipe.cli.app import CLEAN, INPUT, Flags, FormatFlag, RecipeFile, recipe_app
from maskpipe.cli.talk import answer, console, say
from maskpipe.errors import UsageError
from maskpipe.recipe_flags import resolve


@recipe_app.command(usage="Usage: maskpipe recipe show [NAME] [OPTIONS]")
def show(
    name: Annotated[str | None, Parameter(group=INPUT, help="A recipe that `maskpipe recipe list` names.")] = None,
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
        answer(resolve(flags, recipe).to_yaml().rstrip("\n"))
        return CLEAN
    if recipe is not None or flags is not None:
        raise UsageError("recipe show NAME prints that recipe as it is; copy it to a file to change it")
    from maskpipe import recipes

    answer(recipes.text(name).rstrip("\n"))
    return CLEAN


@recipe_app.command(name="list", usage="Usage: maskpipe recipe list")
def list_recipes(*, format: FormatFlag = "human") -> int:
    """List the recipes that come with maskpipe.

    maskpipe recipe list
    """
    from maskpipe import recipes

    found = {name: recipes.summary(name) for name in recipes.names()}
    answer(found if format == "json" else "\n".join(f"{name:<12}{text}" for name, text in found.items()))
    return CLEAN


@recipe_app.command(usage="Usage: maskpipe recipe copy NAME FILE")
def copy(
    name: Annotated[str, Parameter(group=INPUT, help="A recipe that `maskpipe recipe list` names.")],
    file: Annotated[Path, Parameter(group=INPUT, help="New file.")],
    /,
) -> int:
    """Copy a recipe that comes with maskpipe to a file, to change it there.

    maskpipe recipe copy sft recipe.yaml
    """
    from maskpipe import recipes

    say(f"copied to {recipes.copy(name, file)}; use it with maskpipe prepare --recipe {file}")
    return CLEAN


@recipe_app.command(name="from", usage="Usage: maskpipe recipe from FILE [--kind axolotl|trl]")
def from_file(
    file: Annotated[Path, Parameter(group=INPUT, help="YAML of axolotl, or of `trl sft`.")],
    /,
    *,
    kind: Annotated[
        Literal["axolotl", "trl"] | None, Parameter(group=INPUT, help="Whose it is; told from its keys by default.")
    ] = None,
    format: FormatFlag = "human",
) -> int:
    """Print a trainer's configuration as a recipe. What has no equal is refused, with the reason and what to do.

    maskpipe recipe from axolotl.yaml > recipe.yaml
    """
    from maskpipe import recipe_import

    found = recipe_import.read_config(file, kind)
    answer(found.to_dict() if format == "json" else found.to_yaml())
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
        answer({name: {"default": values[name], "help": text} for name, text in descriptions().items()})
    else:
        texts = {
            name: f"{text} Flag: {FLAGS[name]}." if name in FLAGS else text for name, text in descriptions().items()
        }
        rules.show_keys(values, texts, console())
    return CLEAN
