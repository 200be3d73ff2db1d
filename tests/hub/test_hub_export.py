"""`python -m hub export` and `card`: from the folder of a run to the folder of a repository."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from dit_timm.pretrained.weight_files import weights_bytes
from dit_timm.training.environment import environment
from hub import __main__ as command_line, card
from hub.export import LicenseError, export
from hub.run import load_model, read_run

pytestmark = pytest.mark.slow

FILES = ['README.md', 'args.yaml', 'config.json', 'golden.safetensors', 'model.safetensors']


def test_an_export_is_what_the_run_evaluated(exported, trained_run):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    weights = load_file(exported / 'model.safetensors')
    assert all(torch.equal(value, weights[key]) for key, value in load_file(trained_run / 'model.safetensors').items())
    config = json.loads((exported / 'config.json').read_text())
    assert config['architecture'] == 'test_dit_resnet' and config['label_names'] == ['class0', 'class1', 'class2']
    assert config['pretrained_cfg']['license'] == 'mit' and config['pretrained_cfg']['input_size'] == [3, 32, 32]
    assert 'num_classes' not in config.get('model_args', {})
    # timm's own loader of folders, and an input of its own.
    model = timm.create_model(f'local-dir:{exported}', pretrained=True).eval()
    golden = load_file(exported / 'golden.safetensors')
    with torch.inference_mode():
        torch.testing.assert_close(model(golden['input']), golden['logits'], rtol=1e-4, atol=1e-5)
    # Nothing says where on its machine the run was.
    for path in exported.iterdir():
        assert str(trained_run.parent).encode() not in path.read_bytes()


def test_weights_come_from_whole_checkpoints_only(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / 'run')
    expected = load_model(read_run(trained_run), 'ema').state_dict()
    for name in ('unfinished', '@eaDir'):
        (tmp_path / 'run' / 'checkpoints' / name).mkdir()
        (tmp_path / 'run' / 'checkpoints' / name / 'ema.safetensors').write_bytes(b'half of the weights')
    found = load_model(read_run(tmp_path / 'run'), 'ema').state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_the_classes_are_those_of_the_run(tmp_path, trained_run):
    run = read_run(trained_run)
    # An architecture whose own pretrained weights tell other things apart.
    model = timm.create_model('dit_resnet20', num_classes=3)
    (tmp_path / 'run').mkdir()
    for path in trained_run.iterdir():
        if path.suffix in ('.csv', '.yaml'):
            shutil.copy(path, tmp_path / 'run')
    metadata = {'classes': json.dumps(run.classes)}
    (tmp_path / 'run' / 'model.safetensors').write_bytes(weights_bytes(model.state_dict(), metadata))
    options = tmp_path / 'run' / 'args.yaml'
    options.write_text(yaml.safe_dump({**run.options, 'model': 'dit_resnet20', 'model_kwargs': {}}))
    export(read_run(tmp_path / 'run'), tmp_path / 'out', 'greys', 'mit')
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['label_names'] == config['pretrained_cfg']['label_names'] == ['class0', 'class1', 'class2']


def test_an_export_writes_over_no_run_and_no_file(trained_run, tmp_path):
    before = {path.name: path.read_bytes() for path in trained_run.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match='is the folder of a run, whose files would be written over'):
        export(read_run(trained_run), trained_run, 'greys', 'mit')
    assert {path.name: path.read_bytes() for path in trained_run.iterdir() if path.is_file()} == before
    (tmp_path / 'file').write_text('precious')
    with pytest.raises(ValueError, match='is a file; name a folder'):
        export(read_run(trained_run), tmp_path / 'file', 'greys', 'mit')
    assert (tmp_path / 'file').read_text() == 'precious'


def test_the_licence_comes_from_the_weights(trained_run, tmp_path):
    run = read_run(trained_run)
    with pytest.raises(LicenseError, match='no licence yet'):
        export(run, tmp_path / 'out', 'greys')
    tuned = run._replace(options={**run.options, 'model': 'dit_resnet50', 'pretrained': True})
    with pytest.raises(LicenseError, match='timm/resnet50.*licence apache-2.0: they stay under it; got --license mit'):
        export(tuned, tmp_path / 'out', 'greys', 'mit')
    assert not (tmp_path / 'out').exists()


def test_a_card_has_the_text_of_notes_md(exported, trained_run):
    path, notes = exported / 'README.md', '**By hand:** {{ name }}, \\1 and é.\n\n## Thanks\n\nTo nobody.'
    plain = path.read_text()
    (exported / 'NOTES.md').write_bytes(f'\n{notes}\n\n'.replace('\n', '\r\n').encode())
    card.write_card(read_run(trained_run), exported, 'me/other', 'shades of grey')
    new = path.read_text()
    assert f'\n\n## Limits and notes\n\n{notes}\n\n## Citation\n' in new and 'A research model' not in new
    assert 'hf-hub:me/other' in new and 'hf-hub:me/greys' not in new
    assert ModelCard.load(path).data.to_dict() == ModelCard(plain).data.to_dict()
    card.write_card(read_run(trained_run), exported, 'me/other', 'shades of grey')
    assert path.read_text() == new
    (exported / 'NOTES.md').unlink()
    card.write_card(read_run(trained_run), exported, 'me/greys', 'shades of grey')
    assert path.read_text() == plain and '## Limits and notes\n\nA research model' in plain


@pytest.mark.parametrize('edit', [
    lambda text: '# My own card\n',
    lambda text: '',
    lambda text: f'{text}\nBeware of greys that are none.\n',
    lambda text: text.replace('## Usage\n', '## Usage\n\nBeware of greys that are none.\n'),
    lambda text: text.replace('tags:\n', 'tags:\n- greys\n'),
    lambda text: re.sub('<!-- .*? -->\n', '', text),
    lambda text: re.sub('SHA-256 \\w+', 'SHA-256 ', text),
])
def test_a_card_written_or_edited_by_hand_is_not_lost(exported, trained_run, edit, capsys):
    path = exported / 'README.md'
    text = path.read_text()
    path.write_text(edit(text))
    before = {file.name: file.read_bytes() for file in exported.iterdir()}
    words = [str(trained_run), '--out', str(exported), '--repo-id', 'me/greys', '--data', 'shades of grey']
    for first, *others in (['card'], ['export', '--tag', 'other', '--license', 'mit']):
        assert command_line.main([first, *words, *others]) == 1
        error, = capsys.readouterr().err.splitlines()
        assert f'{path} was written or edited by hand' in error and str(exported / 'NOTES.md') in error
    assert {file.name: file.read_bytes() for file in exported.iterdir()} == before
    # What the message says to do.
    path.unlink()
    assert command_line.main(['card', *words]) == 0
    assert path.read_text() == text


def test_other_ends_of_lines_are_no_edit(exported, trained_run):
    path = exported / 'README.md'
    text = path.read_bytes()
    path.write_bytes(text.replace(b'\n', b'\r\n'))
    card.write_card(read_run(trained_run), exported, 'me/greys', 'shades of grey')
    assert path.read_bytes() == text


def test_notes_that_are_no_text(exported, trained_run):
    (exported / 'NOTES.md').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='NOTES.md is no text in UTF-8.*Save it as such'):
        card.write_card(read_run(trained_run), exported, 'me/greys', 'shades of grey')


def test_the_card_says_how_it_was_trained(exported):
    text = (exported / 'README.md').read_text()
    options = yaml.safe_load((exported / 'args.yaml').read_text())
    assert f'1 epoch, {options["opt"]}, learning rate 0.01, batches of 6, seed' in text
    assert f'1 process on {environment("cpu")["device"]}, ' in text
    assert '3 classes: class0, class1, class2' in text
    # Of 24 training images a quarter is held out; the test split has 12.
    assert '| 0.25 of train | 6 | yes | ' in text and '| test | 12 | no | ' in text


def test_the_card_says_how_many_images_an_update_had(trained_run, tmp_path):
    run = read_run(trained_run)
    export(run, tmp_path, 'greys', 'mit')
    starts = [{**start, 'processes': '4'} for start in run.environment]
    several = run._replace(environment=starts, options={**run.options, 'grad_accum_steps': 2})
    path = card.write_card(several, tmp_path, 'me/greys', 'shades of grey')
    assert 'batches of 48, seed' in path.read_text() and '; 4 processes on ' in path.read_text()


def test_the_card_says_what_the_network_is_and_what_it_began_with(trained_run, exported):
    text = (exported / 'README.md').read_text()
    assert 'in which one convolution also receives a quadratic term' in text and 'before training:** random' in text
    two = timm.create_model('test_dit_resnet', dendrites=('layer1.0.conv2', 'layer2.0.conv2'))
    assert 'in which 2 convolutions also receive a quadratic term' in card._kind(two)
    assert card._kind(timm.create_model('test_resnet')) == 'A CNN of timm without a quadratic term'
    run = read_run(trained_run)
    for model, origin in (('dit_resnet20', 'dit_resnet20.cifar10'),
                          ('dit_resnet50', 'timm/resnet50.a1_in1k, quadratic terms zero'),
                          ('resnet50', 'timm/resnet50.a1_in1k')):
        assert card._origin(run._replace(options={**run.options, 'pretrained': True, 'model': model})) == origin


def test_results_on_images_that_chose_the_epoch_are_not_the_model_s(trained_run, tmp_path):
    run = read_run(trained_run)
    export(run, tmp_path, 'greys', 'mit')
    chosen = run._replace(results=run.results[:1])
    path = card.write_card(chosen, tmp_path, 'me/greys', 'shades of grey')
    assert ModelCard.load(path).data.eval_results is None
    assert '| 0.25 of train | 6 | yes |' in path.read_text()


def test_a_run_that_was_evaluated_on_nothing_but_its_test_split(trained_run, tmp_path):
    run = read_run(trained_run)
    only = run._replace(results=[{**run.results[1], 'chosen': 'last'}])
    export(only, tmp_path, 'greys', 'mit')
    path = card.write_card(only, tmp_path, 'me/greys', 'shades of grey')
    result, = ModelCard.load(path).data.eval_results[:1]
    assert result.dataset_split == 'test' and '| test | 12 | no |' in path.read_text()


def test_a_control_for_experiments_is_not_exported(trained_run, tmp_path):
    run = Path(shutil.copytree(trained_run, tmp_path / 'run'))
    options = yaml.safe_load((run / 'args.yaml').read_text())
    (run / 'args.yaml').write_text(yaml.safe_dump({**options, 'variant': 'mlp'}))
    with pytest.raises(ValueError, match='--variant mlp: no registry can build it'):
        read_run(run)


def test_a_run_whose_tables_say_too_little(trained_run, tmp_path):
    run = Path(shutil.copytree(trained_run, tmp_path / 'run'))
    (run / 'environment.csv').write_text('device,torch\nabacus,2.0\n')
    with pytest.raises(ValueError, match=r"1 rows with the columns \['device', 'torch'\]; expected .*'processes'"):
        read_run(run)
    (run / 'environment.csv').write_text('')
    with pytest.raises(ValueError, match='environment.csv is not what this version of scripts/train.py writes: 0 rows'):
        read_run(run)


@pytest.mark.parametrize('old, new, message', [
    ('license: mit', 'license: [mit', 'the metadata between the lines "---" are no YAML'),
    ('license: mit', 'license: mit\non: 1', 'or have a key that is no text'),
    ('license: mit', '- mit', 'are no YAML, or no mapping'),
    ('---\n', '---\n- mit\n---\n', 'are no YAML, or no mapping'),
    ('\n---\n', '\n', 'the metadata begin with a line "---" and do not end with one'),
])
def test_metadata_that_are_no_yaml(hub, command, exported, old, new, message):
    path = exported / 'README.md'
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=f'README.md: .*{message}'):
        card.read_card(path)
    done = command(hub, 'push', exported, 'me/greys')
    assert done.returncode == 1 and message in done.stderr and 'Traceback' not in done.stderr


def test_a_licence_that_the_hub_does_not_know_is_told_before_anything_is_sent(hub, command, tmp_path, trained_run):
    run, folder = read_run(trained_run), tmp_path / 'export'
    export(run, folder, 'greys', 'my-own')
    card.write_card(run, folder, 'me/greys', 'shades of grey')
    for words in ((), ('--yes',)):
        done = command(hub, 'push', folder, 'me/greys', *words)
        assert done.returncode == 1 and 'must be one of [' in done.stderr and '--license' in done.stderr
        assert 'Traceback' not in done.stderr and hub.repos == {}


def test_every_snippet_of_the_card_runs(exported, tmp_path, monkeypatch):
    from PIL import Image
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (50, 40)).save('photo.jpg')
    snippets = re.findall(r'```python\n(.*?)```', (exported / 'README.md').read_text(), re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        assert snippet.startswith('import dit_timm\n')
        exec(snippet.replace('hf-hub:me/greys', f'local-dir:{exported}'), {})
