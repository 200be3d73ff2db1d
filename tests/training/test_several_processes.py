"""Two processes train as one does, and a dead one leaves a run that can go on."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dit_timm.cli import train
from dit_timm.training.checkpoint import load_checkpoint
from dit_timm.training.logs import read_csv

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[2] / 'scripts' / 'train.py'
# Without batch norm, whose statistics are those of a process's own images.
OPTIONS = ['--model', 'test_dit_convnext', '--img-size', '32', '--workers', '0', '--lr', '0.02', '--epochs', '2',
           '--warmup-epochs', '0', '--device', 'cpu', '--experiment', 'run', '--val-split', 'train']


@pytest.fixture
def image_folder(write_greys):
    return write_greys(train=(9, 9, 9))


def torchrun(script, *options):
    return subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(script), *options],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True,
    )


def losses(folder):
    with (folder / 'summary.csv').open() as file:
        return [[float(row[name]) for name in ('train_loss', 'eval_loss', 'eval_top1')] for row in csv.DictReader(file)]


def test_two_processes_train_as_one(image_folder, tmp_path):
    data = ['--data-dir', str(image_folder)]
    train.main([*data, *OPTIONS, '--batch-size', '4', '--output', str(tmp_path / 'one')])
    process = torchrun(TRAIN, *data, *OPTIONS, '--batch-size', '2', '--output', str(tmp_path / 'two'))
    assert process.returncode == 0, process.stderr
    assert '2 processes' in process.stdout and process.stdout.count('top1=') == 1
    torch.testing.assert_close(
        torch.tensor(losses(tmp_path / 'two' / 'run')), torch.tensor(losses(tmp_path / 'one' / 'run')),
        rtol=1e-4, atol=1e-4,
    )
    for name, count in ('one', '1'), ('two', '2'):
        assert read_csv(tmp_path / name / 'run' / 'environment.csv')[0]['processes'] == count
    one, two = (load_file(tmp_path / name / 'run' / 'model.safetensors') for name in ('one', 'two'))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4)


def test_a_process_that_dies_ends_the_run_which_can_go_on(image_folder, tmp_path):
    options = ['--data-dir', str(image_folder), *OPTIONS, '--batch-size', '2', '--checkpoint-interval', '2']
    whole = torchrun(TRAIN, *options, '--output', str(tmp_path / 'whole'))
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / 'dead' / 'run'
    dead = torchrun(Path(__file__).with_name('dying_rank.py'), *options, '--output', str(tmp_path / 'dead'))
    assert dead.returncode != 0 and 'exitcode  : 3' in dead.stderr
    assert load_checkpoint(folder).path.name == '000000-00000004'
    with pytest.raises(SystemExit, match='run of 2 processes; this one has 1'):
        train.main(['--resume', str(folder)])
    resumed = torchrun(TRAIN, '--resume', str(folder))
    assert resumed.returncode == 0, resumed.stderr
    assert losses(folder) == losses(tmp_path / 'whole' / 'run')
