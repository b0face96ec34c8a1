"""Fine-tune and score the GLUE tasks of one command, one (task, seed) after the other.

1. `load_all` reads every task before anything is trained, so that a bad file is found at once.
2. `run` trains each (task, seed) whose predictions are not there yet and keeps the predictions.
3. After each one the metrics are computed anew from the kept predictions and `results.json` is replaced, so
   a kill loses one fine-tuning at most.
"""

import time
from collections.abc import Sequence

from pipeline.errors import DataError
from pipeline.evaluation.encoder import Encoder
from pipeline.evaluation.finetune import EncodedTask, Settings, encode_task, fine_tune
from pipeline.evaluation.glue.load import load_task
from pipeline.evaluation.glue.rows import TaskData
from pipeline.evaluation.glue.tasks import MNLI_MM, TASKS
from pipeline.evaluation.results import ResultStore


def load_all(names: Sequence[str], source: str, required: Sequence[str]) -> list[TaskData]:
    """Read the rows of the tasks `names` from `source` (a directory or `hub`).

    Raises `DataError` for what cannot be read, and when nothing but the missing MNLI mismatched set was
    asked for in `required` (the names as the user gave them).
    """
    tasks = [load_task(TASKS[name], source) for name in names]
    for data in tasks:
        if MNLI_MM in data.missing and MNLI_MM in required and "mnli" not in required and "glue" not in required:
            raise DataError(f"{MNLI_MM}: {data.missing[MNLI_MM]}.")
    return tasks


def begin(tasks: Sequence[TaskData], store: ResultStore) -> None:
    """Enter all tasks into the results, with what their rows are and which dev sets are not available."""
    for data in tasks:
        for name in data.dev:
            store.begin(name, data.describe(name), data.fingerprint(name))
            store.document["not_available"].pop(name, None)
        store.document["not_available"].update(data.missing)
    store.open()


def run(
    tasks: Sequence[TaskData], encoder: Encoder, seeds: Sequence[int], settings: Settings, store: ResultStore
) -> None:
    """Fine-tune what is not finished, and say one line about each (task, seed)."""
    for data in tasks:
        encoded: EncodedTask | None = None
        for seed in seeds:
            label = f"{data.task.name}, seed {seed}"
            if all(store.predictions_path(name, seed).is_file() for name in data.dev):
                print(f"{label}: already done", flush=True)
            else:
                encoded = encoded or encode_task(data, encoder, settings)
                print(f"{label}: fine-tuning on {len(encoded.train):,} rows ...", flush=True)
                start = time.monotonic()
                _keep(data, fine_tune(encoded, encoder, seed, settings), seed, store)
                print(f"{label}: done in {time.monotonic() - start:.0f} s", flush=True)
            for name in data.dev:
                scores = store.score(name, data.task.metrics)[seed]
                print("  " + name + "".join(f"  {metric} {value:.4f}" for metric, value in scores.items()), flush=True)
            store.write()


def _keep(data: TaskData, predictions: dict[str, list[int] | list[float]], seed: int, store: ResultStore) -> None:
    """Write the predictions of one fine-tuning beside index and label of their rows."""
    for name, values in predictions.items():
        rows = data.dev[name].examples
        triples = [(row.index, value, row.label) for row, value in zip(rows, values, strict=True)]
        store.write_predictions(name, seed, triples)
