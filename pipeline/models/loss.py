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
_CACHED_BYTES = 2**21
"""Of logits that a CPU works on at a time: they stay in its caches, and there are few pieces."""
_FP16_FACTOR, _FP16_SUM = 2.0**4, 2.0**12
"""fp16 multiplies probabilities by the factor, since small ones would be 0, and by less where there are many rows: they
have the sum at most."""


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
    return _accuracy(known.gather(-1, labels) - known.scatter(-1, labels, -torch.inf).amax(-1, keepdim=True))


def _accuracy(leads: Tensor) -> Tensor:
    """Of the labels' logits less the largest of all others. Half precision has many ties."""
    return torch.heaviside(leads, leads.new_full((), 0.5)).to(torch.float32).mean()


def decoder_loss(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`masked_lm_loss` of the decoder's logits, hidden @ weight.T + bias, which are kept once.

    The logits are most of a small BERT's memory, and passing over them a good part of its time: with 2,432 positions,
    192 dimensions and 30,522 words one core of an Intel Xeon takes 0.69 s forward and backward, and 0.93 s through
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
    """Of each row the label stands apart: S = sum of e^(logit - largest) over all others, the largest of them too.

    margin = log S + largest - logit of the label; loss = log(1 + e^margin);
    gradient = sigmoid(margin) / S times the row e^(logit - largest), -S at the label.

    Forward, that row takes the place of the logits, and backward the products are made. In half precision the row has
    its factor already; in wider types the factor meets the hidden states, which are narrower.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        wide, count = accumulation_dtype(hidden.dtype), len(hidden)
        half, rows, learns = hidden.dtype != wide, _rows_at_once(hidden, weight), any(ctx.needs_input_grad)
        enlarged = min(_FP16_FACTOR, _FP16_SUM / count) if hidden.dtype == torch.float16 else 1.0
        # Of a product in fp32 and its bias CPUs make two passes over memory; in half precision the sum is rounded once.
        # They are slow with two types in one operation, where GPUs save a pass.
        in_pieces = rows < count
        bias_apart = in_pieces and not half
        logits = hidden @ weight.T if bias_apart else F.linear(hidden, weight, bias)
        leads, margins, factors, by_bias = [], [], [], None
        for part, label in zip(logits.split(rows), labels.split(rows), strict=True):
            if bias_apart:
                part += bias
            values = part.to(wide) if in_pieces else part
            own = values.gather(1, label)
            largest = values.scatter_(1, label, -torch.inf).amax(1, keepdim=True).to(wide)
            powers = (values.sub_(largest) if values.dtype == wide else values - largest).exp_()
            total = powers.sum(1, keepdim=True)
            leads.append(own - largest)
            margins.append((total.log() - leads[-1]).add_(leads[-1], alpha=0))  # NaN where a label's logit is infinite
            if learns:
                factor = torch.sigmoid(margins[-1]).div_(total)
                if enlarged != 1:
                    factor *= enlarged
                turned, along = powers.scatter_(1, label, -total).T, factor.view(-1)
                by_bias = turned.mv(along) if by_bias is None else by_bias.addmv_(turned, along)
                factors.append(factor)
                if half and in_pieces:
                    part.copy_(powers.mul_(factor))
                elif half:
                    torch.mul(powers, factor, out=part)
        # From the threshold on, the loss is the margin to the last bit of float64.
        loss, accuracy = F.softplus(_joined(margins), threshold=40).mean(), _accuracy(_joined(leads))
        if learns:
            ctx.save_for_backward(hidden, weight, logits, by_bias, None if half else _joined(factors))
            ctx.scaled = enlarged * count
        ctx.mark_non_differentiable(accuracy)
        ctx.set_materialize_grads(False)
        return loss, accuracy

    @staticmethod
    def backward(ctx: Any, *upward: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, vectors, by_bias, factors = ctx.saved_tensors
        scale = (upward[0] / ctx.scaled).view(1)  # without a dimension, a GPU would round it to half precision
        if factors is not None:
            factors = factors * scale
            return (vectors @ weight).mul_(factors), vectors.T @ (hidden * factors), by_bias * scale, None

        def scaled(tensor: Tensor) -> Tensor:
            return torch.mul(tensor, scale, out=torch.empty_like(tensor, dtype=weight.dtype))

        return scaled(vectors @ weight), scaled(vectors.T @ hidden), scaled(by_bias), None


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


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
