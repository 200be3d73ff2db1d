"""The kernels for GPUs: what can be seen without one, and with one what can only be seen there.

Their values are held to the formula by the tests of every backend, on the CPU through Triton's interpreter.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from dit_timm import available_backends, quadratic_form

pytest.importorskip('triton', minversion='3.4')

from dit_timm.ops.triton import binding as triton_backend, tiles

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or 'triton' not in available_backends('cuda'),
    reason='there is no GPU that runs the kernels',
)

# Where the kernels run: on the GPU, or interpreted on the CPU.
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

# A process of its own: here kernels are interpreted. Compiles every kernel for every precision, as a launch would.
COMPILE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dit_timm.ops.triton import binding, kernels, tiles

CASES = [
    ('bf16', torch.bfloat16, 'ieee'), ('fp16', torch.float32, 'tf32'), ('fp32', torch.float32, 'tf32'),
    ('fp32', torch.float32, 'ieee'),
]
for dtype, operand, precision in CASES:
    for outputs in (16, 96):
        for name in ('forward', 'grad_x', 'grad_weight'):
            kernel = getattr(kernels, f'{name}_kernel')
            tile = getattr(tiles, f'{name}_tile')(operand, precision, outputs)
            constants = {**binding._constants(operand, precision), **tile.sizes}
            types = {
                **dict.fromkeys(('x', 'grad', 'output'), f'*{dtype}'), **dict.fromkeys(('first', 'second'), '*i32'),
                'upper': '*bf16' if operand == torch.bfloat16 else '*fp32', **dict.fromkeys(constants, 'constexpr'),
                **dict.fromkeys(('row_grad', 'column_grad', 'partial_grad'), '*fp32'),
            }
            compiled = triton.compile(
                ASTSource(kernel, {argument: types.get(argument, 'i32') for argument in kernel.arg_names}, constants),
                target=GPUTarget('cuda', int(sys.argv[1]), 32),
                options={'num_warps': tile.num_warps, 'num_stages': tile.num_stages},
            )
            print(json.dumps({
                'case': [name, dtype, precision, outputs], 'shared': compiled.metadata.shared,
                'matrix_units': any(word in compiled.asm['ptx'] for word in ('mma.sync', 'wgmma', 'tcgen05.mma')),
            }))
"""


# Arguments of 1 are constants to a launch.
COMPILE_LAYOUTS = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dit_timm.ops.triton import layouts

KERNELS = [
    (layouts._transpose_kernel, ('x', 'addend', 'result'), dict(ADDS=False, SIDE=64)),
    (layouts._transpose_kernel, ('x', 'addend', 'result'), dict(ADDS=True, SIDE=64)),
    (layouts._upper_kernel, ('weight', 'upper'), dict(COLUMNS=32, OUTPUTS=32)),
    (layouts._unfold_kernel, ('partial_grad', 'grad'), dict(COLUMNS=32, OUTPUTS=32)),
]
compiled = 0
for kernel, tensors, constants in KERNELS:
    sizes = [name for name in kernel.arg_names if name not in (*tensors, *constants)]
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
@pytest.mark.parametrize('capability', [80, 90])
def test_kernels_compile_for_gpus(capability, tmp_path):
    rows = [json.loads(line) for line in compile_for(capability, COMPILE, tmp_path).splitlines()]
    assert len(rows) == 24
    for row in rows:
        # What a program may have on the smallest GPUs of compute capability 8 and later.
        assert row['shared'] <= 99 * 1024, row
        assert row['matrix_units'] == (row['case'][1:3] != ['fp32', 'ieee']), row


@pytest.mark.slow
def test_layout_kernels_compile_for_gpus(tmp_path):
    assert int(compile_for(90, COMPILE_LAYOUTS, tmp_path)) == 16


@pytest.mark.parametrize('outputs, partial_elements', [(5, 1 << 24), (5, 1), (70, 1 << 24), (130, 1 << 24)])
def test_splits_of_the_pixels_do_not_change_the_sums(monkeypatch, outputs, partial_elements):
    # One pixel is left over in the last tile; with one partial element there is one split.
    monkeypatch.setattr(tiles, '_PARTIAL_ELEMENTS', partial_elements)
    x, grad = torch.randn(257, 5, device=DEVICE), torch.randn(257, outputs, device=DEVICE)
    weight = torch.randn(outputs, 5, 5, device=DEVICE, requires_grad=True)
    got, = torch.autograd.grad(quadratic_form(x, weight, backend='triton'), weight, grad)
    torch.testing.assert_close(got, torch.einsum('po,pi,pj->oij', grad, x, x), rtol=1e-4, atol=1e-4)


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
    tile = tiles.forward_tile(torch.bfloat16, 'ieee', outputs)
    assert (tile.sizes['OUTPUTS'], tile.sizes['TAIL']) == sizes
    assert tile.outputs >= min(outputs, 128)


@pytest.mark.parametrize('dtype, outputs, tolerance', [
    (torch.float32, 40, 1e-5), (torch.float32, 200, 1e-5), (torch.bfloat16, 70, 1e-2),
])
def test_both_parts_of_a_tile_of_outputs_compute_the_formula(dtype, outputs, tolerance):
    # Tiles of 32 + 16 with a part of the second empty, of 64 alone and more than one, and of 64 + 32.
    inputs = [torch.randn(shape, device=DEVICE).to(dtype) for shape in ((20, 5), (outputs, 5, 5), (20, outputs))]
    exact = results(*(tensor.double() for tensor in inputs), backend='reference')
    for got, want in zip(results(*inputs), exact):
        assert ((got.double() - want).abs().max() / want.abs().max()).item() <= tolerance


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
