"""What `attention.json` says of one text."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.evaluation.attention.conditions import SCRATCH, STUDENT, TEACHER
from pipeline.evaluation.attention.observe import Condition

FORMAT = "wid-attention-1"
MAP_LAYERS = 3
"""Spread from the first layer to the last; each shows the pair with the least divergence and that with the largest."""
_DIGITS = 4
"""Decimals of what heat maps show."""


def describe(conditions: Mapping[str, Condition], maps: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Conditions and heat maps; `maps` are means, (layers, heads, positions, positions), by model."""
    return {
        "conditions": {name: _condition(condition) for name, condition in conditions.items()},
        "maps": [entry for layer in _layers(conditions[STUDENT]) for entry in _maps(conditions, maps, layer)],
    }


def _condition(condition: Condition) -> dict[str, Any]:
    """Pairs (layers, pairs, 2), means over windows (layers, pairs) or of relations (layers,), and the overall means."""
    by_head = {metric: values.mean(0) for metric, values in condition.values.items()}
    return {
        "matching": condition.matching,
        "pairs": condition.pairs,
        "mean": condition.means(),
        **{
            metric: (values[:, 0] if metric.startswith("relation") else values).tolist()
            for metric, values in by_head.items()
        },
    }


def _layers(student: Condition) -> list[int]:
    return sorted({int(layer) for layer in np.linspace(0, len(student.pairs) - 1, MAP_LAYERS).round()})


def _maps(conditions: Mapping[str, Condition], maps: Mapping[str, np.ndarray], layer: int) -> list[dict[str, Any]]:
    """The two pairs of a layer, with the scratch control's partner of the same teacher's head where it has one."""
    js = conditions[STUDENT].values["js"].mean(0)[layer]
    entries = []
    for place in sorted({int(js.argmin()), int(js.argmax())}):
        head = conditions[STUDENT].pairs[layer][place][0]
        shown = {TEACHER: {"head": head, "attention": _rounded(maps[TEACHER][layer, head])}}
        for name in (STUDENT, SCRATCH):
            partner = dict(conditions[name].pairs[layer]).get(head) if name in conditions else None
            if partner is not None:
                shown[name] = {"head": partner, "attention": _rounded(maps[name][layer, partner])}
        entries.append({"layer": layer, "js": float(js[place]), **shown})
    return entries


def _rounded(values: np.ndarray) -> list[list[float]]:
    return values.round(_DIGITS).tolist()
