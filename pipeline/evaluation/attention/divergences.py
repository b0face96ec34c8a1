"""How far two attention patterns are from each other, in nats and in float64."""

import math

import torch
from torch import Tensor

from pipeline.baselines.minilm import Projections, log_relation

FLOOR = torch.finfo(torch.float32).tiny
"""The least probability: fp32 rounds what lies further below the rest to 0, and KL would be infinite."""
RELATIONS = ("queries", "keys", "values")
"""What MiniLMv2 relates to itself, in the order of `Projections`."""


def probabilities(attention: Tensor, columns: Tensor) -> Tensor:
    """Attention (batch, heads, tokens, tokens) in float64, over `columns` (batch, tokens) alone: rows sum to 1 again.

    Rows that have no column left are 0.
    """
    left = attention.double().clamp_min(FLOOR) * columns[:, None, None, :]
    return left / left.sum(-1, keepdim=True).clamp_min(FLOOR)


def divergences(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Jensen-Shannon divergence, which ln 2 bounds, and KL(teacher || student) of rows, as mean over the rows.

    Args:
        teacher: (..., tokens, tokens) as `probabilities` gives them.
        student: the same, or what broadcasts with it.

    Returns:
        Two of shape (...); exactly 0 where both are equal.
    """
    middle = _log((teacher + student) / 2)
    teacher_log, student_log = _log(teacher), _log(student)
    both = (teacher * (teacher_log - middle) + student * (student_log - middle)).sum(-1) / 2
    kl = (teacher * (teacher_log - student_log)).sum(-1)
    return both.mean(-1).clamp(0.0, math.log(2)), kl.mean(-1).clamp_min(0.0)


def relation_divergences(teacher: Projections, student: Projections, relation_heads: int) -> Tensor:
    """MiniLMv2's KL(teacher || student) of one layer's relations, as mean over relation heads and rows.

    Args:
        teacher: queries, keys and values, each (batch, tokens, hidden).
        student: the same, of any hidden size.
        relation_heads: must divide both hidden sizes.

    Returns:
        (batch, 3), in the order of `RELATIONS`.
    """
    found = []
    for theirs, ours in zip(teacher, student, strict=True):
        target, got = (log_relation(vectors.double(), relation_heads) for vectors in (theirs, ours))
        found.append((target.exp() * (target - got)).sum(-1).mean((1, 2)).clamp_min(0.0))
    return torch.stack(found, dim=1)


def _log(probability: Tensor) -> Tensor:
    """The logarithm, finite at 0, where it is multiplied by 0."""
    return probability.clamp_min(torch.finfo(torch.float64).tiny).log()
