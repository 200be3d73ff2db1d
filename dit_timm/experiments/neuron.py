"""What a quadratic neuron has learned: ten of them, one for each of MNIST's digits, trained on all images.

The symmetric A of each is a sum of terms `eigenvalue * (eigenvector . x)^2`: pictures that speak for the digit, where
the eigenvalue is positive, or against it, whatever their sign. Reported are how many of them carry the output, by the
variance of the quadratic part over the test images and by the accuracy with only the largest kept, and the pictures.
"""

from argparse import Namespace
from pathlib import Path
from typing import Dict, List, Tuple

import pandas as pd
import torch
import torch.nn.functional as F

from ..analysis.statistics import summary
from ..layers import QuadraticLinear
from ..results.markdown import markdown_frame
from ..training.pyplot import plt, save_figure
from .fitting import Data, error_rate
from .images import mnist, small_digits

KEPT = (0, 1, 2, 5, 10, 20, 50)
_EPOCHS, _BATCH_SIZE, _LEARNING_RATE, _WEIGHT_DECAY = 5, 256, 2e-3, 1e-2
_PICTURES = 3


def images(quick: bool) -> Tuple[Data, Data]:
    """Images to train on, and those of the test; (N, pixels) from 0 to 1."""
    if not quick:
        return mnist('train'), mnist('test')
    x, y = small_digits()
    return Data(x[:1300], y[:1300]), Data(x[1300:], y[1300:])


def train(data: Data, seed: int, epochs: int = _EPOCHS) -> QuadraticLinear:
    """Train a neuron for each class, by AdamW with a learning rate that falls to zero."""
    torch.manual_seed(seed)
    model = QuadraticLinear(data.x.shape[1], 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    steps = epochs * -(-len(data.y) // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.y)).split(_BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(model(data.x[batch]), data.y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model


@torch.no_grad()
def decompose(model: QuadraticLinear) -> Tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (O, C) and eigenvectors (O, C, C), in rows, of each symmetric A, the largest in magnitude first."""
    values, vectors = torch.linalg.eigh(model.form())
    order = values.abs().argsort(1, descending=True)
    return values.gather(1, order), vectors.mT.gather(1, order[:, :, None].expand_as(vectors))


def run(seed: int, quick: bool) -> List[Dict[str, object]]:
    """Train; returns a row for each digit and number of eigenvectors kept."""
    data, test = images(quick)
    rows = truncated(train(data, seed, epochs=40 if quick else _EPOCHS), test)
    return [{'seed': seed, **row} for row in rows]


@torch.no_grad()
def truncated(model: QuadraticLinear, test: Data) -> List[Dict[str, object]]:
    """What is left of neurons of which only the largest eigenvectors are kept; a row for each digit and number."""
    values, vectors = decompose(model)
    # (N, O, C): what each eigenvector adds to the output of its neuron.
    terms = torch.einsum('oc,noc->noc', values, torch.einsum('oci,ni->noc', vectors, test.x).square())
    quadratic, rows = terms.sum(2), []
    for kept in (*KEPT, len(test.x[0])):
        part = terms[..., :kept].sum(2)
        top1 = 100 - error_rate(lambda x, part=part: model.linear(x) + part, test)
        shares = 1 - (quadratic - part).var(0) / quadratic.var(0)
        rows += [
            {'digit': digit, 'kept': kept, 'variance_share': share, 'top1': top1}
            for digit, share in enumerate(shares.tolist())
        ]
    return rows


def tasks(args: Namespace) -> List[Tuple[int, bool]]:
    """Arguments of `run`."""
    return [(seed, args.quick) for seed in range(2 if args.quick else 5)]


def report(rows: pd.DataFrame) -> str:
    """Accuracy and variance by the number of eigenvectors kept."""
    by_kept = rows.groupby('kept')
    table = pd.DataFrame({
        'top-1 (%)': rows.drop_duplicates(['seed', 'kept']).groupby('kept')['top1'].agg(lambda v: str(summary(v))),
        'share of the variance (%)': by_kept['variance_share'].agg(lambda v: str(summary(100 * v))),
    })
    return (
        'Ten quadratic neurons with only the largest eigenvectors of each kept; mean ± deviation, of the top-1 over '
        f'the seeds, of the share over seeds and digits:\n\n{markdown_frame(table)}'
    )


def plot(rows: pd.DataFrame, folder: Path) -> None:
    """Draw the leading eigenvectors of each neuron, of the first seed."""
    quick = rows['kept'].max() < 100
    data, _ = images(quick)
    values, vectors = decompose(train(data, 0, epochs=40 if quick else _EPOCHS))
    side = round(vectors.shape[-1] ** 0.5)
    figure, axes = plt.subplots(2 * _PICTURES, 10, figsize=(10, 6.5), layout='constrained')
    for digit in range(10):
        for row, sign in enumerate([1] * _PICTURES + [-1] * _PICTURES):
            chosen = (values[digit] * sign).argsort(descending=True)[row % _PICTURES]
            picture = vectors[digit, chosen].reshape(side, side)
            # An eigenvector and its negative are one: the strongest pixel is positive in all pictures.
            picture = picture * picture.flatten()[picture.abs().argmax()].sign()
            axis, limit = axes[row, digit], picture.abs().max()
            axis.imshow(picture, cmap='coolwarm', vmin=-limit, vmax=limit)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f'{values[digit, chosen]:+.2g}', fontsize='small')
        axes[0, digit].set_title(f'digit {digit}\n{axes[0, digit].get_title()}', fontsize='small')
    figure.suptitle('Eigenvectors that speak for a digit (above) and against it (below), with their eigenvalues')
    save_figure(figure, folder / 'neuron.png')
