"""One process group that runs several training jobs in turn: starting processes costs more than small runs do.

    torchrun --nproc_per_node 2 tests/support/train_worker.py JOBS.json

JOBS.json holds a list of command lines for pipeline/train.py. One that begins with `whole` is trained without
narrowing, as an oracle.
"""

import json
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "WARNING")

import torch

from pipeline import train
from pipeline.engine import distributed, session
from pipeline.engine.trainer import Trainer
from pipeline.methods.wid import Wid
from pipeline.recipe import load_recipe

train_to_the_end = Trainer.run


def run(self: Trainer) -> bool:
    """Train as ever, holding no file of a checkpoint: that one is to be deleted on the way."""
    assert "/checkpoints/" not in Path("/proc/self/maps").read_text()
    return train_to_the_end(self)


Trainer.run = run
torch.set_num_threads(1)
world = distributed.start(timeout_minutes=5)
successor = Wid.successor
for job in json.loads(Path(sys.argv[1]).read_text()):
    Wid.successor = (lambda *_: None) if job[0] == "whole" else successor
    sys.argv = ["train.py", *(part for part in job if part != "whole")]
    arguments, overrides = train.parse_arguments()
    assert session.train(load_recipe(arguments.config, overrides), arguments.deepspeed_config, arguments.output, world)
distributed.stop()
