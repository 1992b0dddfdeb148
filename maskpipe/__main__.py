"""`python -m maskpipe` is `maskpipe`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

INTERRUPTED = 130


def main() -> None:
    """The command line. Ctrl-C while Python still imports is an interrupt like any other, not a traceback."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started us: else the next file opened takes its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for the whole run)
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from maskpipe.cli import main as command

    signal.signal(signal.SIGINT, before)
    try:
        command()
    except SystemExit as ended:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the exit code is settled
        if ended.code != INTERRUPTED:
            raise
        # An interrupt inside exec(), which imports use, makes Python end itself with SIGINT instead of the code.
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(INTERRUPTED)


def _leave(*_: object) -> None:
    os.write(2, b"interrupted; nothing was published\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
