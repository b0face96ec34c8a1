"""What an item will cost: operations counted from its rows, and this process's speed on one small step."""

import time
from collections.abc import Sequence

import torch

from pipeline.evaluation.encoder import Encoder, device, fresh_classifier
from pipeline.evaluation.finetune import EncodedRows, autocast
from pipeline.evaluation.glue.rows import Example
from pipeline.evaluation.task import Precision, Settings
from pipeline.shapes import BertShape

SAMPLE = 100
"""Rows whose length is measured."""
BACKWARD = 3
"""A training step costs three forward passes (two of them are the backward one)."""
PROBE_TOKENS, PROBE_FLOPS, PROBE_ROWS = 64, 5e10, 32
"""Of the step that measures the speed: tokens of a row; about how many operations; rows at most."""


def shape_of(model: Encoder) -> BertShape:
    """The sizes of the model under evaluation."""
    return BertShape.from_config(model.config.to_dict())


def forward_flops(rows: Sequence[Example], model: Encoder, max_length: int) -> float:
    """Operations of one pass over all rows of a sentence task, from the mean length of some of them."""
    if not rows:
        return 0.0
    some = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    encoded = EncodedRows(some, model, max_length)
    return len(rows) * shape_of(model).encoder_flops(max(1, round(encoded.tokens / len(some))))


def fine_tuning_flops(train: float, dev: float, settings: Settings) -> float:
    """Operations of a fine-tuning, from those of one pass over the training and the dev rows."""
    return BACKWARD * settings.epochs * train + dev


def flops_per_second(model: Encoder, precision: Precision) -> float:
    """The speed of this process, from a training step that takes a second or two at most."""
    tokens = min(PROBE_TOKENS, model.config.max_position_embeddings)
    step = BACKWARD * shape_of(model).encoder_flops(tokens)
    rows = int(min(PROBE_ROWS, max(1, PROBE_FLOPS // step)))
    with torch.random.fork_rng(devices=[]):
        classifier = fresh_classifier(model, 2, 0).to(device()).train()
        input_ids = torch.ones(rows, tokens, dtype=torch.long, device=device())
        fastest = float("inf")
        for _ in range(3):  # the first one warms up
            start = time.perf_counter()
            with autocast(precision):
                loss = classifier(input_ids=input_ids, labels=input_ids[:, 0]).loss
            loss.backward()
            float(loss.detach())  # waits for a GPU
            fastest = min(fastest, time.perf_counter() - start)
    return rows * step / fastest
