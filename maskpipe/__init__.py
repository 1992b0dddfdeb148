"""maskpipe: chats and text to packed Arrow shards in which every token carries the right role and loss flag.

    maskpipe.prepare("chats.jsonl", "out", tokenizer="./qwen3")
    dataset = maskpipe.open("out")
    dataset[0].loss_mask

Names are imported on first use, so `import maskpipe` costs next to nothing and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskpipe import data as data
    from maskpipe import losses as losses
    from maskpipe import pack
    from maskpipe.auditing import audit, audit_batches
    from maskpipe.auditing.report import Report
    from maskpipe.chat import Conversation, Text
    from maskpipe.document import Document
    from maskpipe.encoder import encode
    from maskpipe.errors import (
        DatasetError,
        MaskpipeError,
        RecordError,
        TemplateError,
        TokenizerError,
        UsageError,
    )
    from maskpipe.pipeline import Prepared, prepare
    from maskpipe.recipe import Recipe
    from maskpipe.roles import Flag, Part, Role, Verdict
    from maskpipe.shards.reader import Dataset, Sequence, open
    from maskpipe.template import ChatTemplate, Rendered, Span
    from maskpipe.tokenizer import Tokenizer

__version__ = "0.1.0"

_HOME = {
    "ChatTemplate": "template",
    "Conversation": "chat",
    "Dataset": "shards.reader",
    "DatasetError": "errors",
    "Document": "document",
    "Flag": "roles",
    "MaskpipeError": "errors",
    "Part": "roles",
    "Prepared": "pipeline",
    "Recipe": "recipe",
    "RecordError": "errors",
    "Report": "auditing.report",
    "Rendered": "template",
    "Role": "roles",
    "Sequence": "shards.reader",
    "Span": "template",
    "TemplateError": "errors",
    "Text": "chat",
    "Tokenizer": "tokenizer",
    "TokenizerError": "errors",
    "UsageError": "errors",
    "Verdict": "roles",
    "audit": "auditing",
    "audit_batches": "auditing",
    "encode": "encoder",
    "open": "remote.dataset",
    "pack": "pack",
    "prepare": "pipeline",
}

__all__ = [
    "ChatTemplate", "Conversation", "Dataset", "DatasetError", "Document", "Flag", "MaskpipeError", "Part", "Prepared",
    "Recipe", "RecordError", "Rendered", "Report", "Role", "Sequence", "Span", "TemplateError", "Text", "Tokenizer",
    "TokenizerError", "UsageError", "Verdict", "audit", "audit_batches", "encode", "open", "pack", "prepare",
]  # fmt: skip


_TORCH_ROOMS = ("data", "losses")
"""Submodules that import torch: they need no import of their own, and cost nothing until they are used."""


def __getattr__(name: str) -> Any:
    if name in _TORCH_ROOMS:
        return importlib.import_module(f"maskpipe.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'maskpipe' has no attribute {name!r}")
    module = importlib.import_module(f"maskpipe.{home}")
    value = module if home == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
