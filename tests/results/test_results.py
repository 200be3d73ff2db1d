"""From runs to a CSV, from CSVs to pages, tables and pictures, and from runs to weights that ship."""

import csv
import hashlib
import statistics

import make_tables
import pytest
import ship_weights
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from dit_timm.cli import record, train, validate
from dit_timm.config.training import dit_network
from dit_timm.pretrained.golden import TOLERANCE, golden_difference
from dit_timm.results import pages, record as rows_of_runs
from dit_timm.results.rows import COLUMNS, add_rows, by_seed, read_rows
from dit_timm.training.environment import environment
from dit_timm.training.logs import read_csv, write_csv

RECIPE = """
model: dit_resnet20
epochs: 2
warmup_epochs: 0
batch_size: 6
lr: 0.02
quadratic_lr_scale: 10.0
color_jitter: 0.0
val_fraction: 0.25
"""


@pytest.fixture
def trained(write_greys, tmp_path):
    """Trains with the recipe above; returns a function of name and options to the folder of a run."""
    data = write_greys(train=(8, 8, 8), test=(5, 5, 5))
    recipe = tmp_path / 'tiny.yaml'
    recipe.write_text(RECIPE)

    def run(name, *options):
        train.main([
            '--config', str(recipe), '--data-dir', str(data), '--test-split', 'test', '--workers', '0', '--device',
            'cpu', '--output', str(tmp_path / 'out'), '--experiment', name, *options,
        ])
        return tmp_path / 'out' / name

    run.data, run.recipe = data, recipe
    return run


def recipe_sha256(text):
    return hashlib.sha256(yaml.safe_dump(yaml.safe_load(text)).encode()).hexdigest()


def test_the_recipes_of_the_recorded_runs_have_not_changed():
    recipes = make_tables.ROOT / 'scripts' / 'recipes'
    rows = read_csv(make_tables.ROOT / pages.RESULTS / 'runs.csv')
    assert rows
    for name, recorded in {(row['recipe'], row['recipe_sha256']) for row in rows}:
        assert recorded == recipe_sha256((recipes / name).read_text()), name


def test_rows_of_runs(trained, tmp_path):
    table = tmp_path / 'results' / 'runs.csv'
    runs = [
        trained('dit', '--seed', '3'),
        trained('plain', '--seed', '3', '--variant', 'plain'),
        trained('fixed', '--seed', '4', '--variant', 'frozen'),
        trained('transposed', '--seed', '3', '--variant', 'transposed', '--lr', '0.01'),
    ]
    command = [*map(str, runs), '--data', 'greys', '--csv', str(table)]
    assert record.main(command) == 0
    rows = {row['variant']: row for row in read_csv(table)}
    assert set(rows) == {'dit', 'removed', 'plain', 'frozen', 'transposed'}
    facts = environment('cpu')
    for row in rows.values():
        assert list(row) == list(COLUMNS)
        assert row['recipe_sha256'] == recipe_sha256(RECIPE)
        assert (row['data'], row['split'], row['images'], row['chosen']) == ('greys', 'test', '15', 'best')
        assert (row['torch'], row['timm'], row['device']) == (torch.__version__, timm.__version__, facts['device'])
        assert (table.parent / row['log']).read_bytes() == (tmp_path / 'out' / row['run'] / 'summary.csv').read_bytes()
    assert rows['transposed']['options'] == 'lr=0.01'
    assert rows['dit']['options'] == rows['plain']['options'] == rows['frozen']['options'] == ''
    assert (rows['dit']['seed'], rows['frozen']['seed']) == ('3', '4')
    with (runs[0] / 'results.csv').open() as file:
        test = list(csv.DictReader(file))[-1]
    assert float(rows['dit']['loss']) == pytest.approx(float(test['loss']), abs=1e-6)
    # Once more: the rows are replaced, not doubled. The recipe is the one that the runs began with.
    trained.recipe.write_text('lr: 7\n')
    assert record.main(command) == 0
    again = read_csv(table)
    assert len(again) == 5 and {row['variant']: row for row in again} == rows


def test_a_run_of_another_machine(trained, tmp_path):
    run, table = trained('dit'), tmp_path / 'runs.csv'
    elsewhere = trained.data.rename(tmp_path / 'moved')
    starts = read_csv(run / 'environment.csv')
    write_csv([{**starts[0], 'device': 'abacus', 'processes': '4'}], run / 'environment.csv')
    options = yaml.safe_load((run / 'args.yaml').read_text())
    (run / 'args.yaml').write_text(yaml.safe_dump({**options, 'device': 'cuda'}))
    command = [str(run), '--data', 'greys', '--csv', str(table), '--device', 'cpu']
    assert record.main(command) == 1
    assert record.main([*command, '--data-dir', str(elsewhere)]) == 0
    dit, removed = read_csv(table)
    # Another number of processes makes other batches: not a run for the same row.
    assert dit['options'] == removed['options'] == 'processes=4' and dit['split'] == removed['split'] == 'test'
    # Each says where it was evaluated.
    assert (dit['device'], removed['device']) == ('abacus', environment('cpu')['device'])


def test_only_a_dit_network_is_evaluated_again(trained, tmp_path, monkeypatch):
    monkeypatch.delattr(rows_of_runs, 'evaluate')
    for variant in 'plain', 'transposed', 'frozen', 'mlp':
        run = trained(variant, '--epochs', '1', '--variant', variant)
        assert record.main([str(run), '--data', 'greys', '--csv', str(tmp_path / 'runs.csv')]) == 0
    assert len(read_csv(tmp_path / 'runs.csv')) == 4


def test_rows_go_beside_the_run_by_default(trained, monkeypatch, capsys):
    run = trained('plain', '--epochs', '1', '--variant', 'plain')
    monkeypatch.chdir(run)
    assert record.main(['.', '--data', 'greys', '--device', 'cpu']) == 0
    assert f'written to {run.parent / "runs.csv"}' in capsys.readouterr().out
    row, = read_csv(run.parent / 'runs.csv')
    assert (run.parent / row['log']).is_file()


def test_a_network_of_timm_is_the_plain_twin():
    assert dit_network('resnet18') == dit_network('dit_resnet18') == 'dit_resnet18'
    assert dit_network('dit_resnet20') == 'dit_resnet20' and dit_network('vgg11') == 'vgg11'
    assert dit_network('test_resnet') == 'test_dit_resnet' and dit_network('convnext_atto') == 'dit_convnext_atto'


def test_the_row_without_the_term_is_that_of_the_network_without_it(trained, tmp_path):
    run, table = trained('dit'), tmp_path / 'runs.csv'
    assert record.main([str(run), '--data', 'greys', '--csv', str(table)]) == 0
    removed, = (row for row in read_csv(table) if row['variant'] == 'removed')
    model = timm.create_model('dit_resnet20', num_classes=3).eval()
    weights = load_file(run / 'model.safetensors')
    weights['layer2.0.quadratic.weight'].zero_()
    model.load_state_dict(weights)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    paths = sorted((trained.data / 'test').rglob('*.png'))
    with torch.no_grad():
        logits = torch.cat([model(transform(Image.open(path).convert('RGB'))[None]) for path in paths])
    labels = torch.tensor([int(path.parent.name[-1]) for path in paths])
    assert float(removed['loss']) == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)
    assert float(removed['top1']) == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), abs=1e-4)
    # The other way to it, which says what it evaluated.
    file = tmp_path / 'validated.csv'
    assert validate.main(['--checkpoint', str(run), '--without-quadratic', '--results-file', str(file)]) == 0
    validated, = read_csv(file)
    assert float(validated['loss']) == pytest.approx(float(removed['loss']), abs=1e-4)
    assert validated['weights'] == f'{run}/model.safetensors, quadratic terms zero'


def test_runs_that_say_too_little_are_refused(trained, tmp_path, capsys):
    table = ['--data', 'greys', '--csv', str(tmp_path / 'runs.csv')]
    assert record.main([str(tmp_path), *table]) == 1
    assert 'no folder of a run that has ended: it has no args.yaml' in capsys.readouterr().err
    run = trained('dit', '--epochs', '1', '--test-split', 'train')
    write_csv(read_csv(run / 'results.csv')[:1], run / 'results.csv')
    assert record.main([str(run), *table]) == 1
    assert 'has no result on a test split' in capsys.readouterr().err
    (run / 'recipe.yaml').unlink()
    assert record.main([str(run), *table]) == 1
    assert 'has no recipe.yaml: it followed no recipe' in capsys.readouterr().err
    assert not (tmp_path / 'runs.csv').exists()


def row(variant, seed, top1, **values):
    return {**dict.fromkeys(COLUMNS, ''), **{
        'model': 'dit_resnet20', 'variant': variant, 'data': 'greys', 'split': 'test', 'images': 15, 'seed': seed,
        'epochs': 2, 'chosen': 'best', 'recipe': 'tiny.yaml', 'precision': 'float32', 'parameters': 300_000,
        'top1': top1, 'top5': 99, 'loss': 0.5, 'log': f'logs/{variant}{seed}.csv',
    }, **values}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The folder of the CSVs in a checkout: three seeds of two variants, out of order, and one of a third."""
    monkeypatch.setattr(make_tables, 'ROOT', tmp_path)
    monkeypatch.setattr(pages, 'model_page', lambda: 'models')
    folder = tmp_path / pages.RESULTS
    rows = [row('dit', 2, 91), row('dit', 0, 90), row('plain', 1, 89), row('plain', 0, 88), row('dit', 1, 92),
            row('plain', 2, 90), row('removed', 0, 50)]
    add_rows(rows, folder / 'runs.csv')
    (folder / 'logs').mkdir()
    for name in {made['log'] for made in rows}:
        (folder / name).write_text('epoch,eval_top1\n0,50\n1,60\n')
    (folder / 'published.csv').write_text('data,model,source,top1,url\n')
    (tmp_path / 'README.md').write_text(
        'before\n<!-- results: generated by python scripts/make_tables.py -->\n<!-- /results -->\nafter\n'
    )
    return folder


def page_of(results):
    """What the page of trained networks says, once it is written."""
    assert make_tables.main(['--plots']) == 0
    return (results / 'README.md').read_text()


def answer_of(results):
    """The lines of the README's block."""
    assert make_tables.main(['--plots']) == 0
    before, *block, after = (results.parent.parent / 'README.md').read_text().splitlines()
    assert (before, after) == ('before', 'after')
    return block[1:-1]


def test_the_table_pairs_runs_by_seed(results):
    lines = [line for line in page_of(results).splitlines() if line.startswith(('**greys.', '|'))]
    differences = [90 - 88, 92 - 89, 91 - 90]
    # Student's t with two degrees of freedom leaves 2.5 % above 4.3027, as tables of it say.
    margin = 4.3027 * statistics.stdev(differences) / 3 ** 0.5
    interval = f'+2.00 [{2 - margin:+.2f}, {2 + margin:+.2f}]'
    assert [line.split(' | ')[1:6] for line in lines[-3:]] == [
        ['plain', '0.300', '3', '89.00 ± 1.00', ''],
        ['Dit', '0.300', '3', '91.00 ± 1.00', interval],
        ['Dit, A = 0 after training', '0.300', '1', '50.00', '-38.00'],
    ]
    assert 'Seeds 0, 1, 2' in lines[0] and '(15 images) is read once for a trained network' in lines[0]
    sentence, _, *table = answer_of(results)
    assert sentence == (
        'greys, dit_resnet20 after 2 epochs: 91.00 % top-1 with the term, 89.00 % for the same '
        f'network without it, in 3 pairs of runs: {interval} points (95 % interval). The interval includes zero: no '
        'effect is shown.'
    )
    assert sentence in page_of(results)
    assert table[2:] == [f'| greys | dit_resnet20 | 2 | 3 | 89.00 ± 1.00 | 91.00 ± 1.00 | {interval} |']


@pytest.mark.parametrize('gains, verdict', [
    ((3, 3.1, 2.9), 'It helps.'),
    ((-3, -3.1, -2.9), 'It hurts.'),
    ((3, -3, 0.5), 'The interval includes zero: no effect is shown.'),
])
def test_the_answer_is_what_the_interval_says(results, gains, verdict):
    # More epochs are nearer to the truth than more seeds.
    for seed, gain in enumerate(gains):
        add_rows([
            row('plain', seed, 90, epochs=160, recipe='long.yaml', log=f'logs/long{seed}.csv'),
            row('dit', seed, 90 + gain, epochs=160, recipe='long.yaml', log=f'logs/long-dit{seed}.csv'),
        ], results / 'runs.csv')
    add_rows([row('dit', 0, 99, data='alone', log='logs/alone.csv')], results / 'runs.csv')
    for name in {made['log'] for made in read_csv(results / 'runs.csv')}:
        (results / name).write_text('epoch,eval_top1\n0,50\n')
    sentence, _, *table = answer_of(results)
    assert 'after 160 epochs: ' in sentence and 'in 3 pairs' in sentence and sentence.endswith(verdict)
    # One run is no answer.
    assert [line.split(' | ')[:3] for line in table[2:]] == [
        ['| greys', 'dit_resnet20', '160'], ['| greys', 'dit_resnet20', '2'],
    ]


def test_what_others_report_stands_beside_the_plain_networks(results):
    write_csv([
        {'data': 'greys', 'model': 'dit_resnet20', 'source': 'Others', 'top1': '91.20', 'url': 'https://a.b'},
        {'data': 'whites', 'model': 'dit_resnet20', 'source': 'Strangers', 'top1': '1.00', 'url': 'https://c.d'},
    ], results / 'published.csv')
    headings, _, plain, dit, removed = (line for line in page_of(results).splitlines() if line.startswith('|'))
    assert headings.endswith('| loss | [Others](https://a.b): top-1 (%) |') and plain.endswith('| 91.20 |')
    assert dit.endswith('|  |') and removed.endswith('|  |')


def test_runs_on_different_images_make_no_table(results, capsys):
    add_rows([row('dit', 7, 90, images_sha256='others', log='logs/7.csv')], results / 'runs.csv')
    assert make_tables.main(['--check']) == 1
    assert 'trained on different images' in capsys.readouterr().err


def test_every_machine_is_named_once(results):
    for seed, devices in enumerate(('A', 'B; C', 'A; B')):
        add_rows([row('plain', seed, 90, data='others', device=devices, log=f'logs/{seed}.csv')], results / 'runs.csv')
        (results / 'logs' / f'{seed}.csv').write_text('epoch,eval_top1\n0,50\n')
    assert 'float32, A, B and C, torch' in page_of(results)


def test_what_is_out_of_date_is_an_error(results, capsys):
    root = results.parent.parent
    assert make_tables.main(['--check']) == 1
    printed = capsys.readouterr().err.splitlines()
    files = (
        'docs/models.md', 'hub/results/README.md', 'hub/results/benchmarks.md', 'README.md',
        'hub/results/experiments/README.md',
    )
    assert printed == [
        *(f'error: {name} is out of date: run python scripts/make_tables.py' for name in files),
        'error: hub/results/greys_test_tiny_dit_resnet20.png is missing: run python scripts/make_tables.py --plots',
    ]
    assert not (root / 'docs').exists()
    assert make_tables.main([]) == 1
    assert capsys.readouterr().err.splitlines() == printed[-1:]
    assert make_tables.main(['--plots']) == 0 and make_tables.main(['--check']) == 0
    for name in files:
        (root / name).write_text((root / name).read_text() + 'more')
        # What stands around the README's block is not generated.
        assert make_tables.main(['--check']) == (name != 'README.md')
        assert make_tables.main([]) == 0
    add_rows([row('dit', 0, 90.5)], results / 'runs.csv')
    assert make_tables.main(['--check']) == 1
    (root / 'README.md').write_text('nothing')
    capsys.readouterr()
    assert make_tables.main([]) == 1
    assert 'README.md must have the lines <!-- results: ' in capsys.readouterr().err


def test_generated_files_are_up_to_date():
    assert make_tables.main(['--check']) == 0


def test_tables_of_ones_own(results, tmp_path, capsys):
    page = page_of(results)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    capsys.readouterr()
    assert make_tables.main(['--csv', str(results / 'runs.csv')]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith('greys, ') and printed.count('| Dit |') == 1
    assert all(part in page for part in printed.split('\n\n'))
    assert make_tables.main(['--csv', str(results / 'published.csv')]) == 1
    assert 'published.csv is no CSV of runs: ' in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
    text = (results / 'runs.csv').read_text()
    for wrong, message in ((text.replace(',removed,', ',magic,'), 'has the variant magic; there are plain, dit, '),
                           (text.replace(',300000,', ',many,'), 'is no CSV of runs: '), ('', 'is no CSV of runs: ')):
        (tmp_path / 'mine.csv').write_text(wrong)
        assert make_tables.main(['--csv', str(tmp_path / 'mine.csv')]) == 1
        assert message in capsys.readouterr().err


def test_runs_of_another_kind_are_kept_apart(results, capsys):
    add_rows([
        row('dit', 0, 10, options='lr=9', log='logs/a.csv'), row('dit', 0, 20, data='whites', log='logs/b.csv'),
        row('dit', 0, 30, split='another', log='logs/c.csv'),
    ], results / 'runs.csv')
    for name in 'abc':
        (results / 'logs' / f'{name}.csv').write_text('epoch,eval_top1\n0,50\n')
    text = page_of(results)
    assert text.count('| network |') == 4 and '| Dit | 0.300 | 3 | 91.00 ± 1.00 |' in text
    for name in 'greys_test_tiny_lr_9', 'whites_test_tiny', 'greys_another_tiny':
        assert (results / f'{name}_dit_resnet20.png').exists() and f']({name}_dit_resnet20.png)' in text
    # The log of another run is not written over.
    with pytest.raises(ValueError, match='another run with the log logs/a.csv: rename'):
        add_rows([row('plain', 7, 10, log='logs/a.csv')], results / 'runs.csv')
    # Two recipes of one name make no mean.
    add_rows([row('plain', 7, 10, recipe_sha256='other')], results / 'runs.csv')
    assert make_tables.main(['--check']) == 1
    assert 'recorded with different contents of the recipe' in capsys.readouterr().err


def test_pictures(results):
    assert make_tables.main(['--plots']) == 0
    # One network says nothing of accuracy against parameters.
    assert [path.name for path in results.glob('*.png')] == ['greys_test_tiny_dit_resnet20.png']
    add_rows([row('dit', 0, 93, model='dit_resnet32', parameters=500_000, log='logs/deep.csv')], results / 'runs.csv')
    (results / 'logs' / 'deep.csv').write_text('epoch,eval_top1\n0,50\n')
    assert make_tables.main(['--plots']) == 0
    names = {path.name for path in results.glob('*.png')}
    assert names == {
        f'greys_test_tiny_{name}.png' for name in ('dit_resnet20', 'dit_resnet32', 'parameters')
    }
    pictures = {name: (results / name).read_bytes() for name in names}
    assert make_tables.main(['--plots']) == 0
    assert pictures == {name: (results / name).read_bytes() for name in names}
    for name in names:
        assert Image.open(results / name).size[0] > 500


def test_two_rows_of_a_seed_are_an_error(tmp_path):
    add_rows([row('dit', 3, 1, split='a'), row('dit', 3, 2, split='b')], tmp_path / 'runs.csv')
    twice = read_rows(tmp_path / 'runs.csv')
    with pytest.raises(ValueError, match='Two rows of dit_resnet20, dit, tiny.yaml have seed 3'):
        by_seed(twice)


def test_what_is_not_shipped(trained, capsys):
    plain = trained('plain', '--variant', 'plain', '--epochs', '1')
    assert ship_weights.main([str(plain), '--tag', 'greys']) == 1
    assert "is not dit_resnet20 as it is, but with {'quadratic': False}" in capsys.readouterr().err
    assert ship_weights.main([str(plain), str(trained('dit', '--epochs', '1')), '--tag', 'greys']) == 1
    assert 'Name one run of a model' in capsys.readouterr().err


def test_weights_are_shipped_with_their_sum_their_golden_outputs_and_their_accuracy(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(ship_weights, 'ROOT', tmp_path)
    results = tmp_path / pages.RESULTS
    results.mkdir(parents=True)
    run = trained('dit')
    assert ship_weights.main([str(run), '--tag', 'greys']) == 0
    path = tmp_path / 'dit_timm' / 'weights' / 'dit_resnet20.greys.safetensors'
    sums = (path.parent / 'SHA256SUMS').read_text()
    assert sums == f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n'
    # As a user loads it: timm, and a file that a cfg names.
    overlay = {'file': str(path), 'num_classes': 3}
    model = timm.create_model('dit_resnet20', pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay).eval()
    for key, value in load_file(run / 'model.safetensors').items():
        expected = value.half().float() if value.ndim > 1 else value
        assert torch.equal(model.state_dict()[key], expected), key
    golden = load_file(tmp_path / 'tests' / 'pretrained' / 'golden' / path.name)
    assert golden_difference(model, golden) < TOLERANCE / 10
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    paths = sorted((trained.data / 'test').rglob('*.png'))
    with torch.no_grad():
        answers = [model(transform(Image.open(image).convert('RGB'))[None]).argmax().item() for image in paths]
    right = [answer == int(image.parent.name[-1]) for answer, image in zip(answers, paths)]
    shipped, = read_csv(results / 'shipped.csv')
    assert float(shipped['top1']) == pytest.approx(100 * sum(right) / len(right), abs=1e-4)
    assert shipped['images'] == '15' and shipped['device'] == environment('cpu')['device']
    assert shipped['sha256'] == sums[:64]
