"""What the README says of speed in round numbers, against the CSVs that say it exactly."""

from pathlib import Path

import pytest

from dit_timm.benchmark.results import read_rows

ROOT = Path(__file__).parents[2]
README = ' '.join((ROOT / 'README.md').read_text().split())


def rows_of(name, **values):
    rows = read_rows(ROOT / 'hub' / 'results' / f'benchmark_{name}.csv')
    for key, value in values.items():
        rows = rows[rows[key] == value]
    assert len(rows)
    return rows


def test_time_and_memory_of_the_term_on_a_cpu():
    assert 'takes 11 to 26 % of the time of the authors\' formula' in README and '1 to 5 % of its memory' in README
    rows = rows_of('cpu_op', backend='native', dtype='float32')
    # One pixel has nothing to share out.
    rows = rows[rows['pixels'] > 1]
    shares = 100 / rows['speedup']
    assert [round(share) for share in (shares.min(), shares.max())] == [11, 26]
    assert (100 * rows['memory_share']).round().between(1, 5).all()


def test_training_of_large_terms_on_a_gpu():
    assert 'large terms trained up to 11 times faster' in README
    assert 'small ones waited for about 1 ms of kernel launches' in README
    rows = rows_of('gpu_op_bfloat16', backend='triton', phase='forward+backward')
    assert round(rows['speedup'].max()) == 11
    assert rows['median_s'].min() == pytest.approx(1e-3, rel=0.1)


def test_training_steps_of_whole_networks():
    assert 'takes 1.1 to 1.3 times that of its base network, on either' in README
    for name in ('cpu_model', 'gpu_model', 'gpu_model_256'):
        ratios = rows_of(name, phase='train step', implementation='ours')['base_ratio']
        assert ratios.round(1).between(1.1, 1.3).all()
