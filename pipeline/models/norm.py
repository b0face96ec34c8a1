"""The LayerNorms of a BERT, whose statistics are weighted by the residual gate where it is not open.

mean = sum(g x) / sum(g), var = sum(g (x - mean)^2) / sum(g), output = normed * (g gain) + (g bias). With all gates 1
this is the teacher's LayerNorm, with gates in {0, 1} exactly that of the student: a LayerNorm over zeroed dimensions
would be neither.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.precision import accumulation_dtype


class LayerNorms:
    """The LayerNorms of one pass, all over the same dimensions.

    Args:
        gains: (norms, hidden).
        biases: (norms, hidden).
        epsilon: added to the variance.
        gate: (hidden,) fp32 or wider; None for all open, where torch's fused kernel does it.
    """

    def __init__(self, gains: Tensor, biases: Tensor, epsilon: float, gate: Tensor | None = None) -> None:
        self.epsilon = epsilon
        self.constants: tuple[Tensor, ...] = ()
        self.gated = gate is not None
        parts: tuple[Tensor, ...] = gains, biases
        if gate is not None:
            # What is of one row is computed for all norms at once, and so is its part of the backward pass.
            gate = gate.to(accumulation_dtype(gains.dtype))
            parts = _of_gate((gate / gate.sum()).expand(len(gains), -1), gate * gains, gate * biases)
        self.parts = tuple(zip(*(part.unbind() for part in parts), strict=True))

    def __call__(self, number: int, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        """Norm `number` of `hidden` + `residual`, both (..., hidden)."""
        if not self.gated:
            gain, bias = self.parts[number]
            total = hidden if residual is None else hidden + residual
            return F.layer_norm(total, gain.shape, gain, bias, self.epsilon)
        if not self.constants:
            rows = hidden.shape[:-1].numel()  # later norms have no more than the first
            values = (self.epsilon, 0.0, 1.0, 0.5**0.5, 2**0.5)
            self.constants = tuple(self.parts[0][0].new_full((rows,), value) for value in values)
        normed: Tensor = _GatedNorm.apply(hidden, residual, *self.parts[number], self.constants)
        return normed


def _of_gate(weight: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
    """Weights, G and B of all norms (see `_GatedNorm`) with what their backward passes take besides: d G, G - d G w."""
    with torch.no_grad():
        gain = scale * scale.shape[1]
        return weight, scale, shift, gain, torch.addcmul(scale, gain, weight, value=-1)


class _GatedNorm(torch.autograd.Function):
    """The gradients in closed form, out of torch's fused backward pass of a LayerNorm.

    With weights w = g / sum(g), G = g gain, B = g bias, e = dy G, s1 = sum(e) and s2 = sum(e normed) of each row:

    dx = rstd (e - w (s1 + normed s2))
    dG = sum over rows of dy normed, dB = sum over rows of dy
    dw = - sum over rows of (s1 normed + s2 normed^2 / 2), up to a number that all dimensions share

    Such a number makes no difference, since the weights always add up to 1.

    For d dimensions, a gain of d G, a mean of 0 and a factor a in the place of rstd, the fused pass returns
    a (d e - s1 - a^2 normed s2), dG and dB. With a = 1 that leads to dx. With a^2 = 1/2 it leads to dw.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        gain: Tensor,
        rest: Tensor,
        constants: tuple[Tensor, ...],
    ) -> Tensor:
        rows = torch.empty(hidden.shape, dtype=scale.dtype, device=hidden.device)
        # Writing into another type rounds as ever and casts on the way.
        total = rows.copy_(hidden) if residual is None else torch.add(hidden, residual, out=rows)
        normed = total.flatten(0, -2)
        normed -= (normed @ weight)[:, None]
        epsilon, zero, one, root_half, root_two = (constant[: len(normed)] for constant in constants)
        rstd = torch.addmv(epsilon, normed * normed, weight).rsqrt_()
        normed *= rstd[:, None]
        output = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        torch.addcmul(shift, normed, scale, out=output.view(normed.shape))
        ctx.save_for_backward(normed, rstd, weight, gain, rest, zero, one, root_half, root_two)
        ctx.has_residual = residual is not None
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normed, rstd, weight, gain, rest, zero, one, root_half, root_two = ctx.saved_tensors

        def fused(upward: Tensor, factor: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
            found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
                upward, normed, list(gain.shape), zero, factor, gain, gain, wanted
            )
            return found

        upward = gradients[0].reshape(normed.shape).to(normed.dtype)
        less, by_scale, by_shift = fused(upward, one, [True, True, True])  # less = d e - s1 - normed s2
        by_weight = None
        if ctx.needs_input_grad[2]:
            half, _, _ = fused(upward, root_half, [True, False, False])
            _, sums, _ = fused(half, root_two, [False, True, False])
            by_weight = torch.addcmul(sums, gain, by_scale, value=-1)
        inner = (upward * rest).addcmul_(less, weight)
        by_input = torch.empty_like(gradients[0], memory_format=torch.contiguous_format)
        torch.mul(inner, rstd[:, None], out=by_input.view(normed.shape))
        return by_input, by_input if ctx.has_residual else None, by_weight, by_scale, by_shift, None, None, None
