"""What is exported: a BERT with a masked-LM head or a classifier, and its tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.evaluation.encoder import Encoder, load_classifier, load_encoder, load_masked_lm
from pipeline.evaluation.glue.tasks import GlueTask

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Inputs = dict[str, np.ndarray]
"""An array (batch, tokens) int64 for each name in `INPUTS`."""
Predict = Callable[[Inputs], np.ndarray]
"""Logits (batch, tokens, vocabulary) or (batch, classes), fp32, whatever computes them."""
CLASSIFIER = "BertForSequenceClassification"
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Subject:
    """A model in memory, in fp32 on the CPU; `notices` are for the user."""

    directory: Path
    model: Any
    encoder: Encoder
    notices: list[str]

    @property
    def classifies(self) -> bool:
        """Whether its head is a classifier; else it is one for masked tokens."""
        return type(self.model).__name__ == CLASSIFIER

    @property
    def positions(self) -> int:
        """Tokens of the longest input."""
        return int(self.model.config.max_position_embeddings)

    @property
    def trained_length(self) -> int:
        """Tokens of the inputs of a classifier, as its tokenizer truncates them."""
        return min(self.encoder.tokenizer.model_max_length, self.positions)

    @property
    def parameters(self) -> int:
        """Of encoder and head; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        """Size on disk of the weights."""
        files = [path for pattern in WEIGHTS for path in self.directory.glob(pattern)]
        return sum(path.stat().st_size for path in files)

    def predict(self, inputs: Inputs) -> np.ndarray:
        """What PyTorch computes."""
        with torch.inference_mode():
            return self.model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()


def load_subject(directory: Path, option: str = "--model") -> Subject:
    """Read a model as its configuration names it: a classifier, or else a masked language model.

    Args:
        directory: of a student, a teacher, or what `evaluate.py --keep-models` kept.
        option: that named it.

    Raises:
        UserError: it is no BERT, has no tokenizer, or neither head.
    """
    try:
        encoder = load_encoder(directory)
        if CLASSIFIER in (encoder.config.architectures or ()):
            model, notices = load_classifier(directory), list[str]()
        else:
            model, notices = load_masked_lm(directory)
    except UserError as error:
        raise UserError(str(error).replace("--model", option, 1)) from error
    return Subject(directory, model.eval(), encoder, notices)


def check_task(subject: Subject, task: GlueTask) -> None:
    """Look whether the model is one for `task`.

    Raises:
        UserError: it has no classifier, or other classes.
    """
    if not subject.classifies:
        raise UserError(
            f"--model {subject.directory}: it has no classifier, which task {task.name} needs: give one of the models "
            "that evaluate.py --keep-models keeps, or leave out --task"
        )
    config = subject.model.config
    found = [str(config.id2label[number]) for number in range(config.num_labels)]
    unnamed = all(name.startswith("LABEL_") for name in found)
    if len(found) != (len(task.labels) or 1) or not (unnamed or task.regression or found == list(task.labels)):
        expected = ", ".join(task.labels) or "one number"
        raise UserError(
            f"--model {subject.directory}: its outputs are {', '.join(found)}; those of task {task.name} are {expected}"
        )
