"""WID as it was published: a compactor is a layer of its own, and activations go through all of them.

The same function as `pipeline.compaction` computes with composed matrices, at 54 d^2 multiply-accumulates per token
and layer in place of 12 d^2. It is here to be measured and to check the composed form, not to train with.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compaction.layers import CompactedLinear
from pipeline.compaction.model import CompactedBert, take_positions


def whole_compactor(delta: Tensor) -> nn.Parameter:
    """identity + delta (d, d), the way the published code stores a compactor."""
    return nn.Parameter(delta.detach() + torch.eye(len(delta), dtype=delta.dtype, device=delta.device))


class ChainedLinear(nn.Module):
    """y = R (W (L x) + b), one product after the other.

    Attributes:
        row_compactor: L (in, in).
        column_compactor: R (out, out).
    """

    def __init__(self, linear: CompactedLinear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.row_compactor = whole_compactor(linear.row_delta)
        self.column_compactor = whole_compactor(linear.column_delta)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        hidden = F.linear(F.linear(inputs, self.row_compactor), self.weight, self.bias)
        return F.linear(hidden, self.column_compactor)


class ChainedBert(nn.Module):
    """The chained form of a `CompactedBert` whose gates are all open; a copy, nothing is shared.

    The tied decoder reads E R_e^T; here the hidden states are multiplied by R_e^T and then by E.
    """

    def __init__(self, compacted: CompactedBert) -> None:
        super().__init__()
        assert all(gate.all_open for gate in compacted.gates.values()) and not compacted.narrowed
        model = copy.deepcopy(compacted)
        embeddings = model.embeddings
        self.word, self.position, self.segment = embeddings.word, embeddings.position, embeddings.segment
        self.embedding_compactor = whole_compactor(embeddings.column_delta)
        self.norm, self.dropout = embeddings.norm, embeddings.dropout
        self.layers = model.layers
        for layer in self.layers:
            heads = layer.attention.self
            heads.query, heads.key, heads.value = (ChainedLinear(m) for m in (heads.query, heads.key, heads.value))
            for module in (layer.attention.output, layer.intermediate, layer.output):
                module.dense = ChainedLinear(module.dense)
        self.transform = ChainedLinear(model.transform)
        self.transform_activation, self.transform_norm = model.transform_activation, model.transform_norm
        self.decoder = model.decoder

    def forward(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """(batch, tokens), (batch, k) -> MLM logits (batch, k, vocab); everywhere without `positions`."""
        summed = F.embedding(input_ids, self.word) + self.position[: input_ids.shape[1]] + self.segment[0]
        hidden = self.dropout(self.norm(F.linear(summed, self.embedding_compactor)))
        for layer in self.layers:
            hidden = layer(hidden)
        if positions is not None:
            hidden = take_positions(hidden, positions)
        hidden = self.transform_norm(self.transform_activation(self.transform(hidden)))
        return self.decoder(F.linear(hidden, self.embedding_compactor.T), self.word)
