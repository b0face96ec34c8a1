"""pipeline/train.py, in which the gradient of chosen optimizer steps is no finite number.

    python benchmarks/gpu_spoiled.py STEP,... OPTIONS...

The gradients are spoiled where all micro-batches have been added up, before DeepSpeed sees them, which is outside of
what a GPU records. STEP counts from 1; OPTIONS are those of pipeline/train.py.
"""

import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from torch import Tensor

from pipeline import train
from pipeline.engine import micro_step
from pipeline.errors import run_entry_point


def spoil(steps: set[int]) -> None:
    """Let the gradients of these optimizer steps be infinite."""
    carry, count = micro_step.Carry.apply, itertools.count(1)

    def carry_spoiled(value: Tensor, gradients: list[Tensor | None], *tensors: Tensor) -> Tensor:
        if next(count) in steps:
            gradients = [None if gradient is None else gradient * math.inf for gradient in gradients]
        carried: Tensor = carry(value, gradients, *tensors)
        return carried

    micro_step.Carry = SimpleNamespace(apply=carry_spoiled)


def main() -> int:
    spoil({int(step) for step in sys.argv.pop(1).split(",")})
    return train.main()


if __name__ == "__main__":
    run_entry_point(main)
