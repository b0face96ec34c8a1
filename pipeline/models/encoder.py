"""BERT as a function of tensors.

A BERT is some twenty tensors, those of all layers stacked, and a few numbers (`Form`) that no tensor tells. Whoever has
tensors, a teacher's, composed ones, a student's, runs them here, and nowhere else:

1. `embed`           word + position + segment, LayerNorm, dropout;
2. `layer`           Q, K and V in one product, attention, FFN, each followed by residual sum and LayerNorm;
3. `before_decoder`  all of that and the MLM head's transform;
4. `decode`          logits.

In the last layer what follows the projections, and the MLM head, are computed where something is predicted and nowhere
else.

Shapes: d hidden, a = heads x head size (the hidden size but in a teacher that is closing), f intermediate, L layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.attention import attention
from pipeline.models.norm import LayerNorms

SHAPES = {
    "tables": "(vocabulary + positions + segments, d)",
    "norm_gain": "(2 L + 1, d), embeddings first, then attention and FFN of each layer",
    "norm_bias": "(2 L + 1, d)",
    "qkv": "(L, 3 a, d)",
    "qkv_bias": "(L, 3 a)",
    "attention_out": "(L, d, a)",
    "attention_out_bias": "(L, d)",
    "ffn_in": "(L, f, d)",
    "ffn_in_bias": "(L, f)",
    "ffn_out": "(L, d, f)",
    "ffn_out_bias": "(L, d)",
    "transform": "(1, d, d), of the MLM head",
    "transform_bias": "(1, d)",
    "transform_norm_gain": "(d,)",
    "transform_norm_bias": "(d,)",
    "decoder_bias": "(vocabulary,), the decoder's weight is the word table",
}
"""The tensors of a BERT, in their order."""
GATE = "gate"
"""The residual gate (d,), where it is not open: it weights the statistics of every LayerNorm."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Form:
    """What a BERT is besides its tensors.

    Attributes:
        tables: rows of the word, position and segment tables.
        heads: of every layer.
        score_scale: the factor on the scores of attention.
        epsilon: of every LayerNorm.
        activation: of the FFNs and of the MLM head.
        dropout: of hidden states, in training.
        attention_dropout: of attention's weights, in training.
    """

    tables: tuple[int, int, int]
    heads: int
    score_scale: float
    epsilon: float
    activation: Callable[[Tensor], Tensor]
    dropout: float
    attention_dropout: float


class Bert:
    """A BERT over given tensors, for one pass.

    Args:
        tensors: those of `SHAPES`, and `GATE` where there is one.
        form: the rest.
        training: whether dropout is on.
    """

    def __init__(self, tensors: Tensors, form: Form, training: bool = False) -> None:
        self.form = form
        self.dropout = form.dropout if training else 0.0
        self.attention_dropout = form.attention_dropout if training else 0.0
        self.word, self.position, self.segment = tensors["tables"].split(form.tables)
        names = ("qkv", "attention_out", "ffn_in", "ffn_out", "transform")
        self.linear = {
            name: tuple(zip(tensors[name].unbind(), tensors[f"{name}_bias"].unbind(), strict=True)) for name in names
        }
        gains, biases = (
            torch.cat([tensors[f"norm_{kind}"], tensors[f"transform_norm_{kind}"][None]]) for kind in ("gain", "bias")
        )
        self.norm = LayerNorms(gains, biases, form.epsilon, tensors.get(GATE))
        self.decoder_bias = tensors["decoder_bias"]
        self.layers = len(self.linear["qkv"])

    def embed(self, input_ids: Tensor, segment_ids: Tensor | None = None) -> Tensor:
        """Token ids (batch, tokens) -> (batch, tokens, d)."""
        segments = self.segment[0] if segment_ids is None else F.embedding(segment_ids, self.segment)
        places = self.position[: input_ids.shape[1]] + segments
        words = F.embedding(input_ids, self.word)
        return self._drop(self.norm(0, words, places.expand_as(words)))

    def layer(self, number: int, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, d) -> (batch, tokens, d)."""
        return self._after_attention(number, self.attend(number, hidden, mask), hidden)

    def projections(self, number: int, hidden: Tensor) -> Tensor:
        """Queries, keys and values (batch, tokens, 3, heads, head size) of a layer that sees `hidden`."""
        batch, tokens, _ = hidden.shape
        return F.linear(hidden, *self.linear["qkv"][number]).view(batch, tokens, 3, self.form.heads, -1)

    def attend(
        self, number: int, hidden: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """What the heads of a layer gather, at `positions` (batch, k) alone if there are any.

        Args:
            number: of the layer.
            hidden: (batch, tokens, d).
            mask: see `document_mask`.
            positions: None for everywhere.

        Returns:
            (batch, tokens, a) or (batch, k, a).
        """
        # In this order the gradients of the three are written below one another at once.
        query, key, value = self.projections(number, hidden).unbind(2)
        if positions is not None:
            query = take_positions(query.flatten(2), positions).view(*positions.shape, *query.shape[2:])
            mask = mask if mask is None else take_positions(mask[:, 0], positions)[:, None]
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        gathered = attention(query, key, value, self.form.score_scale, mask, self.attention_dropout)
        return gathered.transpose(1, 2).flatten(2)

    def before_last(self, input_ids: Tensor, segment_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """What the last layer sees: token ids (batch, tokens) -> (batch, tokens, d)."""
        hidden = self.embed(input_ids, segment_ids)
        for number in range(self.layers - 1):
            hidden = self.layer(number, hidden, mask)
        return hidden

    def before_decoder(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """What the decoder sees where something is predicted: all layers, and the MLM head's transform.

        Args:
            input_ids: (batch, tokens).
            positions: (batch, k); None for everywhere.
            segment_ids: (batch, tokens); None for the first segment everywhere.
            documents: (batch, tokens), see `encode`.

        Returns:
            (batch, k, d).
        """
        mask = document_mask(documents, self.word.dtype)
        hidden, last = self.before_last(input_ids, segment_ids, mask), self.layers - 1
        gathered = self.attend(last, hidden, mask, positions)
        if positions is not None:
            hidden = take_positions(hidden, positions)
        hidden = self._after_attention(last, gathered, hidden)
        hidden = self.form.activation(F.linear(hidden, *self.linear["transform"][0]))
        return self.norm(2 * self.layers + 1, hidden)

    def decode(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of what the decoder sees (..., d)."""
        return F.linear(hidden, self.word, self.decoder_bias)

    def _after_attention(self, number: int, gathered: Tensor, hidden: Tensor) -> Tensor:
        attended = self._drop(F.linear(gathered, *self.linear["attention_out"][number]))
        hidden = self.norm(2 * number + 1, attended, hidden)
        inner = self.form.activation(F.linear(hidden, *self.linear["ffn_in"][number]))
        outer = self._drop(F.linear(inner, *self.linear["ffn_out"][number]))
        return self.norm(2 * number + 2, outer, hidden)

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.dropout) if self.dropout else hidden


def encode(
    tensors: Tensors,
    form: Form,
    input_ids: Tensor,
    positions: Tensor | None = None,
    segment_ids: Tensor | None = None,
    documents: Tensor | None = None,
    training: bool = False,
) -> Tensor:
    """MLM logits.

    Args:
        tensors: those of `SHAPES`, and `GATE` where there is one.
        form: the rest of the BERT.
        input_ids: (batch, tokens), no padding.
        positions: (batch, k), where logits are wanted; None for everywhere.
        segment_ids: (batch, tokens); None for the first segment everywhere.
        documents: (batch, tokens), the document of each token, which attends to no other; None for all to all.
        training: whether dropout is on.

    Returns:
        (batch, k, vocabulary), or (batch, tokens, vocabulary) without `positions`.
    """
    bert = Bert(tensors, form, training)
    return bert.decode(bert.before_decoder(input_ids, positions, segment_ids, documents))


def take_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Pick hidden states (batch, tokens, d) at `positions` (batch, k) -> (batch, k, d)."""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def document_mask(documents: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What to add to the scores of attention, so that a token sees its own document alone.

    A sum, not a choice, because that is what every attention kernel takes. The softmax makes exact zeros of it.

    Args:
        documents: (batch, tokens), the number of each token's document; None for a window that is all one.
        dtype: of the scores.

    Returns:
        (batch, 1, tokens, tokens), 0 within a document and the least number between two; None for None.
    """
    if documents is None:
        return None
    apart = documents[:, None, :, None] != documents[:, None, None, :]
    return torch.zeros(apart.shape, dtype=dtype, device=apart.device).masked_fill(apart, torch.finfo(dtype).min)
