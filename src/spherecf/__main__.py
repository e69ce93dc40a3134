"""``python -m spherecf``: the command, for launchers such as torchrun."""

from spherecf.cli import main

if __name__ == "__main__":
    main()
