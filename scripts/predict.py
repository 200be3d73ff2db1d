"""Classify images: the command dit-predict, from a checkout."""

import sys

from dit_timm.cli.predict import main

if __name__ == '__main__':
    sys.exit(main())
