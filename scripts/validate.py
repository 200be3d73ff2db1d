"""Evaluate networks: the command dit-validate, from a checkout."""

import sys

from dit_timm.cli.validate import main

if __name__ == '__main__':
    sys.exit(main())
