"""Every error a user can cause. One string each, so that it survives process and DataLoader workers.

    MaskpipeError
    ├── UsageError        a wrong argument, option, recipe key or path
    ├── TemplateError     the chat template cannot be compiled or used
    ├── TokenizerError    the tokenizer cannot be loaded, or cannot be tracked exactly
    ├── RecordError       one record cannot be used; carries a `reason` code and, once known, where it stands
    └── DatasetError      a dataset on disk is incomplete, changed, foreign or of an unknown version

A message says what was wrong, where (file, row, message, field) and what to do.
"""

from __future__ import annotations


class MaskpipeError(Exception):
    """Base of all errors raised on purpose."""


class UsageError(MaskpipeError, ValueError):
    """A wrong argument, option, recipe key or path."""


class TemplateError(MaskpipeError, ValueError):
    """The chat template cannot be compiled or used."""


class TokenizerError(MaskpipeError, ValueError):
    """The tokenizer cannot be loaded, or its tokens cannot be mapped to the text exactly."""


class RecordError(MaskpipeError, ValueError):
    """One record cannot be used.

    `reason` is a stable snake_case code: what the ledger counts and rejects.jsonl lists.
    """

    def __init__(self, message: str, reason: str = "bad_record") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str]]:
        return (type(self), (str(self), self.reason))


class DatasetError(MaskpipeError):
    """A dataset on disk is incomplete, changed, foreign or of an unknown version."""
