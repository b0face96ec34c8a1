"""A word when the labels of an inference task were probably mixed up.

The order of the three classes is the most repeated mistake with MNLI: the hub numbers entailment, neutral,
contradiction, old processors and many files another way. A model that learned one order and is scored with another
gets 6 to 7 %, far below chance; an untrained one gets a third.
"""

from pipeline.errors import DataError
from pipeline.evaluation.glue.rows import TaskData
from pipeline.evaluation.results import Results

FEWEST_ROWS = 500
"""Below this, a score under `LOWEST_ACCURACY` may be chance."""
LOWEST_ACCURACY = 0.25


def refuse_mixed_labels(data: TaskData, results: Results) -> None:
    """Look at the scores of a task of three classes.

    Raises:
        DataError: one is so far below chance that training and dev rows must number their classes differently.
    """
    if len(data.task.classes) != 3:
        return
    for name, split in data.dev.items():
        for seed, accuracy in results.scores(name).get("accuracy", {}).get("seeds", {}).items():
            if len(split.examples) >= FEWEST_ROWS and accuracy < LOWEST_ACCURACY:
                score = f"{name}, seed {seed}: accuracy {accuracy:.3f} on {len(split.examples):,} rows"
                files = f"the label order of {data.train.source} and {split.source}"
                order = ", ".join(data.task.classes)
                raise DataError(f"{score} is far below chance: compare {files}, {order} was expected in both")
