"""`python -m forkd` is the program `forkd`."""

from forkd.cli.main import main

main()
