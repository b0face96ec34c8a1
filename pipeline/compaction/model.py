"""A Hugging Face BERT with compacted layers in place of its own: the teacher on its way to the student."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertLayer

from pipeline.compaction.groups import Gate, Group, build_groups
from pipeline.compaction.layers import CompactedEmbeddings, CompactedLinear, GatedLayerNorm, TiedDecoder
from pipeline.shapes import BertShape, Strategy


def shape_of(config: BertConfig) -> BertShape:
    """The sizes in a Hugging Face BERT configuration."""
    return BertShape.from_config(config.to_dict())


def take_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Pick hidden states (batch, tokens, hidden) at `positions` (batch, k) -> (batch, k, hidden)."""
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


class CompactedBert(nn.Module):
    """The teacher with a compactor on each side of every linear layer and a gate per group.

    At the start it computes the teacher's logits; with every gate in {0, 1} it computes those of the student that
    `fold` writes. It takes over the teacher's modules: the object handed in must not be used afterwards.

    Args:
        teacher: with `model_type` bert, absolute positions and a tied decoder (see `pipeline.teacher`).
        target: the student's shape.
        strategy: `dim` or `head`, see `groups`.
        stops_gradient: decay `penalty`, see `Gate`.
    """

    def __init__(
        self, teacher: BertForMaskedLM, target: BertShape, strategy: Strategy, stops_gradient: bool = False
    ) -> None:
        super().__init__()
        self.config = teacher.config
        self.target = target
        self.strategy = strategy
        self.groups: dict[str, Group] = build_groups(shape_of(teacher.config), target, strategy)
        self.gates = {name: Gate(group, stops_gradient) for name, group in self.groups.items()}
        residual = self.gates["residual"]

        self.embeddings = CompactedEmbeddings(teacher.bert.embeddings, residual)
        self.layers = teacher.bert.encoder.layer
        for index, layer in enumerate(self.layers):
            self._compact_layer(layer, residual, self.gates[f"attention.{index}"], self.gates[f"ffn.{index}"])
        head = teacher.cls.predictions
        self.transform = CompactedLinear(head.transform.dense, residual, residual)
        self.transform_activation = head.transform.transform_act_fn
        self.transform_norm = GatedLayerNorm(head.transform.LayerNorm, residual)
        self.decoder = TiedDecoder(head.decoder.bias.data)

    @staticmethod
    def _compact_layer(layer: BertLayer, residual: Gate, attention: Gate, ffn: Gate) -> None:
        """Swap the linear layers and LayerNorms of one layer for compacted ones."""
        heads = layer.attention.self
        heads.query = CompactedLinear(heads.query, residual, attention, gated="rows")
        heads.key = CompactedLinear(heads.key, residual, attention, gated="rows")
        heads.value = CompactedLinear(heads.value, residual, attention, gated="rows")
        layer.attention.output.dense = CompactedLinear(layer.attention.output.dense, attention, residual)
        layer.attention.output.LayerNorm = GatedLayerNorm(layer.attention.output.LayerNorm, residual)
        layer.intermediate.dense = CompactedLinear(layer.intermediate.dense, residual, ffn)
        layer.output.dense = CompactedLinear(layer.output.dense, ffn, residual, gated="columns")
        layer.output.LayerNorm = GatedLayerNorm(layer.output.LayerNorm, residual)

    def encode(
        self, input_ids: Tensor, segment_ids: Tensor | None = None, documents: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Token ids (batch, tokens) -> all hidden states and the composed word table (vocab, hidden).

        The hidden states are those after the embeddings and after each layer, each (batch, tokens, hidden).
        """
        hidden, word_table = self.embeddings(input_ids, segment_ids)
        mask = document_mask(documents, hidden.dtype)
        states = [hidden]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return states, word_table

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """MLM logits.

        Args:
            input_ids: (batch, tokens), no padding.
            positions: (batch, k), where logits are wanted; None for everywhere.
            segment_ids: (batch, tokens); None for the first segment everywhere.
            documents: (batch, tokens), the document of each token, which attends to no other; None for all to all.

        Returns:
            (batch, k, vocab), or (batch, tokens, vocab) without `positions`.
        """
        states, word_table = self.encode(input_ids, segment_ids, documents)
        hidden = states[-1] if positions is None else take_positions(states[-1], positions)
        hidden = self.transform_norm(self.transform_activation(self.transform(hidden)))
        return self.decoder(hidden, word_table)

    def narrow(self, kept: dict[str, Tensor]) -> None:
        """Drop, for good, every dimension of every group but `kept` (group -> indices (kept,), ascending).

        What remains of the compactors is rectangular, so the composed matrices and the activations have the student's
        size. The teacher's weights keep theirs. The function computed does not change if the gates of what is dropped
        were 0, and neither do the gradients of what stays.
        """
        for name, (dim, group) in self.narrowing().items():
            module, _, attribute = name.rpartition(".")
            whole = self.get_submodule(module).get_parameter(attribute)
            left = nn.Parameter(whole.detach().index_select(dim, kept[group].to(whole.device)))
            setattr(self.get_submodule(module), attribute, left)
        for name, gate in self.gates.items():
            gate.narrow(kept[name])
        for layer in self.layers:
            # The scale of the scores stays the teacher's: the fold puts the student's into Q.
            layer.attention.self.attention_head_size = self.target.head_size

    @property
    def narrowed(self) -> bool:
        return self.gates["residual"].index is not None

    def narrowing(self) -> dict[str, tuple[int, str]]:
        """The parameters that `narrow` cuts: name -> the dimension that is cut and the group whose it is."""
        names = {gate: name for name, gate in self.gates.items()}
        cut: dict[str, tuple[int, str]] = {"embeddings.column_delta": (0, "residual")}
        for name, module in self.named_modules():
            if isinstance(module, CompactedLinear):
                cut[f"{name}.row_delta"] = (1, names[module.in_gate])
                cut[f"{name}.column_delta"] = (0, names[module.out_gate])
            elif isinstance(module, GatedLayerNorm):
                cut[f"{name}.weight"] = cut[f"{name}.bias"] = (0, "residual")
        return cut

    def readers(self, group: str) -> Iterator[CompactedLinear]:
        """The linear layers that read the dimensions of `group` through their row compactors."""
        gate = self.gates[group]
        return (m for m in self.modules() if isinstance(m, CompactedLinear) and m.in_gate is gate)

    def move_gates(self, device: torch.device | str) -> None:
        """Gates are no parameters, so `to(device)` leaves them behind; this takes them along."""
        for gate in self.gates.values():
            gate.to(device)


def is_compactor(parameter_name: str) -> bool:
    """True for the parameters that WID adds to the teacher's own."""
    return parameter_name.endswith(("row_delta", "column_delta"))
