"""What every test shares: no network, fixed seeds, poisoned scratch, and the formula written as loops."""

import functools
import importlib.util
import os

# Read when huggingface_hub is imported, so it stands in front of every other import.
os.environ['HF_HUB_OFFLINE'] = '1'

import pytest
import torch

pytest_plugins = ['fake_hub.fixtures']

if not torch.cuda.is_available():
    # Triton's interpreter runs the kernels for GPUs on the CPU. Read when the kernels are imported.
    os.environ['TRITON_INTERPRET'] = '1'

# The tensors here are small, and threads that wait for one another are slow wherever the cores are shared.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope='session')
def _interpreted_bfloat16():
    """Triton's interpreter keeps bfloat16 as 16-bit integers, and its matrix product multiplies those."""
    if torch.cuda.is_available() or importlib.util.find_spec('triton') is None:
        yield
        return
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def widened(handle):
        if handle.dtype.scalar != language.bfloat16:
            return handle
        return TensorHandle((handle.data.astype('uint32') << 16).view('float32'), language.float32)

    create_dot = InterpreterBuilder.create_dot
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            InterpreterBuilder, 'create_dot',
            lambda self, a, b, *args: create_dot(self, widened(a), widened(b), *args),
        )
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def threads(request):
    """Run with as many threads as the parameter says, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def poisoned_empty(monkeypatch):
    """Memory that a test must not read is NaN: fresh memory is often zero by luck, and then hides a missing write."""

    def poisoned(allocate):
        def wrapper(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.dtype.is_floating_point and tensor.device.type != 'meta':
                with torch.no_grad():
                    tensor.fill_(float('nan'))
            return tensor
        return wrapper

    monkeypatch.setattr(torch, 'empty', poisoned(torch.empty))
    monkeypatch.setattr(torch, 'empty_like', poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, 'new_empty', poisoned(torch.Tensor.new_empty))


@pytest.fixture
def loop_formula():
    """`q_o = sum_ij weight[o, i, j] x_i x_j`, term by term, differentiable; x (..., C), weight (O, C, C)."""

    def formula(x, weight):
        outputs = []
        for o in range(weight.shape[0]):
            total = torch.zeros(x.shape[:-1], dtype=x.dtype)
            for i in range(weight.shape[1]):
                for j in range(weight.shape[2]):
                    total = total + weight[o, i, j] * x[..., i] * x[..., j]
            outputs.append(total)
        return torch.stack(outputs, dim=-1)

    return formula


@pytest.fixture(scope='session')
def write_greys_to():
    """Writes folders of 32x32 images whose classes, `class0`, `class1` ..., are shades of grey with noise."""
    from PIL import Image

    def write(data, step=80, **splits):
        """Maps the name of a split to the number of images of each class; returns `data`, the folder of the splits.

        `step` is how far the shades of two classes are apart.
        """
        generator = torch.Generator().manual_seed(0)
        for split, counts in splits.items():
            for label, count in enumerate(counts):
                folder = data / split / f'class{label}'
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = step * label + torch.randint(0, 40, (32, 32, 3), generator=generator)
                    Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f'{index}.png')
        return data

    return write


@pytest.fixture
def write_greys(write_greys_to, tmp_path):
    """Writes such folders into `data` of the folder of a test; see `write_greys_to`."""
    return functools.partial(write_greys_to, tmp_path / 'data')
