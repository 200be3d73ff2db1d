"""Which precision the quadratic form computes in."""

from pathlib import Path
from typing import Set

import torch


def _cpu_capabilities() -> Set[str]:
    """Names of the instruction sets of this CPU, as far as they can be known."""
    if hasattr(torch.cpu, 'get_capabilities'):
        return {name for name, present in torch.cpu.get_capabilities().items() if present is True}
    # Older releases of torch do not say; Linux does, by the same names.
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
    return set(flags.partition(':')[2].split())


_CPU_CAPABILITIES = _cpu_capabilities()
# Instructions of x86, tiles of x86, instructions of Arm.
_BFLOAT16_UNITS = {'avx512_bf16', 'amx_bf16', 'bf16'}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums for inputs of `dtype`, and of products unless `operand_dtype` says otherwise.

    A product of activations squares their range: in float16 it overflows from |x| = 256 on although the
    weighted sum may be small. Half-precision inputs are therefore multiplied and summed in float32.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a CPU multiplies matrices faster in bfloat16 than in float32; False for other devices."""
    return device.type == 'cpu' and not _CPU_CAPABILITIES.isdisjoint(_BFLOAT16_UNITS)


def operand_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the operands of matrix products, of the products of channels among them.

    bfloat16 has the range of float32, so its products may be rounded to it where that is what the units multiply.
    """
    if dtype == torch.bfloat16 and has_bfloat16_units(device):
        return torch.bfloat16
    return accumulation_dtype(dtype)
