"""The command line: one function per command, no logic. stdout is data, stderr is talk.

What a command needs is imported when it runs, so that `maskpipe --help` is quick; only probe, explain --model and
reference-logps import torch.

    app.py      the application, its exit codes, flags that several commands have
    talk.py     how all commands talk        command.py     a command runs: what it raises ─▶ one line and an exit code
    the others  commands, by what a person wants to do
"""

from maskpipe.cli import audit, derive, explain, models, prepare, recipe  # each registers its commands
from maskpipe.cli.command import main, run

__all__ = ["audit", "derive", "explain", "main", "models", "prepare", "recipe", "run"]
