"""WID as it was published: a compactor is a layer of its own, and activations go through all of them.

The same function as `pipeline.compaction` computes with composed matrices, at 54 d^2 multiply-accumulates per token
and layer in place of 12 d^2. It is here to be measured and to check the composed form, not to train with.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compaction.model import CompactedBert, is_compactor
from pipeline.compaction.stacks import STACKS, Stack
from pipeline.models.attention import attention
from pipeline.models.encoder import take_positions

Linear = tuple[Tensor, Tensor, Tensor, Tensor]
"""Row compactor L, weight W, bias b, column compactor R of a linear layer."""


def chain(linear: Linear, inputs: Tensor) -> Tensor:
    """y = R (W (L x) + b), one product after the other."""
    row_compactor, weight, bias, column_compactor = linear
    return F.linear(F.linear(F.linear(inputs, row_compactor), weight, bias), column_compactor)


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
        return F.linear(self.before_decoder(input_ids, positions), *self.decoder())

    def decoder(self) -> tuple[Tensor, Tensor]:
        """Weight (vocab, d) and bias (vocab,)."""
        return self.get_parameter("tables").split(self.form.tables)[0], self.get_parameter("decoder_bias")

    def before_decoder(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """(batch, tokens), (batch, k) -> what the decoder sees (batch, k, d); everywhere without `positions`."""
        word, position, segment = self.get_parameter("tables").split(self.form.tables)
        compactor = self.get_parameter("tables_column_compactor")
        summed = F.embedding(input_ids, word) + position[: input_ids.shape[1]] + segment[0]
        norms = self._norms("norm")
        qkv, attention_out, ffn_in, ffn_out, transform = (self._linears(stack) for stack in STACKS)
        hidden = self._norm(F.linear(summed, compactor), next(norms))
        for layer in range(self.config.num_hidden_layers):
            gathered = self._attend(qkv[3 * layer : 3 * layer + 3], hidden)
            hidden = self._norm(hidden + chain(attention_out[layer], gathered), next(norms))
            inner = self.form.activation(chain(ffn_in[layer], hidden))
            hidden = self._norm(hidden + chain(ffn_out[layer], inner), next(norms))
        if positions is not None:
            hidden = take_positions(hidden, positions)
        hidden = self._norm(self.form.activation(chain(transform[0], hidden)), next(self._norms("transform_norm")))
        return F.linear(hidden, compactor.T)

    def _linears(self, stack: Stack) -> list[Linear]:
        """The linear layers of a stack; Q, K and V of a layer follow one another."""
        rows, columns = (self.get_parameter(f"{stack.name}_{side}_compactor") for side in ("row", "column"))
        weight = self.get_parameter(stack.name).view(len(rows), columns.shape[2], -1)
        bias = self.get_parameter(f"{stack.name}_bias").view(len(rows), -1)
        return list(zip(rows.unbind(), weight.unbind(), bias.unbind(), columns.unbind(), strict=True))

    def _attend(self, qkv: list[Linear], hidden: Tensor) -> Tensor:
        """What the heads of a layer gather: (batch, tokens, d) -> (batch, tokens, d)."""
        projections = (chain(linear, hidden) for linear in qkv)
        query, key, value = (part.unflatten(-1, (self.form.heads, -1)).transpose(1, 2) for part in projections)
        return attention(query, key, value, self.form.score_scale).transpose(1, 2).flatten(2)

    def _norms(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Gain and bias of each LayerNorm."""
        gain, bias = (torch.atleast_2d(self.get_parameter(f"{name}_{kind}")) for kind in ("gain", "bias"))
        return zip(gain.unbind(), bias.unbind(), strict=True)

    def _norm(self, hidden: Tensor, gain_and_bias: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], *gain_and_bias, self.form.epsilon)
