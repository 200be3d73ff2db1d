"""matplotlib's pyplot, drawing to files: no screen is needed."""

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402 (pyplot takes its backend when it is imported)

__all__ = ['plt']
