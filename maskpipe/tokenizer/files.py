"""The files of a tokenizer: where they come from, and what they say beyond tokenizer.json's vocabulary."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskpipe.errors import TokenizerError, UsageError
from maskpipe.tokenizer.vocabulary import AddedToken, Config

FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read(path_or_name: str | os.PathLike[str]) -> tuple[dict[str, bytes], str]:
    """(name of a file → its bytes, what the tokenizer is called); for the rest see Tokenizer.load."""
    path = Path(path_or_name)
    if path.is_dir():
        files = {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
        if "tokenizer.json" not in files:
            raise UsageError(
                f"{path}: no tokenizer.json in this directory. Save a fast tokenizer there "
                "(`save_pretrained` writes one), or name another directory."
            )
        return files, path.resolve().name
    if path.is_file():
        if path.suffix != ".json":
            raise UsageError(f"{path}: no tokenizer.json, nor a directory with one")
        return {"tokenizer.json": path.read_bytes()}, path.resolve().parent.name
    name = os.fspath(path_or_name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise UsageError(
            f"{name}: no such file or directory. Give a directory with tokenizer.json, a tokenizer.json, "
            "or a hub name like org/name."
        )
    return _download(name), name


def _download(name: str) -> dict[str, bytes]:
    from huggingface_hub import hf_hub_download  # not needed for anything local
    from huggingface_hub.errors import EntryNotFoundError

    files = {}
    for file in FILES:
        try:
            files[file] = Path(hf_hub_download(name, file)).read_bytes()
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise UsageError(
                f"{name}: no such directory, and the hub did not give {file}: {error}. "
                "Give a local directory with tokenizer.json, or check the name and the connection."
            ) from error
    if "tokenizer.json" not in files:
        raise UsageError(f"{name}: the hub has no tokenizer.json for it; convert it to a fast tokenizer first")
    return files


def parsed(files: Mapping[str, bytes], file: str, name: str) -> Any:
    """One of them as JSON."""
    try:
        return json.loads(files[file])
    except KeyError:
        raise UsageError(f"{name}: there is no {file}") from None
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{name}: {file} is no valid JSON: {error}") from error


def settings_of(files: Mapping[str, bytes], name: str) -> Config:
    """tokenizer_config.json; special_tokens_map.json counts only where that names no added tokens."""
    settings: Config = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if file in files and "added_tokens_decoder" not in settings:
            value = parsed(files, file, name)
            if not isinstance(value, dict):
                raise TokenizerError(f"{name}: {file} is no JSON object")
            settings |= value
    return settings


def configured_tokens(settings: Config, there: Iterable[AddedToken]) -> list[AddedToken]:
    """The tokens that the settings have beyond those of tokenizer.json; transformers adds them when it loads them."""
    known = {replace(token, id=-1) for token in there}
    decoder = settings.get("added_tokens_decoder") or {}
    listed = [_added_token(entry) for _, entry in sorted(decoder.items(), key=lambda item: int(item[0]))]
    wanted = [token for token in listed if token not in known]
    contents = {token.content for token in (*known, *wanted)}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    named = [settings[key] for key in SPECIAL_NAMES if settings.get(key)]
    for entry in [*named, *(extra.values() if isinstance(extra, dict) else extra)]:
        token = _added_token(entry, is_special=True)
        if token.content not in contents:
            contents.add(token.content)
            wanted.append(token)
    return wanted


def _added_token(entry: Any, is_special: bool = False) -> AddedToken:
    """From a string or the JSON object of a settings file; its id is not known."""
    if isinstance(entry, str):
        entry = {"content": entry, "special": True}
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise TokenizerError(f"tokenizer_config.json: {entry!r} is no token; expected a string or an object")
    special = is_special or bool(entry.get("special"))
    return AddedToken(
        -1,
        entry["content"],
        special=special,
        normalized=bool(entry.get("normalized", not special)),
        **{flag: bool(entry.get(flag)) for flag in ("lstrip", "rstrip", "single_word")},
    )


def special_tokens_of(settings: Config) -> dict[str, str]:
    """Names as templates know them ("eos_token") → text; only those that are set."""
    return {key: _added_token(settings[key]).content for key in SPECIAL_NAMES if settings.get(key)}


def chat_template_of(files: Mapping[str, bytes], settings: Config) -> str | None:
    """The file, or the template of the settings; of several the one called default."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    template = settings.get("chat_template")
    for entry in template if isinstance(template, list) else ():
        if isinstance(entry, dict) and entry.get("name") == "default":
            template = entry.get("template")
    return template if isinstance(template, str) else None


def generation_stops_of(files: Mapping[str, bytes], name: str) -> list[int]:
    """Ids at which generation_config.json says that generation ends."""
    generation = parsed(files, "generation_config.json", name) if "generation_config.json" in files else {}
    stops = generation.get("eos_token_id") if isinstance(generation, dict) else None
    return [id for id in (stops if isinstance(stops, list) else [stops]) if type(id) is int]
