"""One process group that runs several training jobs in turn, and spoils the loss or the gradient of chosen steps.

    torchrun --nproc_per_node 2 tests/engine/spoiling_worker.py JOBS.json RESULTS.jsonl

It may use fp16 on a CPU, which DeepSpeed refuses outside tests.
"""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from deepspeed.accelerator import get_accelerator

from pipeline import train
from pipeline.engine import distributed, session
from pipeline.engine import trainer as trainer_module
from pipeline.errors import UserError
from pipeline.models import loss as loss_module
from pipeline.recipe import load_recipe


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


SPOILT = {"loss": lambda loss: loss * math.nan, "gradient": InfiniteGradient.apply, "spike": lambda loss: loss + 8.0}


def spoiling(trainer_module, rank: int):
    """Let jobs spoil steps; returns a function that takes the next job."""
    plan, now = {}, [0]
    dropout_seed, decoder_loss = trainer_module.dropout_seed, loss_module.decoder_loss

    def remember_step(*keys):
        now[0] = keys[1] + 1
        return dropout_seed(*keys)

    def spoiled_loss(*inputs):
        loss, accuracy = decoder_loss(*inputs)
        if rank == 1 and loss.requires_grad and now[0] in plan.get("steps", []):
            loss = SPOILT[plan["spoil"]](loss)
        return loss, accuracy

    trainer_module.dropout_seed, loss_module.decoder_loss = remember_step, spoiled_loss

    def take(job: dict) -> None:
        plan.clear()
        plan.update(job)

    return take


def work(listing: str, results: str) -> None:
    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    accelerator.supported_dtypes = lambda: [torch.float, torch.bfloat16, torch.half]
    torch.set_num_threads(1)
    world = distributed.start(timeout_minutes=30)
    take = spoiling(trainer_module, world.rank)
    for line in json.loads(Path(listing).read_text()):
        take(line)
        sys.argv = ["train.py", *line["arguments"]]
        arguments, overrides = train.parse_arguments()
        try:
            assert session.train(
                load_recipe(arguments.config, overrides), arguments.deepspeed_config, arguments.output, world
            )
            ended = "done"
        except UserError as error:
            ended = str(error)
        if world.is_main:
            with open(results, "a") as stream:
                stream.write(json.dumps(ended) + "\n")
    distributed.stop()


if __name__ == "__main__":
    work(*sys.argv[1:])
