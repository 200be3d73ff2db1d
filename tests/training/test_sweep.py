"""Sweeps: each run is what it would be alone, none is lost or trained twice, and what is wrong is said."""

import csv
import re
import shlex
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from filelock import FileLock

from dit_timm import errors
from dit_timm.cli import record, sweep, train, validate
from dit_timm.pretrained.weight_files import digest, read_weights
from dit_timm.training import checkpoint, pool
from dit_timm.training.interrupt import Interrupted, StopRequest
from dit_timm.training.run import State
from dit_timm.training.sweep import read_sweep

pytestmark = pytest.mark.slow

RECIPE = {
    'epochs': 2, 'batch_size': 4, 'lr': 0.01, 'warmup_epochs': 0, 'val_split': '', 'test_split': 'test',
    'data_on_device': True, 'crop_padding': 2, 'scale': [1., 1.], 'ratio': [1., 1.], 'color_jitter': 0.,
    'img_size': 32, 'smoothing': 0., 'workers': 0,
}
RUNS = [
    {'models': ['test_dit_resnet'], 'variants': ['plain', 'dit', 'mlp'], 'seeds': [0, 1]},
]


@pytest.fixture
def greys(write_greys):
    return write_greys(train=(8, 6, 6), test=(3, 3, 3))


@pytest.fixture
def write_sweep(tmp_path):
    def write(runs=RUNS, options_of_recipe=RECIPE, **more):
        recipe = {**options_of_recipe, 'data_cache': str(tmp_path / 'cache')}
        (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(recipe))
        path = tmp_path / 'small.yaml'
        path.write_text(yaml.safe_dump({'data': 'greys', 'recipe': 'recipe.yaml', 'runs': runs, **more}))
        return path
    return write


@pytest.fixture
def call(greys, tmp_path, write_sweep):
    """Calls the script; returns its exit code."""
    def run(*words, path=None, data=greys):
        path = path or write_sweep()
        return sweep.main([
            str(path), '--data-dir', str(data), '--output', str(tmp_path / 'out'), '--device', 'cpu', *words,
        ])
    return run


def digests(folder):
    return {
        path.parent.name: digest(read_weights(path))
        for path in sorted(folder.glob('*/model.safetensors'))
    }


def test_runs_are_those_of_the_script_alone(call, greys, tmp_path, capsys):
    assert call('--together', '3') == 0
    out = capsys.readouterr().out
    ours = digests(tmp_path / 'out')
    assert len(ours) == len(set(ours.values())) == 6
    for variant, seed in (('plain', 1), ('dit', 0), ('mlp', 1)):
        train.main([
            '--config', str(tmp_path / 'recipe.yaml'), '--data-dir', str(greys), '--model', 'test_dit_resnet',
            '--variant', variant, '--seed', str(seed), '--output', str(tmp_path / 'alone'), '--device', 'cpu',
            '--experiment', f'test_dit_resnet-{variant}-s{seed}',
        ])
    alone = digests(tmp_path / 'alone')
    assert len(alone) == 3 and all(ours[name] == digest for name, digest in alone.items())

    # The table: means and differences by hand.
    tops = {}
    for name in ours:
        with (tmp_path / 'out' / name / 'results.csv').open() as file:
            row, = csv.DictReader(file)
        tops[name] = float(row['top1'])
        assert row['split'] == 'test' and row['epoch'] == '1' and row['chosen'] == 'last'
    for variant in ('plain', 'dit', 'mlp'):
        first, second = (tops[f'test_dit_resnet-{variant}-s{seed}'] for seed in (0, 1))
        assert f'{(first + second) / 2:.2f} ± {abs(first - second) / 2 ** 0.5:.2f}' in out

    # Each is an ordinary run: it can be evaluated and recorded, as the last line says.
    capsys.readouterr()
    assert validate.main(['--checkpoint', *(str(tmp_path / 'out' / name) for name in ours)]) == 0
    evaluated = re.findall(r'top1=([\d.]+)', capsys.readouterr().out)
    assert evaluated == [f'{tops[name]:.3f}' for name in ours]
    table, command = re.search(r'To record them in (.*): python -m dit_timm\.cli\.record (.*)', out).groups()
    assert record.main([*shlex.split(command), '--device', 'cpu']) == 0
    assert Path(table) == tmp_path / 'out' / 'runs.csv'
    with open(table) as file:
        rows = list(csv.DictReader(file))
    assert {(row['model'], row['variant'], row['seed']) for row in rows} == {
        ('test_dit_resnet', variant, seed) for variant in ('plain', 'dit', 'mlp', 'removed') for seed in '01'
    }
    assert {row['options'] for row in rows} == {''} and len({row['images_sha256'] for row in rows}) == 1

    # Nothing is left to do, here or where only the CSV is.
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*') if path.name != 'lock'}
    assert call() == 0 and '0 to train' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*') if path.name != 'lock'} == before
    assert call('--output', str(tmp_path / 'elsewhere'), '--skip-recorded', table) == 0
    assert '0 to train, 6 recorded' in capsys.readouterr().out


def test_a_sweep_that_was_stopped_goes_on(call, tmp_path, monkeypatch, capsys):
    assert call('--together', '2') == 0
    expected = digests(tmp_path / 'out')
    steps = pool.Job.step

    def stop_after(count):
        taken = []

        def step(job):
            taken.append(job)
            if len(taken) == count:
                request.requested = 'SIGINT'
            return steps(job)

        monkeypatch.setattr(pool.Job, 'step', step)

    class Request(StopRequest):
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

    monkeypatch.setattr(sweep, 'Interrupt', lambda: request)
    codes = []
    for count in (3, 17, 30, 10 ** 6):
        request = Request()
        stop_after(count)
        codes.append(call('--together', '2', '--output', str(tmp_path / 'stopped')))
    assert codes == [130, 130, 130, 0]
    assert digests(tmp_path / 'stopped') == expected
    assert ' left; the same command resumes: ' in capsys.readouterr().out


def test_a_run_of_another_process_is_left_to_it(call, tmp_path, capsys):
    taken = tmp_path / 'out' / 'test_dit_resnet-dit-s0'
    taken.mkdir(parents=True)
    lock = FileLock(taken / 'lock')
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    try:
        assert call() == 0
    finally:
        lock.release(force=True)
    assert 'test_dit_resnet-dit-s0: another process trains it' in capsys.readouterr().out
    assert len(digests(tmp_path / 'out')) == 5
    assert call() == 0 and len(digests(tmp_path / 'out')) == 6


def test_a_run_that_fails_leaves_the_others(call, write_sweep, tmp_path, capsys):
    runs = [
        {'models': ['test_dit_resnet'], 'variants': ['dit'], 'seeds': [0], 'options': {'lr': 1e12}},
        {'models': ['test_dit_resnet'], 'variants': ['plain', 'dit'], 'seeds': [1]},
    ]
    assert call('--together', '2', path=write_sweep(runs)) == 1
    captured = capsys.readouterr()
    assert 'error: test_dit_resnet-dit-s0: ' in captured.err and 'not finite' in captured.err
    assert sorted(digests(tmp_path / 'out')) == [f'test_dit_resnet-{name}-s1' for name in ('dit', 'plain')]
    assert not (tmp_path / 'out' / 'test_dit_resnet-dit-s0' / 'results.csv').exists()


def test_a_full_disk_ends_it_and_loses_nothing(call, tmp_path, monkeypatch, capsys):
    assert call('--together', '2') == 0
    expected = digests(tmp_path / 'out')
    write, written = checkpoint.write_file, []

    def full(path, content):
        written.append(path)
        if len(written) > 12:
            raise OSError(28, 'No space left on device')
        write(path, content)

    monkeypatch.setattr(checkpoint, 'write_file', full)
    assert call('--together', '2', '--output', str(tmp_path / 'full')) == 1
    assert 'No space left' in capsys.readouterr().err
    monkeypatch.setattr(checkpoint, 'write_file', write)
    assert call('--together', '2', '--output', str(tmp_path / 'full')) == 0
    assert digests(tmp_path / 'full') == expected


def test_what_has_changed_since_is_said(call, write_sweep, greys, tmp_path, capsys):
    runs = [{'models': ['test_dit_resnet'], 'variants': ['dit'], 'seeds': [0]}]
    assert call(path=write_sweep(runs)) == 0
    assert call(path=write_sweep(runs, {**RECIPE, 'lr': 0.02})) == 1
    assert 'another recipe' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(path=write_sweep(runs, options={'lr': 0.02}))
    assert '--lr is 0.01, not 0.02' in capsys.readouterr().err
    # A run whose options were lost may be of any recipe.
    run = tmp_path / 'out' / 'test_dit_resnet-dit-s0'
    results = (run / 'results.csv').rename(tmp_path / 'results.csv')
    options = (run / 'args.yaml').rename(tmp_path / 'args.yaml')
    assert call(path=write_sweep(runs)) == 1
    assert 'has checkpoints, and no args.yaml' in capsys.readouterr().err
    results.rename(run / 'results.csv')
    options.rename(run / 'args.yaml')
    # A finished run tells of other images as an unfinished one does.
    more = [*runs, {'models': ['test_dit_resnet'], 'variants': ['plain'], 'seeds': [0]}]
    image = next((greys / 'train').rglob('*.png'))
    image.write_bytes((greys / 'test' / 'class0' / '0.png').read_bytes())
    assert call(path=write_sweep(more)) == 1
    assert 'other images' in capsys.readouterr().err


@pytest.mark.parametrize('change, fragments', [
    ({'runs': [{**RUNS[0], 'variants': ['dit', 'plian']}]}, ['entry 1', "unknown variant 'plian'", 'plain']),
    ({'runs': [{**RUNS[0], 'models': ['dit_resnet21']}]}, ["unknown model 'dit_resnet21'", 'dit_resnet20']),
    ({'runs': [{**RUNS[0], 'seeds': ['a']}]}, ['seeds are whole numbers', "'a'"]),
    ({'runs': [{**RUNS[0], 'seed': [1]}]}, ["unknown key 'seed'", 'seeds']),
    ({'runs': [RUNS[0], RUNS[0]]}, ['names runs twice', 'test_dit_resnet-plain-s0']),
    ({'runs': [{'models': ['dit_resnet20'], 'seeds': [0]}]}, ['lacks variants']),
    ({'runs': []}, ['runs must be a list that is not empty']),
    ({'runs': [3]}, ['entry 1', 'holds 3']),
    ({'recipe': 'none.yaml'}, ['no recipe', 'none.yaml']),
    ({'rubns': []}, ["unknown key 'rubns'", 'Did you mean runs?']),
    ({'epochs': 1}, ["unknown key 'epochs'", "stand under 'options'"]),
    ({'runs': [{**RUNS[0], 'variants': ['none']}]}, ['There are dit, plain, frozen, transposed, mlp']),
    ({'options': {'seed': 3, 'lr': 0.1}}, ['seed cannot be options']),
])
def test_files_that_are_wrong(write_sweep, call, capsys, change, fragments):
    assert call(path=write_sweep(**{'runs': RUNS, **change})) == 1
    error = capsys.readouterr().err
    for fragment in ['error: ', *fragments]:
        assert fragment in error


@pytest.mark.parametrize('options', [[], ['--dry-run']])
def test_missing_data_are_said_once_before_anything_is_trained(call, tmp_path, capsys, options):
    assert call('--data-dir', str(tmp_path / 'nowhere'), *options) == 1
    captured = capsys.readouterr()
    assert captured.err.count('nowhere is not a folder') == 1 and 'nowhere' not in captured.out
    assert not (tmp_path / 'out').exists()


def test_what_is_true_of_several_runs_is_said_once(call, write_sweep, capsys):
    runs = [{'models': ['test_dit_resnet'], 'variants': ['plain'], 'seeds': [0, 1]}]
    path = write_sweep(runs, options={'quadratic_lr_scale': 10.})
    assert call(path=path) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if 'the network has no quadratic term' in line]
    assert len(said) == 1 and said[0].startswith('test_dit_resnet-plain-s0: --quadratic-lr-scale changes nothing')


def test_every_sweep_of_the_project_is_one():
    folder = Path(__file__).parents[2] / 'scripts' / 'sweeps'
    paths = sorted(folder.glob('*.yaml'))
    assert paths
    for path in paths:
        for run in read_sweep(path).runs:
            args = train.parse_args([
                '--config', str(run.recipe), '--model', run.model, '--variant', run.variant, '--data-dir', 'none',
            ])
            assert args.test_split and not args.val_split and not args.val_fraction and args.data_on_device


class FakeJob:
    """A run of so many steps, a second each for each of the runs that are on their way."""

    def __init__(self, name, steps, log, clock):
        self.name, self.total, self.log, self.clock = name, steps, log, clock
        self.left, self.cost, self.images = float(steps), 1., 1
        self.is_cold, self.stream = True, None
        self.run = SimpleNamespace(state=State(), epochs=steps)

    def step(self):
        self.is_cold = False
        self.clock[0] += 1
        self.left -= 1
        if not self.left:
            self.log.append((self.name, 'ended'))
        return self.left > 0

    def stop(self, reason):
        self.log.append((self.name, reason))
        return True

    def close(self):
        pass

    def drop(self):
        pass

    def describe(self):
        return self.name


@pytest.mark.parametrize('seconds, together, ended, rested, left', [
    (None, 2, 'abcd', '', ''),
    # 40 steps a run: two in 80 seconds.
    (500, 2, 'abcd', '', ''),
    (100, 2, 'ab', '', 'cd'),
    # Three would end after 120 seconds: one rests, and two do.
    (100, 3, 'ab', 'c', 'cd'),
    # There is time for one and a half.
    (60, 2, 'a', 'b', 'bcd'),
    # Nor does one fit: it goes as far as it may.
    (20, 2, '', 'ba', 'abcd'),
    (130, 1, 'abc', '', 'd'),
    # The first two have ended when c is alone: no more than half as fast as both were, it is thought.
    (125, 2, 'ab', '', 'cd'),
])
def test_whole_runs_are_planned_for_the_time(monkeypatch, seconds, together, ended, rested, left):
    clock, log = [0.], []
    monkeypatch.setattr(pool.time, 'monotonic', lambda: clock[0])
    waiting = [pool.Waiting(name, lambda name=name: FakeJob(name, 40, log, clock)) for name in 'abcd']
    ours = pool.Pool(waiting, together, seconds, StopRequest(), 'cpu', lambda line: None)
    ours.run()
    assert ''.join(name for name, what in log if what == 'ended') == ended
    assert ''.join(name for name, what in log if what == 'time') == rested
    assert ''.join(run.name for run in ours.waiting) == left
    assert seconds is None or clock[0] <= seconds + together


def test_a_job_that_an_error_ended_gives_no_results(monkeypatch, tmp_path):
    def failing(run, folder, request):
        yield
        raise FloatingPointError('no number')

    monkeypatch.setattr(pool, 'train', failing)
    monkeypatch.setattr(pool, 'finish', lambda run, folder: pytest.fail('results of a run that did not end'))
    job = pool.Job('failing', None, tmp_path, 1.)
    assert job.step()
    with pytest.raises(FloatingPointError):
        job.step()
    assert not job.step() and not job.stop('SIGINT')


def test_a_job_that_is_stopped_has_saved(monkeypatch, tmp_path):
    def long(run, folder, request):
        while not request.requested:
            yield
        raise Interrupted(request.requested, folder)

    closed = []
    monkeypatch.setattr(pool, 'train', long)
    job = pool.Job('long', None, tmp_path, 1., lambda: closed.append(True))
    assert job.step() and job.step() and job.stop('time') and closed
    assert torch.get_num_threads()


def test_a_run_that_another_process_lets_go_is_taken_up(monkeypatch):
    clock, log, held = [0.], [], {'b'}

    def opening(name):
        if name in held:
            held.discard(name)
            return None
        return FakeJob(name, 5, log, clock)

    ours = pool.Pool(
        [pool.Waiting(name, lambda name=name: opening(name)) for name in 'abc'], 1, None, StopRequest(), 'cpu',
        lambda line: None,
    )
    ours.run()
    assert ''.join(name for name, what in log if what == 'ended') == 'acb'


def test_a_run_that_diverged_is_found_out_when_it_rests(monkeypatch):
    clock, log = [0.], []
    monkeypatch.setattr(pool.time, 'monotonic', lambda: clock[0])

    class DivergedError(FakeJob):
        def stop(self, reason):
            raise errors.DivergedError('the loss is not finite')

    waiting = [
        pool.Waiting('a', lambda: FakeJob('a', 40, log, clock)),
        pool.Waiting('b', lambda: DivergedError('b', 40, log, clock)),
    ]
    ours = pool.Pool(waiting, 2, 10, StopRequest(), 'cpu', lambda line: None)
    ours.run()
    assert ours.failed == {'b': 'the loss is not finite'} and [run.name for run in ours.waiting] == ['a']


def test_a_job_that_took_no_step_has_nothing_to_save(monkeypatch, tmp_path):
    def untouched(run, folder, request):
        pytest.fail('a step only to stop')
        yield

    closed = []
    monkeypatch.setattr(pool, 'train', untouched)
    assert pool.Job('cold', None, tmp_path, 1., lambda: closed.append(True)).stop('SIGINT') and closed


def test_what_one_process_can_have_once_is_refused(call, write_sweep, capsys):
    assert call(path=write_sweep(options={'log_wandb': True})) == 1
    assert capsys.readouterr().err.count('--log-wandb has one run') == 1
