"""Statistics of repeated runs."""

import statistics

import pytest

from dit_timm.analysis.statistics import paired, summary


def test_summaries():
    assert str(summary([1.])) == '1.00' and str(summary([1., 3.])) == f'2.00 ± {2 ** 0.5:.2f}'
    assert summary([1.]).margin is None and summary([1.]).interval() == '+1.00'


# Student's t that leaves 2.5 % above, as tables of it say.
@pytest.mark.parametrize('values, t', [([2., 3., 1.], 4.3027), ([0.1, -0.2, 0.4, 0., 0.3], 2.7764)])
def test_intervals(values, t):
    assert summary(values).margin == pytest.approx(t * statistics.stdev(values) / len(values) ** 0.5, rel=1e-4)


def test_runs_are_paired_by_seed():
    assert paired({0: 2., 5: 1.}, {0: 1., 7: 9.}).mean == 1
    assert paired({0: 2.}, {1: 1.}) is None
