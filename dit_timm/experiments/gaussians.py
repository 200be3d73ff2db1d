"""One neuron, two Gaussian classes: does a quadratic neuron become the Bayes rule, and how many samples does it take?

The log odds of two Gaussian classes are a quadratic form of the input, whose A is half the difference of the inverse
covariances: a quadratic neuron can be the Bayes rule, and where the covariances are equal so can a linear one. Compared
are both, a two-layer network with at least as many parameters as the quadratic neuron, and linear and quadratic
discriminant analysis, which know that the classes are Gaussian. What keeps each from overfitting (weight decay, of A
another one, or shrinkage) is chosen among five settings by the cross entropy on a fifth of the samples. Classes are
drawn anew for each seed; the distance of the means is 1, the eigenvalues of the covariances are from 1/4 to 4.
"""

import math
from argparse import Namespace
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

import pandas as pd
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from ..analysis.statistics import summary
from ..layers import QuadraticLinear
from ..results.markdown import markdown_frame
from ..training.pyplot import plt, save_figure
from .fitting import Data, WeightDecay, error_rate, loss_of, tune

DIMENSIONS = (2, 10, 50)
SAMPLES = (10, 30, 100, 300, 1000, 3000, 10000)
EQUAL, UNEQUAL = 'equal', 'unequal'
QUADRATIC, LINEAR, MLP, LDA, QDA, BAYES = 'quadratic neuron', 'linear neuron', 'MLP', 'LDA', 'QDA', 'Bayes'
NEURONS = (QUADRATIC, LINEAR, MLP)
CLASSIFIERS = (*NEURONS, LDA, QDA, BAYES)
# As many settings for each classifier. Of the quadratic neuron one for both parts, or one that keeps A near zero, which
# makes it a linear neuron.
WEIGHT_DECAYS = tuple(WeightDecay(factor) for factor in (1e-4, 1e-3, 1e-2, 1e-1, 1.))
QUADRATIC_WEIGHT_DECAYS = (
    WeightDecay(1e-4, 1e-4), WeightDecay(1e-2, 1e-2), WeightDecay(1e-1, 1e-1), WeightDecay(1., 1.),
    WeightDecay(1e-2, 100.),
)
SHRINKAGES = (1e-2, 1e-1, 0.3, 0.6, 0.9)
# As many as a curve around one class needs, and more where a quadratic neuron has more parameters.
_MIN_HIDDEN = 32
_TEST_SAMPLES = 20_000
# Of the training samples, at least one of each class.
_HELD_OUT_SHARE = 0.2


class Classes(NamedTuple):
    """Two Gaussian classes, equally likely.

    Attributes:
        means: (2, C).
        covariances: (2, C, C).
    """
    means: torch.Tensor
    covariances: torch.Tensor

    @classmethod
    def draw(cls, dimension: int, covariances: str, generator: torch.Generator) -> 'Classes':
        """Draw means and covariances.

        The distance of the means is such that the linear part alone is worth the same in every dimension. Covariances
        have eigenvalues from 1/4 to 4, spaced evenly in the logarithm, in directions drawn at random.
        """
        direction = torch.randn(dimension, generator=generator, dtype=torch.float64)
        means = torch.stack([-direction, direction]) / (2 * direction.norm())
        drawn = [_covariance(dimension, generator) for _ in range(2)]
        return cls(means, torch.stack([drawn[0], drawn[0] if covariances == EQUAL else drawn[1]]))

    @classmethod
    def estimate(cls, data: Data, shrinkage: float) -> 'Classes':
        """The classes that samples come from, as quadratic discriminant analysis takes them.

        scikit-learn's class for it refuses fewer samples than dimensions, or warns, from release to release.

        Args:
            data: The samples.
            shrinkage: The share of a multiple of the identity in the covariances.
        """
        of_class = [data.x[data.y == label] for label in range(2)]
        covariances = [
            torch.from_numpy(shrunk_covariance(x.mT.cov(correction=0).reshape(2 * x.shape[1:]).numpy(), shrinkage))
            for x in of_class
        ]
        return cls(torch.stack([x.mean(0) for x in of_class]), torch.stack(covariances))

    def sample(self, count: int, generator: torch.Generator) -> Data:
        """Draw samples, half of each class, in a random order."""
        y = torch.arange(count)[torch.randperm(count, generator=generator)] % 2
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        roots = torch.linalg.cholesky(self.covariances)
        return Data(self.means[y] + torch.einsum('nij,nj->ni', roots[y], noise), y)

    def form(self) -> torch.Tensor:
        """A of the log odds of class 1, (C, C)."""
        first, second = torch.linalg.inv(self.covariances)
        return (first - second) / 2

    def log_odds(self, x: torch.Tensor) -> torch.Tensor:
        """Log odds of class 1, (N, 1)."""
        densities = [
            torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
            for mean, covariance in zip(self.means, self.covariances)
        ]
        return (densities[1] - densities[0])[:, None]


def _covariance(dimension: int, generator: torch.Generator) -> torch.Tensor:
    basis, _ = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))
    variances = torch.logspace(math.log10(0.25), math.log10(4), dimension, dtype=torch.float64)
    return basis @ variances.diag() @ basis.mT


def create(name: str, dimension: int) -> nn.Module:
    """A neuron to be fitted, or the network of two layers."""
    if name == QUADRATIC:
        return QuadraticLinear(dimension, 1, dtype=torch.float64)
    if name == LINEAR:
        return nn.Linear(dimension, 1, dtype=torch.float64)
    quadratic = sum(parameter.numel() for parameter in create(QUADRATIC, dimension).parameters())
    hidden = max(_MIN_HIDDEN, math.ceil((quadratic - 1) / (dimension + 2)))
    return nn.Sequential(
        nn.Linear(dimension, hidden, dtype=torch.float64), nn.Tanh(), nn.Linear(hidden, 1, dtype=torch.float64),
    )


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """The angle between two matrices as vectors, in degrees; NaN where one is zero."""
    norms = a.norm() * b.norm()
    return math.degrees(math.acos(max(-1., min(1., (a * b).sum().item() / norms.item())))) if norms > 0 else math.nan


def run(dimension: int, covariances: str, samples: int, seed: int) -> Iterator[Dict[str, object]]:
    """Fit every classifier to the same samples; yields a row for each."""
    # The classes and the test are the same whatever the number of samples.
    generator = torch.Generator().manual_seed(seed)
    classes = Classes.draw(dimension, covariances, generator)
    test = classes.sample(_TEST_SAMPLES, generator)
    data = classes.sample(samples, generator.manual_seed(1_000_003 * (seed + 1) + samples))
    held_out = max(2, round(_HELD_OUT_SHARE * samples) // 2 * 2)
    order = torch.argsort(data.y, stable=True).reshape(2, -1).T.flatten()
    x, y = data.x[order], data.y[order]
    train, chooses = Data(x[held_out:], y[held_out:]), Data(x[:held_out], y[:held_out])
    facts = {'covariances': covariances, 'dimension': dimension, 'samples': samples, 'seed': seed}
    for name in NEURONS:
        torch.manual_seed(seed)
        model, weight_decay = tune(
            lambda name=name: create(name, dimension), train, chooses,
            QUADRATIC_WEIGHT_DECAYS if name == QUADRATIC else WEIGHT_DECAYS, loss_of,
        )
        yield {
            **facts, 'classifier': name, 'parameters': sum(parameter.numel() for parameter in model.parameters()),
            'weight_decay': weight_decay.linear, 'quadratic_weight_decay': weight_decay.quadratic,
            'error': error_rate(model, test),
            'angle': (
                angle(model.form()[0].detach(), classes.form()) if isinstance(model, QuadraticLinear) else math.nan
            ),
        }
    linear = {shrinkage: _linear_discriminant(train, shrinkage) for shrinkage in SHRINKAGES}
    best = min(linear, key=lambda shrinkage: loss_of(linear[shrinkage], chooses))
    yield {**facts, 'classifier': LDA, 'shrinkage': best, 'error': error_rate(linear[best], test)}
    estimated = {shrinkage: Classes.estimate(train, shrinkage) for shrinkage in SHRINKAGES}
    best = min(estimated, key=lambda shrinkage: loss_of(estimated[shrinkage].log_odds, chooses))
    yield {
        **facts, 'classifier': QDA, 'shrinkage': best, 'error': error_rate(estimated[best].log_odds, test),
        'angle': angle(estimated[best].form(), classes.form()),
    }
    yield {**facts, 'classifier': BAYES, 'error': error_rate(classes.log_odds, test)}


def _linear_discriminant(data: Data, shrinkage: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Log odds of class 1, of linear discriminant analysis."""
    fitted = LinearDiscriminantAnalysis(solver='lsqr', shrinkage=shrinkage).fit(data.x.numpy(), data.y.numpy())
    return lambda x: torch.from_numpy(fitted.decision_function(x.numpy()))[:, None]


def tasks(args: Namespace) -> List[Tuple[int, str, int, int]]:
    """Arguments of `run`, the longest first."""
    if args.quick:
        return [(2, UNEQUAL, samples, seed) for samples in (300, 30) for seed in range(3)]
    return [
        (dimension, covariances, samples, seed)
        for samples in reversed(SAMPLES) for dimension in reversed(DIMENSIONS) for covariances in (UNEQUAL, EQUAL)
        for seed in range(20)
    ]


def report(rows: pd.DataFrame) -> str:
    """Excess error over the Bayes rule, and the angles of A; means over the seeds with 95 % intervals."""
    parts = []
    for (covariances, dimension), group in _excess(rows).groupby(['covariances', 'dimension']):
        cells = group.groupby(['samples', 'classifier'])['excess'].agg(lambda values: summary(values).interval())
        bayes = rows.query('covariances == @covariances and dimension == @dimension and classifier == @BAYES')['error']
        parts.append(f'### {covariances.capitalize()} covariances, {dimension} dimensions')
        parts.append(
            f'Error above that of the Bayes rule, which is {bayes.mean():.2f} % on average: percentage points, mean '
            f'over {group["seed"].nunique()} seeds and its 95 % interval.'
        )
        parts.append(markdown_frame(cells.unstack()[[name for name in CLASSIFIERS if name != BAYES]]))
        if covariances == UNEQUAL:
            angles = group[group['classifier'].isin([QUADRATIC, QDA])].groupby(['samples', 'classifier'])['angle']
            parts.append('Angle between A and that of the log odds, degrees (90 by chance), mean ± deviation:')
            parts.append(markdown_frame(angles.agg(lambda values: str(summary(values.dropna()))).unstack()))
    return '\n\n'.join(parts)


def _excess(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the column 'excess': how much more often than the Bayes rule a classifier errs on the same test."""
    keys = ['covariances', 'dimension', 'samples', 'seed']
    bayes = rows[rows['classifier'] == BAYES].set_index(keys)['error'].rename('bayes')
    joined = rows[rows['classifier'] != BAYES].join(bayes, on=keys)
    return joined.assign(excess=joined['error'] - joined['bayes'])


def plot(rows: pd.DataFrame, folder: Path) -> None:
    """Draw error against samples, and the boundaries in two dimensions as the samples grow."""
    _plot_errors(_excess(rows), folder / 'gaussians.png')
    _plot_boundaries(folder / 'gaussians_boundaries.png')


def _plot_errors(excess: pd.DataFrame, target: Path) -> None:
    kinds, dimensions = sorted(excess['covariances'].unique()), sorted(excess['dimension'].unique())
    figure, axes = plt.subplots(
        len(kinds), len(dimensions), figsize=(4 * len(dimensions), 3 * len(kinds)), layout='constrained', sharex=True,
        sharey=True, squeeze=False,
    )
    for (covariances, dimension), group in excess.groupby(['covariances', 'dimension']):
        axis = axes[kinds.index(covariances), dimensions.index(dimension)]
        for name in CLASSIFIERS[:-1]:
            points = group[group['classifier'] == name].groupby('samples')['excess'].agg(['mean', 'std'])
            axis.errorbar(points.index, points['mean'], points['std'].fillna(0), label=name, capsize=2)
        axis.set(xscale='log', title=f'{covariances} covariances, {dimension} dimensions')
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set(ylabel='error above the Bayes rule (points)')
    for axis in axes[-1]:
        axis.set(xlabel='samples')
    axes[0, -1].legend(fontsize='small')
    save_figure(figure, target)


def _plot_boundaries(target: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = Classes.draw(2, UNEQUAL, generator)
    counts, names = (10, 100, 1000), (QUADRATIC, LINEAR, MLP)
    figure, axes = plt.subplots(len(names), len(counts), figsize=(9, 9), layout='constrained', sharex=True, sharey=True)
    sides = torch.linspace(-5, 5, 200, dtype=torch.float64)
    grid = torch.cartesian_prod(sides, sides)
    for column, count in enumerate(counts):
        data = classes.sample(count, generator.manual_seed(count))
        half = count // 5
        train, held_out = Data(data.x[half:], data.y[half:]), Data(data.x[:half], data.y[:half])
        for row, name in enumerate(names):
            torch.manual_seed(0)
            model, _ = tune(
                lambda name=name: create(name, 2), train, held_out,
                QUADRATIC_WEIGHT_DECAYS if name == QUADRATIC else WEIGHT_DECAYS, loss_of,
            )
            axis = axes[row, column]
            axis.scatter(*data.x.T, c=data.y, cmap='coolwarm', s=4, alpha=0.6)
            for logits, style in ((model(grid), '-'), (classes.log_odds(grid), '--')):
                axis.contour(sides, sides, logits.detach().reshape(200, 200).T, [0.], colors='black', linestyles=style)
            axis.set(title=f'{name}, {count} samples', xticks=[], yticks=[])
    figure.suptitle('Decision boundaries; dashed: the Bayes rule')
    save_figure(figure, target)
