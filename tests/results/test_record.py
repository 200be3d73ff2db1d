"""From runs to a CSV, and to weights that ship."""

import csv
import hashlib

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
from dit_timm.results.rows import COLUMNS
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
