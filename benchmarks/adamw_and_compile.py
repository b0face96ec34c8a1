"""What torch's fused AdamW and torch.compile are worth on one CPU thread.

    python benchmarks/adamw_and_compile.py --json FILE

2 layers of BERT-base's width (768/3072) narrowed to 192, fp32. The two ways take turns within a round and ratios are
medians over rounds; seconds are of processor time, so that other work on the machine counts little.

1. AdamW: one step over all parameters, as the trainer builds it (fused) and with torch's default options.
2. Compile: forward and backward of a micro-batch of 32 sequences of 128 on composed tensors, with and without
   torch.compile; both must come to the same loss.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.composition_share import build, setting_of
from benchmarks.steps import make_batches, named
from pipeline.engine.micro_step import compiled
from pipeline.engine.optimizer import build_optimizer, parameter_groups
from pipeline.environment import measured, require_compiler
from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.files import write_atomically
from pipeline.launch import positive_int
from pipeline.models.loss import LossOf, masked_lm_of
from pipeline.records import markdown_table

WINDOWS = 32


def in_turn(rounds: int, plain: Callable[[], Any], fast: Callable[[], Any]) -> dict[str, Any]:
    """Processor seconds of each way in each round, the first one apart: it makes moments and graphs."""
    seconds: dict[str, list[float]] = {"plain": [], "fast": []}
    for _ in range(1 + rounds):
        for name, work in (("plain", plain), ("fast", fast)):
            began = time.process_time()
            work()
            seconds[name].append(time.process_time() - began)
    first = {name: values.pop(0) for name, values in seconds.items()}
    times = statistics.median(a / b for a, b in zip(seconds["plain"], seconds["fast"], strict=True))
    return {"seconds": seconds, "first_seconds": first, "times_as_fast": times}


def measure_adamw(rounds: int) -> dict[str, Any]:
    model = build("narrowed")
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    groups = parameter_groups(model, weight_decay=0.01, head_apart=False)
    fused = build_optimizer(groups)
    default = torch.optim.AdamW([{"params": group["params"]} for group in groups], lr=0.0)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": numbers} | in_turn(rounds, default.step, fused.step)


def measure_compile(rounds: int) -> dict[str, Any]:
    model = build("narrowed")
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in model().items()}
    loss_of = masked_lm_of(model.form, training=True)
    (batch,) = make_batches(setting_of(WINDOWS))
    losses: dict[str, float] = {}

    def pass_of(name: str, loss_of: LossOf) -> Callable[[], None]:
        def work() -> None:
            loss, _ = loss_of(leaves, named(batch))
            loss.backward()
            losses[name] = loss.item()

        return work

    row = in_turn(rounds, pass_of("plain", loss_of), pass_of("compiled", compiled(loss_of)))
    if abs(losses["plain"] - losses["compiled"]) > 1e-4 * losses["plain"]:
        raise RuntimeError(f"the compiled model does not compute the same: {losses}")
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    arguments = parser.parse_args()
    require_compiler("this benchmark", "cpu")
    torch.set_num_threads(1)
    head = measured(not_measured="GPUs, bf16, several threads")
    rows = {"adamw": measure_adamw(arguments.rounds), "compile": measure_compile(arguments.rounds)}
    cells = []
    for name, row in rows.items():
        medians = (f"{statistics.median(row['seconds'][way]):.3f}" for way in ("plain", "fast"))
        cells.append([name, *medians, f"{row['times_as_fast']:.2f}"])
    print(markdown_table(["", "plain, s", "fast, s", "times as fast"], cells))
    write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
