"""Fine-tune and score the GLUE tasks of one command, one (task, seed) after the other.

1. `check` reads every task before anything is trained, so that a bad file is found at once.
2. `run` trains each (task, seed) whose predictions are not there yet and keeps the predictions, after the model where
   that is asked for.
3. After each one the metrics are computed anew from the kept predictions and `results.json` is replaced, so
   a kill loses one fine-tuning at most.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.evaluation.defaults import default_settings
from pipeline.evaluation.glue.label_order import refuse_mixed_labels
from pipeline.evaluation.glue.load import load_task
from pipeline.evaluation.glue.rows import TaskData
from pipeline.evaluation.glue.submission import Rows, TestSet, read_test_sets, write_submission
from pipeline.evaluation.glue.tasks import ALL, GLUE_TASKS, MNLI_MM, SCORED, trained_tasks
from pipeline.evaluation.results import ResultStore
from pipeline.evaluation.task import Settings, Task

if TYPE_CHECKING:
    from pipeline.evaluation.encoder import Encoder


class Glue(Task):
    """A new pooler and classifier on the encoder, fine-tuned for every task and seed, and scored on the dev set."""

    names = (ALL, *SCORED)

    def check(self, model: "Encoder", store: ResultStore) -> None:
        """Read all rows, and enter what they are and which dev sets are not available."""
        self.data = [load_task(GLUE_TASKS[name], self.request.data) for name in trained_tasks(self.asked)]
        for data in self.data:
            if MNLI_MM in data.missing and MNLI_MM in self.asked and not {"mnli", ALL} & set(self.asked):
                raise DataError(f"{MNLI_MM}: {data.missing[MNLI_MM]}")
        if self.request.keep_models:
            from pipeline.evaluation.kept import check_tokenizer

            check_tokenizer(model)
        if self.request.predict_test:
            self.tests, self.untested = read_test_sets([data.task.name for data in self.data], self.request.data)
        self.settings: dict[str, Settings] = {}
        for data in self.data:
            default = default_settings(data.task.name, model.config.hidden_size, self.request.settings.max_length)
            self.settings[data.task.name] = self.request.settings.over(default)
            store.settle(data.task.name, asdict(self.settings[data.task.name]))
            for name, split in data.dev.items():
                if not split.examples:
                    raise DataError(f"{name}: no rows of {split.source} are left; all of them are in train, too")
                store.begin(name, data.describe(name), data.fingerprint(name))
            for name, reason in data.missing.items():
                store.miss(name, reason)

    def run(self, model: "Encoder", store: ResultStore) -> None:
        """Fine-tune what is not finished, and say one line about each (task, seed)."""
        for data in self.data:
            self._run_task(data, model, store)
        if self.request.predict_test:
            self._predict_test(model, store)

    def check_labels(self, store: ResultStore) -> None:
        """Look at the finished results.

        Raises:
            DataError: the labels of a task must have been mixed up.
        """
        for data in self.data:
            refuse_mixed_labels(data, store)

    def _run_task(self, data: TaskData, model: "Encoder", store: ResultStore) -> None:
        from pipeline.evaluation.finetune import EncodedTask, encode_task, fine_tune

        settings = self.settings[data.task.name]
        encoded: EncodedTask | None = None
        for seed in self.request.seeds:
            label = f"{data.task.name}, seed {seed}"
            if self._is_done(data, seed, store):
                print(f"{label}: already done", flush=True)
            else:
                print(f"{label}: fine-tuning on {len(data.train.examples):,} rows ...", flush=True)
                start = time.monotonic()
                encoded = encoded or encode_task(data, model, settings)
                keep = self._keeper(data, seed, model, store) if self.request.keep_models else None
                _keep(data, fine_tune(encoded, model, seed, settings, keep), seed, store)
                print(f"{label}: done in {time.monotonic() - start:.0f} s", flush=True)
            for name in data.dev:
                store.enter_predictions(name, data.task.metrics)
                store.say(name, seed)

    def _is_done(self, data: TaskData, seed: int, store: ResultStore) -> bool:
        """Whether the predictions are there and, where it is to be kept, the model."""
        predicted = all(store.predictions_path(name, seed).is_file() for name in data.dev)
        return predicted and (not self.request.keep_models or store.model_path(data.task.name, seed).is_dir())

    def _keeper(self, data: TaskData, seed: int, model: "Encoder", store: ResultStore) -> Callable[[Any], None]:
        """What `fine_tune` hands its model to."""
        from pipeline.evaluation.kept import keep_model

        output, max_length = store.model_path(data.task.name, seed), self.settings[data.task.name].max_length
        return lambda classifier: keep_model(classifier, data.task, model, max_length, output)

    def _predict_test(self, model: "Encoder", store: ResultStore) -> None:
        """Write the zip for the GLUE server; files that nothing answers are constant, and that is said."""
        from pipeline.evaluation.finetune import EncodedRows, predict
        from pipeline.evaluation.kept import load_kept

        seed = self.request.seeds[0]

        def answer(test: TestSet, rows: Rows) -> list[float]:
            print(f"{test.name}.tsv: predicting {len(rows):,} rows ...", flush=True)
            settings = self.settings[test.task]
            encoded = EncodedRows(rows, model, settings.max_length)
            return predict(load_kept(store.model_path(test.task, seed)), encoded, model, settings, f"{test.name}.tsv")

        write_submission(store.submission_path, self.tests, answer)
        for test, reason in self.untested.items():
            print(f"{test.name}.tsv: the same answer in all rows, {reason}", flush=True)
        store.enter_submission(seed, {f"{test.name}.tsv": reason for test, reason in self.untested.items()})
        print(f"{store.submission_path}: by the models of seed {seed}", flush=True)


def _keep(data: TaskData, predictions: dict[str, list[int] | list[float]], seed: int, store: ResultStore) -> None:
    """Write the predictions of one fine-tuning beside index and label of their rows."""
    for name, values in predictions.items():
        rows = data.dev[name].examples
        triples = [(row.index, value, row.label) for row, value in zip(rows, values, strict=True)]
        store.write_predictions(name, seed, triples)
