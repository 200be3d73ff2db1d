"""The kernels for GPUs: what can be seen without one, and with one what can only be seen there.

Their values are held to the formula by the tests of every backend, on the CPU through Triton's interpreter.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dit_timm import available_backends, quadratic_form

pytest.importorskip('triton', minversion='3.4')

from dit_timm.ops.triton import binding as triton_backend, kernels, layouts, tiles

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or 'triton' not in available_backends('cuda'),
    reason='there is no GPU that runs the kernels',
)

# Where the kernels run: on the GPU, or interpreted on the CPU.
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

# A process of its own: here kernels are interpreted. Compiles every kernel for every precision, as a launch would for
# contiguous tensors, and says what the assembler and the machine code say.
COMPILE = """
import json, subprocess, sys, tempfile
import torch, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dit_timm.ops.triton import kernels, tiles

CASES = [
    ('bf16', torch.bfloat16, 'ieee', 16), ('bf16', torch.bfloat16, 'ieee', 96), ('bf16', torch.bfloat16, 'ieee', 128),
    ('fp16', torch.float32, 'tf32', 96), ('fp32', torch.float32, 'tf32', 96), ('fp32', torch.float32, 'ieee', 96),
]
capability = int(sys.argv[1])
nvidia = triton.knobs.nvidia

def said(tool, *arguments):
    process = subprocess.run([tool.path, *arguments], capture_output=True, text=True)
    return process.stdout + process.stderr

for dtype, operand, precision, size in CASES:
    kinds = operand, precision, capability >= 90
    for kind, tile in (
            ('forward', tiles.forward_tile(*kinds, 1 << 10, size)),
            ('forward', tiles.forward_tile(*kinds, 1 << 20, size)),
            ('grad_x', tiles.grad_x_tile(*kinds, size, size)), ('grad_weight', tiles.grad_weight_tile(*kinds, size))):
        kernel = getattr(kernels, f'{kind}_kernel')
        constants = dict(
            OPERAND=tl.bfloat16 if operand == torch.bfloat16 else tl.float32, PRECISION=precision, channel_stride=1,
            **(dict(output_stride=1) if kind != 'forward' else {}), **tile.sizes,
        )
        types = {
            **dict.fromkeys(('x', 'grad', 'output', 'grad_x'), f'*{dtype}'), **dict.fromkeys(constants, 'constexpr'),
            'folded': '*bf16' if operand == torch.bfloat16 else '*fp32', 'partial_grad': '*fp32',
        }
        aligned = {
            (place,): [['tt.divisibility', 16]] for place, name in enumerate(kernel.arg_names)
            if name not in constants and name not in kernels._COUNTS
        }
        compiled = triton.compile(
            ASTSource(kernel, {name: types.get(name, 'i32') for name in kernel.arg_names}, constants, aligned),
            target=GPUTarget('cuda', capability, 32),
            options={'num_warps': tile.num_warps, 'num_stages': tile.num_stages},
        )
        with tempfile.NamedTemporaryFile(suffix='.ptx') as ptx, tempfile.NamedTemporaryFile(suffix='.cubin') as cubin:
            ptx.write(compiled.asm['ptx'].encode())
            cubin.write(compiled.asm['cubin'])
            ptx.flush()
            cubin.flush()
            usage = said(nvidia.cuobjdump, '-res-usage', cubin.name)
            # The other architectures have no instructions of a group of warps.
            assemble = '-v', '--gpu-name=sm_90a', ptx.name, '-o', '/dev/null'
            assembled = said(nvidia.ptxas, *assemble) if capability == 90 else ''
        resources = dict(word.split(':') for word in usage.split() if word.startswith(('REG:', 'STACK:')))
        print(json.dumps({
            'case': [kind, dtype, precision, size, tile.sizes['PIXELS']], 'shared': compiled.metadata.shared,
            'registers': int(resources['REG']), 'stack': int(resources['STACK']),
            'serialized': 'serialized' in assembled,
            'matrix_units': next((
                word for word in ('wgmma', 'tcgen05.mma', 'mma.sync') if word in compiled.asm['ptx']
            ), None),
        }))
"""

COMPILE_LAYOUTS = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dit_timm.ops.triton import layouts

KERNELS = [
    (layouts._fold_kernel, ('weight', 'folded'), dict(SIDE=8, OUTPUTS=32)),
    (layouts._unfold_kernel, ('partial_grad', 'grad'), dict(SIDE=16, COLUMNS=32, OUTPUTS=32)),
]
compiled = 0
for kernel, tensors, constants in KERNELS:
    sizes = [name for name in kernel.arg_names if name not in (*tensors, *constants)]
    # Arguments of 1 are constants to a launch.
    for ones in ((), sizes):
        fixed = {**constants, **dict.fromkeys(ones, 1)}
        types = {**dict.fromkeys(sizes, 'i32'), **dict.fromkeys(fixed, 'constexpr')}
        for source, target in (('fp32', 'bf16'), ('bf16', 'fp32')):
            types.update({**dict.fromkeys(tensors[:-1], f'*{source}'), tensors[-1]: f'*{target}'})
            triton_types = {name: types[name] for name in kernel.arg_names}
            triton.compile(ASTSource(kernel, triton_types, fixed), target=GPUTarget('cuda', int(sys.argv[1]), 32))
            compiled += 1
print(compiled)
"""


def compile_for(capability, program, cache):
    environment = {**os.environ, 'TRITON_INTERPRET': '0', 'TRITON_CACHE_DIR': str(cache)}
    process = subprocess.run(
        [sys.executable, '-c', program, str(capability)], env=environment, capture_output=True, text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
@pytest.mark.parametrize('capability, units', [(80, 'mma.sync'), (90, 'wgmma'), (100, 'tcgen05.mma')])
def test_kernels_compile_for_gpus(capability, units, tmp_path):
    rows = [json.loads(line) for line in compile_for(capability, COMPILE, tmp_path).splitlines()]
    assert len(rows) == 24
    for row in rows:
        # What a program may have on the smallest GPUs of compute capability 8 and later.
        assert row['shared'] <= 99 * 1024, row
        assert row['matrix_units'] == (None if row['case'][1:3] == ['fp32', 'ieee'] else units), row
        if triton_backend.triton_version() >= (3, 8):
            # The tiles were chosen by the machine code of this release: no register spills to memory, and no matrix
            # instruction waits for the one before it.
            assert row['stack'] == 0 and not row['serialized'], row


@pytest.mark.slow
def test_layout_kernels_compile_for_gpus(tmp_path):
    assert int(compile_for(90, COMPILE_LAYOUTS, tmp_path)) == 8


@pytest.fixture
def fresh_plans():
    """Launches are planned anew, with what a test sets, and after it."""
    triton_backend._plan.cache_clear()
    yield
    triton_backend._plan.cache_clear()


@pytest.mark.usefixtures('fresh_plans')
@pytest.mark.parametrize('outputs, partial_elements, splits', [
    (5, 1 << 24, 9), (5, 1, 1), (130, 1 << 24, 9),
])
def test_splits_of_the_pixels_do_not_change_the_sums(monkeypatch, outputs, partial_elements, splits):
    # One pixel is left over in the last tile; with one partial element there is one split.
    monkeypatch.setattr(tiles, '_PARTIAL_ELEMENTS', partial_elements)
    _, (count, _) = triton_backend._plan('grad_weight', torch.float32, 'ieee', torch.device(DEVICE), 257, 5, outputs)
    assert count == splits
    x, grad = torch.randn(257, 5, device=DEVICE), torch.randn(257, outputs, device=DEVICE)
    weight = torch.randn(outputs, 5, 5, device=DEVICE, requires_grad=True)
    got, = torch.autograd.grad(quadratic_form(x, weight, backend='triton'), weight, grad)
    torch.testing.assert_close(got, torch.einsum('po,pi,pj->oij', grad, x, x), rtol=1e-4, atol=1e-4)


def assert_exact(inputs, tolerance):
    exact = results(*(tensor.double() for tensor in inputs), backend='reference')
    for got, want in zip(results(*inputs), exact):
        assert got.is_contiguous() and got.dtype == inputs[0].dtype
        assert ((got.double() - want).abs().max() / want.abs().max()).item() <= tolerance


@pytest.mark.usefixtures('fresh_plans', 'poisoned_empty')
@pytest.mark.parametrize('in_chs', [16, 40])
def test_programs_share_the_channels_of_the_gradient_of_x(monkeypatch, in_chs):
    # One program or three, of two blocks of channels each and one: each takes from all rows, writes its own channels.
    monkeypatch.setattr(tiles, '_MAX_CHANNELS', 16)
    assert_exact([torch.randn(shape, device=DEVICE) for shape in ((9, in_chs), (3, in_chs, in_chs), (9, 3))], 1e-5)


@pytest.mark.usefixtures('poisoned_empty')
@pytest.mark.parametrize('dtype, tolerance', [
    # The interpreter cuts where a GPU rounds, which errs by twice as much.
    (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2),
])
@pytest.mark.parametrize('view', [
    pytest.param(lambda tensor: tensor.t().contiguous().t(), id='transposed'),
    pytest.param(lambda tensor: tensor.repeat(2, 3)[::2, ::3], id='strided'),
    pytest.param(lambda tensor: tensor[:1].expand(tensor.shape), id='one pixel'),
    pytest.param(lambda tensor: tensor[:, :1].expand(tensor.shape), id='one channel'),
    pytest.param(lambda tensor: tensor.flip(0).flip(1), id='copied'),
])
def test_inputs_are_read_where_they_lie(view, dtype, tolerance):
    x, grad, weight = (torch.randn(shape, device=DEVICE).to(dtype) for shape in ((13, 11), (13, 5), (5, 11, 11)))
    inputs = view(x), weight.permute(2, 1, 0).contiguous().permute(2, 1, 0), view(grad)
    assert_exact(inputs, tolerance)


class Operators(TorchDispatchMode):
    """Records the names of the operators of torch that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch, fresh_plans):
    """Names of the kernels in the order in which they are launched; none is."""
    names = []

    class Launch:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **kwargs: names.append(self.name)

    for module in (kernels, layouts):
        for name in [name for name in vars(module) if name.endswith('_kernel')]:
            monkeypatch.setattr(module, name, Launch(name))
    return names


@pytest.mark.parametrize('view', [lambda x: x, lambda x: x.t().contiguous().t()], ids=['contiguous', 'transposed'])
def test_two_launches_forward_and_four_backward(launched, view):
    x, weight = view(torch.randn(7, 5, device=DEVICE)), torch.randn(3, 5, 5, device=DEVICE)
    grad = view(torch.randn(7, 3, device=DEVICE))
    with Operators() as called:
        triton_backend._forward(x, weight)
        assert launched == ['_fold_kernel', 'forward_kernel']
        launched.clear()
        triton_backend._grad_x(grad, x, weight)
        triton_backend._grad_weight(grad, x)
        assert launched == ['_fold_kernel', 'grad_x_kernel', 'grad_weight_kernel', '_unfold_kernel']
    # Nothing is filled with zeros, copied or transposed.
    assert called.names <= {'aten::new_empty', 'aten::empty'}


@pytest.mark.usefixtures('fresh_plans')
def test_any_number_of_pixels_can_be_launched():
    # CUDA's limits: 2 ** 31 - 1 programs along the first dimension of a grid, 65,535 along the others.
    for name in ('forward', 'grad_x', 'grad_weight'):
        for pixels, channels, outputs in ((1 << 37, 32, 32), (1, 4096, 4096), (1 << 31, 1, 1 << 20)):
            launch, _ = triton_backend._plan(
                name, torch.bfloat16, 'ieee', torch.device('cpu'), pixels, channels, outputs,
            )
            assert launch.grid[0] < 1 << 31 and max(launch.grid[1:]) <= 65535

@pytest.fixture
def set_tf32():
    """Sets whether torch rounds float32 to TF32."""
    settings = torch.backends.cuda.matmul
    # torch before 2.9 has the second only, later ones refuse to mix them.
    name, values = ('fp32_precision', ('ieee', 'tf32')) if hasattr(settings, 'fp32_precision') else (
        'allow_tf32', (False, True))
    before = getattr(settings, name)
    yield lambda allowed: setattr(settings, name, values[allowed])
    setattr(settings, name, before)


@pytest.mark.parametrize('outputs, sizes', [
    (1, (16, 0)), (32, (32, 0)), (33, (32, 16)), (48, (32, 16)), (49, (64, 0)), (96, (64, 32)), (97, (128, 0)),
    (128, (128, 0)), (130, (128, 0)),
])
def test_tiles_of_outputs(outputs, sizes):
    tile = tiles.forward_tile(torch.bfloat16, 'ieee', True, 1, outputs)
    assert (tile.sizes['OUTPUTS'], tile.sizes['TAIL']) == sizes
    assert tile.outputs >= min(outputs, 128)


@pytest.mark.parametrize('dtype, outputs, tolerance', [
    (torch.float32, 40, 1e-5), (torch.float32, 200, 1e-5), (torch.bfloat16, 70, 1e-2),
])
def test_both_parts_of_a_tile_of_outputs_compute_the_formula(dtype, outputs, tolerance):
    # Tiles of 32 + 16 with a part of the second empty, of 64 alone and more than one, and of 64 + 32.
    inputs = [torch.randn(shape, device=DEVICE).to(dtype) for shape in ((20, 5), (outputs, 5, 5), (20, outputs))]
    assert_exact(inputs, tolerance)


def test_tf32_follows_the_setting_of_torch(set_tf32):
    x, half = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.float16)
    for allowed, expected in ((False, 'ieee'), (True, 'tf32'), (False, 'ieee')):
        set_tf32(allowed)
        assert triton_backend._operand(x) == (torch.float32, expected)
        # The mantissa of float16 fits TF32.
        assert triton_backend._operand(half) == (torch.float32, 'tf32')
    assert triton_backend._operand(x.bfloat16()) == (torch.bfloat16, 'ieee')


def results(x, weight, grad, backend='triton'):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    output = quadratic_form(x, weight, backend=backend)
    return (output.detach(), *torch.autograd.grad(output, (x, weight), grad))


@needs_gpu
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize('pixels, in_chs, out_chs', [
    (1, 1, 1), (7, 3, 5), (1000, 32, 32), (3136, 96, 96), (500, 128, 128), (333, 130, 257), (100, 200, 3),
])
def test_values_on_the_gpu(pixels, in_chs, out_chs, dtype, tolerance):
    inputs = [
        torch.randn(shape, device='cuda').to(dtype)
        for shape in ((pixels, in_chs), (out_chs, in_chs, in_chs), (pixels, out_chs))
    ]
    exact = results(*(tensor.double() for tensor in inputs), backend='chunked')
    once, again = results(*inputs), results(*inputs)
    for got, same, want in zip(once, again, exact):
        assert torch.equal(got, same), 'not the same bits each time'
        assert ((got.double() - want).abs().max() / want.abs().max()).item() <= tolerance


@needs_gpu
def test_addresses_past_2_31():
    pixels, in_chs = (1 << 31) // 32 + 1000, 32
    free, needed = torch.cuda.mem_get_info()[0], 20 * pixels * in_chs
    if free < needed:
        # Three tensors past 2^31 elements, and room to spare: not every GPU has it.
        pytest.skip(f'needs {needed >> 30} GiB of free memory on the GPU; there are {free >> 30}')
    x = torch.zeros(pixels, in_chs, device='cuda', dtype=torch.bfloat16)
    x[-50:] = torch.randn(50, in_chs)
    weight = torch.randn(32, in_chs, in_chs, device='cuda', dtype=torch.bfloat16)
    output = quadratic_form(x, weight, backend='triton')
    assert not output[:-50].any()
    torch.testing.assert_close(output[-50:], quadratic_form(x[-50:], weight, backend='triton'))


@needs_gpu
def test_compiles_with_torch_on_the_gpu():
    x, weight = torch.randn(64, 8, device='cuda'), torch.randn(8, 8, 8, device='cuda')
    compiled = torch.compile(quadratic_form, fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), quadratic_form(x, weight, backend='reference'))


@needs_gpu
def test_a_captured_graph_follows_its_inputs():
    x, weight, grad = (torch.randn(shape, device='cuda') for shape in ((64, 9), (8, 9, 9), (64, 8)))
    # Kernels are compiled before.
    results(x, weight, grad)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(x, weight, grad)
    for _ in range(2):
        # Weights are folded again at each replay.
        for tensor in (x, weight, grad):
            tensor.normal_()
        graph.replay()
        torch.testing.assert_close(captured, results(x, weight, grad), rtol=0, atol=0)
