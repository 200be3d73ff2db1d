"""The op inside activation checkpointing, DDP and FSDP2: one node each time, and the gradients of the plain model."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dit_timm import DitConv2d

fully_shard = getattr(torch.distributed.fsdp, 'fully_shard', None)
needs_fully_shard = pytest.mark.skipif(torch.__version__ < (2, 6), reason='torch 2.5 shards on GPUs only')


class Calls(TorchDispatchMode):
    """Counts the calls of the forward operator."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.dit_timm.quadratic_native.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def model():
    model = nn.Sequential(DitConv2d(3, 6, 3, padding=1), nn.ReLU(), DitConv2d(6, 4, 3, stride=2))
    for module in model.modules():
        if isinstance(module, DitConv2d):
            nn.init.normal_(module.quadratic.weight)
    return model


@pytest.fixture
def group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def plain_gradients(model, x):
    model = copy.deepcopy(model)
    model(x).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_activation_checkpointing_recomputes_the_op(model):
    x = torch.randn(2, 3, 8, 8)
    expected = plain_gradients(model, x)
    with Calls() as calls:
        checkpoint(model, x, use_reentrant=False).square().mean().backward()
    assert calls.count == 4, 'two layers, in forward and again in backward'
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_distributed_data_parallel(model, group):
    x = torch.randn(2, 3, 8, 8)
    expected = plain_gradients(model, x)
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@needs_fully_shard
def test_fully_sharded(model, group):
    x = torch.randn(2, 3, 8, 8)
    expected = plain_gradients(model, x)
    mesh = dist.init_device_mesh('cpu', (1,))
    for module in model:
        if isinstance(module, DitConv2d):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name])


@needs_fully_shard
def test_fully_sharded_steps_and_saves(model, group, tmp_path):
    x = torch.randn(2, 3, 8, 8)
    plain = copy.deepcopy(model)
    fully_shard(model, mesh=dist.init_device_mesh('cpu', (1,)))
    for network in (plain, model):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        network(x).square().mean().backward()
        optimizer.step()
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    save_file(whole, tmp_path / 'model.safetensors')
    saved = load_file(tmp_path / 'model.safetensors')
    assert saved.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(saved[name], value)
