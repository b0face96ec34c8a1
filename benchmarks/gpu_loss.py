"""The decoder's loss on a GPU, for gpu.py: half precision is rounded elsewhere there than on a CPU."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_steps import Result, Scale
from pipeline.models.loss import decoder_loss, masked_lm_loss

CASES = (("bf16", 0), ("fp16", 2), ("fp16", 8), ("fp16", 16))
"""Precisions and powers of two as the loss scale."""
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MARGIN = 1.05
"""How much further from float64 than torch's own cross-entropy in the same precision a gradient may be. Both round the
logits, which makes most of the difference; the rest is chance."""


def loss(scale: Scale, result: Result, folder: Path) -> bool:
    """Whether its gradients are as near to float64 as torch's own in half precision, at loss scales fp16 comes to."""
    torch.manual_seed(1)
    rows, vocabulary, hidden = 2 * scale.windows, scale.teacher.vocab_size, scale.target
    exact = [
        torch.randn(size, device=scale.device) for size in ((1, rows, hidden), (vocabulary, hidden), (vocabulary,))
    ]
    labels = torch.randint(vocabulary, (1, rows), device=scale.device)
    result["cases"] = {}
    for precision, power in CASES:
        own = [tensor.to(TYPES[precision]).requires_grad_() for tensor in exact]
        truth = [tensor.detach().double().requires_grad_() for tensor in own]
        wanted = torch.autograd.grad(masked_lm_loss(F.linear(*truth), labels)[0], truth)
        losses = decoder_loss(*own, labels)[0], masked_lm_loss(F.linear(*own), labels)[0]
        errors = [relative_errors(found, own, wanted, 2.0**power) for found in losses]
        result["cases"][f"{precision}, loss scale 2^{power}"] = dict(zip(("own", "torch's"), errors, strict=True))
    return all(
        math.isfinite(ours) and ours <= MARGIN * theirs
        for found in result["cases"].values()
        for ours, theirs in zip(found["own"], found["torch's"], strict=True)
    )


def relative_errors(found: Tensor, inputs: list[Tensor], wanted: tuple[Tensor, ...], scale: float) -> list[float]:
    """Of the gradients of `found`, whose loss scale is `scale`, in relation to the norms of those wanted."""
    gradients = torch.autograd.grad(found, inputs, torch.full_like(found, scale))
    pairs = zip(gradients, wanted, strict=True)
    return [float((gradient.double() / scale - other).norm() / other.norm()) for gradient, other in pairs]
