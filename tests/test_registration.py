"""The package makes itself known to timm, costs nothing where timm is not used, and never breaks timm or torch.

What an import does can only be seen in a fresh interpreter: each test runs a script in one, which prints its findings
as JSON. Scripts run outside the checkout, so that it is the installed package that they meet.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ENTRY_POINTS = {point.name: point for point in importlib.metadata.entry_points(group='torch.backends')}
needs_entry_point = pytest.mark.skipif(
    'dit_timm' not in _ENTRY_POINTS,
    reason='dit_timm is not installed (no torch.backends entry point): nothing imports it for `import timm`',
)

# Everything that decides what `import` and the Hub client do. Taken out of the caller's environment.
_DECISIVE = ('DIT_TIMM_', 'TORCH_DEVICE_BACKEND_AUTOLOAD', 'HF_', 'HUGGING', 'PYTHONWARNINGS')

TIMM = tuple(map(int, importlib.metadata.version('timm').split('.')[:3]))

# All of timm's entrypoints, deprecated names included, which the public list_models() leaves out.
_REGISTRY = '''
import json, sys
def registry():
    entrypoints = sys.modules['timm.models._registry']._model_entrypoints
    return {name: f'{fn.__module__}:{fn.__qualname__}' for name, fn in entrypoints.items()}
def loaded(*names):
    return [name for name in names if name in sys.modules]
'''

_IMPORTS = '''
steps = {}
for name in sys.argv[1:]:
    __import__(name)
    steps[name] = loaded('torch', 'timm', 'dit_timm', 'dit_timm.models')
import timm
print(json.dumps(dict(steps=steps, registry=registry())))
'''


def run(tmp_path: Path, script: str, *args: str, **env: str):
    """Run a script in a fresh interpreter where every warning is an error; return the JSON that it prints.

    The script must end well and write nothing to stderr. Arguments reach it in `sys.argv`.
    """
    clean = {
        key: value for key, value in os.environ.items()
        if not key.startswith(_DECISIVE) and not key.lower().endswith('_proxy')
    }
    if not _ENTRY_POINTS.get('dit_timm'):
        package = importlib.util.find_spec('dit_timm').origin
        clean['PYTHONPATH'] = str(Path(package).parents[1])
    result = subprocess.run(
        # torch 2.5 leaves a folder to be removed at the exit.
        [sys.executable, '-W', 'error', '-W', 'ignore::ResourceWarning', '-c', _REGISTRY + script, *args],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={
            **clean, 'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'hf_home'), 'HF_HUB_DISABLE_TELEMETRY': '1',
            'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1', **env,
        },
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''
    return json.loads(result.stdout)


@pytest.fixture(scope='module')
def by_hand(tmp_path_factory):
    """timm's registry as it is without us, and after one and two calls of register()."""
    return run(tmp_path_factory.mktemp('by_hand'), '''
import timm
import dit_timm
before, loaded_before = registry(), loaded('dit_timm.models')
dit_timm.register()
once, tags = registry(), timm.list_pretrained()
dit_timm.register()
print(json.dumps(dict(
    before=before, loaded_before=loaded_before, once=once, twice=registry(), same_tags=tags == timm.list_pretrained(),
)))
''', DIT_TIMM_AUTOLOAD='0')


def test_switched_off_until_asked(by_hand):
    assert not any('dit_timm' in entrypoint for entrypoint in by_hand['before'].values())
    assert by_hand['loaded_before'] == []
    assert 'test_dit_resnet' in by_hand['once']


def test_second_register_changes_nothing(by_hand):
    assert by_hand['twice'] == by_hand['once'] and by_hand['same_tags']


def test_nothing_of_timm_is_overwritten(by_hand):
    before, after = by_hand['before'], by_hand['once']
    assert len(before) > 1000
    assert {name: after.get(name) for name in before} == before
    files = {entrypoint.split(':')[0].split('.')[-1] for entrypoint in before.values()}
    for name in set(after) - set(before):
        assert re.match(r'(test_)?dit_', name)
        assert re.fullmatch(rf'dit_timm\.models\.dit_\w+:{name}', after[name])
        # timm files models under the last part of their module's name: ours must not be one of timm's.
        assert after[name].split(':')[0].split('.')[-1] not in files


@needs_entry_point
def test_plain_import_of_timm(tmp_path, by_hand):
    found = run(tmp_path, '''
import timm
model = timm.create_model('test_dit_resnet')
first = registry()
import dit_timm
print(json.dumps(dict(
    registry=first, unchanged=registry() == first, listed=timm.list_models('*dit_*'),
    is_model=[timm.is_model('dit_resnet50'), timm.is_model('dit_convnext_tiny'), timm.is_model('dit_resnet51')],
    model=[type(model).__module__, type(model).__name__, 'layer2.0.conv2.quadratic.weight' in model.state_dict()],
)))
''')
    assert found['registry'] == by_hand['once'] and found['unchanged']
    assert {'test_dit_resnet', 'test_dit_convnext', 'dit_resnet20', 'dit_convnext_atto'} <= set(found['listed'])
    assert found['is_model'] == [True, True, False]
    assert found['model'] == ['dit_timm.models.dit_resnet', 'DitResNet', True]


@needs_entry_point
def test_torch_first(tmp_path, by_hand):
    found = run(tmp_path, _IMPORTS, 'torch')
    assert found['steps'] == {'torch': ['torch', 'dit_timm']}
    assert found['registry'] == by_hand['once']


# With the entry point working, torch loads the package before an explicit import can: these orders need it off.
@pytest.mark.parametrize('order, steps', [
    ('timm dit_timm', [['torch', 'timm'], ['torch', 'timm', 'dit_timm', 'dit_timm.models']]),
    ('dit_timm torch', [['dit_timm'], ['torch', 'dit_timm']]),
])
def test_explicit_import_without_entry_points(order, steps, tmp_path, by_hand):
    found = run(tmp_path, _IMPORTS, *order.split(), TORCH_DEVICE_BACKEND_AUTOLOAD='0')
    assert list(found['steps'].values()) == steps
    assert found['registry'] == by_hand['once']


@pytest.mark.parametrize('autoload', ['0', '1'])
def test_import_alone_is_light(autoload, tmp_path):
    found = run(tmp_path, '''
before = set(sys.modules)
import dit_timm
added = {name: name.split('.')[0] for name in set(sys.modules) - before}
stdlib = sorted(name for name, top in added.items() if top in sys.stdlib_module_names)
print(json.dumps([sorted(set(added) - set(stdlib)), dir(dit_timm)]))
''', DIT_TIMM_AUTOLOAD=autoload)
    modules, names = found
    assert {name for name in modules if not re.match(r'wrapt(\.|$)', name)} == {
        'dit_timm', 'dit_timm._autoload', 'dit_timm.version',
    }
    # Names that are resolved on first use are listed before it.
    assert {'DitConv2d', 'ChannelQuadratic2d', 'add_dendrites', 'quadratic_form', 'register'} <= set(names)


def test_public_names_before_timm(tmp_path, by_hand):
    """Our layers import timm, whose import registers the models, which need the layers: that must come out right."""
    found = run(tmp_path, '''
import dit_timm
values = {name: getattr(dit_timm, name) for name in dit_timm.__all__}
try:
    dit_timm.no_such_name
except AttributeError as error:
    unknown = str(error)
import timm
from dit_timm import layers, ops, version
print(json.dumps(dict(
    registry=registry(), unknown=unknown, not_in_dir=sorted(set(values) - set(dir(dit_timm))),
    same=[values[name] is getattr(layers, name) for name in ('ChannelQuadratic2d', 'DitConv2d', 'add_dendrites')]
    + [values[name] is getattr(ops, name) for name in ('available_backends', 'quadratic_form')]
    + [values['__version__'] == version.__version__, callable(values['register'])],
)))
''')
    assert found['registry'] == by_hand['once']
    assert found['unknown'] == "module 'dit_timm' has no attribute 'no_such_name'"
    assert found['not_in_dir'] == [] and all(found['same'])


def test_timm_missing(tmp_path):
    raised = run(tmp_path, '''
class NoTimm:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split('.')[0] == 'timm':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, NoTimm)
import torch
import dit_timm
try:
    dit_timm.register()
except ImportError as error:
    print(json.dumps(str(error)))
''')
    assert 'timm' in raised


_FAULTS = {
    # A timm release that lacks a name, taken away once timm itself no longer needs it. wrapt calls in this order.
    'incompatible timm': '''
import wrapt
wrapt.register_post_import_hook(lambda timm_models: delattr(timm_models, 'PretrainedCfg'), 'timm.models')
''',
    # Something else than an ImportError, as early as the import of our models.
    'broken models': '''
class Broken:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == 'dit_timm.models':
            raise ValueError('a fault')
sys.meta_path.insert(0, Broken)
''',
}


@pytest.mark.parametrize('fault, expected', [
    ('incompatible timm', ['ImportError', 'PretrainedCfg']), ('broken models', ['ValueError', 'a fault']),
])
def test_failure_is_one_warning_and_timm_works(fault, expected, tmp_path, by_hand):
    found = run(tmp_path, _FAULTS[fault] + '''
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import dit_timm
    import timm
    import timm.models
model = timm.create_model('test_resnet')
after = registry()
try:
    dit_timm.register()
    raised = None
except Exception as error:
    raised = [type(error).__name__, str(error)]
ours_in_warnings = [[w.category.__name__, str(w.message)] for w in caught if 'dit_timm' in str(w.message)]
print(json.dumps(dict(warned=ours_in_warnings, after=after, raised=raised)))
''')
    (category, message), = found['warned']
    assert category == 'RuntimeWarning'
    for words in [*expected, 'dit_timm.register()', 'DIT_TIMM_AUTOLOAD=0']:
        assert words in message
    assert found['after'] == by_hand['before']
    assert found['raised'][0] == expected[0] and expected[1] in found['raised'][1]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder: a Dit model in net/, a ResNet-18's weights in base/, and what both answer in expected.safetensors."""
    folder = tmp_path_factory.mktemp('saved')
    matters = run(folder, '''
import dit_timm
import safetensors.torch
import timm
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(2, 3, 64, 64)
answers = {'x': x}
for name, target in [('test_dit_resnet', 'net'), ('resnet18', 'base')]:
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():  # also what starts at zero or one: quadratic terms, norms, their statistics
                tensor.copy_(tensor + 0.05 * torch.rand_like(tensor))
        answers[target] = model(x)
        timm.models._hub.save_for_hf(model, target, safe_serialization=True)
    if target == 'net':
        with torch.no_grad():
            model.layer2[0].conv2.quadratic.weight.zero_()
            matters = not torch.equal(model(x), answers['net'])
safetensors.torch.save_file(answers, 'expected.safetensors')
print(json.dumps(matters))
''')
    assert matters, 'the quadratic term must show in the logits, or their equality says nothing about it'
    (folder / 'net' / 'pytorch_model.bin').unlink(missing_ok=True)
    return folder


_LOAD = '''
import timm
import safetensors.torch, torch
torch.set_num_threads(1)
expected = safetensors.torch.load_file(sys.argv[1])
def answer(name):
    with torch.no_grad():
        return timm.create_model(name, pretrained=True).eval()(expected['x'])
def error(name):
    try:
        timm.create_model(name, pretrained=True)
    except OSError as error:
        return str(error)
'''


def explains(message: str, model: str, repository: str) -> bool:
    """Whether an error names the model, the repository, and both ways out: a file of one's own, random weights."""
    remedies = ('pretrained_cfg_overlay=dict(file=', 'pretrained=False')
    return all(words in message for words in (model, repository, *remedies))


@needs_entry_point
@pytest.mark.skipif(TIMM < (1, 0, 26), reason='timm loads safetensors from folders from 1.0.26 on')
def test_local_dir_and_offline(tmp_path, saved):
    equal, message = run(tmp_path, _LOAD + '''
print(json.dumps([torch.equal(answer('local-dir:' + sys.argv[2]), expected['net']), error('dit_resnet18')]))
''', str(saved / 'expected.safetensors'), str(saved / 'net'))
    assert equal
    assert explains(message, 'dit_resnet18.a1_in1k_init', 'timm/resnet18.a1_in1k')


@needs_entry_point
@pytest.mark.skipif(TIMM < (1, 0, 29), reason='timm before 1.0.29 looks for a pickle where safetensors are missing')
def test_hub(hub, tmp_path, saved):
    """A model of one's own, the weights of a base network, and a base network that has a pickle only."""
    for name, folder in ('someone/net', 'net'), ('timm/resnet18.a1_in1k', 'base'):
        hub.put(name, {path.name: path.read_bytes() for path in (saved / folder).iterdir()})
    hub.put('timm/resnet34.a1_in1k', {'pytorch_model.bin': b'never asked for'})
    found = run(tmp_path, _LOAD + '''
import logging
records = []
handler = logging.Handler()
handler.emit = lambda record: records.append([record.levelname, record.getMessage()])
logger = logging.getLogger('dit_timm')
logger.addHandler(handler)
logger.setLevel(logging.DEBUG)
net = torch.equal(answer('hf-hub:someone/net'), expected['net'])
net_records = list(records)
base = torch.equal(answer('dit_resnet18'), expected['base'])
print(json.dumps(dict(net=net, net_records=net_records, base=base, records=records, error=error('dit_resnet34'))))
''', str(saved / 'expected.safetensors'), HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE='0')
    assert found['net'] and found['net_records'] == []
    assert found['base']
    (level, message), = found['records']
    assert level == 'INFO'
    for words in ('dit_resnet18.a1_in1k_init', 'timm/resnet18.a1_in1k', 'layer2.0.conv2.quadratic.weight'):
        assert words in message
    assert explains(found['error'], 'dit_resnet34.a1_in1k_init', 'timm/resnet34.a1_in1k')
    # Nothing that would be unpickled: neither where safetensors are there nor where they are missing.
    paths = [request.path for request in hub.requests]
    assert {path.split('/')[-1] for path in paths} == {'config.json', 'model.safetensors'}
    assert {path.split('/resolve/')[0].lstrip('/') for path in paths} == hub.repos.keys()
