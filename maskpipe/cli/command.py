"""Runs a command; what it raises becomes one line and an exit code."""

from __future__ import annotations

import io
import os
import sys

from cyclopts import CycloptsError, MissingArgumentError
from rich.console import Console

from maskpipe.cli.app import CLEAN, FAILED, INTERRUPTED, app
from maskpipe.cli.talk import holds_unicode, say
from maskpipe.errors import MaskpipeError


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not holds_unicode(stream):
            stream.reconfigure(errors="backslashreplace")  # a locale without these letters shows their numbers
    try:
        sys.exit(run(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:  # who reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLEAN)


def run(arguments: list[str]) -> int:
    """Runs a command; its exit code."""
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
        say(f"interrupted; nothing was published. {error}".removesuffix(". "))
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except CycloptsError as error:
        command = " ".join(["maskpipe", *(word for word in error.command_chain or () if word)])
        text = " ".join(str(error).split())
        if isinstance(error, MissingArgumentError) and error.argument and error.argument.name not in arguments:
            text = f"{' '.join(command.split()[1:])} needs {error.argument.name}."
        say(f"error: {text} See: {command} -h")
    except MaskpipeError as error:
        say(f"error: {error}")
    except OSError as error:
        say(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
    except MemoryError:
        say("error: out of memory; try fewer --workers")
    except Exception:
        import traceback

        traceback.print_exc()
        say("error: this is a bug in maskpipe; please report it with the lines above")
    return FAILED
