"""`python -m hub push`, `verify` and `registry`, with the real client against a Hub in memory."""

import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from fake_hub.server import Fault
from safetensors.torch import load_file

from dit_timm import load_pretrained_checked
from dit_timm.pretrained.checked import NoWeightsError
from dit_timm.pretrained.weight_files import read_weights, weights_bytes
from hub import __main__ as command_line
from hub.push import NotAnExportError, plan

pytestmark = pytest.mark.slow

FILES = ['README.md', 'args.yaml', 'config.json', 'golden.safetensors', 'model.safetensors']


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
    with pytest.raises(NoWeightsError, match="neither a name of timm's registry nor a repository.*local-dir:FOLDER"):
        load_pretrained_checked(str(exported))


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


def test_notes_are_published_in_the_card(hub, command, exported, trained_run):
    (exported / 'NOTES.md').write_text('Beware of greys that are none.')
    stale = command(hub, 'push', exported, 'me/greys', '--yes')
    assert stale.returncode == 1 and hub.repos == {}
    assert 'README.md does not have the text of NOTES.md: make it again, with `python -m hub card`' in stale.stderr
    words = ['--out', exported, '--repo-id', 'me/greys', '--data', 'shades of grey']
    assert command(hub, 'card', trained_run, *words).returncode == 0
    pushed = command(hub, 'push', exported, 'me/greys', '--yes')
    assert pushed.returncode == 0 and pushed.stdout.rstrip().endswith('verified'), pushed.stdout + pushed.stderr
    files = hub.files('me/greys')
    assert files.keys() - {'.gitattributes'} == set(FILES) and b'Beware of greys' in files['README.md']


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
    match = r"missing \['golden.safetensors'\], not of an export \['optimizer.pt'\]"
    with pytest.raises(NotAnExportError, match=match):
        plan(exported, 'me/greys')


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def test_verify_finds_a_corrupted_blob_of_the_same_size(published, command):
    published.faults = [Fault('GET', 'model.safetensors', body=flip)]
    found = command(published, 'verify', 'me/greys')
    assert found.returncode == 1 and 'not what the repository lists: model.safetensors' in found.stdout


@pytest.mark.parametrize('name, change, message', [
    ('model.safetensors', lambda content: content[:-4], 'no whole safetensors file'),
    ('model.safetensors', flip, 'is damaged'),
    ('golden.safetensors',
     lambda content: weights_bytes({'input': torch.ones(2, 3, 32, 32), 'logits': torch.ones(2, 3)}),
     'not the one that model.safetensors was exported with'),
    ('config.json', lambda content: content.replace(b'"num_classes": 3', b'"num_classes": 4'), 'cannot be loaded'),
    ('config.json', lambda content: content.replace(b'"mit"', b'"apache-2.0"'), "the card says licence 'mit'"),
    ('README.md', lambda content: content.replace(b'test_dit_resnet.greys', b'resnet50.a1_in1k'),
     'the card says model'),
    ('README.md', lambda content: content.replace(b'license: mit', b'license: [mit'), 'the card cannot be read'),
    ('extra.pkl', lambda content: b'cos\nsystem\n', 'files that can execute code: extra.pkl'),
])
def test_verify_finds_what_does_not_fit(published, command, name, change, message):
    published.put('me/greys', {name: change(published.files('me/greys').get(name, b''))})
    found = command(published, 'verify', 'me/greys')
    assert found.returncode == 1 and message in found.stdout, found.stdout + found.stderr


@pytest.mark.parametrize('name, message', [
    ('me/nothing', 'no such repository'), ('me/greys@v9', 'no such revision'),
])
def test_verify_of_what_is_not_there(hub, command, exported, name, message):
    hub.put('me/greys', {'config.json': b'{}'})
    found = command(hub, 'verify', name)
    assert found.returncode == 1 and message in found.stderr and 'Traceback' not in found.stderr


def test_the_registry_s_entry_loads_the_published_weights(published, command, client):
    printed = command(published, 'registry', 'me/greys')
    assert printed.returncode == 0, printed.stderr
    loaded = client(published, '''
        import sys, timm
        from timm.models import generate_default_cfgs, register_model
        entry = eval('{' + sys.argv[1] + '}')
        (name, cfg), = entry.items()
        model = timm.create_model(name.split('.')[0], pretrained=True, pretrained_cfg=cfg)
        print(name, cfg['hf_hub_id'], model.num_classes, model.pretrained_cfg['license'])
    ''', printed.stdout)
    assert loaded.returncode == 0, loaded.stderr
    commit = published.repos['me/greys'].branches['main']
    assert loaded.stdout.split() == ['test_dit_resnet.greys', f'me/greys@{commit}', '3', 'mit']
