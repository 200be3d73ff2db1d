"""hub/results/experiments/README.md: what the CSVs of the experiments say."""

from pathlib import Path

import pandas as pd

from ..results.markdown import page
from . import dendrites, few_shots, gaussians, neuron, robustness

EXPERIMENTS = (gaussians, few_shots, neuron, dendrites, robustness)


def experiments_page(results: Path) -> str:
    """The page: what each experiment whose CSV is in a folder reports, and the pictures beside it."""
    parts = []
    for experiment in EXPERIMENTS:
        name = experiment.__name__.rpartition('.')[2]
        path = results / f'{name}.csv'
        if not path.is_file():
            continue
        rows = pd.read_csv(path)
        facts = rows.iloc[0]
        question, _, _ = (experiment.__doc__ or '').partition('\n')
        parts += [
            f'## {question}', f'Torch {facts["torch"]}, {facts["device"]}, {facts["date"]}: `{facts["command"]}`',
            experiment.report(rows),
            *(f'![{picture.stem}]({picture.name})' for picture in sorted(results.glob(f'{name}*.png'))),
        ]
    says = 'what the experiments of [docs/experiments.md](../../../docs/experiments.md) measured, from their CSVs'
    return page('Experiments', says, *parts)
