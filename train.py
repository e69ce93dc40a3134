"""The SCF reference's command, `python train.py --dataset ms1m ...`: docs/reference-command.md."""

import sys

from spherecf.cli.reference import main

if __name__ == "__main__":
    sys.exit(main())
