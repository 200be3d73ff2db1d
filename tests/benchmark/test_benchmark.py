"""dit_timm.benchmark and the tables made from its results. No test looks at how long something took."""

import math
import os
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import make_tables
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from dit_timm import available_backends, quadratic_form
from dit_timm.benchmark import __main__ as benchmark, busy, forms, memory, scaling
from dit_timm.benchmark.cells import significant
from dit_timm.benchmark.checks import CheckFailedError, expect_close
from dit_timm.benchmark.compare import compare
from dit_timm.benchmark.implementation import Work
from dit_timm.benchmark.options import parse_args
from dit_timm.benchmark.results import read_rows, to_rows, write_rows
from dit_timm.benchmark.roofline import Roofline
from dit_timm.benchmark.shape import FORWARD, FORWARD_BACKWARD, Shape
from dit_timm.benchmark.timing import alternate
from dit_timm.ops import backends, register_backend
from dit_timm.ops.backends import automatic_backend
from dit_timm.results.benchmark_page import benchmark_page

pytestmark = pytest.mark.slow

TINY = ['--device', 'cpu', '--rounds', '10', '--no-memory']
NETWORK = ['test_dit_resnet', '--batch-size', '2', '--img-size', '32']


def rows_of(csv, **values):
    """Rows of a CSV, numbers that are not there as NaN."""
    return [row for row in read_rows(csv).to_dict('records') if all(row[key] == value for key, value in values.items())]


def test_op(tmp_path):
    csv = tmp_path / 'benchmark.csv'
    # Few outputs: the products of 200 pixels, 200 * 160^2 * 4 bytes = 19.5 MiB, are almost all that is allocated.
    assert benchmark.main(['--device', 'cpu', '--rounds', '10', '--only', '200x160x2', '--csv', str(csv)]) == 0
    rows = rows_of(csv)
    assert [(row['phase'], row['implementation']) for row in rows] == [
        (phase, name) for phase in ('forward', 'forward+backward') for name in ('ours', 'materialised', 'roofline')
    ]
    for row in rows:
        assert row['part'] == 'op' and row['subject'] == '200x160x2' and row['rounds'] == 10 and row['status'] == 'ok'
        assert row['torch'] == torch.__version__ and row['device_type'] == 'cpu' and row['dtype'] == 'float32'
        assert '--only 200x160x2' in row['command']
        for name in ('median_s', 'spread', 'speedup', 'roofline_ratio'):
            assert math.isfinite(row[name]) and row[name] >= 0
        assert math.isnan(row['base_ratio']) and math.isnan(row['images_per_s'])
    ours, other, roofline = rows[:3]
    automatic = automatic_backend(torch.device('cpu'), torch.float32, 200, 160, 2)
    assert (ours['backend'], other['backend']) == (automatic, '')
    assert ours['speedup'] == pytest.approx(other['median_s'] / ours['median_s'], rel=1e-4)
    assert ours['roofline_ratio'] == pytest.approx(ours['median_s'] / roofline['median_s'], rel=1e-4)
    assert other['peak_mib'] == pytest.approx(19.5, rel=0.2)
    assert ours['memory_share'] == pytest.approx(ours['peak_mib'] / other['peak_mib'], rel=1e-4)
    assert math.isnan(roofline['peak_mib'])


def test_other_backends_take_part(tmp_path):
    csv = tmp_path / 'benchmark.csv'
    assert benchmark.main([*TINY, '--only', '40x6x4', '--backends', '--dtype', 'float64', '--csv', str(csv)]) == 0
    names = [row['implementation'] for row in rows_of(csv, phase='forward')]
    assert names == ['ours', *available_backends('cpu', torch.float64)[1:], 'materialised', 'roofline']


class Watched(subprocess.Popen):
    """Keeps the processes that were started."""
    started = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.started.append(self)


@pytest.fixture
def started(monkeypatch):
    monkeypatch.setattr(Watched, 'started', [])
    monkeypatch.setattr(subprocess, 'Popen', Watched)
    return Watched.started


def test_beside_busy_processes(tmp_path, monkeypatch, started):
    running = []
    monkeypatch.setattr('dit_timm.benchmark.compare.alternate', lambda works, rounds, device: (
        running.append([process.poll() for process in started]), alternate(works, rounds, device),
    )[1])
    csv = tmp_path / 'benchmark.csv'
    assert benchmark.main([*TINY, '--part', 'op', '--only', '40x6x4', '--busy', '0', '2', '--csv', str(csv)]) == 0
    rows = rows_of(csv, busy=2)
    assert len(rows) == len(rows_of(csv, busy=0)) > 0 and '--busy 0 2' in rows[0]['command']
    ours, other = rows[:2]
    assert ours['speedup'] == pytest.approx(other['median_s'] / ours['median_s'], rel=1e-4)
    # None at first; then two for each phase, that ran while it was timed and no longer.
    assert running == [[], [], [None] * 2, [-signal.SIGKILL] * 2 + [None] * 2]
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 4


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_no_busy_process_is_left_after_an_error(started, error):
    with pytest.raises(error), busy.busy_processes(2):
        raise error
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_no_busy_process_outlives_a_killed_benchmark():
    program = (
        'import sys, time; from dit_timm.benchmark.busy import busy_processes\n'
        'with busy_processes(1): print(flush=True); time.sleep(600)'
    )
    environ = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, '-c', program], env=environ, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        child, = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        # It shares no pipe of ours: that it ends shows in that its descriptor becomes readable.
        descriptor = os.pidfd_open(int(child))
        process.kill()
    assert select.select([descriptor], [], [], 120)[0]
    os.close(descriptor)


def test_model(tmp_path):
    csv = tmp_path / 'benchmark.csv'
    assert benchmark.main([*TINY, '--only', *NETWORK, '--amp', 'bfloat16', '--channels-last', '--csv', str(csv)]) == 0
    rows = rows_of(csv)
    assert [(row['phase'], row['implementation']) for row in rows] == [
        (phase, name) for phase in ('inference', 'train step') for name in ('ours', 'base network', 'materialised')
    ]
    base = rows[1]
    for row in rows:
        assert (row['batch_size'], row['img_size']) == (2, 32)
        assert (row['dtype'], row['settings']) == ('amp bfloat16', 'channels_last')
        assert row['images_per_s'] == pytest.approx(2 / row['median_s'], rel=1e-4)
    assert rows[0]['base_ratio'] == pytest.approx(rows[0]['median_s'] / base['median_s'], rel=1e-4)


def test_scaling(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, '_MAP', 20)
    monkeypatch.setattr(scaling, '_IMAGES', (1, 2, 4))
    monkeypatch.setattr(scaling, '_CHANNELS', (4, 8))
    csv, plot = tmp_path / 'benchmark.csv', tmp_path / 'scaling.png'
    assert benchmark.main([*TINY, '--part', 'scaling', '--csv', str(csv), '--plot', str(plot)]) == 0
    for implementation in ('ours', 'materialised'):
        pixels = rows_of(csv, subject='pixels', implementation=implementation)
        channels = rows_of(csv, subject='channels', implementation=implementation)
        assert [row['pixels'] for row in pixels] == [20, 40, 80] and {row['in_chs'] for row in pixels} == {96}
        assert [row['in_chs'] for row in channels] == [4, 8] and {row['pixels'] for row in channels} == {40}
    assert Image.open(plot).size[0] > 500


@pytest.mark.parametrize('part', [['25x6x4'], NETWORK, ['channels']], ids=['op', 'model', 'scaling'])
@pytest.mark.parametrize('wrong', [
    pytest.param(lambda x, weight: 1.01 * quadratic_form(x, weight, backend='reference'), id='values'),
    pytest.param(lambda x, weight: quadratic_form(x, weight.detach(), backend='reference') + 0 * weight.sum(),
                 id='gradient'),
])
def test_a_wrong_backend_is_not_timed(tmp_path, monkeypatch, capsys, part, wrong):
    monkeypatch.setattr(scaling, '_MAP', 20)
    monkeypatch.setattr(scaling, '_CHANNELS', (4,))
    monkeypatch.setattr(backends, '_BACKENDS', dict(backends._BACKENDS))
    register_backend('wrong', wrong, before='native')
    csv = tmp_path / 'benchmark.csv'
    assert benchmark.main([*TINY, '--only', *part, '--csv', str(csv)]) == 1
    assert not csv.exists()
    assert 'off by' in capsys.readouterr().err


def test_checks_fail_on_what_is_not_a_number():
    with pytest.raises(CheckFailedError, match='off by nan'):
        expect_close('it', torch.tensor([1., math.nan]), torch.ones(2), 1e-2)
    with pytest.raises(CheckFailedError, match='shape'):
        expect_close('it', torch.ones(1), torch.ones(2), 1e-2)


def test_materialised_form_is_the_formula(loop_formula):
    x, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(forms.materialised(x, weight), loop_formula(x, weight))


def test_materialised_backend_is_known_for_a_while_only():
    before = available_backends()
    with forms.materialised_backend():
        assert available_backends() == (*before, 'materialised')
    assert available_backends() == before


@pytest.mark.parametrize('phase, products', [(FORWARD, 1), (FORWARD_BACKWARD, 3)])
@pytest.mark.parametrize('shape', [Shape(1, 3, 2), Shape(1000, 48, 40)])
def test_the_floor_has_the_flops_of_the_folded_products(shape, phase, products):
    work = Roofline(shape, 'cpu', torch.float32).build(phase)
    with FlopCounterMode(display=False) as counter:
        work.function()
    folded = torch.randn(shape.pixels, shape.in_chs * (shape.in_chs + 1) // 2, device='meta')
    with FlopCounterMode(display=False) as expected:
        folded @ folded.new_empty(folded.shape[1], shape.out_chs)
    assert round(counter.get_total_flops() * work.scale, 6) == products * expected.get_total_flops()


def test_memory_sees_a_known_allocation_and_survives_a_killed_process():
    megabytes = 200
    works = {
        'allocates': Work(partial(torch.ones, megabytes * memory.MIB // 4), warm_up=int),
        'is killed': Work(partial(signal.raise_signal, signal.SIGKILL), warm_up=int),
        'is never reached': Work(int, warm_up=int),
    }
    peaks = memory.peaks(SimpleNamespace(device='cpu', phases=tuple(works), build=works.__getitem__))
    assert list(peaks) == ['allocates']
    assert peaks['allocates'] == pytest.approx(megabytes * memory.MIB, rel=0.2)


def test_out_of_memory_is_a_result():
    def fails():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    runs = {
        name: SimpleNamespace(device='cpu', build=lambda phase, call=call: Work(call, call))
        for name, call in (('ours', int), ('materialised', fails))
    }
    results = compare(runs, ['phase'], rounds=2)
    ours, other = to_rows(results['phase'], 'cpu', torch.float32, {})
    assert (ours['status'], other['status']) == ('ok', 'out of memory')
    assert ours['speedup'] is None and other['median_s'] is None


@pytest.mark.parametrize('options, message', [
    (['--rounds', '9'], 'must be at least 10'),
    (['--only', 'dit_resnet21'], 'Near names: dit_resnet'),
    (['--only', '4x4'], 'neither a shape'),
    (['--part', 'op', '--only', 'dit_resnet20'], 'names nothing of the parts'),
    (['--part', 'op', '--plot', 'x.png'], 'leaves out'),
    (['--backends', 'chunkd'], 'cannot run on cpu with float32'),
    (['--busy', '2'], 'for part op alone'),
    (['--busy', '-1'], 'must be 0 or more'),
])
def test_wrong_options(capsys, options, message):
    with pytest.raises(SystemExit):
        parse_args('', ['--device', 'cpu', *options])
    assert message in capsys.readouterr().err


def test_tables_are_those_of_the_csvs(tmp_path, monkeypatch, capsys):
    csv = tmp_path / 'benchmark_cpu.csv'
    words = [*TINY, '--only', '40x6x4', '--backends', 'chunked']
    assert benchmark.main([*words, '--csv', str(csv)]) == 0
    page = benchmark_page(tmp_path)
    command = rows_of(csv)[0]['command']
    assert page.count(f'`{command}`') == 1 and '### The quadratic form\n' in page
    ours, other = (rows_of(csv, phase='forward', implementation=name)[0] for name in ('ours', 'materialised'))
    assert (
        f'| 40x6x4 | float32 | forward | ours ({ours["backend"]}) | {significant(1000 * ours["median_s"])} '
        f'| {significant(1000 * other["median_s"])} | {significant(ours["speedup"])} |'
    ) in page
    assert [line.split(' | ')[3] for line in page.splitlines() if line.startswith('| 40x6x4')] == [
        f'ours ({ours["backend"]})', 'chunked',
    ] * 2
    # The same, for a CSV anywhere.
    capsys.readouterr()
    assert make_tables.main(['--csv', str(csv)]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() in page
    (tmp_path / 'cut.csv').write_text('median_s\n1\n')
    assert make_tables.main(['--csv', str(tmp_path / 'cut.csv')]) == 1
    assert 'cut.csv is no CSV of measurements' in capsys.readouterr().err


def test_a_csv_with_busy_processes_is_a_table_of_quiet_against_busy(tmp_path):
    facts = {'part': 'op', 'subject': '1x2x3', 'dtype': 'float32', 'phase': 'forward', 'implementation': 'ours',
             'backend': 'native', 'status': 'ok', 'rounds': 15, 'device': 'Abacus', 'device_type': 'cpu'}
    write_rows([
        {**facts, 'command': f'measure --busy {busy}', 'busy': busy, 'median_s': median, 'speedup': speedup}
        for busy, median, speedup in ((0, 0.002, 8.), (2, 0.005, 4.))
    ], tmp_path / 'benchmark_busy.csv')
    page = benchmark_page(tmp_path)
    assert '| 1x2x3 | float32 | forward | native | 2.00 | 5.00 | 2.50 | 8.00 | 4.00 |\n' in page
    assert page.count('| 1x2x3 |') == 1 and '`measure --busy 0`' in page and '`measure --busy 2`' in page
