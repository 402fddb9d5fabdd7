"""`python -m forkd` is the program `forkd`."""

from forkd.cli import main

main()
