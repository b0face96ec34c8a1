"""One process group that trains several runs in turn and writes down how each went.

    torchrun --nproc_per_node 2 tests/engine/faults/train_many.py JOBS.json RESULTS.jsonl

JOBS.json: name -> arguments of pipeline/train.py. RESULTS.jsonl: one line per job that came to an end, with the
sentence of what the user could have caused; any other error ends the group. fp16 is allowed on CPUs here, which
DeepSpeed refuses outside tests.
"""

import json
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent.parent)
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "WARNING")

import torch
from deepspeed.accelerator import get_accelerator

from pipeline import train
from pipeline.engine import distributed, session
from pipeline.errors import UserError
from pipeline.recipe import load_recipe

jobs, results = Path(sys.argv[1]), Path(sys.argv[2])
accelerator = get_accelerator()
if accelerator.device_name() == "cpu":
    accelerator.is_fp16_supported = lambda: True
    accelerator.supported_dtypes = lambda: [torch.float, torch.bfloat16, torch.half]
world = distributed.start(timeout_minutes=5)
for name, job in json.loads(jobs.read_text()).items():
    sys.argv = ["train.py", *job]
    arguments, overrides = train.parse_arguments()
    error = None
    try:
        session.train(load_recipe(arguments.config, overrides), arguments.deepspeed_config, arguments.output, world)
    except UserError as refused:
        error = str(refused)
    if world.is_main:
        with open(results, "a") as stream:
            stream.write(json.dumps({"name": name, "error": error}) + "\n")
distributed.stop()
