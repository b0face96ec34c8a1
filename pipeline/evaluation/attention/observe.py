"""Divergences of all heads of several models from a teacher's, window by window."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.data.windows import WindowSource
from pipeline.evaluation.attention.divergences import (
    RELATIONS,
    divergences,
    probabilities,
    relation_divergences,
)
from pipeline.evaluation.attention.forward import Layer, Looker
from pipeline.evaluation.attention.matching import Pairs
from pipeline.evaluation.encoder import device

MOST_WINDOWS = 64
"""Of one text, spread over all of it; every other one is for finding pairs of heads."""
BATCH = 4
"""Windows in one forward pass."""
MAP_TOKENS = 48
"""The first positions of a window, which heat maps show."""
NO_SPECIAL = "_no_special"
"""Ending of the metrics without the columns of [CLS] and [SEP]."""

Batches = list[tuple[Tensor, Tensor]]
"""Token ids and whether they are words (no [CLS], no [SEP]), both (batch, tokens)."""


@dataclass
class Condition:
    """One way to hold a model's heads against the teacher's.

    Attributes:
        model: its name among the models.
        matching: how the pairs were found.
        pairs: of every layer; as many in each.
        values: metric -> (windows, layers, pairs), or (windows, layers, 1) of relations, filled by `observe`.
    """

    model: str
    matching: str
    pairs: list[Pairs]
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def by_window(self, metric: str) -> np.ndarray:
        """The mean over layers and heads for every window."""
        return self.values[metric].mean((1, 2))

    def means(self) -> dict[str, float]:
        """The mean of every metric over everything."""
        return {metric: float(values.mean()) for metric, values in self.values.items()}


def read_windows(source: WindowSource) -> tuple[Batches, Batches]:
    """The windows that pairs are fitted on, and those that are reported on; at least one of each."""
    count = min(MOST_WINDOWS, source.windows)
    spread = np.arange(count) * source.windows // count
    return _batches(source, spread[0::2]), _batches(source, spread[1::2])


def _batches(source: WindowSource, windows: np.ndarray) -> Batches:
    special = torch.tensor([source.vocabulary.cls_id, source.vocabulary.sep_id])
    tokens = [torch.from_numpy(source.read(windows[at : at + BATCH])) for at in range(0, len(windows), BATCH)]
    return [(ids.to(device()), ~torch.isin(ids, special).to(device())) for ids in tokens]


def all_columns(batches: Batches) -> Batches:
    """The same token ids, with every column."""
    return [(ids, torch.ones_like(words)) for ids, words in batches]


def observe(
    teacher: Looker, models: Mapping[str, Looker], conditions: Mapping[str, Condition], batches: Batches, heads: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Fill the values of all conditions; after each batch, the windows in it and the sums of attention.

    Args:
        teacher: what all are compared with.
        models: by name.
        conditions: by name; their `values` grow.
        batches: what to report on.
        heads: relation heads.

    Yields:
        The number of windows, and for `teacher` and each model (layers, heads, positions, positions), summed over them.
    """
    for ids, words in batches:
        theirs = teacher.look(ids)
        looked = {name: model.look(ids) for name, model in models.items()}
        for condition in conditions.values():
            _grow(condition, _measure(theirs, looked[condition.model], condition, words, heads))
        yield len(ids), {name: _corner(layers) for name, layers in {"teacher": theirs, **looked}.items()}


def _measure(
    teacher: list[Layer], model: list[Layer], condition: Condition, words: Tensor, heads: int
) -> dict[str, Tensor]:
    """Metric -> (batch, layers, pairs)."""
    found: dict[str, list[Tensor]] = {}
    for theirs, ours, pairs in zip(teacher, model, condition.pairs, strict=True):
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        for ending, columns in (("", torch.ones_like(words)), (NO_SPECIAL, words)):
            js, kl = divergences(
                probabilities(theirs.attention, columns)[:, first], probabilities(ours.attention, columns)[:, second]
            )
            found.setdefault(f"js{ending}", []).append(js)
            found.setdefault(f"kl{ending}", []).append(kl)
        if condition.matching != "shuffled":  # relations know no heads of either model
            relations = relation_divergences(theirs.projections, ours.projections, heads)
            for number, name in enumerate(RELATIONS):
                found.setdefault(f"relation_{name}", []).append(relations[:, number, None])
    return {metric: torch.stack(layers, dim=1) for metric, layers in found.items()}


def _grow(condition: Condition, batch: dict[str, Tensor]) -> None:
    for metric, values in batch.items():
        known = [condition.values[metric]] if metric in condition.values else []
        condition.values[metric] = np.concatenate([*known, values.cpu().numpy()])


def _corner(layers: list[Layer]) -> np.ndarray:
    """Attention among the first positions, summed over the batch."""
    shown = [layer.attention[:, :, :MAP_TOKENS, :MAP_TOKENS].double().sum(0) for layer in layers]
    return torch.stack(shown).cpu().numpy()
