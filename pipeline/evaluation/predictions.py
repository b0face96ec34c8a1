"""What fine-tuned models answered: `predictions/TASK_SEED.jsonl`, and `predictions/squad_v1_SEED.json` for SQuAD."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.evaluation.items import suffixed
from pipeline.files import write_atomically


def predictions_file(name: str, seed: int, point: str = "") -> str:
    """Where the predictions of one scored name under one seed lie, relative to the output directory."""
    return f"predictions/{suffixed(name, seed, point)}.jsonl"


def answers_file(name: str, seed: int, point: str = "") -> str:
    """The same for SQuAD: `{id: text}`, as the official script takes them."""
    return f"predictions/{suffixed(name, seed, point)}.json"


def write_predictions(path: Path, rows: Sequence[tuple[int, float, float]]) -> None:
    """Keep (index, prediction, label) of every dev row: class ids, or values for regression."""
    lines = (json.dumps(dict(zip(("index", "prediction", "label"), row, strict=True))) for row in rows)
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def write_answers(path: Path, texts: Mapping[str, str], no_answer: Mapping[str, float]) -> None:
    """Keep the answer to every question and, where some have none, what speaks against an answer."""
    if no_answer:
        # In the order that breaks ties in `best_threshold`: the official script keeps that of the file.
        ordered = json.dumps(no_answer, indent=0, sort_keys=True, allow_nan=False)
        write_atomically(path.with_name(f"{path.stem}_na.json"), f"{ordered}\n".encode())
    write_atomically(path, f"{json.dumps(texts, indent=0, ensure_ascii=False)}\n".encode())
