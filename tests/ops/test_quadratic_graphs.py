"""Graphs: torch.compile, torch.export, TorchScript, ONNX, and torch's own checks of the operators."""

import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import EagerAndRecordGraphs
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dit_timm import available_backends, quadratic_form
from dit_timm.ops.triton import binding as triton_backend

# The backends that are operators of torch.
BACKENDS = available_backends('cpu')
OPERATORS = [name for name in BACKENDS if name != 'reference']


def formula(x, weight):
    return torch.einsum('...i,oij,...j->...o', x, weight, x)


class Quadratic(nn.Module):

    def __init__(self, out_chs, in_chs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_chs, in_chs, in_chs))

    def forward(self, x):
        return quadratic_form(x, self.weight)


def scriptable(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return quadratic_form(x, weight).relu()


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize('backend', [None, *available_backends('cpu')])
def test_compile(backend):
    compiled = torch.compile(
        lambda x, weight: quadratic_form(x, weight, backend=backend), fullgraph=True, backend='aot_eager',
    )
    x, weight = torch.randn(2, 3, 5, requires_grad=True), torch.randn(4, 5, 5, requires_grad=True)
    output, expected = compiled(x, weight), formula(x, weight)
    torch.testing.assert_close(output, expected)
    grad = torch.randn_like(output)
    for got, want in zip(
            torch.autograd.grad(output, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad)):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('backend', OPERATORS)
def test_a_compiled_graph_has_the_operator(backend):
    recorder = EagerAndRecordGraphs()
    form = torch.compile(lambda x, weight: quadratic_form(x, weight, backend=backend), fullgraph=True, backend=recorder)
    form(torch.randn(6, 5), torch.randn(3, 5, 5))
    assert operators(backend)[0] in {node.target for node in recorder.graphs[0].graph.nodes}


def test_compile_dynamic_shapes():
    recorder = EagerAndRecordGraphs()
    compiled = torch.compile(quadratic_form, fullgraph=True, backend=recorder, dynamic=True)
    weight = torch.randn(4, 5, 5)
    for shape in ((2, 3, 5), (3, 7, 5), (9, 2, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x, weight), formula(x, weight))
    assert len(recorder.graphs) == 1


def test_compile_dynamic_shapes_with_gradients():
    compiled = torch.compile(quadratic_form, fullgraph=True, backend='aot_eager', dynamic=True)
    weight = torch.randn(4, 5, 5, requires_grad=True)
    for pixels in (3, 8):
        x = torch.randn(pixels, 5, requires_grad=True)
        got = torch.autograd.grad(compiled(x, weight).square().sum(), (x, weight))
        want = torch.autograd.grad(formula(x, weight).square().sum(), (x, weight))
        torch.testing.assert_close(got, want)


def test_compile_may_ask_a_gpu_for_its_capability():
    # The choice of a backend must leave no break in the graph.
    def ask(x):
        return x + len(triton_backend.why_unusable(torch.device('cuda', 0), torch.float32) or '')

    compiled = torch.compile(ask, fullgraph=True, backend='eager')
    x = torch.zeros(1)
    assert compiled(x) == ask(x)


def test_compile_under_autocast():
    compiled = torch.compile(quadratic_form, fullgraph=True, backend='aot_eager')
    x, weight = torch.randn(6, 5), torch.randn(4, 5, 5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = compiled(x, weight)
    assert output.dtype == torch.bfloat16
    expected = formula(x.bfloat16().float(), weight.bfloat16().float())
    torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason='torch says that it exports from 2.7 on')
def test_export_with_dynamic_batch_holds_no_operator_of_ours():
    module = Quadratic(4, 19).eval()
    program = torch.export.export(
        module, (torch.randn(2, 3, 19),), dynamic_shapes=({0: torch.export.Dim('batch')},),
    )
    assert 'dit_timm::' not in str([node.target for node in program.graph.nodes])
    assert not any('dit_timm.' in str(node.target) for node in program.graph.nodes)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 19)
        torch.testing.assert_close(program.module()(x), formula(x, module.weight), rtol=1e-4, atol=1e-4)


def reloaded(module):
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def test_script_of_a_users_function():
    scripted = reloaded(torch.jit.script(scriptable))
    weight = torch.randn(4, 9, 9, requires_grad=True)
    assert 'dit_timm::' not in str(scripted.inlined_graph)
    for shape in ((9,), (5, 9), (2, 3, 9), (0, 9)):
        x = torch.randn(shape, requires_grad=True)
        output, expected = scripted(x, weight), formula(x, weight).relu()
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        got = torch.autograd.grad(output.sum(), (x, weight))
        torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), (x, weight)), rtol=1e-4, atol=1e-4)


def test_script_in_half_precision_does_not_overflow():
    scripted = torch.jit.script(scriptable)
    x, weight = torch.full((3, 4), 1e3).half(), torch.full((2, 4, 4), 1e-3).half()
    torch.testing.assert_close(scripted(x, weight).double(), formula(x.double(), weight.double()), rtol=1e-3, atol=0)


def test_trace():
    module = Quadratic(4, 9)
    traced = reloaded(torch.jit.trace(module, torch.randn(5, 9)))
    assert 'dit_timm::' not in str(traced.inlined_graph)
    for pixels in (5, 11):
        x = torch.randn(pixels, 9)
        torch.testing.assert_close(traced(x), formula(x, module.weight), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings('ignore')
def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime', reason='the extra "onnx" is not installed')
    pytest.importorskip('onnxscript', reason='the extra "onnx" is not installed')
    module = Quadratic(4, 19).eval()
    path = str(tmp_path / 'quadratic.onnx')
    torch.onnx.export(
        module, (torch.randn(2, 3, 19),), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim('batch')},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for batch in (1, 5):
        x = torch.randn(batch, 3, 19)
        output, = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), formula(x, module.weight.detach()), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('opset', [11, 12, 13, 17])
def test_onnx_through_torchscript(tmp_path, opset):
    onnxruntime = pytest.importorskip('onnxruntime', reason='the extra "onnx" is not installed')
    module = Quadratic(4, 19).eval()
    path = str(tmp_path / 'quadratic.onnx')
    torch.onnx.export(
        module, (torch.randn(2, 3, 19),), path, dynamo=False, opset_version=opset, input_names=['x'],
        dynamic_axes={'x': {0: 'batch'}},
    )
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for batch in (1, 5):
        x = torch.randn(batch, 3, 19)
        output, = session.run(None, {'x': x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), formula(x, module.weight.detach()), rtol=1e-4, atol=1e-4)


def operators(backend):
    name = f'quadratic_{backend}'
    return [getattr(torch.ops.dit_timm, part).default for part in (name, f'{name}_grad_x', f'{name}_grad_weight')]


@pytest.mark.parametrize('backend', OPERATORS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('pixels', [0, 6])
def test_opcheck_forward(backend, dtype, pixels):
    forward, _, _ = operators(backend)
    x = torch.randn(pixels, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(3, 5, 5, dtype=dtype, requires_grad=True)
    # torch before 2.6 chooses the tolerances.
    tolerances = {'rtol': 1e-2, 'atol': 1e-2} if torch.__version__ >= (2, 6) else {}
    torch.library.opcheck(forward, (x, weight), **tolerances)


@pytest.mark.parametrize('backend', OPERATORS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('pixels', [0, 6])
def test_opcheck_gradients(backend, dtype, pixels):
    _, grad_x, grad_weight = operators(backend)
    x, weight = torch.randn(pixels, 5, dtype=dtype), torch.randn(3, 5, 5, dtype=dtype)
    grad = torch.randn(pixels, 3, dtype=dtype)
    torch.library.opcheck(grad_x, (grad, x, weight))
    torch.library.opcheck(grad_weight, (grad, x))


@pytest.mark.parametrize('backend', OPERATORS)
def test_opcheck_of_strided_inputs(backend):
    # The fake outputs must have the strides of the real ones, also for a channels-first view.
    forward, grad_x, _ = operators(backend)
    x = torch.randn(5, 6).t().requires_grad_()
    weight = torch.randn(5, 5, 3).permute(2, 0, 1).detach().requires_grad_()
    torch.library.opcheck(forward, (x, weight))
    torch.library.opcheck(grad_x, (torch.randn(6, 3), x.detach(), weight.detach()))


@pytest.mark.parametrize('backend', OPERATORS)
def test_what_listens_to_the_dispatcher_hears_of_every_call(backend):
    """Calls go past the dispatcher where nobody listens, and only there."""
    names = [str(operator) for operator in operators(backend)]
    x, weight = torch.randn(6, 5, requires_grad=True), torch.randn(3, 5, 5, requires_grad=True)

    class Listener(TorchDispatchMode):
        heard = []

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            self.heard.append(str(operator))
            return operator(*args, **(kwargs or {}))

    with Listener() as listener:
        quadratic_form(x, weight, backend=backend).sum().backward()
    assert [name for name in listener.heard if name in names] == names
    with torch.profiler.profile() as profile:
        quadratic_form(x, weight, backend=backend).sum().backward()
    recorded = {event.key for event in profile.key_averages()}
    assert {name.removesuffix('.default').replace('.', '::') for name in names} <= recorded

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = quadratic_form(mode.from_tensor(x), mode.from_tensor(weight), backend=backend)
    assert type(fake) is FakeTensor and fake.shape == (6, 3)
    assert quadratic_form(x.to('meta'), weight.to('meta'), backend=backend).shape == (6, 3)


@pytest.mark.parametrize('backend', BACKENDS)
def test_values_whose_sign_is_still_to_be_changed(backend):
    """The imaginary part of a conjugate is a view of memory that holds it with the other sign."""
    x = torch.randn(6, 5, dtype=torch.complex64).conj().imag.requires_grad_()
    weight = torch.randn(3, 5, 5, requires_grad=True)
    assert x.is_neg()

    def gradients(form):
        return torch.autograd.grad(form(x, weight).pow(2).sum(), (x, weight))

    for ours, expected in zip(gradients(lambda x, weight: quadratic_form(x, weight, backend)), gradients(formula)):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)
