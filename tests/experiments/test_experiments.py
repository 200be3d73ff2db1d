"""The experiments' quick parts against known answers, and what they are made of against other ways to say it."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import nn

from dit_timm import QuadraticLinear
from dit_timm.analysis.corruptions import CORRUPTIONS, corrupt
from dit_timm.cli import train, validate
from dit_timm.experiments import command, dendrites, few_shots, gaussians, neuron, page, robustness
from dit_timm.experiments.fitting import Data, WeightDecay, error_rate, fit, loss_of, tune


@pytest.fixture
def run_quick(tmp_path, capsys):
    """Runs an experiment's quick part; returns its rows and what it printed."""
    def run(experiment, *options):
        name = experiment.__name__.rpartition('.')[2]
        assert command.main(experiment, ['--quick', '--processes', '1', '--out', str(tmp_path / 'out'), *options]) == 0
        rows = pd.read_csv(tmp_path / 'out' / f'{name}.csv')
        assert (tmp_path / 'out' / f'{name}.png').stat().st_size > 5000
        assert set(rows['command']) == {
            f'python scripts/experiments/{name}.py --quick --processes 1 --out {tmp_path / "out"}'
            + ''.join(f' {option}' for option in options)
        }
        return rows, capsys.readouterr().out
    return run


def test_fit_is_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = (x @ torch.tensor([1., -2, 0, 0.5], dtype=torch.float64) + torch.randn(60, generator=generator) > 0).long()
    model = fit(nn.Linear(4, 1, dtype=torch.float64), Data(x, y), WeightDecay(0.1))
    # Its C is of the sum over the samples.
    expected = LogisticRegression(C=1 / (0.1 * 60), tol=1e-8).fit(x, y)
    np.testing.assert_allclose(model.weight.detach(), expected.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.bias.detach(), expected.intercept_, rtol=1e-3, atol=1e-4)
    assert error_rate(model, Data(x, y)) == pytest.approx(100 * (1 - expected.score(x, y)))


def test_tune_keeps_what_is_best_on_held_out_samples():
    x = torch.tensor([[1.], [2.], [-1.], [-2.]])
    y = torch.tensor([1, 1, 0, 0])
    upside_down = Data(x, 1 - y)
    decays = WeightDecay(10.), WeightDecay(1e-3)
    for held_out, expected in ((Data(x, y), decays[1]), (upside_down, decays[0])):
        assert tune(lambda: nn.Linear(1, 1), Data(x, y), held_out, decays, loss_of)[1] == expected


def test_the_quadratic_form_has_a_weight_decay_of_its_own():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()
    linear = fit(nn.Linear(4, 1, dtype=torch.float64), Data(x, y), WeightDecay(0.1))
    model = fit(QuadraticLinear(4, 1, dtype=torch.float64), Data(x, y), WeightDecay(0.1, 1e3))
    torch.testing.assert_close(model.linear.weight, linear.weight, rtol=2e-2, atol=1e-3)
    free = fit(QuadraticLinear(4, 1, dtype=torch.float64), Data(x, y), WeightDecay(1e3, 1e-3))
    assert free.form()[0, 1, 2] > 1 and free.linear.weight.abs().max() < 1e-3
    low_rank = fit(QuadraticLinear(4, 1, rank=2, dtype=torch.float64), Data(x, y), WeightDecay(0.1, 1e3))
    assert low_rank.form().abs().max() < 1e-6


def test_a_weight_decay_ten_thousand_times_as_large_is_fitted_to_its_end():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 30, generator=generator, dtype=torch.float64) + 1
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 1).long()
    model = fit(QuadraticLinear(30, 1, dtype=torch.float64), Data(x, y), WeightDecay(1e-2, 1e2))
    # Products of the inputs as further inputs: of what is 100 times smaller the weight is decayed 10^4 times as much.
    products = torch.einsum('ni,nj->nij', x, x).flatten(1) / 100
    expected = LogisticRegression(C=1 / (1e-2 * 80), tol=1e-10, max_iter=10_000).fit(torch.cat([x, products], 1), y)
    weights = torch.cat([model.linear.weight.flatten(), 100 * model.form().flatten()]).detach()
    np.testing.assert_allclose(weights, expected.coef_[0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('covariances', [gaussians.EQUAL, gaussians.UNEQUAL])
def test_the_form_of_two_gaussians_is_the_curvature_of_their_log_odds(covariances):
    classes = gaussians.Classes.draw(3, covariances, torch.Generator().manual_seed(4))
    hessian = torch.func.hessian(lambda x: classes.log_odds(x[None])[0, 0])(torch.randn(3, dtype=torch.float64))
    torch.testing.assert_close(classes.form(), hessian / 2)
    data = classes.sample(40_000, torch.Generator().manual_seed(5))
    for label in range(2):
        x = data.x[data.y == label]
        assert len(x) == 20_000
        torch.testing.assert_close(x.mean(0), classes.means[label], rtol=0, atol=0.06)
        torch.testing.assert_close(x.mT.cov(), classes.covariances[label], rtol=0, atol=0.12)


def test_estimated_classes_are_quadratic_discriminant_analysis():
    generator = torch.Generator().manual_seed(3)
    data = gaussians.Classes.draw(3, gaussians.UNEQUAL, generator).sample(200, generator)
    expected = QuadraticDiscriminantAnalysis(store_covariance=True).fit(data.x, data.y)
    estimated = gaussians.Classes.estimate(data, 0)
    for label in range(2):
        covariance = np.cov(data.x[data.y == label].T, ddof=0)
        np.testing.assert_allclose(estimated.covariances[label], covariance, rtol=1e-6)
    # Some of its releases divide by one less than the samples.
    estimated = estimated._replace(covariances=torch.tensor(np.stack(expected.covariance_)))
    np.testing.assert_allclose(estimated.log_odds(data.x)[:, 0], expected.decision_function(data.x), rtol=1e-6)


def test_classes_are_estimated_from_fewer_samples_than_dimensions():
    rows = list(gaussians.run(20, gaussians.UNEQUAL, 10, 0))
    assert [row['classifier'] for row in rows] == list(gaussians.CLASSIFIERS)
    assert all(0 <= row['error'] < 60 for row in rows)


def test_angle():
    a = torch.tensor([[1., 0], [0, 0]])
    assert gaussians.angle(a, 3 * a) == pytest.approx(0, abs=1e-3) and gaussians.angle(a, -a) == pytest.approx(180)
    assert gaussians.angle(a, torch.tensor([[1., 1], [0, 0]])) == pytest.approx(45)
    assert math.isnan(gaussians.angle(a, 0 * a))


def test_the_network_of_two_layers_has_as_many_parameters():
    for dimension in gaussians.DIMENSIONS:
        sizes = [
            sum(parameter.numel() for parameter in gaussians.create(name, dimension).parameters())
            for name in (gaussians.QUADRATIC, gaussians.MLP)
        ]
        assert sizes[0] <= sizes[1] < max(sizes[0], gaussians._MIN_HIDDEN * (dimension + 2)) + dimension + 2


def test_a_quadratic_neuron_nears_the_bayes_rule(run_quick):
    rows, printed = run_quick(gaussians)
    errors = rows.groupby(['samples', 'classifier'])['error'].mean()
    bayes = errors[300, gaussians.BAYES]
    assert errors[300, gaussians.QUADRATIC] < bayes + 3 < errors[300, gaussians.LINEAR] - 3
    assert (errors[300] >= bayes).all() and errors[300, gaussians.QUADRATIC] < errors[30, gaussians.QUADRATIC]
    angles = rows[rows['classifier'] == gaussians.QUADRATIC].groupby('samples')['angle'].mean()
    assert angles[300] < angles[30] < 90
    assert 'percentage points, mean over 3 seeds and its 95 % interval' in printed


def test_the_page_says_what_the_csvs_say(run_quick, tmp_path):
    rows, printed = run_quick(gaussians)
    text = page.experiments_page(tmp_path / 'out')
    assert [line for line in text.splitlines() if line.startswith('## ')] == [
        '## One neuron, two Gaussian classes: does a quadratic neuron become the Bayes rule, and how many samples does '
        'it take?',
    ]
    assert printed.strip() in text and f'`{rows["command"][0]}`' in text
    assert '![gaussians](gaussians.png)' in text and '![gaussians_boundaries](gaussians_boundaries.png)' in text
    # A cell, from the rows.
    errors = rows[rows['samples'] == 300].pivot(index='seed', columns='classifier', values='error')
    excess = errors[gaussians.LINEAR] - errors[gaussians.BAYES]
    line, _ = (line for line in text.splitlines() if line.startswith('| 300 |'))
    # Student's t with two degrees of freedom leaves 2.5 % above 4.3027.
    margin = 4.3027 * excess.std() / 3 ** 0.5
    low, high = excess.mean() - margin, excess.mean() + margin
    assert line.split(' | ')[2] == f'{excess.mean():+.2f} [{low:+.2f}, {high:+.2f}]'


def test_few_shots(run_quick):
    rows, printed = run_quick(few_shots)
    assert rows.groupby(['shots', 'seed'])['classifier'].nunique().eq(len(few_shots.CLASSIFIERS)).all()
    top1 = rows.groupby(['classifier', 'shots'])['top1'].mean().unstack()
    # Chance is 10 %.
    assert (top1[2] > 55).all() and (top1[20] > 85).all() and (top1[20] > top1[2]).all()
    assert 'handwritten digits: against linear neurons' in printed


def test_shots_are_apart_from_what_chooses_and_tests():
    parts = few_shots.draw(few_shots.DIGITS, 5, seed=3)
    assert [len(part.y) for part in parts[:2]] == [50, 500]
    for part in parts:
        assert set(part.y.tolist()) == set(range(10))
    assert parts[0].y.bincount().tolist() == [5] * 10
    seen = [set(map(tuple, part.x.tolist())) for part in parts]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    # More shots are the fewer and others.
    more = few_shots._pool(few_shots.DIGITS)
    assert sum(len(part.y) for part in few_shots.draw(few_shots.DIGITS, 50, seed=3)) == len(more.y)


def test_missing_data_are_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv('DIT_TIMM_DATA', raising=False)
    with pytest.raises(OSError, match='DIT_TIMM_DATA must name the folder'):
        few_shots.draw(few_shots.MNIST, 1, 0)
    monkeypatch.setenv('DIT_TIMM_DATA', str(tmp_path))
    (tmp_path / 'mnist').mkdir()
    (tmp_path / 'mnist' / 'mnist.npz').touch()
    # Before anything is computed.
    assert command.main(few_shots, ['--processes', '1', '--out', str(tmp_path / 'out')]) == 1
    assert f'There is no {tmp_path / "cifar100" / "test.tar"}' in capsys.readouterr().err


def test_eigenvectors_make_up_the_neuron():
    torch.manual_seed(1)
    model = QuadraticLinear(6, 10)
    nn.init.normal_(model.quadratic)
    values, vectors = neuron.decompose(model)
    torch.testing.assert_close(torch.einsum('oc,oci,ocj->oij', values, vectors, vectors), model.form().detach())
    assert (values.abs().diff(dim=1) <= 1e-5).all()
    test = Data(torch.randn(500, 6), torch.randint(10, (500,)))
    rows = neuron.truncated(model, test)
    last, first = ([row for row in rows if row['kept'] == kept] for kept in (6, 0))
    assert all(row['variance_share'] == pytest.approx(1, abs=1e-4) for row in last)
    assert last[0]['top1'] == pytest.approx(100 - error_rate(model, test))
    assert first[0]['top1'] == pytest.approx(100 - error_rate(model.linear, test))
    assert first[0]['variance_share'] == pytest.approx(0, abs=1e-4)


def test_what_a_neuron_has_learned(run_quick):
    rows, _ = run_quick(neuron)
    top1 = rows.groupby('kept')['top1'].mean()
    assert top1[64] > 88 and top1[0] < 60 and top1[10] > top1[1] + 10


@pytest.fixture
def runs(write_greys, tmp_path):
    """A Dit network and its plain twin."""
    data = write_greys(train=[8, 8, 8], test=[6, 6, 6])
    for variant in ('dit', 'plain'):
        train.main([
            '--data-dir', str(data), '--model', 'test_dit_resnet', '--variant', variant, '--img-size', '32',
            '--batch-size', '6', '--workers', '0', '--epochs', '3', '--warmup-epochs', '0', '--lr', '0.03',
            '--test-split', 'test', '--val-split', '', '--device', 'cpu', '--output', str(tmp_path),
            '--experiment', variant, '--quadratic-lr-scale', '10',
        ])
    return [str(tmp_path / variant) for variant in ('dit', 'plain')]


def top1_of(run, *options):
    args, = validate.parse_args(['--checkpoint', run, '--workers', '0', *options])
    return validate.validate(args)['top1']


def test_robustness(runs, run_quick, tmp_path):
    rows, printed = run_quick(robustness, *runs)
    clean = rows[rows['corruption'] == robustness.CLEAN].set_index('network')['top1']
    expected = {
        robustness.DIT: top1_of(runs[0]), robustness.REMOVED: top1_of(runs[0], '--without-quadratic'),
        robustness.PLAIN: top1_of(runs[1]),
    }
    assert clean.to_dict() == pytest.approx(expected, abs=1e-3)
    assert len(rows) == 3 * (1 + 4 * 2) and set(rows['images']) == {18}
    assert 'Dit less plain' in printed
    # The same images, corrupted in files.
    loss = rows[rows['network'] == robustness.DIT].set_index(['corruption', 'strength'])['loss']
    for kind in CORRUPTIONS:
        for path in (tmp_path / 'data' / 'test').glob('*/*.png'):
            target = tmp_path / kind / path.relative_to(tmp_path / 'data')
            target.parent.mkdir(parents=True, exist_ok=True)
            corrupt(Image.open(path), kind, 5).save(target)
        args, = validate.parse_args(['--checkpoint', runs[0], '--workers', '0', '--data-dir', str(tmp_path / kind)])
        assert validate.validate(args)['loss'] == pytest.approx(loss[kind, 5], abs=2e-4) != loss[robustness.CLEAN, 0]


def test_robustness_of_dit_networks_alone(runs, run_quick, tmp_path, capsys):
    rows, _ = run_quick(robustness, runs[0])
    assert set(rows['network']) == {robustness.DIT, robustness.REMOVED}
    options = ['--quick', '--processes', '1', '--out', str(tmp_path / 'out'), runs[0], runs[0]]
    assert command.main(robustness, options) == 1
    assert 'one Dit network and one plain network of each seed; got dit' in capsys.readouterr().err


def test_dendrites(runs, run_quick):
    rows, printed = run_quick(dendrites, runs[0])
    classes = rows[rows['of'] == dendrites.CLASS]
    assert classes['name'].tolist() == ['class0', 'class1', 'class2']
    assert classes['top1'].mean() == pytest.approx(top1_of(runs[0]), abs=1e-3)
    assert classes['without'].mean() == pytest.approx(top1_of(runs[0], '--without-quadratic'), abs=1e-3)
    outputs = rows[rows['of'] == dendrites.OUTPUT]
    assert outputs['agreement'].between(-1, 1).all() and outputs['effective_rank'].between(1, outputs['channels']).all()
    assert 'Correlation of |A| with the absolute correlation of the channels' in printed


def test_a_plain_network_has_no_dendrites(runs, tmp_path, capsys):
    assert command.main(dendrites, ['--quick', '--processes', '1', '--out', str(tmp_path / 'out'), runs[1]]) == 1
    assert 'has no quadratic term' in capsys.readouterr().err
