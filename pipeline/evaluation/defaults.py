"""What a task is fine-tuned with where the command line does not say.

Narrow models need higher learning rates than those that large models were tuned with. Published: Google's miniatures
(Turc et al. 2019) 4 epochs and the best of 3e-4, 1e-4, 5e-5 and 3e-5; ELECTRA-small (Clark et al. 2020) 1e-4, 3 epochs,
10 for RTE. Measured with six layers of width 384 on MRPC and STS-B: 2e-4 and 4 epochs beat 5e-5 and 3.
"""

from pipeline.evaluation.task import Settings

BATCH_SIZE = 32
NARROW, MIDDLE = 384, 576
"""The largest widths (hidden size) of narrow models and of those between narrow and wide."""

_SMALL = (2e-4, 1e-4, 3e-5)
_LARGE = (1e-4, 5e-5, 3e-5)
_DEFAULTS: dict[str, tuple[int, tuple[float, float, float]]] = {
    "cola": (4, _SMALL),
    "sst2": (3, _LARGE),
    "mrpc": (4, _SMALL),
    "stsb": (4, _SMALL),
    "qqp": (3, _LARGE),
    "mnli": (3, _LARGE),
    "qnli": (3, _LARGE),
    "rte": (10, _SMALL),
    "wnli": (4, _SMALL),
    "word_order": (3, _LARGE),
    "squad_v1": (3, _LARGE),
    "squad_v2": (3, _LARGE),
}
"""Epochs, and the learning rates of narrow, middle and wide models; tasks under 10,000 training rows take `_SMALL`.

Those of SQuAD follow the large tasks of GLUE and were not searched.
"""


def default_settings(task: str, width: int, max_length: int) -> Settings:
    """The hyper-parameters of a task for a model of a hidden size of `width`."""
    epochs, (narrow, middle, wide) = _DEFAULTS[task]
    rate = narrow if width <= NARROW else middle if width <= MIDDLE else wide
    return Settings(float(epochs), BATCH_SIZE, rate, max_length)
