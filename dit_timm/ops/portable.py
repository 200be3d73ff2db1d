"""The quadratic form in plain torch operators, for graphs that leave Python: TorchScript, torch.export, ONNX.

An exported program must run where dit_timm is not installed, so it may not hold our operators, and its number of
nodes may not depend on the number of pixels. Hence the loop is over blocks of channels: a block's products are
`block` times as large as the input, for any C.
"""

import torch


def quadratic_form_portable(x: torch.Tensor, weight: torch.Tensor, block: int = 8) -> torch.Tensor:
    """`q[p, o] = sum_ij weight[o, i, j] x[p, i] x[p, j]`, differentiable by autograd, scriptable.

    Args:
        x: Inputs of shape (P, C).
        weight: Weights of shape (O, C, C).
        block: Channels whose products exist at a time.

    Returns:
        Outputs of shape (P, O), dtype of `x`; summed in float32 (float64 for float64 inputs).
    """
    dtype = x.dtype
    if dtype == torch.float16 or dtype == torch.bfloat16:
        x = x.float()
        weight = weight.float()
    # Upper triangle of the folded weights: of each pair only the half with i <= j is multiplied, up to a block.
    # Not by triu, which ONNX has from opset 14 on.
    channels = weight.shape[1]
    channel = torch.arange(channels, device=x.device)
    zero = torch.zeros([], dtype=weight.dtype, device=weight.device)
    folded = torch.where(channel.unsqueeze(1) <= channel, weight, zero)
    folded = folded + torch.where(channel.unsqueeze(1) < channel, weight.transpose(1, 2), zero)
    output = torch.zeros([x.shape[0], weight.shape[0]], dtype=x.dtype, device=x.device)
    for start in range(0, channels, block):
        stop = min(start + block, channels)
        products = x[:, start:stop].unsqueeze(2) * x[:, start:].unsqueeze(1)
        output = output + torch.matmul(products.flatten(1), folded[:, start:stop, start:].flatten(1).t())
    return output.to(dtype)
