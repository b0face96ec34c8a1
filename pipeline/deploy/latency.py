"""Milliseconds of a forward pass, by batch, length and threads, of all variants of a model side by side."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pipeline.deploy.subject import Inputs, Predict

BATCHES, LENGTHS = (1, 32), (32, 128, 512)
ROUNDS, MOST_PASSES = 5, 20
"""Variants take so many turns, of so many passes at most."""
SECONDS, LONGEST = 1.0, 5.0
"""For all turns of a variant in a cell, but for one pass in each; a pass that takes longer than the second number is
measured once."""


@dataclass(frozen=True)
class Cell:
    """One row of the table: milliseconds by variant."""

    batch: int
    length: int
    threads: int
    variants: dict[str, dict[str, float]]

    def record(self) -> dict[str, Any]:
        return asdict(self)


def thread_counts() -> tuple[int, ...]:
    """One, and as many as this process may use."""
    return tuple(dict.fromkeys((1, len(os.sched_getaffinity(0)))))


def lengths(positions: int) -> tuple[int, ...]:
    """Those of `LENGTHS` that the model takes, or its longest."""
    return tuple(length for length in LENGTHS if length <= positions) or (positions,)


def measure(
    variants: Mapping[str, Callable[[int], Predict]], make_batch: Callable[[int, int], Inputs], positions: int
) -> list[Cell]:
    """Fill the table.

    Args:
        variants: by name, what makes a variant for a number of threads.
        make_batch: inputs of so many rows and tokens.
        positions: tokens of the longest input.
    """
    cells, before = list[Cell](), torch.get_num_threads()
    try:
        for threads in thread_counts():
            torch.set_num_threads(threads)
            ready = {name: make(threads) for name, make in variants.items()}
            for batch in BATCHES:
                for length in lengths(positions):
                    times = _side_by_side(ready, make_batch(batch, length))
                    cells.append(Cell(batch, length, threads, {name: _summary(taken) for name, taken in times.items()}))
    finally:
        torch.set_num_threads(before)
    return cells


def _side_by_side(variants: Mapping[str, Predict], inputs: Inputs) -> dict[str, list[float]]:
    """Milliseconds of every counted pass, in rounds: what else the machine does meets all variants alike."""
    first = {name: _pass(predict, inputs) for name, predict in variants.items()}
    times = {name: [taken] if taken >= 1000 * LONGEST else [] for name, taken in first.items()}
    for _ in range(ROUNDS):
        for name in [name for name, taken in first.items() if taken < 1000 * LONGEST]:
            passes = max(1, min(MOST_PASSES, int(1000 * SECONDS / ROUNDS / first[name]) - 1))
            if passes > 1:  # short ones would feel what the variant before left in the caches
                _pass(variants[name], inputs)
            times[name] += [_pass(variants[name], inputs) for _ in range(passes)]
    return times


def _pass(predict: Predict, inputs: Inputs) -> float:
    started = time.perf_counter()
    predict(inputs)
    return 1000 * (time.perf_counter() - started)


def _summary(times: list[float]) -> dict[str, float]:
    return {
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.quantile(times, 0.95)),
        "passes": len(times),
    }


def table(cells: list[Cell]) -> str:
    """The cells as Markdown: median, and 95 % in brackets."""
    names = list(cells[0].variants)
    lines = [
        "| batch | tokens | threads | " + " | ".join(names) + " |",
        "|---:|---:|---:|" + "---:|" * len(names),
    ]
    for cell in cells:
        values = (f"{found['median_ms']:.2f} ({found['p95_ms']:.2f})" for found in cell.variants.values())
        lines.append(f"| {cell.batch} | {cell.length} | {cell.threads} | " + " | ".join(values) + " |")
    return "\n".join(lines)
