"""How many operations DeepSpeed's side of an optimizer step gives a device: the host's price, whatever is computed.

    torchrun --nproc_per_node 1 tests/engine/test_launches.py

This file is the worker as well: it prints the counts of a narrowed 12-layer model under ZeRO 1, by micro-batches.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MOST = 320
NO_LAUNCH = {
    *("view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "expand", "as_strided", "diagonal"),
    *("slice", "select", "split", "split_with_sizes", "unbind", "squeeze", "unsqueeze", "detach", "alias"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "resize_"),
    *("lift_fresh", "promote_types", "_local_scalar_dense"),
}
"""Views and allocations."""


class Launches(TorchDispatchMode):
    """Counts operations that a device would have something to do for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        self.counts[name] += name not in NO_LAUNCH
        return function(*args, **(kwargs or {}))


def test_a_narrowed_step_outside_its_micro_batches_is_short_and_knows_nothing_of_accumulation():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    counted = json.loads(done.stdout.splitlines()[-1])
    assert 0 < counted["2"] == counted["4"] <= MOST


def main() -> None:
    from pipeline.compaction.fold import open_indices
    from pipeline.config import TrainConfig
    from pipeline.engine import distributed
    from pipeline.engine.model_engine import ModelEngine
    from tests.support.methods import around
    from tests.support.models import close_random_gates, compacted, random_teacher, token_batch

    torch.set_num_threads(1)
    world = distributed.start(timeout_minutes=5)
    batch = {"input_ids": token_batch(), "positions": torch.tensor([[1, 5]] * 4), "labels": token_batch(tokens=2)}
    counted, sound = {}, torch.zeros(())
    for accumulation in (2, 4):
        module = compacted(random_teacher(12, 24, 3), 12, 4, "dim")
        close_random_gates(module)
        module.narrow(open_indices(module.gates))
        config = {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": accumulation,
            "train_batch_size": 4 * accumulation,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 1},
            "bf16": {"enabled": True},
            "timers": {"throughput": {"enabled": False}},
        }
        engine = ModelEngine(around(module), TrainConfig(), config, world, lambda _: contextlib.nullcontext(), print)
        for _ in range(2):  # the first one also sets things up
            with Launches() as launches:
                engine.begin({"weights": 1e-5, "compactor": 1e-5, "head": 1e-5})
            for seed in range(accumulation):
                engine.micro_step.run(batch, seed)
            with launches:
                engine.backward()
                engine.step(sound)
            assert engine.applied()
        counted[accumulation] = launches.counts.total()
    distributed.stop()
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
