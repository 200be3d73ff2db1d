"""What docs/experiments.md says in numbers, against the CSVs of the experiments."""

from pathlib import Path

import pandas as pd
import pytest

from dit_timm.analysis.statistics import paired, summary
from dit_timm.experiments import dendrites, few_shots, gaussians, robustness

ROOT = Path(__file__).parents[2]
PAGE, README = (
    ' '.join((ROOT / name).read_text(encoding='utf-8').split()) for name in ('docs/experiments.md', 'README.md')
)


def rows_of(name):
    return pd.read_csv(ROOT / 'hub' / 'results' / 'experiments' / f'{name}.csv')


def test_gaussians():
    excess = gaussians._excess(rows_of('gaussians'))
    assert 'for each of 20 seeds' in PAGE and excess['seed'].nunique() == 20
    mean = excess.groupby(['covariances', 'dimension', 'samples', 'classifier'])['excess'].mean()
    equal, unequal = mean[gaussians.EQUAL].unstack(), mean[gaussians.UNEQUAL].unstack()
    most = unequal.xs(10000, level='samples')
    assert '0.05, 0.21 and 0.59 points above that of the Bayes rule in 2, 10 and 50 dimensions' in PAGE
    assert most[gaussians.QUADRATIC].tolist() == pytest.approx([0.05, 0.21, 0.59], abs=0.005)
    assert 'that of a linear neuron 12 to 31' in PAGE
    assert [round(value) for value in (most[gaussians.LINEAR].min(), most[gaussians.LINEAR].max())] == [12, 31]
    assert 'In 50 dimensions the Bayes rule itself errs in 0.25 % only' in PAGE
    errors = excess[(excess['covariances'] == gaussians.UNEQUAL) & (excess['dimension'] == 50)]['bayes']
    assert errors.mean() == pytest.approx(0.25, abs=0.005)
    for samples in (100, 1000, 10000):
        cells = [
            unequal.loc[dimension, samples][name] for dimension in (10, 50)
            for name in (gaussians.QUADRATIC, gaussians.MLP, gaussians.QDA)
        ]
        assert f'| {samples:,} | {" | ".join(f"{cell:.1f}" for cell in cells)} |' in PAGE
    assert 'is behind with every number of samples' in PAGE and 'is ahead with 100 or more' in PAGE
    assert (unequal[gaussians.MLP] > unequal[gaussians.QUADRATIC]).all()
    many = unequal[unequal.index.get_level_values('samples') >= 100]
    assert (many[gaussians.QDA] < many[gaussians.QUADRATIC]).all()
    assert '4°, 8° and 33° with 10,000 samples, 90° being chance; that of QDA 1°, 4° and 8°' in PAGE
    angles = excess[(excess['samples'] == 10000) & (excess['covariances'] == gaussians.UNEQUAL)]
    angles = angles.groupby(['classifier', 'dimension'])['angle'].mean().round()
    assert angles[gaussians.QUADRATIC].tolist() == [4, 8, 33] and angles[gaussians.QDA].tolist() == [1, 4, 8]
    cost = equal[gaussians.QUADRATIC] - equal[gaussians.LINEAR]
    assert 'the error of a quadratic neuron is at most 0.3 points above that of a linear one in every dimension' in PAGE
    assert 'in 50 dimensions with 300 samples 0.8 below' in PAGE
    assert cost[50, 300] == cost[cost.index.get_level_values('samples') >= 300].min() == pytest.approx(-0.8, abs=0.05)
    samples = cost.index.get_level_values('samples')
    assert (cost[samples >= 300] < 0.3).all()
    assert 'with fewer it is up to 5.4 points above' in PAGE and cost.max() == pytest.approx(5.4, abs=0.05)


def test_few_shots():
    rows = rows_of('few_shots')
    assert 'All are means over 10 draws, each with one of six settings' in PAGE and rows['seed'].nunique() == 10
    assert len(few_shots.WEIGHT_DECAYS) == len(few_shots.QUADRATIC_WEIGHT_DECAYS) == len(few_shots.PENALTIES) == 6
    top1 = rows.pivot(index=['inputs', 'shots', 'seed'], columns='classifier', values='top1')
    mean = top1.groupby(['inputs', 'shots']).mean()

    def gain(inputs, shots, classifier=few_shots.QUADRATIC, other=few_shots.LINEAR):
        pairs = top1.loc[inputs, shots]
        return summary(pairs[classifier] - pairs[other])

    def said(points):
        return f'{points.mean:.1f} points [{points.mean - points.margin:.1f}, {points.mean + points.margin:.1f}]'

    assert 'With 1 to 10 they are within half a point of linear neurons' in PAGE
    assert all(abs(gain(few_shots.MNIST, shots).mean) < 0.5 for shots in (1, 2, 5, 10))
    neurons = rows[(rows['inputs'] == few_shots.MNIST) & (rows['classifier'] == few_shots.QUADRATIC)]
    fewer = neurons[neurons['shots'] <= 10]
    assert 'in most draws the best weight decay keeps A near zero' in PAGE
    assert (fewer['quadratic_weight_decay'] == 100).groupby(fewer['shots']).mean().min() > 0.5
    assert f'With 20 they are {said(gain(few_shots.MNIST, 20))} more accurate' in PAGE
    assert f'with 50 {said(gain(few_shots.MNIST, 50)).replace(" points", "")}' in PAGE
    more = said(gain(few_shots.MNIST, 50, other=few_shots.MLP)).replace(' points', '')
    assert f'then also {more} more than a network of two layers' in PAGE
    assert 'has the highest mean from 5 images on' in PAGE
    best = mean.loc[few_shots.MNIST].idxmax(axis=1) == few_shots.SVM
    assert best.loc[5:].all() and not best.loc[:2].any()
    assert 'quadratic neurons are within a point of linear ones with every number of images' in PAGE
    assert all(abs(gain(few_shots.CIFAR, shots).mean) < 1 for shots in few_shots.SHOTS)
    norms = rows[rows['classifier'] == few_shots.LOW_RANK]['form_norm']
    assert 'left nothing of A in 116 of 120 draws' in PAGE and ((norms < 1e-3).sum(), len(norms)) == (116, 120)
    largest = mean[few_shots.LOW_RANK].sub(mean[few_shots.LINEAR]).abs().max()
    assert 'They still differ from linear neurons by up to 1.1 points' in PAGE
    assert largest == pytest.approx(1.1, abs=0.05)
    assert 'which in two of the six is much larger for A than for w' in PAGE
    assert sum(decay.quadratic > decay.linear for decay in few_shots.QUADRATIC_WEIGHT_DECAYS) == 2


def test_neuron():
    rows = rows_of('neuron')
    top1 = rows.drop_duplicates(['seed', 'kept']).groupby('kept')['top1'].mean()
    share = rows.groupby('kept')['variance_share'].mean()
    assert '97.9 % top-1, the mean of 5 seeds' in PAGE and rows['seed'].nunique() == 5
    assert top1[784] == pytest.approx(97.9, abs=0.05)
    assert 'the 10 largest of the 784 eigenvectors' in PAGE and '97 % of the variance of the quadratic part' in PAGE
    assert 'is left and 96.3 % top-1, with 50 nothing is missed' in PAGE
    assert round(100 * share[10]) == 97 and top1[10] == pytest.approx(96.3, abs=0.05)
    assert top1[50] >= top1[784] - 0.1
    assert 'one alone is worse than none' in PAGE and top1[1] < top1[0] and share[1] < 0


def test_dendrites():
    rows = rows_of('dendrites')
    outputs = rows[rows['of'] == dendrites.OUTPUT]
    assert 'of five networks (10 epochs)' in PAGE and rows['run'].nunique() == 5
    raw = outputs[outputs['units'] == dendrites.RAW]
    assert f'by {summary(raw.groupby("run")["agreement"].mean()).interval()} (interval over the networks)' in PAGE
    assert '(p = 0.001 in each network, by 1,000 random orders of the channels)' in PAGE
    assert raw['chance'].to_numpy() == pytest.approx(1 / 1001, rel=1e-4)
    assert 'it explains 0.7 % of the variance of |A| over the pairs' in PAGE
    assert 100 * (raw['agreement'] ** 2).mean() == pytest.approx(0.7, abs=0.05)
    assert 'of 32 eigenvalues 19 count' in PAGE
    assert (raw['channels'] == 32).all() and round(raw['effective_rank'].mean()) == 19
    classes = rows[rows['of'] == dendrites.CLASS]
    lost = classes.groupby('run')['lost'].mean()
    assert 'takes 37 points of top-1, 19 to 58 by network' in PAGE
    assert [round(value) for value in (lost.mean(), lost.min(), lost.max())] == [37, 19, 58]
    means = classes.groupby('name')[['lost', 'predicted_without']].mean()
    assert 'Without it 37 % of all images are taken for airplanes and 23 % for deer' in PAGE
    assert means['predicted_without'].round().loc[['airplane', 'deer']].tolist() == [37, 23]
    assert 'the other eight 37 to 59 points' in PAGE
    others = means['lost'].drop(['airplane', 'deer'])
    assert [round(others.min()), round(others.max())] == [37, 59] and means['lost'].nsmallest(2).max() < 10


def test_robustness():
    rows = rows_of('robustness')
    corrupted = rows[rows['corruption'] != robustness.CLEAN].groupby(['seed', 'network'], as_index=False)['top1'].mean()
    cases = {('all', 0): corrupted, **dict(list(rows.groupby(['corruption', 'strength'])))}

    def gain(*case):
        """Mean, low and high end of the interval."""
        by_seed = {name: part.set_index('seed')['top1'].to_dict() for name, part in cases[case].groupby('network')}
        difference = paired(by_seed[robustness.DIT], by_seed[robustness.PLAIN])
        assert difference.count == 5
        return difference.mean, difference.mean - difference.margin, difference.mean + difference.margin

    assert 'are 2.1 points [0.8, 3.4] more accurate' in PAGE
    assert 'are 2.1 points [0.8, 3.4] more accurate with the term' in README
    assert gain('all', 0) == pytest.approx((2.1, 0.8, 3.4), abs=0.05)
    assert 'no difference is shown, +0.1 [-0.2, +0.4]' in PAGE
    assert gain(robustness.CLEAN, 0) == pytest.approx((0.1, -0.2, 0.4), abs=0.055)
    assert 'of blur up to 7.2 [5.6, 8.8] points, of JPEG up to 3.3 [1.9, 4.6]' in PAGE
    assert gain('blur', 5) == pytest.approx((7.2, 5.6, 8.8), abs=0.051)
    assert gain('JPEG', 5) == pytest.approx((3.3, 1.9, 4.6), abs=0.051)
    assert 'The gain grows with the strength' in PAGE
    for kind in ('blur', 'JPEG'):
        means = [gain(kind, strength)[0] for strength in range(1, 6)]
        assert means == sorted(means)
    assert 'there is none, and on noisy ones the intervals, from -2.2 to +9.1 at the strongest, include zero' in PAGE
    for kind in ('brightness', 'noise'):
        assert all(low < 0 < high for _, low, high in (gain(kind, strength) for strength in range(1, 6)))
    assert gain('noise', 5)[1:] == pytest.approx((-2.2, 9.1), abs=0.05)
