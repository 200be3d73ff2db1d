"""scripts/benchmark_training.py. No test looks at how long something took."""

import benchmark_table
import benchmark_training
import pytest
from benchmark_training import BARE, OURS, CommandFailed
from benchmarking.results import read_rows


@pytest.fixture
def options(write_greys):
    data = write_greys(train=(3, 3), validation=(2, 2))
    return ['--data-dir', str(data), '--model', 'test_dit_resnet', '--batch-size', '2', '--device', 'cpu']


def test_starting_is_not_counted(options, tmp_path, monkeypatch, capsys):
    epoch = {BARE: 2., OURS: 3.}
    monkeypatch.setattr(benchmark_training, 'seconds_of', lambda name, args, epochs: 50 + epochs * epoch[name])
    csv = tmp_path / 'benchmark_training.csv'
    assert benchmark_training.main([*options, '--rounds', '2', '--epochs', '3', '--csv', str(csv)]) == 0
    rows = read_rows(csv)
    assert [(row['contestant'], row['median_s'], row['base_ratio']) for row in rows] == [(BARE, 2, 1), (OURS, 3, 1.5)]
    assert 'scripts/train.py: 3.000 s an epoch, spread 0.0 %, 1.500 of the bare loop' in capsys.readouterr().out
    monkeypatch.setattr(benchmark_table, 'RESULTS', tmp_path)
    assert '| test_dit_resnet | 2 | scripts/train.py | 3.00 |' in benchmark_table.tables()


@pytest.mark.parametrize('contestant', [BARE, OURS])
def test_the_commands_train(options, contestant):
    args = benchmark_training.parse_args(options)
    assert benchmark_training.seconds_of(contestant, args, 1) > 0


def test_a_command_that_fails_is_shown(options, tmp_path, capsys):
    broken = tmp_path / 'train.py'
    broken.write_text('raise SystemExit("does not train")')
    args = benchmark_training.parse_args([*options, '--timm-train', str(broken)])
    with pytest.raises(CommandFailed, match='train.py .*--epochs 1 .*ended with 1:\ndoes not train'):
        benchmark_training.seconds_of(benchmark_training.TIMM, args, 1)


def test_data_that_do_not_exist(capsys):
    with pytest.raises(SystemExit):
        benchmark_training.parse_args(['--data-dir', 'nowhere'])
    assert 'nowhere/train does not exist' in capsys.readouterr().err
