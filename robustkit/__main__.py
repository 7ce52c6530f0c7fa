"""``python -m robustkit``: the command line, for launchers that start modules."""

from robustkit.cli import main

main()
