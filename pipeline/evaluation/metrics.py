"""The metrics of GLUE, by the names that `results.json` uses, and their summary over seeds."""

import statistics
import warnings
from collections.abc import Mapping, Sequence

Numbers = Sequence[int] | Sequence[float]


def compute(name: str, predictions: Numbers, labels: Numbers) -> float:
    """One metric of predictions against labels (both of the same length), as a fraction, not in percent.

    accuracy, f1 (of class 1) and matthews take class ids, pearson and spearman values. A correlation with a
    constant is undefined and counts as 0, so that a model that learned nothing gets a score and no NaN.
    """
    if name == "accuracy":
        return sum(p == y for p, y in zip(predictions, labels, strict=True)) / len(labels)
    if name == "f1":
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predictions, zero_division=0.0))
    if name == "matthews":
        from sklearn.metrics import matthews_corrcoef

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns of a single class, and answers 0 as documented
            return float(matthews_corrcoef(labels, predictions))
    if len(set(predictions)) < 2 or len(set(labels)) < 2:
        return 0.0
    from scipy.stats import pearsonr, spearmanr

    return float({"pearson": pearsonr, "spearman": spearmanr}[name](predictions, labels).statistic)


def summarise(by_seed: Mapping[int, float]) -> dict[str, object]:
    """Mean, sample standard deviation (0.0 for one seed) and the value of every seed, keyed by its digits."""
    values = list(by_seed.values())
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "seeds": {str(seed): by_seed[seed] for seed in sorted(by_seed)},
    }
