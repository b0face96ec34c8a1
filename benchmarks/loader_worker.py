"""One way of reading ahead in one revision, measured in a process of its own for benchmarks/loader.py; prints JSON.

    python benchmarks/loader_worker.py TREE KIND CORPUS SECONDS      KIND: process, thread, or before for the old thread

On two cores at most: one for the loop that launches, and one for whatever else there is.
"""

import contextlib
import functools
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[0] = sys.argv[1]

import numpy as np
import torch

from pipeline.data.loader import Masking, TrainingData
from pipeline.data.manifest import read_manifest
from pipeline.data.masking import Vocabulary
from pipeline.data.windows import WindowSource

WINDOWS, TOKENS = 480, 128
"""In a micro-batch, which is the whole step: 61,440 tokens."""
PACE = 5e6
"""Tokens per second that the paced loop asks for, some twice as much as a GPU trains on."""
STEPS = (0, 300_000)
FIRSTS = 3
"""How often the first micro-batch is waited for at each of these steps."""
LAUNCHES = 50
"""Small operations between two looks at the clock."""

Batches = Iterator[dict[str, torch.Tensor]]
Start = Callable[[int], contextlib.AbstractContextManager[Batches]]


def open_data(corpus: Path) -> TrainingData:
    manifest = read_manifest(corpus)
    continues = np.arange(manifest.vocab_size) % 4 == 0
    vocabulary = Vocabulary(manifest.vocab_size, cls_id=101, sep_id=102, mask_id=103, continues_word=continues)
    return TrainingData([WindowSource(corpus, manifest, vocabulary, TOKENS)], [1.0], Masking(seed=1))


def starter(kind: str, corpus: Path) -> Start:
    """What begins to read from a step on, from data that nothing was read of yet."""
    loader = importlib.import_module("pipeline.data.loader")

    def start(step: int) -> contextlib.AbstractContextManager[Batches]:
        if kind == "before":
            collate = functools.partial(loader.collate, documents=False)
            return contextlib.closing(loader.micro_batches(open_data(corpus), step, WINDOWS, WINDOWS, 0, 1, collate))
        ahead: Any = importlib.import_module("pipeline.data.ahead")
        return ahead.read_ahead(open_data(corpus), step, loader.Share(WINDOWS, WINDOWS, 0, 1), False, kind)

    return start


def seconds_to_first(start: Start) -> dict[str, float]:
    """Medians by step, from asking for a reader to its first micro-batch."""
    seconds: dict[int, list[float]] = {step: [] for step in STEPS}
    for _ in range(FIRSTS):
        for step in STEPS:
            began = time.perf_counter()
            with start(step) as batches:
                next(batches)
                seconds[step].append(time.perf_counter() - began)
    return {str(step): statistics.median(values) for step, values in seconds.items()}


def free_rate(start: Start, seconds: float) -> float:
    """Tokens per second where nothing but reading is done."""
    with start(0) as batches:
        for _ in range(10):
            next(batches)
        taken, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            next(batches)
            taken += 1
        return taken * WINDOWS * TOKENS / (time.perf_counter() - began)


def launch_until(moment: float) -> int:
    """Small operations, as the launches of a training step are, back to back; how many."""
    numbers, launched = torch.zeros(4), 0
    while time.perf_counter() < moment:
        for _ in range(LAUNCHES):
            numbers.add_(1)
        launched += LAUNCHES
    return launched


def launch_rate(seconds: float) -> float:
    began = time.perf_counter()
    return launch_until(began + seconds) / (time.perf_counter() - began)


def paced(start: Start, seconds: float) -> dict[str, float]:
    """Launches beside the reading of `PACE` tokens a second: the loop waits for a micro-batch, then launches."""
    alone, step = launch_rate(seconds / 2), WINDOWS * TOKENS / PACE
    with start(0) as batches:
        for _ in range(10):
            next(batches)
        launched, taken, waited, began = 0, 0, 0.0, time.perf_counter()
        while (asked := time.perf_counter()) - began < seconds:
            next(batches)
            taken += 1
            waited += time.perf_counter() - asked
            launched += launch_until(began + taken * step)
        took = time.perf_counter() - began
    alone = (alone + launch_rate(seconds / 2)) / 2
    return {
        "paced_tokens_per_s": taken * WINDOWS * TOKENS / took,
        "launches_alone_per_s": alone,
        "launches_share": launched / took / alone,
        "waiting_share": waited / took,
    }


def main() -> None:
    _, _, kind, corpus, seconds = sys.argv
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    torch.set_num_threads(1)
    start = starter(kind, Path(corpus))
    firsts = seconds_to_first(start)
    rate = free_rate(start, float(seconds))
    print(json.dumps({"tokens_per_s": rate, "first_batch_s": firsts, **paced(start, float(seconds))}))


if __name__ == "__main__":
    main()
