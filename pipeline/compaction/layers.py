"""The compacted layers: a teacher's layer, a compactor on each side, and the gates of its groups.

A compactor is stored as identity + delta, and only ever multiplied with the weight, never with activations:
the composition costs a constant per step, and attention and FFN kernels see a plain BERT.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertEmbeddings

from pipeline.compaction.groups import Gate


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 for half precisions, the type itself otherwise."""
    return torch.promote_types(dtype, torch.float32)


def take(tensor: Tensor, index: Tensor | None, dim: int) -> Tensor:
    """The entries `index` of dimension `dim`; all of them for None."""
    return tensor if index is None else tensor.index_select(dim, index)


def compose(
    weight: Tensor,
    row_delta: Tensor,
    column_delta: Tensor,
    kept_in: Tensor | None = None,
    kept_out: Tensor | None = None,
) -> Tensor:
    """(I + column_delta) @ weight @ (I + row_delta) in the accumulation type.

    That is (out, in), or (kept out, kept in) once the groups are narrowed, when I has only the kept rows on the left
    and the kept columns on the right.

    Written as weight + changes: in bf16 every product is rounded relative to the change, not to the weight, and
    the sum is left to the caller to round once. Of the two orders the one with fewer multiply-accumulates is taken;
    after narrowing, the row compactor first halves the price of FFN-in.

    Args:
        weight: (out, in).
        row_delta: (in, kept in), of the row compactor L on the input side.
        column_delta: (kept out, out), of the column compactor R on the output side.
        kept_in: indices of what is left on the input side, None for everything.
        kept_out: the same on the output side.
    """
    wide = accumulation_dtype(weight.dtype)
    if composes_rows_first(weight.shape, (len(column_delta), row_delta.shape[1])):
        columns = take(weight, kept_in, 1)
        row_change = weight @ row_delta
        column_change = column_delta @ (columns + row_change)
        return take(columns.to(wide) + row_change.to(wide), kept_out, 0) + column_change.to(wide)
    rows = take(weight, kept_out, 0)
    column_change = column_delta @ weight
    row_change = (rows + column_change) @ row_delta
    return take(rows.to(wide) + column_change.to(wide), kept_in, 1) + row_change.to(wide)


def composes_rows_first(whole: Sequence[int], kept: Sequence[int]) -> bool:
    """Whether W L comes before R (W L) for a W of (out, in) = `whole` of which `kept` (kept out, kept in) are left."""
    (out, into), (kept_out, kept_in) = whole, kept
    return out * kept_in * (into + kept_out) < into * kept_out * (out + kept_in)


def learning(delta: Tensor, gate: Gate, dim: int) -> Tensor:
    """`delta` (rows or columns of it along `dim` belong to the gate's group) with the gradient of retired ones cut.

    The paper calls it the reset: the task may no longer pull on what is being removed. The mask is there before
    anything is retired, too: a number to look at would have torch.compile begin anew with every choice.
    """
    if not gate.stops_gradient or gate.index is not None:
        return delta
    mask = gate.retired if dim == 1 else gate.retired[:, None]
    return torch.where(mask, delta.detach(), delta)


class CompactedLinear(nn.Module):
    """y = R (W (L x) + b), computed as (R W L) x + R b.

    Args:
        linear: the teacher's layer; its weight and bias become this layer's own.
        in_gate: gate of the group whose dimensions come in (columns of W).
        out_gate: gate of the group whose dimensions go out (rows of W).
        gated: the side on which the gate multiplies the composed matrix: "rows" for Q, K and V, "columns" for
            FFN-out, None where the residual gate acts through the LayerNorms alone.
    """

    def __init__(self, linear: nn.Linear, in_gate: Gate, out_gate: Gate, gated: str | None = None) -> None:
        super().__init__()
        out_features, in_features = linear.weight.shape
        self.weight = linear.weight
        self.bias = linear.bias
        self.row_delta = nn.Parameter(linear.weight.new_zeros(in_features, in_features))
        self.column_delta = nn.Parameter(linear.weight.new_zeros(out_features, out_features))
        self.in_gate, self.out_gate, self.gated = in_gate, out_gate, gated

    def composed(self) -> tuple[Tensor, Tensor]:
        """The weight (out, in) and bias (out,) that the activations meet, gates applied, rounded once.

        Once the groups are narrowed, they are of the kept dimensions alone.
        """
        column_delta = learning(self.column_delta, self.out_gate, dim=0)
        row_delta = learning(self.row_delta, self.in_gate, dim=1)
        weight = compose(self.weight, row_delta, column_delta, self.in_gate.index, self.out_gate.index)
        bias = take(self.bias, self.out_gate.index, 0).to(weight.dtype) + (column_delta @ self.bias).to(weight.dtype)
        if self.gated == "rows" and not self.out_gate.idle:
            gate = self.out_gate.value.to(weight.dtype)
            weight, bias = weight * gate[:, None], bias * gate
        elif self.gated == "columns" and not self.in_gate.idle:
            weight = weight * self.in_gate.value.to(weight.dtype)
        return weight.to(self.weight.dtype), bias.to(self.weight.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(inputs, *self.composed())


class GatedLayerNorm(nn.Module):
    """LayerNorm whose statistics are weighted by the residual gate.

    mean = sum(g x) / sum(g), var = sum(g (x - mean)^2) / sum(g), output = normed * (g gain) + (g bias). With all
    gates 1 this is the teacher's LayerNorm, with gates in {0, 1} exactly that of the student: a LayerNorm over
    zeroed dimensions would be neither.
    """

    def __init__(self, norm: nn.LayerNorm, gate: Gate) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.eps = norm.eps
        self.gate = gate

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        if self.gate.idle:
            return F.layer_norm(inputs, self.weight.shape, self.weight, self.bias, self.eps)
        wide = accumulation_dtype(inputs.dtype)
        x, gate = inputs.to(wide), self.gate.value.to(wide)
        total = gate.sum()
        centred = x - ((x @ gate) / total)[..., None]
        variance = ((centred * centred) @ gate) / total
        normed = centred * torch.rsqrt(variance + self.eps)[..., None]
        return (normed * (gate * self.weight.to(wide)) + gate * self.bias.to(wide)).to(inputs.dtype)


class CompactedEmbeddings(nn.Module):
    """Word + position + segment embeddings through one column compactor, then the gated LayerNorm.

    The compactor is composed with the tables. The composed word table also serves the MLM decoder, so it is made
    once per step and handed over as an activation, and R_e gets its gradient from both ends.
    """

    def __init__(self, embeddings: BertEmbeddings, gate: Gate) -> None:
        super().__init__()
        self.word = nn.Parameter(embeddings.word_embeddings.weight.data)
        self.position = nn.Parameter(embeddings.position_embeddings.weight.data)
        self.segment = nn.Parameter(embeddings.token_type_embeddings.weight.data)
        self.column_delta = nn.Parameter(self.word.new_zeros(self.word.shape[1], self.word.shape[1]))
        self.norm = GatedLayerNorm(embeddings.LayerNorm, gate)
        self.dropout = nn.Dropout(embeddings.dropout.p)
        self.gate = gate

    def composed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The word (vocab, hidden), position and segment tables times R_e^T, rounded once.

        Once the group is narrowed, they are of the kept dimensions alone.
        """
        delta = learning(self.column_delta, self.gate, dim=0).T
        tables = (self.word, self.position, self.segment)
        word, position, segment = (self._shift(t, delta) for t in tables)
        return word, position, segment

    def _shift(self, table: Tensor, delta: Tensor) -> Tensor:
        """table @ (I + delta), the kept columns of I."""
        wide = accumulation_dtype(table.dtype)
        return (take(table, self.gate.index, 1).to(wide) + (table @ delta).to(wide)).to(table.dtype)

    def forward(self, input_ids: Tensor, segment_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Token ids (batch, tokens) -> hidden states (batch, tokens, hidden), word table (vocab, hidden)."""
        word, position, segment = self.composed()
        segments = segment[0] if segment_ids is None else F.embedding(segment_ids, segment)
        summed = F.embedding(input_ids, word) + position[: input_ids.shape[1]] + segments
        return self.dropout(self.norm(summed)), word


class TiedDecoder(nn.Module):
    """The MLM decoder: logits over the vocabulary from the composed word table and a bias of its own."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, hidden: Tensor, word_table: Tensor) -> Tensor:
        """(..., hidden), (vocab, hidden) -> (..., vocab)."""
        return F.linear(hidden, word_table, self.bias)
