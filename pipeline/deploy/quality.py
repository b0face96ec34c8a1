"""How good a model is, whatever computes it: by masked tokens of a text, or by the dev set of a task."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.data.masking import Vocabulary
from pipeline.deploy.subject import Predict, Subject, check_task
from pipeline.deploy.text import Text, pad
from pipeline.errors import DataError
from pipeline.evaluation.finetune import EncodedRows
from pipeline.evaluation.glue.rows import TaskData
from pipeline.evaluation.metrics import compute

Scores = dict[str, float]
BATCH = 32
"""Rows of a task in one forward pass. The 8-bit range of an activation is that of its whole batch."""


class Measure(ABC):
    """One way to tell how good a model is."""

    unit: ClassVar[str]
    margin: ClassVar[float]
    """By how much int8 may be worse, in this unit."""
    title: str

    @abstractmethod
    def scores(self, predict: Predict) -> Scores:
        """What is measured, by name; NaN where the outputs are no numbers."""

    @abstractmethod
    def fall(self, before: Scores, after: Scores) -> float:
        """By how much a model is worse."""


@dataclass(frozen=True)
class MaskedTokens(Measure):
    """Loss (nats) and accuracy in predicting the masked tokens of a text."""

    unit = "nat"
    margin = 0.05
    text: Text
    vocabulary: Vocabulary
    positions: int
    title: str = "masked-language modelling"

    def scores(self, predict: Predict) -> Scores:
        loss, right, total = 0.0, 0, 0
        for batch in self.text.windows(self.vocabulary, self.positions):
            ids = batch.input_ids
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            # (windows, k, tokens): embeddings beyond the tokenizer's tokens are no predictions.
            chosen = predict(inputs)[np.arange(len(ids))[:, None], batch.positions]
            logits = chosen[..., : self.vocabulary.size].astype(np.float64)
            highest = logits.max(axis=-1, keepdims=True)
            normaliser = np.log(np.exp(logits - highest).sum(axis=-1)) + highest[..., 0]
            loss += float((normaliser - np.take_along_axis(logits, batch.labels[..., None], axis=-1)[..., 0]).sum())
            right += int((logits.argmax(axis=-1) == batch.labels).sum())
            total += batch.labels.size
        return {"loss": loss / total, "accuracy": right / total}

    def fall(self, before: Scores, after: Scores) -> float:
        return after["loss"] - before["loss"]


class TaskScores(Measure):
    """All metrics of a task on its dev sets; the fall is that of the one that falls most, in points."""

    unit = "points"
    margin = 1.0

    def __init__(self, subject: Subject, data: TaskData) -> None:
        """Tokenise the dev sets.

        Raises:
            UserError: the model has no classifier for the task.
            DataError: a dev set has no rows.
        """
        check_task(subject, data.task)
        for name, split in data.dev.items():
            if not split.examples:
                raise DataError(f"{name}: no rows of {split.source} are left; all of them are in train, too")
        self.title = f"task {data.task.name}"
        self._metrics, self._pad_id = data.task.metrics, subject.encoder.tokenizer.pad_token_id
        self._rows = {
            name: EncodedRows(split.examples, subject.encoder, subject.trained_length)
            for name, split in data.dev.items()
        }

    def scores(self, predict: Predict) -> Scores:
        found: Scores = {}
        for name, rows in self._rows.items():
            predictions = self._predictions(rows, predict)
            for metric in self._metrics:
                # Undefined counts as 0, as in all results. Outputs that are no numbers are no predictions.
                value = math.nan if predictions is None else compute(metric, predictions, rows.labels) or 0.0
                found[f"{name} {metric}"] = value
        return found

    def fall(self, before: Scores, after: Scores) -> float:
        falls = [100 * (before[name] - after[name]) for name in before]
        return math.nan if any(map(math.isnan, falls)) else max(falls)

    def _predictions(self, rows: EncodedRows, predict: Predict) -> list[int] | list[float] | None:
        """Class ids or values, in the order of `rows`; they are run sorted by length."""
        order = rows.by_length()
        parts = []
        for start in range(0, len(order), BATCH):
            batch = [rows[number] for number in order[start : start + BATCH]]
            ids, segments = [row["input_ids"] for row in batch], [row["token_type_ids"] for row in batch]
            parts.append(predict(pad(ids, self._pad_id, segments)))
        outputs = np.concatenate(parts)
        if not np.isfinite(outputs).all():
            return None
        values = outputs.argmax(axis=1) if outputs.shape[1] > 1 else outputs[:, 0]
        restored = np.empty_like(values)
        restored[order] = values
        return restored.tolist()
