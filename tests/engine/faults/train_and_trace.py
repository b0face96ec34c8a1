"""pipeline/train.py, writing down every micro-batch it trains on; it asks itself to stop after a given step.

Environment: TRACE, a directory for one file of JSON lines per rank and life; STOP, the step after which rank 0 makes
the stop file (0: none).
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent.parent)
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "WARNING")

from pipeline import train
from pipeline.data.ahead import read_ahead
from pipeline.engine import trainer
from pipeline.engine.stopping import STOP_FILE
from pipeline.errors import run_entry_point


@contextmanager
def traced(data: Any, first_step: int, share: Any, *options: Any) -> Iterator[Iterator[Any]]:
    """What `read_ahead` yields, each written down as the trainer takes it."""
    Path(os.environ["TRACE"]).mkdir(exist_ok=True)
    with read_ahead(data, first_step, share, *options) as batches:
        yield (written_down(data, first_step, share, number, batch) for number, batch in enumerate(batches))


def written_down(data: Any, first_step: int, share: Any, number: int, batch: dict[str, Any]) -> dict[str, Any]:
    step, accumulated = divmod(number + first_step * share.accumulation, share.accumulation)
    _, _, windows = data.locate(share.samples(number + first_step * share.accumulation))
    rows = zip(windows.tolist(), *(batch[name].numpy() for name in ("input_ids", "positions", "labels")), strict=True)
    samples = [f"{window}:{zlib.crc32(b''.join(part.tobytes() for part in row))}" for window, *row in rows]
    line = {"step": step, "accumulation": accumulated, "rank": share.rank, "samples": samples}
    with open(Path(os.environ["TRACE"]) / f"rank{share.rank}_from{first_step}.jsonl", "a") as stream:
        stream.write(json.dumps(line) + "\n")
    if share.rank == 0 and step + 1 == int(os.environ["STOP"]):
        (Path(sys.argv[sys.argv.index("--output") + 1]) / STOP_FILE).touch()
    return batch


trainer.read_ahead = traced
run_entry_point(train.main)
