"""`python -m hub`: from the folder of a run to a verified repository, with the real client against a Hub in memory."""

import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
import yaml
from hub_server import Fault
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from training.environment import environment

from dit_timm import load_pretrained_checked
from dit_timm.models.checked import NoWeights
from dit_timm.models.weight_files import read_weights, weights_bytes
from hub import __main__ as command_line, card
from hub.export import LicenceError, export
from hub.push import NotAnExport, plan
from hub.run import read_run

FILES = ['README.md', 'args.yaml', 'config.json', 'golden.safetensors', 'model.safetensors']


@pytest.fixture
def exported(trained_run, tmp_path):
    folder = tmp_path / 'export'
    run = read_run(trained_run)
    export(run, folder, 'greys', 'mit')
    card.write_card(run, folder, 'me/greys', 'shades of grey')
    return folder


@pytest.fixture
def command(client):
    """Runs `python -m hub` against a server."""
    def run(server, *args, **env):
        return client(
            server, 'import sys; from hub.__main__ import main; sys.exit(main(sys.argv[1:]))', *args,
            PYTHONPATH=Path(__file__).parents[2], **env,
        )
    return run


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
    run = read_run(tmp_path / 'run')
    run = run._replace(options={**run.options, 'model': 'dit_resnet20', 'model_kwargs': {}})
    export(run, tmp_path / 'out', 'greys', 'mit')
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


@pytest.mark.parametrize('words, message', [
    (['export', 'RUN', '--out', 'OUT', '--tag', 'a b/c.d', '--repo-id', 'me/x', '--data', 'd'], "got 'a b/c.d'"),
    (['export', 'RUN', '--out', 'OUT', '--tag', 't', '--repo-id', 'me my model', '--data', 'd'], "got 'me my model'"),
    (['card', 'RUN', '--out', 'OUT', '--repo-id', 'a/b/c', '--data', 'd'], "OWNER/NAME.*got 'a/b/c'"),
    (['push', 'OUT', 'mymodel'], "OWNER/NAME.*got 'mymodel'"),
    (['verify', 'bad id@v1'], "OWNER/NAME.*got 'bad id'"),
    (['registry', '@v1'], "OWNER/NAME.*got ''"),
])
def test_names_that_cannot_be_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.main(words)
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err, flags=re.DOTALL)


def test_a_folder_is_no_repository(exported):
    with pytest.raises(NoWeights, match="neither a name of timm's registry nor a repository.*local-dir:FOLDER"):
        load_pretrained_checked(str(exported))


def test_the_licence_comes_from_the_weights(trained_run, tmp_path):
    run = read_run(trained_run)
    with pytest.raises(LicenceError, match='no licence yet'):
        export(run, tmp_path / 'out', 'greys')
    tuned = run._replace(options={**run.options, 'model': 'dit_resnet50', 'pretrained': True})
    with pytest.raises(LicenceError, match='timm/resnet50.*licence apache-2.0: they stay under it; got --licence mit'):
        export(tuned, tmp_path / 'out', 'greys', 'mit')
    assert not (tmp_path / 'out').exists()


def test_a_card_keeps_what_was_written_by_hand(exported, trained_run):
    path = exported / 'README.md'
    text = path.read_text().replace('A research model', 'Seen by hand: a research model')
    text = text.replace('library_name: timm', 'library_name: timm\nlanguage: none')
    text = text.replace('tags:\n', 'tags:\n- greys\n')
    path.write_text(f'{text}\n## Thanks\n\nTo nobody.\n')
    card.write_card(read_run(trained_run), exported, 'me/other', 'shades of grey')
    new = path.read_text()
    assert 'Seen by hand: a research model' in new and '## Thanks\n\nTo nobody.' in new
    assert 'hf-hub:me/other' in new and 'hf-hub:me/greys' not in new
    data = ModelCard.load(path).data
    assert data.language == 'none' and data.tags[-1] == 'greys'
    assert data.license == 'mit' and data.model_name == 'test_dit_resnet.greys'
    card.write_card(read_run(trained_run), exported, 'me/other', 'shades of grey')
    assert path.read_text() == new


def test_a_card_with_half_a_block_is_refused(exported, trained_run):
    path = exported / 'README.md'
    path.write_text(path.read_text().replace('<!-- /generated: usage -->', ''))
    before = path.read_text()
    with pytest.raises(ValueError, match=r"the blocks \['usage'\] begin and do not end"):
        card.write_card(read_run(trained_run), exported, 'me/greys', 'shades of grey')
    assert path.read_text() == before


def test_what_was_written_inside_of_a_block_is_not_lost(exported, trained_run, capsys):
    path, run = exported / 'README.md', read_run(trained_run)
    text = path.read_text()
    edited = text.replace('## Usage\n', '## Usage\n\nBeware of greys that are none.\n')
    path.write_text(edited)
    with pytest.raises(ValueError, match=r"the blocks \['usage'\] were edited by hand.*then empty the block"):
        card.write_card(run, exported, 'me/greys', 'shades of grey')
    assert path.read_text() == edited
    # An export that ends with this refusal leaves everything as it was.
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    words = ['--tag', 'other', '--licence', 'mit', '--repo-id', 'me/greys', '--data', 'shades of grey']
    assert command_line.main(['export', str(trained_run), '--out', str(exported), *words]) == 1
    assert 'edited by hand' in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    # What the message says to do; other ends of lines are no edit.
    emptied = re.sub(r'(<!-- generated: usage.*?-->).*?(<!-- /generated: usage -->)', r'\1\2', text, flags=re.S)
    moved = emptied.replace('<!-- generated: usage', 'Beware of greys that are none.\n\n<!-- generated: usage')
    path.write_bytes(moved.replace('\n', '\r\n').encode())
    card.write_card(run, exported, 'me/greys', 'shades of grey')
    new = path.read_text()
    assert 'Beware of greys that are none.\n' in new and "hf-hub:me/greys" in new
    assert [line for line in new.splitlines() if line.startswith('## ')] == [
        line for line in text.splitlines() if line.startswith('## ')
    ]


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
    for model, origin in (('dit_resnet20', 'dit_resnet20.cifar10_q75'),
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
    ('\n---\n', '\n', 'the metadata begin with a line "---" and do not end with one'),
])
def test_metadata_that_are_no_yaml(hub, command, exported, trained_run, old, new, message):
    path = exported / 'README.md'
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=f'README.md: .*{message}'):
        card.write_card(read_run(trained_run), exported, 'me/greys', 'shades of grey')
    done = command(hub, 'push', exported, 'me/greys')
    assert done.returncode == 1 and message in done.stderr and 'Traceback' not in done.stderr


def test_a_licence_that_the_hub_does_not_know_is_told_before_anything_is_sent(hub, command, tmp_path, trained_run):
    run, folder = read_run(trained_run), tmp_path / 'export'
    export(run, folder, 'greys', 'my-own')
    card.write_card(run, folder, 'me/greys', 'shades of grey')
    for words in ((), ('--yes',)):
        done = command(hub, 'push', folder, 'me/greys', *words)
        assert done.returncode == 1 and 'must be one of [' in done.stderr and '--licence' in done.stderr
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


def test_push_publishes_one_commit_and_verifies_it(hub, command, client, exported):
    dry = command(hub, 'push', exported, 'me/greys')
    assert dry.returncode == 0, dry.stderr
    for text in ('new repository', 'Nothing was sent', '+# test_dit_resnet.greys'):
        assert text in dry.stdout
    sent = [request.path for request in hub.requests if request.method not in ('GET', 'HEAD')]
    assert hub.repos == {} and sent == ['/api/validate-yaml']

    pushed = command(hub, 'push', exported, 'me/greys', '--yes', '--tag', 'v1')
    assert pushed.returncode == 0, pushed.stdout + pushed.stderr
    assert 'me/greys@' in pushed.stdout and pushed.stdout.rstrip().endswith('verified')
    assert 'hf_me' not in pushed.stdout + pushed.stderr
    repo = hub.repos['me/greys']
    assert repo.private and set(repo.tags) == {'v1'}
    assert {path: content for path, content in hub.files('me/greys').items() if path != '.gitattributes'} == {
        name: (exported / name).read_bytes() for name in FILES
    }
    head = repo.branches['main']

    again = command(hub, 'push', exported, 'me/greys', '--yes')
    assert again.returncode == 0 and 'Nothing had changed: no commit.' in again.stdout
    assert repo.branches['main'] == head

    golden = load_file(exported / 'golden.safetensors')
    loaded = client(hub, '''
        import sys, timm, torch
        from safetensors.torch import load_file, save_file
        model = timm.create_model('hf-hub:me/greys@v1', pretrained=True).eval()
        with torch.inference_mode():
            save_file({'logits': model(load_file(sys.argv[1])['input'])}, sys.argv[2])
    ''', exported / 'golden.safetensors', exported.parent / 'logits.safetensors')
    assert loaded.returncode == 0, loaded.stderr
    ours = timm.create_model(f'local-dir:{exported}', pretrained=True).eval()
    with torch.inference_mode():
        expected = ours(golden['input'])
    logits = load_file(exported.parent / 'logits.safetensors')['logits']
    # The client has one thread, which may sum in another order.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_somebody_else_s_commit_in_between_is_a_conflict(hub, command, exported):
    assert command(hub, 'push', exported, 'me/greys', '--yes').returncode == 0
    weights = read_weights(exported / 'model.safetensors')
    (exported / 'model.safetensors').write_bytes(weights_bytes({key: value + 1 for key, value in weights.items()}))

    def commit_first(method, path):
        if method == 'POST' and '/commit/' in path and len(hub.repos['me/greys'].branches) == 1:
            hub.faults = []
            hub.put('me/greys', {'notes.txt': b'somebody else'})

    hub.faults = commit_first
    pushed = command(hub, 'push', exported, 'me/greys', '--yes')
    assert pushed.returncode == 1 and 'Somebody has committed in the meantime' in pushed.stderr
    files = hub.files('me/greys')
    assert files['notes.txt'] == b'somebody else' and files['model.safetensors'] != (
        exported / 'model.safetensors').read_bytes()


@pytest.mark.parametrize('exists, meeting, message', [
    (True, '/commit/', 'Somebody has committed in the meantime'),
    (False, '/repos/create', 'Somebody has created it in the meantime'),
])
def test_of_two_pushes_at_once_one_is_published_whole(hub, command, exported, exists, meeting, message):
    other = shutil.copytree(exported, exported.parent / 'other')
    if exists:
        assert command(hub, 'push', exported, 'me/greys', '--yes').returncode == 0
    for folder, by in ((exported, 1), (other, 2)):
        changed = {key: value + by for key, value in read_weights(folder / 'model.safetensors').items()}
        (folder / 'model.safetensors').write_bytes(weights_bytes(changed))
        (folder / 'args.yaml').write_text(f'weights: {by}')
    both = threading.Barrier(2, timeout=60)

    def meet(method, path):
        if method == 'POST' and meeting in path:
            both.wait()

    hub.faults = meet
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda folder: command(hub, 'push', folder, 'me/greys', '--yes'), (exported, other))
    winner, loser, folder = (first, second, exported) if 'commit ' in first.stdout else (second, first, other)
    # Not 'verified': these weights are not the ones of the golden outputs.
    assert 'commit ' in winner.stdout, winner.stderr
    assert loser.returncode == 1 and message in loser.stderr and 'Traceback' not in loser.stderr
    for name in ('model.safetensors', 'args.yaml'):
        assert hub.files('me/greys')[name] == (folder / name).read_bytes()


@pytest.mark.parametrize('token, message', [
    (None, 'Log in'), ('hf_other', 'may not do this'), ('hf_wrong', 'Log in'),
])
def test_refusals_say_what_to_do(hub, command, exported, token, message):
    pushed = command(hub, 'push', exported, 'me/greys', '--yes', HF_TOKEN=token)
    assert pushed.returncode == 1 and message in pushed.stderr and 'Traceback' not in pushed.stderr
    assert 'me/greys' not in hub.repos


@pytest.mark.parametrize('words', [('push', 'me/greys'), ('verify', 'me/greys'), ('registry', 'me/greys')])
def test_a_hub_that_cannot_be_reached(hub, command, exported, words):
    # Nothing listens on this port.
    nowhere = {'HF_ENDPOINT': 'http://127.0.0.1:9'}
    first, name = words
    found = command(hub, first, *([exported] if first == 'push' else []), name, **nowhere)
    assert found.returncode == 1 and 'Hub cannot be reached' in found.stderr, found.stderr
    assert 'Traceback' not in found.stderr and 'may have arrived' not in found.stderr


def test_what_is_no_export_is_not_pushed(exported):
    (exported / 'optimizer.pt').write_bytes(b'')
    (exported / 'golden.safetensors').unlink()
    with pytest.raises(NotAnExport, match=r"missing \['golden.safetensors'\], not of an export \['optimizer.pt'\]"):
        plan(exported, 'me/greys')


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def verify_after(hub, command, exported, **changed):
    """Publish the export with other files; returns what verify says."""
    files = {name: (exported / name).read_bytes() for name in FILES}
    hub.put('me/greys', {**files, **{name.replace('__', '.'): content for name, content in changed.items()}})
    return command(hub, 'verify', 'me/greys')


def test_verify_finds_a_corrupted_blob_of_the_same_size(hub, command, exported):
    hub.faults = [Fault('GET', 'model.safetensors', body=flip)]
    found = verify_after(hub, command, exported)
    assert found.returncode == 1 and 'not what the repository lists: model.safetensors' in found.stdout


@pytest.mark.parametrize('name, change, message', [
    ('model__safetensors', lambda content: content[:-4], 'no whole safetensors file'),
    ('model__safetensors', flip, 'is damaged'),
    ('golden__safetensors',
     lambda content: weights_bytes({'input': torch.ones(2, 3, 32, 32), 'logits': torch.ones(2, 3)}),
     'not the one that model.safetensors was exported with'),
    ('config__json', lambda content: content.replace(b'"num_classes": 3', b'"num_classes": 4'), 'cannot be loaded'),
    ('config__json', lambda content: content.replace(b'"mit"', b'"apache-2.0"'), "the card says licence 'mit'"),
    ('README__md', lambda content: content.replace(b'test_dit_resnet.greys', b'resnet50.a1_in1k'),
     'the card says model'),
    ('extra__pkl', lambda content: b'cos\nsystem\n', 'files that can execute code: extra.pkl'),
])
def test_verify_finds_what_does_not_fit(hub, command, exported, name, change, message):
    path = exported / name.replace('__', '.')
    found = verify_after(hub, command, exported, **{name: change(path.read_bytes() if path.exists() else b'')})
    assert found.returncode == 1 and message in found.stdout, found.stdout + found.stderr


@pytest.mark.parametrize('name, message', [
    ('me/nothing', 'no such repository'), ('me/greys@v9', 'no such revision'),
])
def test_verify_of_what_is_not_there(hub, command, exported, name, message):
    hub.put('me/greys', {'config.json': b'{}'})
    found = command(hub, 'verify', name)
    assert found.returncode == 1 and message in found.stderr and 'Traceback' not in found.stderr


def test_the_registry_s_entry_loads_the_published_weights(hub, command, client, exported):
    files = {name: (exported / name).read_bytes() for name in FILES}
    commit = hub.put('me/greys', files)
    printed = command(hub, 'registry', 'me/greys')
    assert printed.returncode == 0, printed.stderr
    loaded = client(hub, '''
        import sys, timm
        from timm.models import generate_default_cfgs, register_model
        entry = eval('{' + sys.argv[1] + '}', {'_cfg': dict})
        (name, cfg), = entry.items()
        model = timm.create_model(name.split('.')[0], pretrained=True, pretrained_cfg=cfg)
        print(name, cfg['hf_hub_id'], model.num_classes, model.pretrained_cfg['license'])
    ''', printed.stdout)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == ['test_dit_resnet.greys', f'me/greys@{commit}', '3', 'mit']
