"""What a task is fine-tuned with where the command line does not say.

Narrow models need higher learning rates and more epochs than those that large models were tuned with. Published:
Google's miniatures (Turc et al. 2019) 4 epochs and the best of 3e-4, 1e-4, 5e-5 and 3e-5; ELECTRA-small (Clark et al.
2020) 1e-4, 3 epochs, 10 for RTE and STS-B. Measured here (benchmarks/results/2026-11-27_fine_tuning.json): with 2e-4
and 4 epochs, a model of width 384 stayed near the majority class of MRPC under one seed of three (accuracy 0.694, 0.792
and 0.767); with 1e-4 and 5 epochs the first two of these seeds, the only ones tried, reached 0.782 and 0.809. A student
of width 108 had a Spearman correlation of 0.31 on STS-B with 2e-4 and 4 epochs, of 0.56 with 3e-4 and 10 (three seeds
and two). With 10 epochs and three seeds (benchmarks/results/2026-11-27_student_scores.json) it had 0.58 with 3e-4 and
0.33 with 1e-4, where a model of width 192 had 0.57, one seed far behind the others, and 0.71.
"""

from pipeline.evaluation.task import Settings

BATCH_SIZE = 32
WIDTHS = (128, 256, 384, 576)
"""The largest hidden size of every class of width but the last, which has none."""

Choice = tuple[tuple[int, float], tuple[int, float], tuple[int, float], tuple[int, float], tuple[int, float]]
"""Epochs and learning rate for each class of width."""

_SMALL: Choice = ((10, 3e-4), (10, 3e-4), (5, 1e-4), (4, 1e-4), (4, 3e-5))
_STSB: Choice = ((10, 3e-4), (10, 1e-4), (5, 1e-4), (4, 1e-4), (4, 3e-5))
_RTE: Choice = ((10, 3e-4), (10, 3e-4), (10, 1e-4), (10, 1e-4), (10, 3e-5))
_LARGE: Choice = ((3, 1e-4), (3, 1e-4), (3, 1e-4), (3, 5e-5), (3, 3e-5))
_DEFAULTS: dict[str, Choice] = {
    "cola": _SMALL,
    "sst2": _LARGE,
    "mrpc": _SMALL,
    "stsb": _STSB,
    "qqp": _LARGE,
    "mnli": _LARGE,
    "qnli": _LARGE,
    "rte": _RTE,
    "wnli": _SMALL,
    "word_order": _LARGE,
    "squad_v1": _LARGE,
    "squad_v2": _LARGE,
}
"""Tasks under 10,000 training rows take `_SMALL`, or what was measured for them. SQuAD follows the large tasks of GLUE
and was not searched."""


def default_settings(task: str, width: int, max_length: int) -> Settings:
    """The hyper-parameters of a task for a model of a hidden size of `width`."""
    epochs, rate = _DEFAULTS[task][sum(width > limit for limit in WIDTHS)]
    return Settings(float(epochs), BATCH_SIZE, rate, max_length)
