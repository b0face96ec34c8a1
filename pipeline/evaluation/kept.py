"""Fine-tuned models that are kept: written so that the library predicts with them what was scored."""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.data.tokenizer_files import write_tokenizer
from pipeline.data.tokenizer_source import CONFIG_FILE
from pipeline.errors import UserError
from pipeline.evaluation.encoder import Encoder
from pipeline.evaluation.glue.tasks import GlueTask
from pipeline.files import open_to_others, sync_directory, temporary_folder, temporary_name, writing


def keep_classifier(model: Any, task: GlueTask, encoder: Encoder, max_length: int, output: Path) -> None:
    """As `keep_model`, with the names of the task's classes."""
    names = task.labels or (task.label,)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    keep_model(model, encoder, max_length, output)


def keep_model(model: Any, encoder: Encoder, max_length: int, output: Path) -> None:
    """Write a fine-tuned model and its tokenizer to `output`, which appears whole.

    Args:
        model: of transformers.
        encoder: where it started; its tokenizer is written.
        max_length: tokens of the whole pair, to which the tokenizer will truncate if it is told to.
        output: directory that is replaced.

    Raises:
        UserError: it cannot be written.
    """
    temporary = temporary_name(output)
    with writing(output):
        output.parent.mkdir(exist_ok=True)
        for leftover in output.parent.glob(f".{output.name}.*.tmp"):  # of runs that were killed here
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        try:
            model.save_pretrained(temporary)
            _write_tokenizer(encoder, max_length, temporary)
            open_to_others(temporary)
            shutil.rmtree(output, ignore_errors=True)
            os.replace(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_directory(output.parent)


def check_tokenizer(encoder: Encoder) -> None:
    """Look, before hours of fine-tuning, whether the tokenizer can be kept with a model.

    Raises:
        UserError: it cannot.
    """
    with temporary_folder() as folder:
        try:
            _write_tokenizer(encoder, encoder.config.max_position_embeddings, folder)
        except UserError as error:
            raise UserError(f"--keep-models: {error}") from None


def _write_tokenizer(encoder: Encoder, max_length: int, output: Path) -> None:
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.model_max_length = max_length
    write_tokenizer(tokenizer, output)
    if encoder.config.type_vocab_size == 1:
        # The second segment's number would lie beyond the embeddings; without numbers, all is the first segment.
        path = output / CONFIG_FILE
        config = json.loads(path.read_bytes()) | {"model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def load_kept(directory: Path) -> torch.nn.Module:
    """A kept model, computing as it did when it was scored.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        return AutoModelForSequenceClassification.from_pretrained(
            directory, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
        )
    except Exception as error:  # on damaged files the libraries fail in every way there is
        raise UserError(f"{directory}: it cannot be loaded; remove it, and it is made again") from error
