"""`dit_timm.load_pretrained_checked`, and timm's own loading, from a Hub in memory with the real client."""

import hashlib
import random

import pytest
import timm
import torch
from fake_hub.server import Fault
from safetensors.torch import load_file, save

from dit_timm.pretrained import checked
from dit_timm.pretrained.weight_files import weights_bytes

pytestmark = pytest.mark.slow

LOAD = '''
    import sys, torch
    from safetensors.torch import load_file
    import dit_timm
    try:
        model = dit_timm.load_pretrained_checked(sys.argv[1], **eval(sys.argv[3] if len(sys.argv) > 3 else '{}'))
    except Exception as error:  # Whatever it is, the test sees its name.
        print(type(error).__name__, error)
        sys.exit(3)
    golden = load_file(sys.argv[2])
    with torch.inference_mode():
        difference = (model(golden['input']) - golden['logits']).abs().max().item()
    print('loaded', difference, model.training)
'''


@pytest.fixture
def load(client, exported):
    def run(server, name, *options, **env):
        return client(server, LOAD, name, exported / 'golden.safetensors', *options, **env)
    return run


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize('name', ['me/greys', 'hf-hub:me/greys@v1'])
def test_loads_what_was_published_and_then_without_a_request(published, load, name):
    loaded = load(published, name)
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr
    word, difference, training = loaded.stdout.split()
    assert word == 'loaded' and float(difference) < 1e-4 and training == 'False'
    published.requests.clear()
    again = load(published, name, HF_HUB_OFFLINE='1')
    assert again.stdout.startswith('loaded') and published.requests == []


def test_a_newer_commit_is_another_revision(published, load, exported):
    other = weights_bytes({'conv': torch.zeros(1)})
    published.put('me/greys', {'model.safetensors': other})
    assert load(published, 'me/greys', "{'revision': 'v1'}").stdout.startswith('loaded')
    newest = load(published, 'me/greys')
    assert newest.returncode == 3 and newest.stdout.startswith('DamagedFileError me/greys')
    assert 'does not fit the network' in newest.stdout


def test_altered_bytes_are_refused_at_the_download_and_in_the_cache(published, load, tmp_path):
    published.faults = [Fault('GET', 'model.safetensors', body=flip)]
    refused = load(published, 'me/greys', HF_HOME=tmp_path / 'other')
    assert refused.returncode == 3
    assert 'DamagedFileError me/greys' in refused.stdout and 'it is damaged' in refused.stdout
    published.faults = []
    assert load(published, 'me/greys').returncode == 0
    blob, = (path for path in (tmp_path / 'home').rglob('blobs/*') if len(path.name) == 64)
    blob.write_bytes(flip(blob.read_bytes()))
    refused = load(published, 'me/greys', HF_HUB_OFFLINE='1')
    assert refused.returncode == 3 and str(blob) in refused.stdout


def test_the_sum_that_is_asked_for(published, load, exported):
    right = hashlib.sha256((exported / 'model.safetensors').read_bytes()).hexdigest()
    assert load(published, 'me/greys', {'sha256': right}).stdout.startswith('loaded')
    refused = load(published, 'me/greys', {'sha256': '0' * 64})
    assert refused.returncode == 3 and f'has the SHA-256 {right}, not {"0" * 64}' in refused.stdout
    with pytest.raises(ValueError, match='64 hexadecimal digits'):
        checked.load_pretrained_checked('me/greys', sha256='abc')


def change(hub, **values):
    for name, value in values.items():
        setattr(hub.repos['me/greys'], name, value)


@pytest.mark.parametrize('prepare, name, env, message', [
    (lambda hub: change(hub, gated='auto'), 'me/greys', {'HF_TOKEN': 'hf_other'}, 'is gated: ask for access'),
    (lambda hub: change(hub, private=True), 'me/greys', {'HF_TOKEN': 'hf_other'}, 'or it is private'),
    (lambda hub: None, 'me/nothing', {}, 'There is no such repository'),
    (lambda hub: None, 'me/greys@v9', {}, 'There is no such revision'),
    (lambda hub: hub.put('me/pickle', {'config.json': b'{"architecture": "resnet18"}'}), 'me/pickle', {},
     'The repository has no model.safetensors'),
    (lambda hub: hub.put('me/new', {'config.json': b'{"architecture": "dit_future"}'}), 'me/new', {},
     "is a 'dit_future', which neither timm"),
    (lambda hub: hub.put('me/text', {'config.json': b'[]'}), 'me/text', {}, 'config.json is not one of timm'),
    (lambda hub: setattr(hub, 'faults', [Fault('', 'model.safetensors', cut=1000)]), 'me/greys', {},
     'model.safetensors'),
    (lambda hub: setattr(hub, 'faults', [Fault('GET', 'model.safetensors', status=500)]), 'me/greys', {},
     'try again later'),
    (lambda hub: None, 'me/greys', {'HF_HUB_OFFLINE': '1'}, 'is not in the cache, and the Hub cannot be reached'),
])
def test_what_cannot_be_had_is_named_with_a_remedy(published, load, prepare, name, env, message):
    prepare(published)
    refused = load(published, name, **env)
    assert refused.returncode == 3, refused.stdout + refused.stderr
    assert refused.stdout.startswith(('NoWeightsError me/', 'DamagedFileError me/')) and message in refused.stdout


def test_another_shape_is_no_partly_loaded_model(published, load, exported):
    other = timm.create_model('test_dit_resnet', num_classes=7).state_dict()
    published.put('me/greys', {'model.safetensors': save(other)})
    refused = load(published, 'me/greys')
    assert refused.returncode == 3
    assert 'DamagedFileError' in refused.stdout and 'does not fit the network' in refused.stdout


def test_fifty_random_faults_and_no_wrong_load(published, client, exported):
    generator = random.Random(0)
    kinds = [
        lambda: Fault(status=generator.choice([401, 403, 404, 429, 500, 503])),
        lambda: Fault(cut=generator.randrange(2000)),
        lambda: Fault(delay=0.05),
        lambda: Fault(body=flip),
        lambda: Fault(body=lambda content: content[:len(content) // 2] + bytes(len(content) - len(content) // 2)),
    ]

    def faults(method, path):
        # About every third load meets none.
        return generator.choice(kinds)() if generator.random() < 0.25 else None

    published.faults = faults
    loaded = client(published, '''
        import sys, tempfile, time, torch
        time.sleep = lambda seconds: None
        from safetensors.torch import load_file
        import dit_timm
        from dit_timm.pretrained.checked import NoWeightsError
        from dit_timm.errors import DamagedFileError
        golden = load_file(sys.argv[1])
        for _ in range(50):
            with tempfile.TemporaryDirectory() as cache:
                try:
                    model = dit_timm.load_pretrained_checked('me/greys', cache_dir=cache)
                except (NoWeightsError, DamagedFileError) as error:
                    print(type(error).__name__)
                    continue
            with torch.inference_mode():
                close = (model(golden['input']) - golden['logits']).abs().max().item() < 1e-4
            print('right' if close else 'WRONG')
    ''', exported / 'golden.safetensors')
    assert loaded.returncode == 0, loaded.stderr
    outcomes = loaded.stdout.split()
    assert len(outcomes) == 50 and set(outcomes) == {'right', 'NoWeightsError', 'DamagedFileError'}


def test_init_tags_come_from_the_base_s_repository(hub, client, tmp_path):
    torch.manual_seed(0)
    base = timm.create_model('resnet18').eval()
    cfg = timm.get_pretrained_cfg('resnet18')
    hub.put(cfg.hf_hub_id, {'model.safetensors': save(base.state_dict())})
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = base(images)
    loaded = client(hub, '''
        import sys, dit_timm, timm, torch
        from safetensors.torch import save_file
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        plain = timm.create_model('dit_resnet18', pretrained=True).eval()
        with torch.inference_mode():
            save_file({'plain': plain(images), 'checked': dit_timm.load_pretrained_checked('dit_resnet18')(images)},
                      sys.argv[1])
    ''', tmp_path / 'logits.safetensors')
    assert loaded.returncode == 0, loaded.stderr
    for logits in load_file(tmp_path / 'logits.safetensors').values():
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_name_without_weights():
    with pytest.raises(checked.NoWeightsError, match='dit_resnet110 has no pretrained weights'):
        checked.load_pretrained_checked('dit_resnet110')
    with pytest.raises(ValueError, match='revision is of a repository'):
        checked.load_pretrained_checked('dit_resnet50', revision='v1')
    with pytest.raises(ValueError, match='Name the revision once'):
        checked.load_pretrained_checked('me/x@v1', revision='v2')
