"""What the host waits for in an optimizer step, and that a bad step is skipped where the numbers are.

    torchrun --nproc_per_node 1 tests/engine/test_host_waits.py

This file is the worker as well: it prints what it found for every ZeRO stage and precision.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.engine.clipping import prepare_step
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.readback import Readback

GROUPS = 3
"""Of the optimizer's parameters, in a narrowed model."""
TENSORS = 27
"""Parameters of a narrowed model."""
WAITS = {
    **dict.fromkeys(["zero0_fp32", "zero1_fp32", "zero2_fp32", "zero1_bf16", "zero2_bf16"], (0, 0)),
    **dict.fromkeys(["zero3_fp32", "zero3_bf16"], (1, GROUPS)),
    "zero3_fp16": (2, GROUPS),
    **dict.fromkeys(["zero1_fp16", "zero2_fp16"], (2 + GROUPS, GROUPS)),
    **dict.fromkeys(["zero0_bf16", "zero0_fp16"], (TENSORS + 1 + 2 * GROUPS, 1 + GROUPS)),
}
"""Numbers that are read in DeepSpeed's step, and sent to the device, with clipping (0.19.8)."""
LIMIT = 0.05
"""The norm that gradients are clipped to."""
SPOILT = {"finite gradients": None, "NaN": math.nan, "inf": math.inf}
"""What the gradients of an unsound step are multiplied by."""
WARM_UPS = 3
"""Steps in which DeepSpeed sets things up; at stage 3 also the second."""


class Waits(TorchDispatchMode):
    """Counts numbers that the host reads or sends; each is a copy that waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.whole = WholeTensors(self.counts)

    def __enter__(self):
        self.whole.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.whole.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        self.counts["read"] += name in ("_local_scalar_dense", "equal", "nonzero")
        self.counts["sent"] += name == "lift_fresh"
        return function(*args, **(kwargs or {}))


class WholeTensors(TorchFunctionMode):
    """Counts tensors that become lists or arrays, which is no operation on a CPU."""

    def __init__(self, counts: Counter) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.counts["read"] += function in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu)
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", WAITS)
def test_the_host_waits_for_nothing_but_what_deepspeed_does_itself(found, name):
    waits = found[name]["waits"]
    assert waits["begin"] == waits["run"] == waits["backward"] == [0, 0]
    assert tuple(waits["step"]) == WAITS[name]


@pytest.mark.parametrize("name", WAITS)
def test_gradients_are_clipped_whoever_does_it(found, name):
    """After one step Adam's first moment is a tenth of the gradient that it was given."""
    assert found[name]["norm"] == pytest.approx(found["zero0_fp32"]["norm"], rel=1e-2)
    assert found[name]["norm"] > 10 * LIMIT
    assert found[name]["first_moment"] == pytest.approx(0.1 * LIMIT, rel=1e-3)


@pytest.mark.parametrize("name", WAITS)
def test_an_unsound_step_leaves_parameters_moments_and_count_alone(found, name):
    """Whatever the gradients are; DeepSpeed would take a step with finite ones."""
    assert found[name]["changed"] == {"a sound step": True, **dict.fromkeys(SPOILT, False), "the next": True}
    assert found[name]["applied"] == {"a sound step": True, **dict.fromkeys(SPOILT, False), "the next": True}
    assert found[name]["steps"] == WARM_UPS + 2


@pytest.mark.parametrize("norm,limit,given", [(2.0, 0.5, 0.25), (0.4, 0.5, 1.0), (2.0, 0.0, 1.0)])
def test_only_gradients_beyond_the_limit_are_clipped(norm, limit, given):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([{"params": [parameter]}])
    parameter.grad = torch.zeros(3)
    optimizer.step()  # makes the moments
    for unsound, moment in ((torch.tensor(2), 0.0), (torch.tensor(False), 0.1 * given)):
        parameter.grad = torch.ones(3)
        left_out = prepare_step(optimizer, unsound, torch.tensor(norm), limit)
        optimizer.step()
        assert bool(left_out) == bool(unsound)
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], torch.full((3,), moment))


def test_numbers_are_read_as_they_were():
    numbers = torch.tensor([1.0, 2.0])
    copy = Readback(numbers)
    numbers.zero_()
    assert copy.read().tolist() == [1.0, 2.0]


def test_counting_counts():
    with Waits() as waits:
        one = torch.tensor(1.0)
        assert one.item() and bool(one) and one.tolist() and float(one)
    assert waits.counts == {"read": 4, "sent": 1}


def main() -> None:
    from deepspeed.accelerator import get_accelerator

    from pipeline.engine import distributed

    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    accelerator.supported_dtypes = lambda: [torch.float, torch.bfloat16, torch.half]
    torch.set_num_threads(1)
    world = distributed.start(timeout_minutes=5)
    found = {name: look(world, *name.removeprefix("zero").split("_")) for name in WAITS}
    distributed.stop()
    print(json.dumps(found))


def look(world, stage: str, precision: str) -> dict:
    """Steps of a narrowed model; those in the middle are unsound."""
    from pipeline.engine.state import inner_optimizer

    engine = narrowed_engine(world, int(stage), precision)
    waits = take(engine, 0, torch.zeros(()))
    norm, moments = engine.gradient_norm(engine.scaler.scale), engine.state(keep=True)["exp_avg"].values()
    first_moment = float(torch.nn.utils.get_total_norm(moments))
    for number in range(1, WARM_UPS):
        waits = take(engine, number, torch.zeros(()))
    changed, applied = {}, {}
    for name, factor in {"a sound step": None, **SPOILT, "the next": None}.items():
        before = everything(engine)
        take(engine, 2, torch.tensor(float(name in SPOILT)), factor)
        after = everything(engine)
        changed[name] = any(not torch.equal(before[key], after[key]) for key in before)
        applied[name] = engine.applied()
    (steps,) = {int(own["step"]) for own in inner_optimizer(engine._engine).state.values()}
    engine._engine.destroy()
    found = {"waits": waits, "changed": changed, "applied": applied, "steps": steps}
    return {**found, "norm": norm, "first_moment": first_moment}


def narrowed_engine(world, stage: int, precision: str):
    from pipeline.compaction.fold import open_indices
    from pipeline.config import TrainConfig
    from pipeline.engine.model_engine import ModelEngine
    from tests.support.methods import around
    from tests.support.models import close_random_gates, compacted, random_teacher

    module = compacted(random_teacher(2, 24, 3), 12, 4, "dim")
    close_random_gates(module)
    module.narrow(open_indices(module.gates))
    enabled = {"enabled": True, **({"initial_scale_power": 8} if precision == "fp16" else {})}
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "train_batch_size": 4,
        "gradient_clipping": LIMIT,
        "zero_optimization": {"stage": stage},
        "timers": {"throughput": {"enabled": False}},
        **({} if precision == "fp32" else {precision: enabled}),
    }
    return ModelEngine(around(module), TrainConfig(), config, world, lambda _: contextlib.nullcontext(), print)


def take(engine, seed: int, unsound: torch.Tensor, factor: float | None = None) -> dict[str, list[int]]:
    """An optimizer step; returns the waits of its parts."""
    from tests.support.models import token_batch

    batch = {"input_ids": token_batch(), "positions": torch.tensor([[1, 5]] * 4), "labels": token_batch(tokens=2)}
    counted = {}

    def count(part: str, work) -> None:
        with Waits() as waits:
            work()
        counted[part] = [waits.counts[kind] for kind in ("read", "sent")]

    count("begin", lambda: engine.begin({"weights": 1e-2, "compactor": 1e-2, "head": 1e-2}))
    count("run", lambda: engine.micro_step.run(batch, seed))
    if factor is not None:
        for leaf in engine.micro_step._leaves.values():
            leaf.grad = None if leaf.grad is None else leaf.grad * factor
    count("backward", engine.backward)
    count("step", lambda: engine.step(unsound))
    return counted


def everything(engine) -> dict[str, torch.Tensor]:
    """What a skipped step must leave alone: the portable state, and the working copies."""
    kinds = {**engine.state(keep=True), "composed": engine.composed()}
    return {f"{kind}/{name}": tensor.clone() for kind, tensors in kinds.items() for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
