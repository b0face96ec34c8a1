"""The decoder's loss on a GPU, for gpu.py: half precision is rounded elsewhere there than on a CPU."""

from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.gpu_steps import Result, Scale
from pipeline.models.loss import decoder_loss, masked_lm_loss

CASES = (("bf16", 0), ("fp16", 2), ("fp16", 8), ("fp16", 16))
"""Precisions and powers of two as the loss scale."""
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 1e-2
"""Of a gradient's norm."""


def loss(scale: Scale, result: Result, folder: Path) -> bool:
    """Whether its gradients are those of the plain loss in float64, at loss scales that fp16 comes to."""
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
        found, _ = decoder_loss(*own, labels)
        got = torch.autograd.grad(found, own, torch.full_like(found, 2.0**power))
        errors = [
            (one.double() / 2**power - other).norm() / other.norm() for one, other in zip(got, wanted, strict=True)
        ]
        result["cases"][f"{precision}, loss scale 2^{power}"] = [float(error) for error in errors]
    return all(error <= TOLERANCE for errors in result["cases"].values() for error in errors)
