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
_CACHED_BYTES = 2**22
"""Of logits that a CPU works on at a time: they stay in its caches, and there are few pieces."""
_FP16_FACTOR, _FP16_SUM = 2.0**4, 2.0**12
"""On probabilities in fp16, where small ones would be 0 without, and the most that all rows have of it."""


def masked_lm_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy over the predicted positions, in fp32 or wider.

    Args:
        logits: (batch, k, vocab).
        labels: (batch, k).
    """
    loss = F.cross_entropy(logits.to(accumulation_dtype(logits.dtype)).flatten(0, 1), labels.flatten())
    return loss, accuracy_of(logits, labels)


def accuracy_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of positions at which the label's logit is the largest; one that another logit equals counts half."""
    known, labels = logits.detach(), labels[..., None]
    return _accuracy(known.gather(-1, labels), known.scatter(-1, labels, -torch.inf).amax(-1, keepdim=True))


def _accuracy(of_labels: Tensor, of_others: Tensor) -> Tensor:
    """Of the labels' logits and the largest of all others, both less what they share. Half precision has many ties."""
    return torch.heaviside(of_labels - of_others, of_labels.new_full((), 0.5)).to(torch.float32).mean()


def decoder_loss(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`masked_lm_loss` of the decoder's logits, hidden @ weight.T + bias, which are kept once.

    The logits are most of a small BERT's memory, and passing over them a good part of its time: with 2,432 positions,
    192 dimensions and 30,522 words one core of an Intel Xeon takes 0.70 s forward and backward, and 0.91 s through
    `masked_lm_loss` in fp32. It can be differentiated once.

    Args:
        hidden: (batch, k, d), see `Bert.before_decoder`.
        weight: (vocab, d).
        bias: (vocab,).
        labels: (batch, k), every one of which counts.
    """
    losses: tuple[Tensor, Tensor] = _DecoderLoss.apply(hidden.flatten(0, 1), weight, bias, labels.reshape(-1, 1))
    return losses


class _DecoderLoss(torch.autograd.Function):
    """Forward, the logits give way to their gradient: softmax less one at the label. Backward, that is multiplied."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        wide, count = accumulation_dtype(hidden.dtype), len(hidden)
        factor = min(_FP16_FACTOR, _FP16_SUM / count) if hidden.dtype == torch.float16 else 1.0
        rows, learns = _rows_at_once(hidden, weight), any(ctx.needs_input_grad)
        # Of a product in fp32 and its bias CPUs make two passes over memory; in half precision the sum is rounded once.
        bias_apart = rows < count and hidden.dtype == wide
        logits = hidden @ weight.T if bias_apart else F.linear(hidden, weight, bias)
        of_labels, of_others, by_bias = [], [], None
        for part, label in zip(logits.split(rows), labels.split(rows), strict=True):
            if bias_apart:
                part += bias
            log_p = torch.log_softmax(part, -1, dtype=wide)
            own = log_p.gather(1, label)
            of_labels.append(own)
            of_others.append(log_p.scatter_(1, label, -torch.inf).amax(1, keepdim=True))
            if learns:
                gradient = torch.exp(log_p, out=part if part.dtype == wide else log_p).scatter_(1, label, own.expm1())
                if factor != 1:
                    gradient *= factor
                by_bias = gradient.sum(0) if by_bias is None else by_bias.add_(gradient.sum(0))
                if gradient is not part:
                    part.copy_(gradient)
        own, best = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in (of_labels, of_others))
        loss, accuracy = -own.mean(), _accuracy(own, best)
        if learns:
            ctx.save_for_backward(hidden, weight, logits, by_bias)
            ctx.scaled = factor * count
        ctx.mark_non_differentiable(accuracy)
        ctx.set_materialize_grads(False)
        return loss, accuracy

    @staticmethod
    def backward(ctx: Any, *upward: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, gradient, by_bias = ctx.saved_tensors
        scale = (upward[0] / ctx.scaled).view(1)  # without a dimension, a GPU would round it to half precision

        def scaled(tensor: Tensor) -> Tensor:
            return torch.mul(tensor, scale, out=torch.empty_like(tensor, dtype=weight.dtype))

        return scaled(gradient @ weight), scaled(gradient.T @ hidden), scaled(by_bias), None


def _rows_at_once(hidden: Tensor, weight: Tensor) -> int:
    """GPUs want few large operations, and torch.compile passes over memory once by itself."""
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return len(hidden)
    return max(1, _CACHED_BYTES // (len(weight) * accumulation_dtype(hidden.dtype).itemsize))


def masked_lm_of(form: Form, training: bool) -> LossOf:
    """Masked-language modelling with a BERT of this form, with dropout in training."""

    def loss_of(tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        bert = Bert(tensors, form, training)
        hidden = bert.before_decoder(batch["input_ids"], batch["positions"], documents=batch.get("documents"))
        return decoder_loss(hidden, bert.word, bert.decoder_bias, batch["labels"])

    return loss_of
