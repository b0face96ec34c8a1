"""Which head of a student is held against which head of the teacher."""

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.evaluation.attention.divergences import probabilities
from pipeline.evaluation.attention.forward import Looker

Pairs = list[tuple[int, int]]
"""Heads of one layer, teacher's and student's, ascending by the teacher's."""

SHUFFLE_SEED = 0


def by_identity(model: Looker) -> list[Pairs]:
    """Every head with that of the same number, for every layer."""
    return [[(head, head) for head in range(model.heads)] for _ in range(model.layers)]


def by_assignment(teacher: Looker, model: Looker, batches: Any) -> list[Pairs]:
    """The pairs with the least sum of Jensen-Shannon divergences, for every layer.

    Args:
        teacher: has as many layers as `model`, and any number of heads.
        model: whose heads are to be found.
        batches: pairs of token ids and all their columns, both (batch, tokens), of windows that nothing is reported on.
    """
    costs = np.zeros((teacher.layers, teacher.heads, model.heads))
    for input_ids, columns in batches:
        for number, (theirs, ours) in enumerate(zip(teacher.look(input_ids), model.look(input_ids), strict=True)):
            # fp32 is enough to choose by, and twice as fast.
            first, second = (probabilities(layer.attention, columns).float() for layer in (theirs, ours))
            costs[number] += head_costs(first, second).cpu().numpy()
    found = []
    for layer in costs:
        rows, columns = linear_sum_assignment(layer)
        found.append(list(zip(rows.tolist(), columns.tolist(), strict=True)))
    return found


def shuffled(layers: list[Pairs]) -> list[Pairs]:
    """The same heads, none of them with the head that it had. They need two pairs."""
    draw = np.random.default_rng(SHUFFLE_SEED)
    found = []
    for pairs in layers:
        order = draw.permutation(len(pairs))
        partner = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # one circle through all of them
        found.append([(theirs, pairs[partner[place]][1]) for place, (theirs, _) in enumerate(pairs)])
    return found


def head_costs(teacher: Tensor, student: Tensor) -> Tensor:
    """Jensen-Shannon divergence of every head with every other: mean over rows, summed over the batch.

    Args:
        teacher: probabilities above 0, (batch, heads, tokens, tokens).
        student: the same, of any number of heads.

    Returns:
        (teacher's heads, student's heads).
    """

    def negative_entropy(rows: Tensor) -> Tensor:
        return (rows * rows.log()).sum((0, -2, -1)) / rows.shape[-2]  # torch.special.entr takes three times as long

    # One of the teacher's heads at a time stays in the processor's cache.
    middle = torch.stack([negative_entropy((head[:, None] + student) / 2) for head in teacher.unbind(1)])
    return (negative_entropy(teacher)[:, None] + negative_entropy(student)) / 2 - middle
