"""`python -m maskpipe` is `maskpipe`."""

from maskpipe.cli import main

main()
