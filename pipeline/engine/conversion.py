"""Checkpoints of format 1, whose parameters were those of single layers, as this program has them: stacked.

A tensor of format 2 is made of one to three tensors of every layer. Their names in format 1, for a model with
compactors; a plain BERT had those of transformers, with `bert.` before them:

    tables                embeddings.{word, position, segment}
    norm_gain, norm_bias  embeddings.norm, layers.N.attention.output.LayerNorm, layers.N.output.LayerNorm
    qkv                   layers.N.attention.self.{query, key, value}
    attention_out         layers.N.attention.output.dense
    ffn_in, ffn_out       layers.N.intermediate.dense, layers.N.output.dense
    transform             transform, transform_norm
    decoder_bias          decoder.bias

A linear layer had `weight`, `bias`, `row_delta` and `column_delta`, narrowed or not as they are now. Adam's moments
have the names and shapes of their parameters.
"""

import re

import torch
from torch import Tensor

_PLAIN = (
    ("bert.bert.embeddings.word_embeddings.weight", "embeddings.word"),
    ("bert.bert.embeddings.position_embeddings.weight", "embeddings.position"),
    ("bert.bert.embeddings.token_type_embeddings.weight", "embeddings.segment"),
    ("bert.bert.embeddings.LayerNorm", "embeddings.norm"),
    ("bert.bert.encoder.layer.", "layers."),
    ("bert.cls.predictions.transform.dense", "transform"),
    ("bert.cls.predictions.transform.LayerNorm", "transform_norm"),
    ("bert.cls.predictions.bias", "decoder.bias"),
)
"""Beginnings of names of a plain BERT, and what they were with compactors."""
_STACKS = {
    "qkv": tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
    "attention_out": ("attention.output.dense",),
    "ffn_in": ("intermediate.dense",),
    "ffn_out": ("output.dense",),
}
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


def from_format_1(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters, or moments, under the names and in the shapes of format 2.

    Raises:
        KeyError: a tensor is missing.
    """
    if not tensors:
        return {}
    old = {_renamed(name): tensor for name, tensor in tensors.items()}
    layers = 1 + max(int(found[1]) for name in old if (found := re.match(r"layers\.(\d+)\.", name)))
    new = {"tables": torch.cat([old[f"embeddings.{name}"] for name in ("word", "position", "segment")])}
    norms = ["embeddings.norm", *(f"layers.{layer}.{name}" for layer in range(layers) for name in _NORMS)]
    new["norm_gain"] = torch.stack([old[f"{name}.weight"] for name in norms])
    new["norm_bias"] = torch.stack([old[f"{name}.bias"] for name in norms])
    for name, parts in _STACKS.items():
        new |= _stacked(old, name, [[f"layers.{layer}.{part}" for part in parts] for layer in range(layers)])
    new |= _stacked(old, "transform", [["transform"]])
    new["transform_norm_gain"], new["transform_norm_bias"] = (old[f"transform_norm.{x}"] for x in ("weight", "bias"))
    new["decoder_bias"] = old["decoder.bias"]
    if (delta := "embeddings.column_delta") in old:
        new["tables_column_delta"] = old[delta]
    return new


def _renamed(name: str) -> str:
    for plain, own in _PLAIN:
        if name.startswith(plain):
            return own + name.removeprefix(plain)
    return name


def _stacked(old: dict[str, Tensor], name: str, modules: list[list[str]]) -> dict[str, Tensor]:
    """The tensors of one stack; within a layer, weights stand below one another and compactors are counted on.

    Args:
        old: all tensors.
        name: of the stack.
        modules: names of its linear layers, for every layer of the network.
    """
    stack = {
        name: torch.stack([torch.cat([old[f"{part}.weight"] for part in parts]) for parts in modules]),
        f"{name}_bias": torch.stack([torch.cat([old[f"{part}.bias"] for part in parts]) for parts in modules]),
    }
    for delta in ("row_delta", "column_delta"):
        if f"{modules[0][0]}.{delta}" in old:
            stack[f"{name}_{delta}"] = torch.stack([old[f"{part}.{delta}"] for parts in modules for part in parts])
    return stack
