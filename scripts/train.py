"""Train a Dit-CNN, or any timm model: the command dit-train, from a checkout."""

import sys

from dit_timm.cli.train import main

if __name__ == '__main__':
    sys.exit(main())
