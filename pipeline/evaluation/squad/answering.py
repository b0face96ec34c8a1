"""One fine-tuning on SQuAD: a new span head on the encoder, trained under one seed, and its answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.evaluation.encoder import Encoder, fresh_span_head
from pipeline.evaluation.finetune import trained
from pipeline.evaluation.progress import Progress
from pipeline.evaluation.squad.questions import SquadData
from pipeline.evaluation.squad.spans import Candidates
from pipeline.evaluation.squad.windows import Windows
from pipeline.evaluation.task import Settings


@dataclass(frozen=True)
class EncodedSquad:
    """The windows of all questions, for any number of seeds."""

    data: SquadData
    train: Windows
    dev: Windows


def encode_squad(data: SquadData, encoder: Encoder, length: int) -> EncodedSquad:
    """Tokenise all questions once, for any number of seeds."""
    return EncodedSquad(data, Windows(data.train.rows, encoder, length), Windows(data.dev.rows, encoder, length))


def answer(
    task: EncodedSquad, encoder: Encoder, seed: int, settings: Settings
) -> tuple[dict[str, str], dict[str, float]]:
    """Train, and return by question id the best answer and what speaks against any (0 to 1).

    Raises:
        UserError: training diverged.
    """
    title = f"{task.data.version.name}, seed {seed}"
    with trained(fresh_span_head(encoder, seed), task.train, encoder, title, seed, settings) as trainer:
        found = _predict(trainer, task, title)
    texts, no_answer = {}, {}
    for question, candidates in zip(task.data.dev.rows, found, strict=True):
        texts[question.name] = next(iter(candidates.texts(question.context)), "")
        no_answer[question.name] = candidates.no_answer()
    return texts, no_answer


def _predict(trainer: Any, task: EncodedSquad, title: str) -> list[Candidates]:
    """The candidates of every question; its windows are run sorted by length."""
    model, windows, size = trainer.model.eval(), task.dev, trainer.args.per_device_eval_batch_size
    found, order = [Candidates() for _ in task.data.dev.rows], windows.by_length()
    with torch.no_grad(), Progress(f"{title}, answers", len(order), "windows") as progress:
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            batch = trainer.data_collator([windows[number] for number in chosen])
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "token_type_ids", "attention_mask")}
            output = model(**inputs)
            logits = torch.stack([output.start_logits, output.end_logits], 1).float().cpu().numpy()
            if not np.isfinite(logits).all():
                raise UserError(f"{title}: training diverged (outputs are not finite); try a lower --learning-rate")
            for number, (starts, ends) in zip(chosen, logits, strict=True):
                spans = windows.spans[number]
                found[windows.questions[number]].add(starts[: len(spans)], ends[: len(spans)], spans)
            progress.reached(first + len(chosen))
    return found
