"""What a BERT is trained on, and masked-language modelling."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.encoder import Bert, Form, Tensors
from pipeline.models.precision import accumulation_dtype

LossOf = Callable[[Tensors, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""From the tensors of a BERT and a batch to the loss, a mean over the batch, and the accuracy of what is predicted."""
_CACHED_BYTES = 2**20
"""Of logits that a CPU works on at a time: they stay in its cache."""
_FP16_FACTOR = 2.0**12
"""On probabilities in fp16, the small ones of which would be 0 without."""


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


def decoder_loss(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`masked_lm_loss` of the decoder's logits, hidden @ weight.T + bias, which lie in memory once.

    The logits are most of a small BERT's memory, and passing over them a good part of its time: a CPU takes a fifth
    less for a whole step with 2 layers of 192 than through `masked_lm_loss`. A label that shares the largest logit with
    others counts half.

    Args:
        hidden: (batch, k, d), see `Bert.before_decoder`.
        weight: (vocab, d).
        bias: (vocab,).
        labels: (batch, k).
    """
    losses: tuple[Tensor, Tensor] = _DecoderLoss.apply(hidden.flatten(0, 1), weight, bias, labels.reshape(-1, 1))
    return losses


class _DecoderLoss(torch.autograd.Function):
    """Forward, the logits give way to their gradient: softmax less one at the label. Backward, that is multiplied."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(hidden, weight, bias)
        wide, factor = accumulation_dtype(logits.dtype), _FP16_FACTOR if logits.dtype == torch.float16 else 1.0
        rows, learns = _rows_at_once(logits), any(ctx.needs_input_grad)
        of_labels, of_others, by_bias = [], [], None
        for part, label in zip(logits.split(rows), labels.split(rows), strict=True):
            log_p = torch.log_softmax(part, -1, dtype=wide)
            own = log_p.gather(1, label)
            of_labels.append(own)
            of_others.append(log_p.scatter_(1, label, -torch.inf).amax(1, keepdim=True))
            if learns:
                gradient = log_p.exp_().scatter_(1, label, own.expm1())
                if factor != 1:
                    gradient *= factor
                by_bias = gradient.sum(0) if by_bias is None else by_bias.add_(gradient.sum(0))
                part.copy_(gradient)
        own, best = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in (of_labels, of_others))
        loss, accuracy = -own.mean(), torch.heaviside(own - best, own.new_full((), 0.5)).mean()
        if learns:
            ctx.save_for_backward(hidden, weight, logits, by_bias)
            ctx.scaled = len(hidden) * factor
        ctx.mark_non_differentiable(accuracy)
        ctx.set_materialize_grads(False)
        return loss, accuracy

    @staticmethod
    def backward(ctx: Any, *upward: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, gradient, by_bias = ctx.saved_tensors
        scale = upward[0] / ctx.scaled
        by_weight = gradient.T @ (hidden * scale)
        return (gradient @ weight) * scale, by_weight, (by_bias * scale).to(weight.dtype), None


def _rows_at_once(logits: Tensor) -> int:
    """GPUs want few large operations, and torch.compile passes over memory once by itself."""
    rows, size = logits.shape
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return rows
    return max(1, _CACHED_BYTES // (size * accumulation_dtype(logits.dtype).itemsize))


def masked_lm_of(form: Form, training: bool) -> LossOf:
    """Masked-language modelling with a BERT of this form, with dropout in training."""

    def loss_of(tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        bert = Bert(tensors, form, training)
        hidden = bert.before_decoder(batch["input_ids"], batch["positions"], documents=batch.get("documents"))
        return decoder_loss(hidden, bert.word, bert.decoder_bias, batch["labels"])

    return loss_of
