"""One fine-tuning on SQuAD: a new span head on the encoder, trained under one seed, and its answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.evaluation.encoder import Encoder, fresh_span_head
from pipeline.evaluation.estimate import SAMPLE, shape_of
from pipeline.evaluation.finetune import autocast, trained
from pipeline.evaluation.items import DivergedError
from pipeline.evaluation.progress import Progress
from pipeline.evaluation.squad.questions import Question, Questions, SquadData
from pipeline.evaluation.squad.spans import Candidates
from pipeline.evaluation.squad.windows import Windows
from pipeline.evaluation.task import Settings


@dataclass(frozen=True)
class EncodedSquad:
    """The windows of all questions, for any number of seeds."""

    name: str
    train: Windows
    asked: list[Question]
    windows: Windows


def encode_squad(data: SquadData, encoder: Encoder, length: int) -> EncodedSquad:
    """Tokenise all questions once, for any number of seeds."""
    asked = [*data.dev.rows, *(data.choosing.rows if data.choosing else ())]
    windows = Windows(asked, encoder, length)
    return EncodedSquad(data.version.name, Windows(data.train.rows, encoder, length), asked, windows)


def forward_flops(questions: Questions, encoder: Encoder, length: int) -> float:
    """Operations of one pass over all windows of the questions, from the windows of some of them."""
    some = questions.rows[:: max(1, len(questions.rows) // SAMPLE)][:SAMPLE]
    windows = Windows(some, encoder, length)
    each = shape_of(encoder).encoder_flops(max(1, round(windows.tokens / len(windows))))
    return len(questions.rows) * len(windows) / len(some) * each


def answer(
    task: EncodedSquad, encoder: Encoder, seed: int, settings: Settings, keep: Callable[[Any], None] | None = None
) -> tuple[dict[str, str], dict[str, float]]:
    """Train, and return by question id the best answer and what speaks against any (0 to 1).

    `keep` gets the model that answered.

    Raises:
        DivergedError: its outputs are not finite.
    """
    title = f"{task.name}, seed {seed}"
    model = fresh_span_head(encoder, seed)
    with trained(model, task.train, encoder, title, seed, settings) as trainer:
        found = _predict(trainer, task, title, settings)
    if keep:
        keep(model)
    texts, no_answer = {}, {}
    for question, candidates in zip(task.asked, found, strict=True):
        texts[question.name] = next(iter(candidates.texts(question.context)), "")
        no_answer[question.name] = candidates.no_answer()
    return texts, no_answer


def _predict(trainer: Any, task: EncodedSquad, title: str, settings: Settings) -> list[Candidates]:
    """The candidates of every question; its windows are run sorted by length."""
    model, windows, size = trainer.model.eval(), task.windows, settings.batch_size
    found, order = [Candidates() for _ in task.asked], windows.by_length()
    with (
        torch.no_grad(),
        autocast(settings.precision),
        Progress(f"{title}, answers", len(order), "windows") as progress,
    ):
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            batch = trainer.data_collator([windows[number] for number in chosen])
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "token_type_ids", "attention_mask")}
            output = model(**inputs)
            logits = torch.stack([output.start_logits, output.end_logits], 1).float().cpu().numpy()
            if not np.isfinite(logits).all():
                raise DivergedError(f"{title}: training diverged (outputs are not finite); try a lower --learning-rate")
            for number, (starts, ends) in zip(chosen, logits, strict=True):
                spans = windows.spans[number]
                found[windows.questions[number]].add(starts[: len(spans)], ends[: len(spans)], spans)
            progress.reached(first + len(chosen))
    return found
