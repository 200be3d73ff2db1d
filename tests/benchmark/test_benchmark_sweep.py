"""scripts/benchmark_sweep.py: rows of what was trained side by side."""

import benchmark_sweep
import pytest
import yaml

from dit_timm.training.logs import read_csv

pytestmark = pytest.mark.slow


@pytest.fixture
def words(write_greys, tmp_path):
    data = write_greys(train=(8, 8, 8), test=(2, 2, 2))
    recipe = tmp_path / 'tiny.yaml'
    recipe.write_text(yaml.safe_dump({
        'epochs': 3, 'batch_size': 6, 'lr': 0.01, 'warmup_epochs': 0, 'val_split': '', 'test_split': 'test',
        'model': 'dit_resnet20', 'data_on_device': True, 'scale': [1., 1.], 'ratio': [1., 1.], 'color_jitter': 0.,
        'data_cache': str(tmp_path / 'cache'),
    }))
    return ['--data-dir', str(data), '--recipe', str(recipe), '--device', 'cpu', '--csv', str(tmp_path / 'rows.csv')]


def test_a_row_for_each_number_of_runs(words, tmp_path):
    benchmark_sweep.main([*words, '--together', '1', '2', '--turns', '4'])
    rows = read_csv(tmp_path / 'rows.csv')
    assert [row['together'] for row in rows] == ['1', '2']
    for row in rows:
        assert int(row['images_per_second']) > 0 and int(row['computing_alone']) > 0 and row['variants'] == 'plain dit'
        # Speeds are rounded to whole images.
        assert float(row['time_over_computing']) == pytest.approx(
            int(row['computing_alone']) / int(row['images_per_second']), rel=0.1,
        )


def test_more_steps_than_the_recipe_has(words):
    with pytest.raises(SystemExit, match='has 12 steps: lower --turns, 12'):
        benchmark_sweep.main([*words, '--together', '1', '--turns', '12'])
