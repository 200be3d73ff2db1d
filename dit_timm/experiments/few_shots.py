"""Few images a class: how well do quadratic neurons learn from them, beside the usual classifiers?

Two kinds of inputs: MNIST's digits, averaged to 14x14 pixels, and the features that dit_resnet20, trained on CIFAR-10,
makes of ten classes of CIFAR-100, drawn anew for each seed. Classifiers: linear neurons, quadratic neurons with a full
and with a low-rank A, a network of two layers, and a support vector machine with a Gaussian kernel. Of each the best of
six settings is taken (weight decay, of quadratic forms another one, or the machine's C), by the errors on held-out
images, 100 a class of MNIST and 20 of CIFAR-100. Few who have few images have those: the table says what each can do,
not what it does untuned.
"""

import math
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from sklearn.svm import SVC
from timm.data import create_dataset, create_transform, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader

from ..analysis.statistics import summary
from ..layers import QuadraticLinear
from ..results.markdown import markdown_frame
from ..training.pyplot import plt, save_figure
from .fitting import Data, WeightDecay, error_rate, tune
from .images import data_file, mnist, small_digits

MNIST, CIFAR, DIGITS = 'MNIST', 'CIFAR-100 features', 'handwritten digits'
SHOTS = (1, 2, 5, 10, 20, 50)
LINEAR, QUADRATIC, LOW_RANK, MLP, SVM = (
    'linear neurons', 'quadratic neurons', 'quadratic neurons of rank 4', 'MLP', 'SVM, Gaussian kernel',
)
CLASSIFIERS = (LINEAR, QUADRATIC, LOW_RANK, MLP, SVM)
# As many settings for each classifier. Of quadratic neurons one for both parts, or one that keeps A near zero, which
# makes them linear neurons.
WEIGHT_DECAYS = tuple(WeightDecay(factor) for factor in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.))
QUADRATIC_WEIGHT_DECAYS = (
    WeightDecay(1e-3, 1e-3), WeightDecay(1e-2, 1e-2), WeightDecay(1e-1, 1e-1), WeightDecay(1., 1.),
    WeightDecay(1e-2, 100.), WeightDecay(1e-1, 100.),
)
PENALTIES = (1e-2, 1e-1, 1., 10., 100., 1000.)
_CLASSES, _RANK, _HIDDEN = 10, 4, 256
# Of each class.
_HELD_OUT = {MNIST: 100, CIFAR: 20, DIGITS: 50}


@cache
def _pool(inputs: str) -> Data:
    """All samples; of MNIST those for training."""
    if inputs == DIGITS:
        return small_digits()
    if inputs == CIFAR:
        return _features(data_file('cifar100', 'test.tar'))
    x, y = mnist('train')
    return Data(F.avg_pool2d(x.reshape(-1, 1, 28, 28), 2).flatten(1), y)


@torch.no_grad()
def _features(path: Path) -> Data:
    """What the last layer of the shipped network is given of images that it has not seen."""
    model = timm.create_model('dit_resnet20.cifar10', pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_data_config(model=model))
    dataset = create_dataset('', root=str(path), transform=transform)
    batches = [(model(x), y) for x, y in DataLoader(dataset, batch_size=250)]
    return Data(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))


def draw(inputs: str, shots: int, seed: int) -> Tuple[Data, Data, Data]:
    """Samples of ten classes to learn from, to choose the setting by, and to test on; standardised by the first."""
    pool, generator = _pool(inputs), np.random.default_rng(seed)
    classes = generator.permutation(int(pool.y.max()) + 1)[:_CLASSES]
    parts: List[List[torch.Tensor]] = [[], [], []]
    for label in classes:
        members = torch.from_numpy(generator.permutation(np.flatnonzero(pool.y == label)))
        ends = (max(SHOTS), max(SHOTS) + _HELD_OUT[inputs])
        for part, indices in zip(parts, (members[:shots], members[ends[0]:ends[1]], members[ends[1]:])):
            part.append(indices)
    position = torch.zeros(len(pool.y.unique()), dtype=torch.long)
    position[classes] = torch.arange(_CLASSES)
    learns, *others = (Data(pool.x[indices], position[pool.y[indices]]) for indices in map(torch.cat, parts))
    mean, scale = learns.x.mean(0), learns.x.std() + 1e-6
    learns, held_out, test = (Data((data.x - mean) / scale, data.y) for data in (learns, *others))
    return learns, held_out, test


def create(name: str, features: int) -> nn.Module:
    """A classifier to be fitted."""
    if name == LINEAR:
        return nn.Linear(features, _CLASSES)
    if name == MLP:
        return nn.Sequential(nn.Linear(features, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _CLASSES))
    return QuadraticLinear(features, _CLASSES, rank=_RANK if name == LOW_RANK else None)


def run(inputs: str, shots: int, seed: int) -> Iterator[Dict[str, object]]:
    """Fit every classifier to the same images; yields a row for each."""
    learns, held_out, test = draw(inputs, shots, seed)
    for name in CLASSIFIERS:
        facts = {'inputs': inputs, 'shots': shots, 'seed': seed, 'classifier': name, 'test_images': len(test.y)}
        if name == SVM:
            machines = [SVC(C=penalty).fit(learns.x, learns.y) for penalty in PENALTIES]
            best = max(machines, key=lambda machine: machine.score(held_out.x, held_out.y))
            yield {**facts, 'setting': best.C, 'top1': 100 * best.score(test.x, test.y)}
            continue
        torch.manual_seed(seed)
        model, setting = tune(
            lambda name=name: create(name, learns.x.shape[1]), learns, held_out,
            QUADRATIC_WEIGHT_DECAYS if name in (QUADRATIC, LOW_RANK) else WEIGHT_DECAYS, error_rate,
        )
        norm = model.form().norm().item() if isinstance(model, QuadraticLinear) else math.nan
        yield {
            **facts, 'setting': setting.linear, 'quadratic_weight_decay': setting.quadratic, 'form_norm': norm,
            'top1': 100 - error_rate(model, test),
        }


def tasks(args: Namespace) -> List[Tuple[str, int, int]]:
    """Arguments of `run`; the quick ones need no data but scikit-learn's digits.

    Raises:
        MissingFileError: The others' data are not there.
    """
    if args.quick:
        return [(DIGITS, shots, seed) for shots in (2, 20) for seed in range(3)]
    for names in (('mnist', 'mnist.npz'), ('cifar100', 'test.tar')):
        data_file(*names)
    return [(inputs, shots, seed) for inputs in (MNIST, CIFAR) for shots in reversed(SHOTS) for seed in range(10)]


def report(rows: pd.DataFrame) -> str:
    """Top-1 on the test, and differences from the linear neurons in pairs of the same images."""
    parts = []
    for inputs, group in rows.groupby('inputs'):
        top1 = group.pivot(index=['shots', 'seed'], columns='classifier', values='top1')[list(CLASSIFIERS)]
        by_shots = top1.groupby('shots')
        parts.append(f'### {inputs}: top-1 on the test (%), mean ± deviation over the seeds, by images a class')
        parts.append(markdown_frame(by_shots.agg(lambda values: str(summary(values)))))
        parts.append(f'### {inputs}: against linear neurons, points, 95 % interval')
        differences = top1.sub(top1[LINEAR], axis=0)[list(CLASSIFIERS[1:])]
        parts.append(markdown_frame(differences.groupby('shots').agg(lambda values: summary(values).interval())))
    return '\n\n'.join(parts)


def plot(rows: pd.DataFrame, folder: Path) -> None:
    """Draw accuracy against images a class."""
    cases = list(rows.groupby('inputs'))
    figure, axes = plt.subplots(1, len(cases), figsize=(5 * len(cases), 4), layout='constrained', squeeze=False)
    for axis, (inputs, group) in zip(axes[0], cases):
        for name in CLASSIFIERS:
            points = group[group['classifier'] == name].groupby('shots')['top1'].agg(['mean', 'std'])
            axis.errorbar(points.index, points['mean'], points['std'], label=name, capsize=2)
        axis.set(xscale='log', xlabel='images a class', ylabel='top-1 (%)', title=inputs)
        axis.set_xticks(sorted(group['shots'].unique()), sorted(group['shots'].unique()))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize='small')
    save_figure(figure, folder / 'few_shots.png')
