"""``python -m spherecf``: the command, for launchers such as torchrun."""

from spherecf.cli import main

main()
