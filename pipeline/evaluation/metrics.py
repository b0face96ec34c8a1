"""The metrics of GLUE, by the names that `results.json` uses, and their summary over seeds."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

Numbers = Sequence[int] | Sequence[float]

UNDEFINED = "undefined, counted as 0"
"""What the user reads in place of a number that there is not."""


def compute(name: str, predictions: Numbers, labels: Numbers) -> float | None:
    """One metric of predictions against labels (both of the same length), as a fraction, not in percent.

    accuracy, f1 (of class 1) and matthews take class ids, pearson and spearman values.

    Returns:
        None where the metric is undefined: a correlation (matthews is one) with a constant, and f1 where neither
        predictions nor labels have the class.
    """
    if name == "accuracy":
        return sum(p == y for p, y in zip(predictions, labels, strict=True)) / len(labels)
    if name == "f1":
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predictions, zero_division=0.0)) if 1 in {*predictions, *labels} else None
    if len(set(predictions)) < 2 or len(set(labels)) < 2:
        return None
    if name == "matthews":
        from sklearn.metrics import matthews_corrcoef

        return float(matthews_corrcoef(labels, predictions))
    from scipy.stats import pearsonr, spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of predictions that are almost constant
        value = float({"pearson": pearsonr, "spearman": spearmanr}[name](predictions, labels).statistic)
    return value if math.isfinite(value) else None


def summarise(by_seed: Mapping[int, float | None]) -> dict[str, Any]:
    """Mean, sample standard deviation (0.0 for one seed) and the value of every seed, keyed by its digits.

    None, which is undefined, counts as 0, so that a model that learned nothing gets a score; `undefined` lists the
    seeds of which that is true, if there are any.
    """
    values = {seed: by_seed[seed] or 0.0 for seed in sorted(by_seed)}
    undefined = [str(seed) for seed in values if by_seed[seed] is None]
    return {
        "mean": statistics.fmean(values.values()),
        "std": statistics.stdev(values.values()) if len(values) > 1 else 0.0,
        "seeds": {str(seed): value for seed, value in values.items()},
        **({"undefined": undefined} if undefined else {}),
    }
