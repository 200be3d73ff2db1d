"""What docs/experiments.md says in numbers, against the CSVs of the experiments."""

from pathlib import Path

import pandas as pd
import pytest

from dit_timm.analysis.statistics import summary
from dit_timm.experiments import dendrites, few_shots, gaussians

ROOT = Path(__file__).parents[2]
PAGE = ' '.join((ROOT / 'docs' / 'experiments.md').read_text(encoding='utf-8').split())


def rows_of(name):
    return pd.read_csv(ROOT / 'hub' / 'results' / 'experiments' / f'{name}.csv')


def test_gaussians():
    excess = gaussians._excess(rows_of('gaussians'))
    mean = excess.groupby(['covariances', 'dimension', 'samples', 'classifier'])['excess'].mean()

    def at(covariances, classifier, samples):
        return [mean[covariances, dimension, samples, classifier] for dimension in gaussians.DIMENSIONS]

    def needed(covariances, dimension, classifier):
        means = mean[covariances, dimension, :, classifier]
        return means[means < 2].index.min()

    equal = [needed(gaussians.EQUAL, 10, name) for name in (gaussians.QUADRATIC, gaussians.LINEAR)]
    assert 'in 10 dimensions 3,000 against 300' in PAGE and equal == [3000, 300]
    above = [at(gaussians.EQUAL, name, 10000)[2] for name in (gaussians.QUADRATIC, gaussians.LINEAR)]
    assert '7.4 points above the Bayes rule with 10,000, a linear one 0.3' in PAGE
    assert above == pytest.approx([7.4, 0.3], abs=0.05)
    assert '0.05, 0.21 and 0.54 points above it with 10,000 samples' in PAGE
    assert at(gaussians.UNEQUAL, gaussians.QUADRATIC, 10000) == pytest.approx([0.05, 0.21, 0.54], abs=0.005)
    assert 'a linear neuron 12 to 31' in PAGE
    linear = at(gaussians.UNEQUAL, gaussians.LINEAR, 10000)
    assert [round(linear[0]), round(linear[2])] == [12, 31] and linear == sorted(linear)
    assert '| quadratic neuron | 100 | 1,000 | 3,000 |' in PAGE and '| MLP | 300 | 10,000 | 3,000 |' in PAGE
    assert '| QDA | 100 | 300 | 300 |' in PAGE
    assert [[needed(gaussians.UNEQUAL, dimension, name) for dimension in gaussians.DIMENSIONS]
            for name in (gaussians.QUADRATIC, gaussians.MLP, gaussians.QDA)] == [
        [100, 1000, 3000], [300, 10000, 3000], [100, 300, 300],
    ]
    assert 'ahead until then: 5.3 points above the Bayes rule with 300 samples, the MLP 23.6' in PAGE
    early = [at(gaussians.UNEQUAL, name, 300)[2] for name in (gaussians.QUADRATIC, gaussians.MLP)]
    assert early == pytest.approx([5.3, 23.6], abs=0.05)
    most = excess[(excess['samples'] == 10000) & (excess['covariances'] == gaussians.UNEQUAL)]
    angles = most.groupby(['classifier', 'dimension'])['angle'].mean()
    assert '3°, 8° and 32° with 10,000 samples; that of QDA 1°, 4° and 8°' in PAGE
    assert angles[gaussians.QUADRATIC].round().tolist() == [3, 8, 32]
    assert angles[gaussians.QDA].round().tolist() == [1, 4, 8]


def test_few_shots():
    rows = rows_of('few_shots')
    top1 = rows.pivot(index=['inputs', 'shots', 'seed'], columns='classifier', values='top1')
    mean = top1.groupby(['inputs', 'shots']).mean()
    gain = mean.sub(mean[few_shots.LINEAR], axis=0)
    mnist, cifar = gain.loc[few_shots.MNIST], gain.loc[few_shots.CIFAR]
    quadratic = mnist[few_shots.QUADRATIC]
    assert 'with 1 to 10 images a class, they are 1 to 6 points less accurate' in PAGE
    assert quadratic.loc[:10].round().between(-6, -1).all()
    assert 'with 20 they are 1.7 points more accurate and with 50 3.7 [3.3, 4.0]' in PAGE
    pairs = top1.loc[few_shots.MNIST, 50]
    most = summary(pairs[few_shots.QUADRATIC] - pairs[few_shots.LINEAR])
    assert (quadratic[20], most.mean, most.mean - most.margin, most.mean + most.margin) == pytest.approx(
        (1.7, 3.7, 3.3, 4.0), abs=0.05)
    assert 'which is also more than a network of two layers' in PAGE and quadratic[50] > mnist.loc[50, few_shots.MLP]
    assert 'is ahead of them all from 5 images on' in PAGE
    best = mean.loc[few_shots.MNIST].idxmax(axis=1) == few_shots.SVM
    assert best.loc[5:].all() and not best.loc[:2].any()
    assert 'with every number of images, by 1.7 to 5.2 points' in PAGE
    behind = -cifar[few_shots.QUADRATIC]
    assert (behind.min(), behind.max()) == pytest.approx((1.7, 5.2), abs=0.05)
    assert 'within 0.3 points of the linear neurons' in PAGE and gain[few_shots.LOW_RANK].abs().max() < 0.3


def test_neuron():
    rows = rows_of('neuron')
    top1 = rows.drop_duplicates(['seed', 'kept']).groupby('kept')['top1'].mean()
    share = rows.groupby('kept')['variance_share'].mean()
    assert '97.9 % top-1 (mean of 5 seeds)' in PAGE and rows['seed'].nunique() == 5
    assert top1[784] == pytest.approx(97.9, abs=0.05)
    assert '10 largest of 784 kept, 97 % of the variance of the quadratic part is left and 96.3 % top-1' in PAGE
    assert round(100 * share[10]) == 97 and top1[10] == pytest.approx(96.3, abs=0.05)
    assert 'with 50 nothing is missed' in PAGE and top1[50] >= top1[784] - 0.1
    assert 'One alone is worse than none' in PAGE and top1[1] < top1[0] and share[1] < 0


def test_dendrites():
    rows = rows_of('dendrites')
    outputs = rows[rows['of'] == dendrites.OUTPUT]
    assert 'In five dit_resnet20' in PAGE and rows['run'].nunique() == 5
    for _, seen in outputs.groupby('units'):
        by_run = seen.groupby('run')['agreement'].mean()
        assert f'by {summary(by_run).interval()} (interval over the networks)' in PAGE
        assert by_run.between(0, 0.1).all() and (seen['chance'] == 0).all()
        assert 'of 32 eigenvalues about 19 count' in PAGE and (seen['channels'] == 32).all()
        assert round(seen['effective_rank'].mean()) == 19
    assert 'a third of a percent of whose variance it explains' in PAGE
    raw = outputs[outputs['units'] == dendrites.RAW]
    assert 100 * raw['agreement'].mean() ** 2 == pytest.approx(1 / 3, abs=0.1)
    lost = rows[rows['of'] == dendrites.CLASS].groupby('name')['lost'].agg(summary)
    assert '58.7 points of top-1 from trucks and nothing from airplanes' in PAGE
    assert lost['truck'].mean == pytest.approx(58.7, abs=0.05) and lost.map(lambda each: each.mean).idxmax() == 'truck'
    assert lost['airplane'].mean < 0
