"""Measure the quadratic term: python -m dit_timm.benchmark, from a checkout."""

import sys

from dit_timm.benchmark.__main__ import main

if __name__ == '__main__':
    sys.exit(main())
