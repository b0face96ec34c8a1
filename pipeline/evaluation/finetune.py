"""One fine-tuning run: a fresh classifier on a task's training rows under one seed, and its predictions.

The loop is the `Trainer` of transformers, with everything that writes, prints or reports switched off. The
same seed on the same machine gives the same predictions.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.evaluation.encoder import Encoder, device, fresh_classifier
from pipeline.evaluation.glue.rows import Example, TaskData
from pipeline.evaluation.items import DivergedError
from pipeline.evaluation.progress import Progress
from pipeline.evaluation.task import WARMUP, WEIGHT_DECAY, Precision, Settings
from pipeline.files import temporary_folder
from pipeline.stages import cpu_precision


class Rows(torch.utils.data.Dataset):
    """Tokenised rows, kept flat (5 bytes a token: MNLI has 16 million) and handed out as lists for the collator."""

    def __init__(self, labels: Mapping[str, Sequence[Any]]) -> None:
        """Prepare for rows with these labels, by the names that the model knows them by."""
        self._labels = labels
        self._ids, self._segments, self._bounds = np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(1, np.int64)

    def fill(self, encoded: Iterable[Any], encoder: Encoder) -> None:
        """Take what the tokenizer made of all rows, batch by batch.

        A model with fewer segments than the tokenizer numbers sees the last ones as one.
        """
        last_segment = encoder.config.type_vocab_size - 1
        ids, segments, lengths = [self._ids], [self._segments], [0]
        for batch in encoded:
            ids += [np.asarray(row, np.int32) for row in batch["input_ids"]]
            segments += [np.asarray(row, np.int8).clip(max=last_segment) for row in batch["token_type_ids"]]
            lengths += [len(row) for row in batch["input_ids"]]
        self._ids, self._segments, self._bounds = np.concatenate(ids), np.concatenate(segments), np.cumsum(lengths)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        span = slice(self._bounds[row], self._bounds[row + 1])
        return {
            "input_ids": self._ids[span].tolist(),
            "token_type_ids": self._segments[span].tolist(),
            **{name: values[row] for name, values in self._labels.items()},
        }

    @property
    def tokens(self) -> int:
        """Of all rows together."""
        return int(self._bounds[-1])

    def by_length(self) -> list[int]:
        """Row numbers from the shortest to the longest, so that batches of neighbours need little padding."""
        return np.argsort(np.diff(self._bounds), kind="stable").tolist()


class EncodedRows(Rows):
    """The rows of a sentence task."""

    def __init__(self, examples: Sequence[Example], encoder: Encoder, max_length: int) -> None:
        """Tokenise in the order of `examples`, cutting the longer text of a pair first."""
        self.labels = [row.label for row in examples]
        super().__init__({"label": self.labels})
        self.fill(self._encode(examples, encoder, max_length), encoder)

    @staticmethod
    def _encode(examples: Sequence[Example], encoder: Encoder, max_length: int) -> Iterator[Any]:
        for start in range(0, len(examples), 1000):
            texts = [
                list(column) for column in zip(*(row.texts for row in examples[start : start + 1000]), strict=True)
            ]
            yield encoder.tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=True)


@dataclass(frozen=True)
class EncodedTask:
    """A task ready for any number of seeds; `outputs` is 1 for regression, else the number of classes."""

    name: str
    outputs: int
    train: EncodedRows
    dev: dict[str, EncodedRows]


def encode_task(data: TaskData, encoder: Encoder, settings: Settings) -> EncodedTask:
    """Tokenise all rows once, for any number of seeds."""

    def encode(examples: Sequence[Example]) -> EncodedRows:
        return EncodedRows(examples, encoder, settings.max_length)

    dev = {name: encode(split.examples) for name, split in data.dev.items()}
    return EncodedTask(data.task.name, len(data.task.classes) or 1, encode(data.train.examples), dev)


def autocast(precision: Precision) -> torch.autocast:
    """Products in this precision inside the block; weights stay fp32."""
    return torch.autocast(device(), dtype=torch.bfloat16, enabled=precision == "bf16")


def check_precision(precision: Precision) -> None:
    """Look whether the device computes in it.

    Raises:
        UserError: it would emulate it.
    """
    able = torch.cuda.is_bf16_supported() if device() == "cuda" else cpu_precision() == "bf16"
    if precision == "bf16" and not able:
        raise UserError("--bf16: this device does not compute in bf16; leave it out")


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels inside; an operation that has none warns instead of failing."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _steps_per_epoch(rows: int, settings: Settings) -> int:
    return -(-rows // settings.batch_size)


def _arguments(output_dir: str, rows: int, seed: int, settings: Settings) -> Any:
    """Training arguments: linear decay after a warm-up over the first tenth, nothing saved, logged or shown."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=output_dir,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=round(WARMUP * settings.epochs * _steps_per_epoch(rows, settings)),
        weight_decay=WEIGHT_DECAY,
        train_sampling_strategy="group_by_length",
        seed=seed,
        bf16=settings.precision == "bf16",
        use_cpu=device() == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


@contextlib.contextmanager
def trained(
    model: torch.nn.Module, rows: Rows, encoder: Encoder, title: str, seed: int, settings: Settings
) -> Iterator[Any]:
    """Train `model` on `rows`; the block gets the `Trainer` with the trained model, under deterministic kernels."""
    steps = math.ceil(settings.epochs * _steps_per_epoch(len(rows), settings))
    with _trainer(model, encoder, len(rows), seed, settings, rows) as trainer:
        with Progress(title, steps, "steps") as progress:
            trainer.add_callback(_saying(progress))
            trainer.train()
        yield trainer


def fine_tune(
    task: EncodedTask, encoder: Encoder, seed: int, settings: Settings, keep: Callable[[Any], None] | None = None
) -> dict[str, list[int] | list[float]]:
    """Train on the task and return, for every dev set, the predictions in the order of its rows.

    Predictions are class ids, or values for regression. `keep` gets the model that made them.

    Raises:
        DivergedError: its outputs are not finite.
    """
    model = fresh_classifier(encoder, task.outputs, seed)
    with trained(model, task.train, encoder, f"{task.name}, seed {seed}", seed, settings) as trainer:
        trainer.args.train_sampling_strategy = "random"  # grouping by length would shuffle the dev rows as well
        predictions = {name: _predict(trainer, rows, f"{name}, seed {seed}") for name, rows in task.dev.items()}
    if keep:
        keep(model)
    return predictions


def predict(model: torch.nn.Module, rows: EncodedRows, encoder: Encoder, settings: Settings, what: str) -> list:
    """Predictions of a fine-tuned model, as those of `fine_tune`; the labels of `rows` do not matter."""
    with _trainer(model, encoder, len(rows), 0, settings) as trainer:
        trainer.args.train_sampling_strategy = "random"
        return _predict(trainer, rows, what)


@contextlib.contextmanager
def _trainer(
    model: torch.nn.Module,
    encoder: Encoder,
    rows: int,
    seed: int,
    settings: Settings,
    train: Rows | None = None,
) -> Iterator[Any]:
    """A silent `Trainer` with deterministic kernels inside the block."""
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer

    with temporary_folder() as scratch, _deterministic():
        trainer = Trainer(
            model=model,
            args=_arguments(str(scratch), rows, seed, settings),
            train_dataset=train,
            data_collator=DataCollatorWithPadding(encoder.tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        yield trainer


def _saying(progress: Progress) -> Any:
    """A callback of the `Trainer` that tells `progress` of every step."""
    from transformers import TrainerCallback

    class Saying(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **others: Any) -> None:
            progress.reached(state.global_step)

    return Saying()


def _predict(trainer: Any, rows: EncodedRows, what: str) -> list[int] | list[float]:
    """Predictions for `rows` in their own order; they are run sorted by length."""
    order = rows.by_length()
    output = trainer.predict(torch.utils.data.Subset(rows, order))
    outputs, expected = np.asarray(output.predictions), [rows.labels[row] for row in order]
    if not np.allclose(output.label_ids, expected):
        raise RuntimeError(f"{what}: predictions came back in another order than asked for")
    if not np.isfinite(outputs).all():
        raise DivergedError(f"{what}: training diverged (outputs are not finite); try a lower --learning-rate")
    values = outputs.argmax(axis=1) if outputs.shape[1] > 1 else outputs[:, 0]
    restored = np.empty_like(values)
    restored[order] = values
    return restored.tolist()
