"""What a BERT is trained on, and masked-language modelling."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from pipeline.models.encoder import Form, Tensors, encode
from pipeline.models.precision import accumulation_dtype

LossOf = Callable[[Tensors, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""From the tensors of a BERT and a batch to the loss, a mean over the batch, and the accuracy of what is predicted."""


def masked_lm_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy over the predicted positions, in fp32 or wider.

    Args:
        logits: (batch, k, vocab).
        labels: (batch, k).
    """
    loss = F.cross_entropy(logits.to(accumulation_dtype(logits.dtype)).flatten(0, 1), labels.flatten())
    return loss, accuracy_of(logits, labels)


def accuracy_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of positions at which the largest logit is the label's."""
    return (logits.detach().argmax(-1) == labels).float().mean()


def masked_lm_of(form: Form, training: bool) -> LossOf:
    """Masked-language modelling with a BERT of this form, with dropout in training."""

    def loss_of(tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        documents = batch.get("documents")
        logits = encode(tensors, form, batch["input_ids"], batch["positions"], documents=documents, training=training)
        return masked_lm_loss(logits, batch["labels"])

    return loss_of
