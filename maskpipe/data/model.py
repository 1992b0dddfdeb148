"""A causal language model of transformers: from a directory or a name, and what it takes.

transformers is imported when a model is loaded, not before, and nothing of a model's own code is run.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maskpipe.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def default_device(device: str | None) -> torch.device:
    """What was asked for, else CUDA where there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_model(
    model: str | Path, dtype: str, device: torch.device, *, wanted_by: str, random_init: bool = False, seed: int = 0
) -> Any:
    """The model, on `device`, weights as `dtype` (a key of DTYPES, or auto: as stored).

    model: a directory, or a name on the hub. random_init: weights made at random for its config, not loaded.
    wanted_by: the command that says so when transformers is missing. UsageError when it cannot be loaded.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"dtype must be auto or one of {', '.join(DTYPES)}; got {dtype!r}")
    try:
        transformers: Any = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise UsageError(f"{wanted_by} needs {error.name}: pip install 'maskpipe[probe]'") from None
    name, local = str(model), Path(model).is_dir()
    if not local and (Path(model).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UsageError(f"{name}: no directory of a model; it needs config.json and weights")
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    stored = dtype if dtype == "auto" else DTYPES[dtype]
    try:
        if not random_init:
            return transformers.AutoModelForCausalLM.from_pretrained(name, dtype=stored, **options).to(device)
        config = transformers.AutoConfig.from_pretrained(name, **options)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = transformers.AutoModelForCausalLM.from_config(
                config, dtype=config.dtype if dtype == "auto" else stored
            )
        return made.to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        hint = "; --random-init needs its config.json only" if wanted_by == "probe" and not random_init else ""
        raise UsageError(
            f"{name}: transformers cannot load it as a causal language model: {first_line(error)}{hint}"
        ) from None


def accepted(model: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Keyword arguments that the model takes, and the names of those that it does not."""
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(inputs), []
    return {k: v for k, v in inputs.items() if k in parameters}, [k for k in inputs if k not in parameters]


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
