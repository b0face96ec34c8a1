"""MiniLMv2: the student learns how the teacher's queries, keys and values relate to each other.

Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
section 3. Relations are (tokens, tokens) whatever the width, so student and teacher may differ in heads and sizes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.encoder import Bert

Projections = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one layer, heads side by side: each (batch, tokens, hidden)."""


def last_projections(model: Bert, input_ids: Tensor) -> Projections:
    """Queries, keys and values of the last layer for token ids (batch, tokens).

    Nothing behind them is computed: no loss of this method would reach it.
    """
    projections = model.projections(model.layers - 1, model.before_last(input_ids))
    query, key, value = projections.flatten(3).unbind(2)
    return query, key, value


def log_relation(vectors: Tensor, relation_heads: int) -> Tensor:
    """log softmax(A A^T / sqrt(d)) of every relation head A (tokens, d = hidden / relation heads), equation 5.

    Args:
        vectors: (batch, tokens, hidden).
        relation_heads: must divide hidden.

    Returns:
        (batch, relation heads, tokens, tokens), fp32 or wider.
    """
    batch, tokens, hidden = vectors.shape
    heads = vectors.view(batch, tokens, relation_heads, hidden // relation_heads).transpose(1, 2)
    scores = heads @ heads.transpose(2, 3) * (hidden // relation_heads) ** -0.5
    return F.log_softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)


def relation_loss(student: Projections, teacher: Projections, relation_heads: int) -> Tensor:
    """KL(teacher || student) of the relations, mean over heads and tokens, summed over queries, keys and values.

    These are equations 3 and 4 with weights of 1.

    Args:
        student: its queries, keys and values, each (batch, tokens, hidden).
        teacher: those of the teacher, whose hidden size may be another; no gradient goes there.
        relation_heads: must divide both hidden sizes; it need not be the number of attention heads.
    """
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        target = log_relation(theirs.detach(), relation_heads).flatten(0, 2)
        got = log_relation(ours, relation_heads).flatten(0, 2)
        losses.append(F.kl_div(got, target, reduction="batchmean", log_target=True))
    return torch.stack(losses).sum()


def minilm_loss(student: Bert, teacher: Bert, input_ids: Tensor, relation_heads: int) -> Tensor:
    """The loss of a step on token ids (batch, tokens): teacher forward without gradient, student encoder, no head."""
    with torch.no_grad():
        target = last_projections(teacher, input_ids)
    return relation_loss(last_projections(student, input_ids), target, relation_heads)
