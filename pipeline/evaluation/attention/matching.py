"""Which head of a student is held against which head of the teacher."""

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

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
            costs[number] += _costs(probabilities(theirs.attention, columns), probabilities(ours.attention, columns))
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


def _costs(teacher: torch.Tensor, student: torch.Tensor) -> np.ndarray:
    """Divergence of every head with every other, summed over the batch: (teacher's heads, student's heads)."""
    theirs, ours = teacher.float(), student.float()  # enough to choose by, and several times as fast

    def entropy(rows: torch.Tensor) -> torch.Tensor:
        return torch.special.entr(rows).sum((0, -2, -1)) / rows.shape[-2]

    middle = [entropy((theirs[:, head : head + 1] + ours) / 2) for head in range(theirs.shape[1])]
    return (torch.stack(middle) - (entropy(theirs)[:, None] + entropy(ours)) / 2).cpu().numpy()
