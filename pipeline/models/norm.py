"""The LayerNorm whose statistics are weighted by the residual gate.

mean = sum(g x) / sum(g), var = sum(g (x - mean)^2) / sum(g), output = normed * (g gain) + (g bias). With all gates 1
this is the teacher's LayerNorm, with gates in {0, 1} exactly that of the student: a LayerNorm over zeroed dimensions
would be neither.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.precision import accumulation_dtype


def layer_norm(inputs: Tensor, gain: Tensor, bias: Tensor, epsilon: float, gate: Tensor | None = None) -> Tensor:
    """LayerNorm over the last dimension of (..., hidden); the fused kernel where there is no gate.

    Args:
        inputs: (..., hidden).
        gain: (hidden,).
        bias: (hidden,).
        epsilon: added to the variance.
        gate: (hidden,) fp32 or wider; None for all open.
    """
    if gate is None:
        return F.layer_norm(inputs, gain.shape, gain, bias, epsilon)
    normed: Tensor = _GatedNorm.apply(inputs, gate, gain, bias, epsilon)
    return normed


class _GatedNorm(torch.autograd.Function):
    """The gradients in closed form.

    With e = dy g gain, S = sum(g), s1 = sum(e), s2 = sum(e normed) over the dimensions of a row:

    dx = rstd (e - g (s1 + normed s2) / S)
    dg = sum over rows of dy (gain normed + bias) - (s1 normed + s2 (normed^2 - var rstd^2) / 2) / S

    so a gate that is asked for its gradient costs a few sums over rows more, and no graph of its own.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, gate: Tensor, gain: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        wide = accumulation_dtype(inputs.dtype)
        rows, gate = inputs.to(wide).flatten(0, -2), gate.to(wide)
        weight = gate / gate.sum()
        centred = rows - (rows @ weight)[:, None]
        rstd = torch.rsqrt(torch.mv(centred * centred, weight) + epsilon)
        normed = centred.mul_(rstd[:, None])
        scale = gate * gain
        output = torch.addcmul(gate * bias, normed, scale)
        ctx.save_for_backward(normed, rstd, gate, weight, scale, gain, bias)
        ctx.epsilon = epsilon
        return output.to(inputs.dtype).view(inputs.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normed, rstd, gate, weight, scale, gain, bias = ctx.saved_tensors
        upward = gradients[0].to(normed.dtype).reshape(normed.shape)
        by_normed = upward * normed
        first, second = (upward @ scale)[:, None], (by_normed @ scale)[:, None]
        inner = (upward * scale).addcmul_(torch.addcmul(first, normed, second), weight, value=-1)
        inputs_gradient = inner.mul_(rstd[:, None]).to(gradients[0].dtype).view(gradients[0].shape)
        gain_sum, bias_sum = by_normed.sum(0), upward.sum(0)
        gate_gradient = None
        if ctx.needs_input_grad[1]:
            share = 1 - ctx.epsilon * rstd * rstd  # var rstd^2
            statistics = first.T @ normed + second.T @ (normed * normed - share[:, None]) / 2
            gate_gradient = gain_sum * gain + bias_sum * bias - statistics[0] / gate.sum()
        return inputs_gradient, gate_gradient, (gain_sum * gate).to(gain.dtype), (bias_sum * gate).to(bias.dtype), None
