"""TorchScript, fx, torch.compile, torch.export and ONNX of whole networks, with quadratic terms that are not zero."""

import io

import pytest
import timm
import torch
from torch import nn

from dit_timm.layers import ChannelQuadratic2d

pytestmark = pytest.mark.filterwarnings('ignore')

SMALL = ['test_dit_convnext', 'test_dit_resnet', 'dit_resnet20']
each_small = pytest.mark.parametrize('name', SMALL)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def create(name, **kwargs):
    model = timm.create_model(name, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, ChannelQuadratic2d):
            nn.init.normal_(module.weight, std=0.3 / module.in_chs)
    return model


def images(name, batch=2):
    return torch.randn(batch, 3, 32, 32) if name == 'dit_resnet20' else torch.randn(batch, 3, 64, 96)


@each_small
def test_torchscript(name):
    model = create(name)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    restored = torch.jit.load(buffer)
    assert 'dit_timm::' not in str(restored.inlined_graph), 'the file must run where dit_timm is not installed'
    x = images(name)
    torch.testing.assert_close(restored(x), model(x), rtol=1e-3, atol=1e-4)


@each_small
def test_scriptable_flag_and_trace(name):
    model = create(name, scriptable=True)
    x = images(name)
    traced = torch.jit.trace(model, x)
    other = images(name, batch=3)
    torch.testing.assert_close(traced(other), model(other), rtol=1e-3, atol=1e-4)


@each_small
def test_fx(name):
    model = create(name)
    traced = torch.fx.symbolic_trace(model)
    for batch in (1, 3):
        x = images(name, batch)
        torch.testing.assert_close(traced(x), model(x))


@each_small
def test_fx_features_of_timm(name):
    # timm's own feature extractor for models without a plain sequence of stages.
    from timm.models import create_feature_extractor
    model = create(name)
    node = 'stages.0' if 'convnext' in name else 'layer2'
    features = create_feature_extractor(model, {node: 'out'})(images(name))['out']
    assert features.isfinite().all()


@each_small
def test_compile(name):
    model = create(name).train()
    for module in model.modules():
        # Statistics of a batch would differ between the two runs that are compared.
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    x = images(name)
    parameters = list(model.parameters())
    got = torch.autograd.grad(compiled(x).square().mean(), parameters)
    want = torch.autograd.grad(model(x).square().mean(), parameters)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason='torch says that it exports from 2.7 on')
@each_small
def test_export(name):
    model = create(name)
    program = torch.export.export(model, (images(name),), dynamic_shapes=({0: torch.export.Dim('batch')},))
    assert not any('dit_timm' in str(node.target) for node in program.graph.nodes if node.op == 'call_function')
    x = images(name, 5)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-3, atol=1e-4)


@each_small
def test_onnx(name, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime', reason='the extra "onnx" is not installed')
    pytest.importorskip('onnxscript', reason='the extra "onnx" is not installed')
    model = create(name, exportable=True)
    path = str(tmp_path / 'model.onnx')
    torch.onnx.export(
        model, (images(name),), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim('batch')},), verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    x = images(name, 3)
    output, = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(x).detach(), rtol=1e-3, atol=1e-4)
