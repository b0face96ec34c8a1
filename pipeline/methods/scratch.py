"""`scratch`: a new BERT of the shape in the recipe's `target`."""

import math
from typing import Self

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from pipeline.data.cooccurrence import TokenStatistics, count_tokens, ppmi_embeddings
from pipeline.data.loader import TrainingData
from pipeline.methods.plain import Plain
from pipeline.models.huggingface import shape_of
from pipeline.models.plain import PlainBert
from pipeline.recipe import Recipe
from pipeline.teacher_files import new_shape

BERT_BASE_HIDDEN, BERT_BASE_RANGE = 768, 0.02
"""BERT's standard deviation of initial weights is right for its width; other widths are scaled to equal outputs."""


class Scratch(Plain):
    """Masked-language modelling from random weights."""

    title = "pre-training from scratch"

    @classmethod
    def build(cls, recipe: Recipe, data: TrainingData, vocab_size: int) -> Self:
        torch.manual_seed(recipe.train.seed)
        config = _config(recipe, vocab_size)
        model = BertForMaskedLM(config)
        _start_positions(model.bert.embeddings.position_embeddings.weight, config.initializer_range)
        method = cls(recipe, PlainBert(model))
        if recipe.train.embedding_init == "ppmi":
            start_from_counts(method.model, count_tokens(data.sources[0]))
        return method

    def describe(self) -> list[str]:
        return [f"training from scratch: {shape_of(self.model.config)}"]


@torch.no_grad()
def start_from_counts(module: PlainBert, statistics: TokenStatistics) -> None:
    """Set the word embeddings to PPMI factors and the decoder bias to the log frequencies of the training text."""
    word = module.get_parameter("tables")[: module.config.vocab_size]
    word.copy_(ppmi_embeddings(statistics, word.shape[1], scale=module.config.initializer_range))
    share = torch.from_numpy(statistics.frequencies / statistics.frequencies.sum())
    module.get_parameter("decoder_bias").copy_(share.log())


def _config(recipe: Recipe, vocab_size: int) -> BertConfig:
    shape = new_shape(recipe, vocab_size)
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        initializer_range=BERT_BASE_RANGE * math.sqrt(BERT_BASE_HIDDEN / shape.hidden),
        max_position_embeddings=shape.positions,
        hidden_dropout_prob=recipe.train.dropout,
        attention_probs_dropout_prob=recipe.train.dropout,
    )


@torch.no_grad()
def _start_positions(table: Tensor, scale: float) -> None:
    """Set position embeddings (positions, hidden) to sines and cosines of standard deviation `scale`.

    They train on from there. The waves are those of Vaswani et al. 2017, section 3.5. With random ones, attention has
    to learn every pair of positions before it finds out about neighbours.
    """
    positions, hidden = table.shape
    column = torch.arange(hidden)
    angles = torch.arange(positions)[:, None] * 10000.0 ** (-(column - column % 2) / hidden)
    table.copy_(torch.where(column % 2 == 0, angles.sin(), angles.cos()) * scale * math.sqrt(2))
