"""A model's attention and what it is made of, layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from pipeline.baselines.minilm import Projections
from pipeline.evaluation.encoder import Encoder, device


@dataclass(frozen=True)
class Layer:
    """What one layer did with a batch: attention (batch, heads, tokens, tokens), and queries, keys and values."""

    attention: Tensor
    projections: Projections


class Looker:
    """A BERT encoder in evaluation mode, so without dropout, with the one attention kernel that shows its weights."""

    def __init__(self, config: Any, weights: dict[str, Tensor]) -> None:
        self._model = AutoModel.from_config(
            config, add_pooling_layer=False, attn_implementation="eager", dtype=torch.float32
        )
        self._model.load_state_dict(weights)
        self._model.to(device()).eval()
        self.layers: int = config.num_hidden_layers
        self.heads: int = config.num_attention_heads
        self.hidden: int = config.hidden_size
        self._seen: dict[tuple[int, str], Tensor] = {}
        for number, layer in enumerate(self._model.encoder.layer):
            for name in ("query", "key", "value"):
                getattr(layer.attention.self, name).register_forward_hook(partial(self._keep, (number, name)))

    @classmethod
    def of(cls, encoder: Encoder) -> "Looker":
        """The model that was read from a directory."""
        return cls(encoder.config, encoder.weights)

    @torch.no_grad()
    def look(self, input_ids: Tensor) -> list[Layer]:
        """What every layer does with token ids (batch, tokens)."""
        attentions = self._model(input_ids=input_ids.to(device()), output_attentions=True).attentions
        seen, self._seen = self._seen, {}
        return [
            Layer(attention, (seen[number, "query"], seen[number, "key"], seen[number, "value"]))
            for number, attention in enumerate(attentions)
        ]

    def _keep(self, place: tuple[int, str], module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._seen[place] = output


def relation_heads(models: Sequence[Looker], most: int) -> int:
    """The largest number, up to `most`, that divides the hidden size of every model."""
    common = math.gcd(*(model.hidden for model in models))
    return max(number for number in range(1, most + 1) if common % number == 0)
