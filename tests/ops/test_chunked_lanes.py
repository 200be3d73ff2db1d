"""The chunked backend with several lanes: each a thread that runs its operators alone, in the modes of the caller."""

import subprocess
import sys
import threading

import pytest
import torch

from dit_timm import quadratic_form
from dit_timm.ops import chunked

pytestmark = pytest.mark.parametrize('threads', [3], indirect=True)


@pytest.fixture
def inputs():
    x, weight = torch.randn(200, 12, dtype=torch.float64), torch.randn(5, 12, 12, dtype=torch.float64)
    assert len(chunked._Plan(x).lanes) == torch.get_num_threads() == 3
    return x.requires_grad_(), weight.requires_grad_()


def formula(x, weight):
    return torch.einsum('pi,oij,pj->po', x, weight, x)


def chunked_form(x, weight):
    return quadratic_form(x, weight, backend='chunked')


def test_lanes_run_alone_and_leave_the_number_of_threads(threads, inputs, monkeypatch):
    seen = set()
    add_product = chunked._add_product

    def watched(*arguments):
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        add_product(*arguments)

    monkeypatch.setattr(chunked, '_add_product', watched)
    chunked._threads.cache_clear()
    chunked_form(*inputs).sum().backward()
    assert seen == {(False, 1)}
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 3 and later == [3]


def test_gradients_of_any_order(threads, inputs):
    x, weight = inputs
    results = []
    for form in (chunked_form, formula):
        grad_x, = torch.autograd.grad(form(x, weight).square().sum(), x, create_graph=True)
        results.append((grad_x, *torch.autograd.grad(grad_x.sin().sum(), (x, weight))))
    torch.testing.assert_close(*results)
    tangents = torch.randn_like(x), torch.randn_like(weight)
    results = [torch.func.jvp(form, (x.detach(), weight.detach()), tangents) for form in (chunked_form, formula)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(threads, inputs, mode):
    with mode():
        output = chunked_form(*inputs)
        assert not output.requires_grad and output.is_inference() == torch.is_inference_mode_enabled()
        torch.testing.assert_close(output, formula(*inputs))
        # Of tensors made in that mode too.
        torch.testing.assert_close(chunked_form(output, output.new_ones(2, 5, 5)), output.sum(1, keepdim=True).square()
                                   .expand(-1, 2))


def test_autocast(threads, inputs):
    x, weight = (tensor.detach().float() for tensor in inputs)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = chunked_form(x, weight)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, chunked_form(x.bfloat16(), weight.bfloat16()))


def test_same_bits_every_time(threads, inputs):
    def results():
        output = chunked_form(*inputs)
        return (output, *torch.autograd.grad(output.square().sum(), inputs))

    first = results()
    for _ in range(5):
        assert all(map(torch.equal, first, results()))


def test_an_error_in_a_lane_reaches_the_caller(threads, inputs, monkeypatch):
    def fails(*arguments):
        raise MemoryError('no memory for a lane')

    monkeypatch.setattr(chunked, '_add_product', fails)
    with pytest.raises(MemoryError, match='for a lane'):
        chunked_form(*inputs)


FORK = """
import os, torch
from dit_timm import quadratic_form
torch.set_num_threads(3)
x, weight = torch.randn(200, 4), torch.randn(2, 4, 4)
before = quadratic_form(x, weight, backend='chunked')
child = os.fork()
after = quadratic_form(x, weight, backend='chunked')
if child == 0:
    os._exit(0 if torch.equal(before, after) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='no fork')
def test_a_forked_process_starts_threads_of_its_own(threads):
    subprocess.run([sys.executable, '-c', FORK], check=True, timeout=300)
