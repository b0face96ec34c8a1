"""Masked-language modelling."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.models.precision import accumulation_dtype


def masked_lm_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy over the predicted positions, in fp32 or wider.

    Args:
        logits: (batch, k, vocab).
        labels: (batch, k).
    """
    loss = F.cross_entropy(logits.to(accumulation_dtype(logits.dtype)).flatten(0, 1), labels.flatten())
    return loss, (logits.detach().argmax(-1) == labels).float().mean()
