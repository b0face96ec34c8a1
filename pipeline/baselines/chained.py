"""WID as it was published: a compactor is a layer of its own, and activations go through all of them.

The same function as `pipeline.compaction` computes with composed matrices, at 54 d^2 multiply-accumulates per token
and layer in place of 12 d^2. It is here to be measured and to check the composed form, not to train with.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compaction.model import CompactedBert, is_compactor
from pipeline.models.encoder import take_positions


def chained_name(name: str) -> str:
    """The chained model's name of a parameter of the compacted one."""
    return name.removesuffix("delta") + "compactor" if is_compactor(name) else name


class ChainedBert(nn.Module):
    """The chained form of a `CompactedBert` whose gates are all open, without dropout; a copy, nothing is shared.

    Its parameters are those of the `CompactedBert`, but that compactors are stored whole: identity + delta, the way the
    published code does. Every LayerNorm, linear layer and compactor is written out here, so that a fault in the encoder
    shows, and all layers are computed at all positions.

    The tied decoder reads E R_e^T; here the hidden states are multiplied by R_e^T and then by E.
    """

    def __init__(self, compacted: CompactedBert) -> None:
        super().__init__()
        assert compacted.gates.all_open and not compacted.narrowed
        self.config, self.form = compacted.config, compacted.form
        for name, parameter in compacted.named_parameters():
            value = parameter.detach().clone()
            if is_compactor(name):
                value.diagonal(dim1=-2, dim2=-1).add_(1)
            self.register_parameter(chained_name(name), nn.Parameter(value))

    def forward(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """(batch, tokens), (batch, k) -> MLM logits (batch, k, vocab); everywhere without `positions`."""
        word, position, segment = self.get_parameter("tables").split(self.form.tables)
        compactor = self.get_parameter("tables_column_compactor")
        summed = F.embedding(input_ids, word) + position[: input_ids.shape[1]] + segment[0]
        hidden = self._norm("norm", F.linear(summed, compactor), 0)
        for layer in range(self.config.num_hidden_layers):
            attended = self._linear("attention_out", layer, self._attend(layer, hidden))
            hidden = self._norm("norm", hidden + attended, 2 * layer + 1)
            inner = self.form.activation(self._linear("ffn_in", layer, hidden))
            hidden = self._norm("norm", hidden + self._linear("ffn_out", layer, inner), 2 * layer + 2)
        if positions is not None:
            hidden = take_positions(hidden, positions)
        hidden = self._norm("transform_norm", self.form.activation(self._linear("transform", 0, hidden)))
        return F.linear(F.linear(hidden, compactor.T), word, self.get_parameter("decoder_bias"))

    def _linear(self, name: str, number: int, inputs: Tensor) -> Tensor:
        """y = R (W (L x) + b) of one matrix of a stack, one product after the other."""
        row_compactor, column_compactor = (self.get_parameter(f"{name}_{side}_compactor") for side in ("row", "column"))
        matrices, size = len(row_compactor), column_compactor.shape[-1]
        weight = self.get_parameter(name).view(matrices, size, -1)[number]
        bias = self.get_parameter(f"{name}_bias").view(matrices, size)[number]
        return F.linear(F.linear(F.linear(inputs, row_compactor[number]), weight, bias), column_compactor[number])

    def _attend(self, layer: int, hidden: Tensor) -> Tensor:
        """What the heads of a layer gather: (batch, tokens, d) -> (batch, tokens, d)."""
        projections = (self._linear("qkv", 3 * layer + part, hidden) for part in range(3))
        query, key, value = (part.unflatten(-1, (self.form.heads, -1)).transpose(1, 2) for part in projections)
        if self.form.fused_attention:
            gathered = F.scaled_dot_product_attention(query, key, value, scale=self.form.score_scale)
        else:
            gathered = torch.softmax(query @ key.mT * self.form.score_scale, dim=-1) @ value
        return gathered.transpose(1, 2).flatten(2)

    def _norm(self, name: str, hidden: Tensor, number: int = 0) -> Tensor:
        gain, bias = (
            self.get_parameter(f"{name}_{kind}").view(-1, hidden.shape[-1])[number] for kind in ("gain", "bias")
        )
        return F.layer_norm(hidden, gain.shape, gain, bias, self.form.epsilon)
