"""The quadratic form as one writes it in plain torch, and where it is faster than kernels on a GPU."""

import torch

# Bytes of all the products of a form.
_MAX_BYTES = 32 << 20
_MAX_CHANNELS = 96


def quadratic_form_materialised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Materialise all `C * C` products at every pixel; autograd keeps them.

    Unlike the reference, it stays in the dtype of its inputs and spends one matrix product on the sum.

    Args:
        x: Inputs of shape (P, C).
        weight: Weights of shape (O, C, C).

    Returns:
        Outputs of shape (P, O).
    """
    return (x.unsqueeze(2) * x.unsqueeze(1)).flatten(1) @ weight.flatten(1).t()


def is_materialised_faster(dtype: torch.dtype, pixels: int, channels: int, outputs: int) -> bool:
    """Whether a GPU computes a form faster in few operators of torch, in at most 32 MiB of products.

    Small forms wait for Python and for launches, not for arithmetic. Measured in bfloat16 on an H200, in eager mode
    (hub/results/benchmark_gpu_op_bfloat16.csv and benchmark_gpu_scaling.csv), forward and backward, milliseconds:

        pixels x channels x outputs    products    materialised    kernels
                      1 x 96 x 96        18 KiB            0.39       1.00
                  25088 x 16 x 16        12 MiB            0.35       1.11
                  16384 x 32 x 32        32 MiB            0.36       1.12
                  25088 x 32 x 32        49 MiB            0.88       1.01
                   3136 x 96 x 96        55 MiB            0.44       1.12
                 6272 x 128 x 128       196 MiB            1.16       1.08

    The kernels were those before they read x where it lies; since then they take half of the launches. So only where
    the lead was 2.5 times or more, and the memory is smallest. Extrapolated: shapes between those of the table,
    float32, other GPUs. Never float16, whose products overflow.

    Args:
        dtype: That of x.
        pixels: Pixels, of all images.
        channels: Channels of x.
        outputs: Outputs.
    """
    small = dtype.itemsize * pixels * channels ** 2 <= _MAX_BYTES and max(channels, outputs) <= _MAX_CHANNELS
    return small and dtype in (torch.bfloat16, torch.float32)
