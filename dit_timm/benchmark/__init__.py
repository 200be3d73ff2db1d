"""Speed and memory of the quadratic term, measured: `python -m dit_timm.benchmark`."""
