"""pipeline/train.py, writing down every micro-batch it trains on; it asks itself to stop after a given step.

Environment: TRACE, a directory for one file of JSON lines per rank and life; STOP, the step after which rank 0 makes
the stop file (0: none).
"""

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent.parent)
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "WARNING")

from pipeline import train
from pipeline.data.loader import micro_batches
from pipeline.engine import trainer
from pipeline.engine.stopping import STOP_FILE
from pipeline.errors import run_entry_point


def traced(
    data: Any, first_step: int, global_batch: int, micro_batch: int, rank: int, ranks: int, prepare: Callable
) -> Iterator[Any]:
    """What `micro_batches` yields, each written down as the trainer takes it."""
    directory = Path(os.environ["TRACE"])
    directory.mkdir(exist_ok=True)
    output = Path(sys.argv[sys.argv.index("--output") + 1])
    accumulation = global_batch // (micro_batch * ranks)
    batches = micro_batches(data, first_step, global_batch, micro_batch, rank, ranks)
    for number, batch in enumerate(batches, first_step * accumulation):
        step, accumulated = divmod(number, accumulation)
        rows = zip(batch.windows.tolist(), batch.input_ids, batch.positions, batch.labels, strict=True)
        samples = [f"{window}:{zlib.crc32(b''.join(part.tobytes() for part in row))}" for window, *row in rows]
        line = {"step": step, "accumulation": accumulated, "rank": rank, "samples": samples}
        with open(directory / f"rank{rank}_from{first_step}.jsonl", "a") as stream:
            stream.write(json.dumps(line) + "\n")
        if rank == 0 and step + 1 == int(os.environ["STOP"]):
            (output / STOP_FILE).touch()
        yield prepare(batch)


trainer.micro_batches = traced
run_entry_point(train.main)
