"""scripts/benchmark_training.py. No test looks at how long something took."""

import sys
import time

import benchmark_table
import benchmark_training
import pytest
from benchmark_training import BARE, OURS, TIMM

from dit_timm.benchmark.results import read_rows
from dit_timm.benchmark.turns import CommandFailedError, InTurns

pytestmark = pytest.mark.slow


@pytest.fixture
def options(write_greys):
    data = write_greys(train=(3, 3), validation=(2, 2))
    return ['--data-dir', str(data), '--model', 'test_dit_resnet', '--batch-size', '2', '--device', 'cpu']


class FakeImplementation:
    """Runs for the seconds that a list says."""

    def __init__(self, seconds):
        self.seconds = iter(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def turn(self):
        return next(self.seconds)


def test_ratios_are_taken_within_rounds_and_the_first_two_are_not_counted(options, tmp_path, monkeypatch, capsys):
    # A machine that becomes ten times slower; ratios of 3, 1.1 and 1.1, while those of the medians are 1.5.
    epochs = {BARE: [90, 90, 1, 2, 10], OURS: [5, 5, 3, 2.2, 11]}
    monkeypatch.setattr(
        benchmark_training, 'implementation', lambda name, args, output: FakeImplementation(epochs[name]),
    )
    csv = tmp_path / 'benchmark_training.csv'
    assert benchmark_training.main([*options, '--rounds', '3', '--csv', str(csv)]) == 0
    rows = read_rows(csv)
    assert [(row['implementation'], row['median_s'], row['base_ratio'], row['rounds']) for row in rows] == [
        (BARE, 2, 1, 3), (OURS, 3, 1.1, 3),
    ]
    # Quartiles of the ratios: 1.1 and 2.05.
    assert rows[1]['base_ratio_spread'] == pytest.approx(0.95 / 1.1, rel=1e-5)
    assert 'scripts/train.py: 3.000 s an epoch' in capsys.readouterr().out
    monkeypatch.setattr(benchmark_table, 'RESULTS', tmp_path)
    assert '| test_dit_resnet | 2 | scripts/train.py | 3.00 |' in benchmark_table.tables()


def test_both_commands_train_in_turns(options):
    args = benchmark_training.parse_args([*options, '--rounds', '2'])
    bare, ours = benchmark_training.measure(args)
    assert (bare['implementation'], ours['implementation']) == (BARE, OURS)
    assert bare['median_s'] > 0 and ours['median_s'] > 0


def test_a_command_stands_still_between_its_turns(tmp_path):
    words = [sys.executable, '-uc', 'import time\nwhile True: time.sleep(0.01); print("epoch")']
    with InTurns(words, tmp_path, lambda stdout: stdout) as command:
        time.sleep(0.3)
        assert (tmp_path / 'stdout.txt').read_bytes() == b''
        assert command.turn() > 0
        time.sleep(0.1)
        after = (tmp_path / 'stdout.txt').read_bytes()
        assert after.startswith(b'epoch\n')
        time.sleep(0.3)
        assert (tmp_path / 'stdout.txt').read_bytes() == after


def test_a_command_that_fails_is_shown(options, tmp_path, capsys):
    broken = tmp_path / 'train.py'
    broken.write_text('raise SystemExit("does not train")')
    assert benchmark_training.main([*options, '--timm-train', str(broken)]) == 1
    assert 'ended with 1:\ndoes not train' in capsys.readouterr().err
    args = benchmark_training.parse_args([*options, '--timm-train', str(broken)])
    with benchmark_training.implementation(TIMM, args, tmp_path) as command:
        with pytest.raises(CommandFailedError, match='--epochs'):
            command.turn()


def test_data_that_do_not_exist(capsys):
    with pytest.raises(SystemExit):
        benchmark_training.parse_args(['--data-dir', 'nowhere'])
    assert 'nowhere/train does not exist' in capsys.readouterr().err
