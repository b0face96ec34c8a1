"""MiniLMv2: the student learns how the teacher's queries, keys and values relate to each other.

Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
section 3. Relations are (tokens, tokens) whatever the width, so student and teacher may differ in heads and sizes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.encoder import Bert, document_mask

Projections = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one layer, heads side by side: each (batch, tokens, hidden)."""


def projections_of(model: Bert, number: int, input_ids: Tensor, documents: Tensor | None = None) -> Projections:
    """Queries, keys and values of layer `number` (from 0) for token ids (batch, tokens).

    Nothing behind them is computed: no loss of this method would reach it.
    """
    mask = document_mask(documents, model.word.dtype)
    hidden = model.embed(input_ids)
    for before in range(number):
        hidden = model.layer(before, hidden, mask)
    query, key, value = model.projections(number, hidden).flatten(3).unbind(2)
    return query, key, value


def log_relation(vectors: Tensor, relation_heads: int, documents: Tensor | None = None) -> Tensor:
    """log softmax(A A^T / sqrt(d)) of every relation head A (tokens, d = hidden / relation heads), equation 5.

    Args:
        vectors: (batch, tokens, hidden).
        relation_heads: must divide hidden.
        documents: (batch, tokens), the document of each token, which relates to no other; None for all to all.

    Returns:
        (batch, relation heads, tokens, tokens), fp32 or wider.
    """
    batch, tokens, hidden = vectors.shape
    heads = vectors.view(batch, tokens, relation_heads, hidden // relation_heads).transpose(1, 2)
    scores = heads @ heads.transpose(2, 3) * (hidden // relation_heads) ** -0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    mask = document_mask(documents, scores.dtype)
    return F.log_softmax(scores if mask is None else scores + mask, dim=-1)


def relation_loss(
    student: Projections, teacher: Projections, relation_heads: int, documents: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) of the relations, mean over heads and tokens, summed over queries, keys and values.

    These are equations 3 and 4 with weights of 1.

    Args:
        student: its queries, keys and values, each (batch, tokens, hidden).
        teacher: those of the teacher, whose hidden size may be another; no gradient goes there.
        relation_heads: must divide both hidden sizes; it need not be the number of attention heads.
        documents: see `log_relation`.
    """
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        target = log_relation(theirs.detach(), relation_heads, documents).flatten(0, 2)
        got = log_relation(ours, relation_heads, documents).flatten(0, 2)
        losses.append(F.kl_div(got, target, reduction="batchmean", log_target=True))
    return torch.stack(losses).sum()


def minilm_loss(
    student: Bert,
    teacher: Bert,
    input_ids: Tensor,
    relation_heads: int,
    teacher_layer: int | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """The loss on windows: teacher forward without gradient, student encoder, no head.

    Args:
        student: its last layer learns.
        teacher: of any size.
        input_ids: (batch, tokens).
        relation_heads: see `relation_loss`.
        teacher_layer: from 0, the one to learn from; the last by default.
        documents: see `log_relation`.
    """
    with torch.no_grad():
        number = teacher.layers - 1 if teacher_layer is None else teacher_layer
        target = projections_of(teacher, number, input_ids, documents)
    got = projections_of(student, student.layers - 1, input_ids, documents)
    return relation_loss(got, target, relation_heads, documents)
