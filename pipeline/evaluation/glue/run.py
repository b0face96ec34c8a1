"""Fine-tune and score the GLUE tasks of one command: an item is a task under one seed, and at one point of a grid.

1. `check` reads every task before anything is trained, so that a bad file is found at once.
2. `run` trains, keeps the predictions, after the model where that is asked for, and scores them.
3. Where the zip for the GLUE server is asked for, it is the last item: the models of the first seed predict.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.evaluation.defaults import default_settings
from pipeline.evaluation.glue.label_order import refuse_mixed_labels
from pipeline.evaluation.glue.load import load_task
from pipeline.evaluation.glue.rows import TaskData, without_a_tenth
from pipeline.evaluation.glue.submission import Rows, TestSet, read_test_sets, write_submission
from pipeline.evaluation.glue.tasks import ALL, GLUE_TASKS, MNLI_MM, SCORED, GlueTask, trained_tasks
from pipeline.evaluation.items import Item, Outcome, Values, When
from pipeline.evaluation.metrics import compute
from pipeline.evaluation.predictions import predictions_file, write_predictions
from pipeline.evaluation.results import Results
from pipeline.evaluation.store import model_file
from pipeline.evaluation.task import CHOSEN_ON, Settings, Task

if TYPE_CHECKING:
    from pipeline.evaluation.encoder import Encoder
    from pipeline.evaluation.finetune import EncodedTask

SPLIT = "the rows that choose"
"""Among the dev sets of a task, those held out of the training rows."""
SUBMISSION, SUBMISSION_FILE = "submission", "submission.zip"


class Glue(Task):
    """A new pooler and classifier on the encoder, fine-tuned for every task and seed, and scored on the dev set."""

    names = (ALL, *SCORED)

    def check(self, model: "Encoder") -> Iterator[Item]:
        """Read all rows, and list what is to be trained on them."""
        self.data = {name: load_task(GLUE_TASKS[name], self.request.data) for name in trained_tasks(self.asked)}
        self._encoded: tuple[str, EncodedTask] | None = None
        for data in self.data.values():
            if MNLI_MM in data.missing and MNLI_MM in self.asked and not {"mnli", ALL} & set(self.asked):
                raise DataError(f"{MNLI_MM}: {data.missing[MNLI_MM]}")
            for dev, split in data.dev.items():
                if not split.examples:
                    raise DataError(f"{dev}: no rows of {split.source} are left; all of them are in train, too")
        whole = {name: {dev: data.describe(dev) for dev in data.dev} for name, data in self.data.items()}
        self.data = {name: self._choosing(data) for name, data in self.data.items()}
        if self.request.keep_models:
            from pipeline.evaluation.kept import check_tokenizer

            check_tokenizer(model)
        self.settings = {name: self.request.settings.points(self._default(name, model)) for name in self.data}
        for name, data in self.data.items():
            yield from self._items(data, whole[name], model)
        if self.request.predict_test:
            yield self._submission(list(self.data))

    def _default(self, name: str, model: "Encoder") -> Settings:
        return default_settings(name, model.config.hidden_size, self.request.settings.max_length)

    def _choosing(self, data: TaskData) -> TaskData:
        """The rows as they are trained on: where a split of them chooses, they lack it and the dev sets have it."""
        if self.request.settings.grid != "split":
            return data
        if len(data.train.examples) < 2:
            raise DataError(f"{data.task.name}: --grid split needs two training rows at least")
        train, held = without_a_tenth(data.train)
        return replace(data, train=train, dev={**data.dev, SPLIT: held})

    def _items(self, data: TaskData, whole: Mapping[str, str], model: "Encoder") -> Iterator[Item]:
        """One task under every seed, at every point; `whole` describes its rows by dev set."""
        from pipeline.evaluation.estimate import fine_tuning_flops, forward_flops

        task, length, grid = data.task.name, self.request.settings.max_length, self.request.settings.grid
        chosen_on = CHOSEN_ON[grid] if grid else ""
        note = f"; settings chosen on {chosen_on}" if grid else ""
        entries = {n: {"data": f"{d}{note}", "data_sha256": data.fingerprint(n)} for n, d in whole.items()}
        train = forward_flops(data.train.examples, model, length)
        dev = sum(forward_flops(split.examples, model, length) for split in data.dev.values())
        for seed, (point, settings) in product(self.request.seeds, self.settings[task].items()):
            files = [predictions_file(name, seed, point) for name in whole]
            if self.request.keep_models:
                files.append(model_file(task, seed))
            flops = fine_tuning_flops(train, dev, settings)
            yield Item(task, seed, point, chosen_on, entries, asdict(settings), data.missing, files, flops)

    def _submission(self, trained: list[str]) -> Item:
        """One zip, made again when another seed, task or test set is asked for."""
        self.tests, self.untested = read_test_sets(trained, self.request.data)
        rows = {test.name: [row.texts for row in rows] for test, rows in self.tests.items()}
        untested = {test.name: reason for test, reason in self.untested.items()}
        digest = hashlib.sha256(json.dumps([rows, untested]).encode()).hexdigest()
        settings = {"seed": self.request.seeds[0], "sha256": digest}
        return Item(SUBMISSION, settings=settings, files=[SUBMISSION_FILE], when=When.LAST)

    def run(self, item: Item, model: "Encoder") -> Outcome:
        """Fine-tune, or predict the test sets."""
        if item.task == SUBMISSION:
            return self._predict_test(model)
        from pipeline.evaluation.finetune import fine_tune

        data, settings, seed = self.data[item.task], self.settings[item.task][item.point], item.seed or 0
        print(f"{item.label}: fine-tuning on {len(data.train.examples):,} rows ...", flush=True)
        keep = self._keeper(data.task, settings, seed, model) if self.request.keep_models else None
        predictions = fine_tune(self._encode(data, model, settings), model, seed, settings, keep)
        scores = {name: self._score(data, name, values, seed) for name, values in predictions.items()}
        choosing = scores.pop(SPLIT, None)
        for name in scores:
            rows = data.dev[name].examples
            triples = [(row.index, value, row.label) for row, value in zip(rows, predictions[name], strict=True)]
            write_predictions(self.request.output / predictions_file(name, seed, item.point), triples)
        return Outcome(scores, selection=mean_score([choosing] if choosing else list(scores.values())))

    def _encode(self, data: TaskData, model: "Encoder", settings: Settings) -> "EncodedTask":
        """The rows of a task as tokens, kept for the next seed."""
        from pipeline.evaluation.finetune import encode_task

        if self._encoded is None or self._encoded[0] != data.task.name:
            self._encoded = data.task.name, encode_task(data, model, settings)
        return self._encoded[1]

    def _score(self, data: TaskData, name: str, predictions: list[Any], seed: int) -> Values:
        """All metrics of one dev set."""
        labels = [row.label for row in data.dev[name].examples]
        return {metric: {seed: compute(metric, predictions, labels)} for metric in data.task.metrics}

    def _keeper(self, task: GlueTask, settings: Settings, seed: int, model: "Encoder") -> Callable[[Any], None]:
        """What `fine_tune` hands its model to."""
        from pipeline.evaluation.kept import keep_classifier

        output = self.request.output / model_file(task.name, seed)
        return lambda classifier: keep_classifier(classifier, task, model, settings.max_length, output)

    def _predict_test(self, model: "Encoder") -> Outcome:
        """Write the zip for the GLUE server; files that nothing answers are constant, and that is said."""
        from pipeline.evaluation.finetune import EncodedRows, predict
        from pipeline.evaluation.kept import load_kept

        seed, output = self.request.seeds[0], self.request.output

        def answer(test: TestSet, rows: Rows) -> list[float]:
            print(f"{test.name}.tsv: predicting {len(rows):,} rows ...", flush=True)
            settings = self.settings[test.task][""]
            encoded = EncodedRows(rows, model, settings.max_length)
            return predict(
                load_kept(output / model_file(test.task, seed)), encoded, model, settings, f"{test.name}.tsv"
            )

        write_submission(output / SUBMISSION_FILE, self.tests, answer)
        for test, reason in self.untested.items():
            print(f"{test.name}.tsv: the same answer in all rows, {reason}", flush=True)
        print(f"{output / SUBMISSION_FILE}: by the models of seed {seed}", flush=True)
        constant = {f"{test.name}.tsv": reason for test, reason in self.untested.items()}
        return Outcome(submission={"seed": seed, "constant": constant})

    def check_labels(self, results: Results) -> None:
        """Look at the finished results.

        Raises:
            DataError: the labels of a task must have been mixed up.
        """
        for data in self.data.values():
            refuse_mixed_labels(data, results)


def mean_score(scores: list[Values]) -> float:
    """One number for an item: the mean of all its metrics, of which an undefined one counts as 0."""
    values = [value or 0.0 for metrics in scores for by_seed in metrics.values() for value in by_seed.values()]
    return sum(values) / len(values)
