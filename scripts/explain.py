"""What a Dit network has learned; see --help."""

import sys

from dit_timm.cli.explain import main

if __name__ == '__main__':
    sys.exit(main())
