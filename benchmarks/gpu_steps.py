"""The sections of `gpu.py` that run in its own process: recorded micro-steps, step times, kernels."""

import contextlib
import copy
import gc
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from benchmarks.step_time import summarise, table
from benchmarks.steps import (
    MicroBatch,
    Optimizer,
    Row,
    Setting,
    build_models,
    close_gates,
    forward_and_backward,
    make_batches,
    make_rows,
    measure,
    micro_step_of,
    named,
    ratios,
    untimed,
    without_stderr,
)
from pipeline.compaction.model import CompactedBert
from pipeline.cost import Batch, Variant
from pipeline.engine import micro_step as micro_steps
from pipeline.engine.micro_step import MicroStep
from pipeline.models.encoder import Form
from pipeline.models.loss import masked_lm_of
from pipeline.models.plain import PlainBert
from pipeline.shapes import BertShape, predicted_positions, resolve_target

Result = dict[str, Any]
Model = PlainBert | CompactedBert
Outcome = tuple[float, dict[str, Tensor]]
"""Loss and gradients of one optimizer step."""

TIMED: tuple[Variant, ...] = ("chained", "composed", "narrowed", "student")
RECORDED: tuple[Variant, ...] = ("student", "narrowed")
DROPOUT = 0.1
STEPS = ((1, 1.0), (2, 1.0), (1, 1.0), (3, 1.1))
"""Optimizer steps that are compared: the seed, and what all parameters are multiplied by before."""
ROUNDING = (1e-4, 1e-2)
"""Relative differences of losses and gradients that sums in another order make in bf16; a stale tensor, a forgotten
micro-batch or another seed make more."""
PROFILE = "profile.txt"
KERNELS = 40
"""Rows of a profile's table."""


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        device: cuda or cpu.
        teacher: of step times and of the trainer's speed.
        target: width of the student.
        windows: of an optimizer step; `steps_double` has twice as many.
        seq_len: tokens of a window.
        rounds: timed steps of every row.
        capture: layers and windows of the recorded steps that are compared.
        phase: optimizer steps of a trainer's run at full width, of those that close, and half of those that follow.
        tokens: of its shards.
        precisions: that the trainer runs in.
        stages: of ZeRO.
        at_once: trainers that run side by side.
    """

    device: str
    teacher: BertShape
    target: int
    windows: int
    seq_len: int
    rounds: int
    capture: tuple[int, int]
    phase: int
    tokens: int
    precisions: tuple[str, ...]
    stages: tuple[int, ...]
    at_once: int

    def setting(self, windows: int, layers: int | None = None) -> Setting:
        """Of so many windows, in one micro-batch."""
        teacher = replace(self.teacher, layers=layers or self.teacher.layers)
        batch = Batch(windows, self.seq_len, predicted_positions(self.seq_len, 0.15))
        return Setting(teacher, resolve_target(teacher, "dim", hidden=self.target), batch, self.device, "bf16")


GPU = Scale(
    device="cuda",
    teacher=BertShape(layers=12, hidden=768, heads=12, intermediate=3072, vocab_size=30522),
    target=192,
    windows=480,
    seq_len=128,
    rounds=10,
    capture=(4, 120),
    phase=24,
    tokens=4_000_000,
    precisions=("bf16", "fp16"),
    stages=(0, 1, 2, 3),
    at_once=8,
)
REHEARSAL = Scale(
    device="cpu",
    teacher=BertShape(layers=1, hidden=32, heads=2, intermediate=64, vocab_size=200),
    target=16,
    windows=4,
    seq_len=16,
    rounds=1,
    capture=(1, 4),
    phase=6,
    tokens=20_000,
    precisions=("bf16",),
    stages=(1,),
    at_once=1,
)


def capture(scale: Scale, result: Result, folder: Path) -> bool:
    """Whether a recorded micro-step is the step, and whether seeds mean there what they mean elsewhere."""
    layers, windows = scale.capture
    recorded = scale.device == "cuda"
    result["compared"] = "graph with eager" if recorded else "eager with eager: a CPU records nothing"
    result["cases"] = {}
    setting = replace(scale.setting(windows, layers), micro_batches=2)
    batches = make_batches(setting)
    halves = torch.arange(scale.seq_len, device=scale.device) // (scale.seq_len // 2)
    models = forms(build_models(setting, batches[0]))
    for name, apart, dropout in itertools.product(models, (False, True), (0.0, DROPOUT)):
        inputs = [named(batch) for batch in batches]
        if apart:
            inputs = [batch | {"documents": halves.expand_as(batch["input_ids"])} for batch in inputs]
        case = ", ".join([name, *["documents apart"] * apart, f"dropout {dropout}"])
        result["cases"][case] = compared(models[name], inputs, dropout, recorded)
        print(f"{case}: {result['cases'][case]['verdict']}", flush=True)
    return all(found["verdict"].startswith("equal") for found in result["cases"].values())


def forms(models: dict[str, nn.Module]) -> dict[str, Model]:
    """The forms that a micro-step can meet in a run."""
    closing = copy.deepcopy(models["composed"])
    assert isinstance(closing, CompactedBert)
    close_gates(closing)
    half = closing.gates.value.detach().cpu().clamp(min=0.5)
    closing.gates.set(half, half < 1)
    scored = copy.deepcopy(closing)
    scored.gates.record_gradient(True)
    return {
        "student": models["student"],
        "open": models["composed"],
        "gate": closing,
        "gate with gradient": scored,
        "narrowed": models["narrowed"],
    }


def outcomes(
    model: Model, batches: list[dict[str, Tensor]], dropout: float, recorded: bool
) -> tuple[list[Outcome], list[str]]:
    """Optimizer steps on a copy of the model, and what the micro-step had to say."""
    model, said = copy.deepcopy(model), list[str]()
    form: Form = replace(model.form, dropout=dropout, attention_dropout=dropout)
    device = next(model.parameters()).device
    micro_step = MicroStep(masked_lm_of(form, training=True), len(batches), device, untimed, recorded, said.append)
    found = []
    for seed, factor in STEPS:
        model.zero_grad()
        with torch.no_grad():
            torch._foreach_mul_(list(model.parameters()), factor)
        if isinstance(model, CompactedBert):
            model.gates.record_gradient(model.gates.value.requires_grad)
        micro_step.begin(model())
        for number, batch in enumerate(batches):
            micro_step.run(batch, 1000 * seed + number)
        micro_step.carried_loss().backward()
        found.append((float(micro_step.means()[0]), gradients_of(model)))
    return found, said


def gradients_of(model: Model) -> dict[str, Tensor]:
    leaves = dict(model.named_parameters())
    if isinstance(model, CompactedBert):
        leaves["gates"] = model.gates.value
    return {name: leaf.grad.float().clone() for name, leaf in leaves.items() if leaf.grad is not None}


def compared(model: Model, batches: list[dict[str, Tensor]], dropout: float, recorded: bool) -> Result:
    """A recorded step beside one that is not, and two that are not beside each other, whose difference is noise."""
    eager, _ = outcomes(model, batches, dropout, recorded=False)
    again, _ = outcomes(model, batches, dropout, recorded=False)
    graph, said = outcomes(model, batches, dropout, recorded)
    noise, apart = largest_difference(eager, again), largest_difference(eager, graph)
    losses = [loss for loss, _ in graph]
    found: Result = {"loss_and_gradients": apart, "eager_twice": noise, "losses": losses}
    found["same_seed_same_loss"] = losses[0] == losses[2]
    found["other_seed_other_loss"] = losses[0] != losses[1]
    seeds = found["same_seed_same_loss"] and found["other_seed_other_loss"] == (dropout > 0)
    if said:
        found["verdict"] = f"not recorded: {said[0]}"
    elif not seeds:
        found["verdict"] = "differs: seeds do not decide the loss"
    elif max(apart) == 0:
        found["verdict"] = "equal bit for bit"
    elif all(a <= 2 * n for a, n in zip(apart, noise, strict=True)):
        found["verdict"] = "equal within twice what differs without a graph"
    else:
        rounded = all(a <= limit for a, limit in zip(apart, ROUNDING, strict=True))
        found["verdict"] = "equal to bf16's rounding" if rounded else "differs"
    return found


def largest_difference(ones: list[Outcome], others: list[Outcome]) -> list[float]:
    """Of losses, and of the gradients of any tensor in relation to their norm, in any step."""
    losses, gradients = [0.0], [0.0]
    for (loss, mine), (other, theirs) in zip(ones, others, strict=True):
        losses.append(abs(loss - other) / abs(loss))
        if mine.keys() != theirs.keys():
            return [max(losses), float("inf")]
        for name, gradient in mine.items():
            size = float(gradient.norm())
            apart = float((gradient - theirs[name]).norm())
            gradients.append(apart / size if size else apart)
    return [max(losses), max(gradients)]


def steps(scale: Scale, result: Result, folder: Path) -> bool:
    """Step times with utilisation; holds if the micro-steps were recorded, where there is a GPU."""
    return time_steps(scale.setting(scale.windows), scale.rounds, result)


def steps_double(scale: Scale, result: Result, folder: Path) -> bool:
    """The same with twice the tokens."""
    return time_steps(scale.setting(2 * scale.windows), scale.rounds, result)


def compiled(scale: Scale, result: Result, folder: Path) -> bool:
    """Whether torch.compile still helps once a step is recorded."""
    setting = scale.setting(scale.windows)
    result["setting"] = asdict(setting)
    fill_table(setting, scale.rounds, RECORDED, result, compile_too=True)
    return not result["said"]


def time_steps(setting: Setting, rounds: int, result: Result) -> bool:
    """The table of step_time.py; without the chained form where that does not fit into memory."""
    result["setting"] = asdict(setting)
    try:
        fill_table(setting, rounds, TIMED, result)
    except torch.cuda.OutOfMemoryError:
        result["left_out"] = "chained: out of memory"
    if "left_out" in result:  # not in the handler, where the traceback still holds all tensors
        gc.collect()
        torch.cuda.empty_cache()
        fill_table(setting, rounds, TIMED[1:], result)
    return not result["said"]


def fill_table(
    setting: Setting, rounds: int, variants: tuple[Variant, ...], result: Result, compile_too: bool = False
) -> None:
    batches = make_batches(setting)
    rows, said = rows_of(setting, batches, variants, compile_too)
    peak = measure(setting, rows, batches, rounds)
    summary = summarise(setting, rows, peak, {})
    print(table(summary), flush=True)
    for name in summary:
        if name.endswith("_recorded"):
            del summary[name]["peak_bytes"]  # what a graph holds between steps is not seen
    result |= {"matrix_peak_flops": peak, "recorded": setting.device == "cuda" and not said, "said": said}
    pairs = ratios(rows["narrowed_recorded"], rows["student_recorded"])
    result["narrowed_over_student_recorded"] = {"median": statistics.median(pairs), "range": [min(pairs), max(pairs)]}
    result["rows"] = summary


def rows_of(
    setting: Setting, batches: list[MicroBatch], variants: tuple[Variant, ...], compile_too: bool = False
) -> tuple[dict[str, Row], list[str]]:
    """The rows, those that are recorded behind the others, and where to look for what could not be recorded."""
    ids, positions, labels = (tensor[:4] for tensor in batches[0])
    models = build_models(setting, (ids, positions, labels))
    said: list[str] = []
    rows = make_rows(setting, models, variants)
    for name in RECORDED:
        rows[f"{name}_recorded"] = recorded_row(setting, name, models[name], said)
        if compile_too:
            rows[f"{name}_compiled_recorded"] = recorded_row(setting, name, models[name], said, compile_too)
    return rows, said


def recorded_row(
    setting: Setting, variant: Variant, model: nn.Module, said: list[str], compile_too: bool = False
) -> Row:
    """An optimizer step whose micro-batches go through the trainer's own micro-step, recorded where there is a GPU."""
    assert isinstance(model, (PlainBert, CompactedBert))
    optimizer, on_gpu = Optimizer(model), setting.device == "cuda"
    loss_of = masked_lm_of(model.form, training=True)
    if compile_too:
        # A rehearsal needs no compiler.
        loss_of = micro_steps.compiled(loss_of, "inductor" if on_gpu else "eager")
    micro_step = micro_step_of(setting, loss_of, on_gpu, said.append)

    def step(batches: list[MicroBatch]) -> None:
        forward_and_backward(model, micro_step, batches)
        optimizer.step()

    return Row(variant, step, lambda: optimizer.bytes_held() + sum(p.nbytes for p in model.parameters()))


def profile(scale: Scale, result: Result, folder: Path) -> bool:
    """Where the time of a step goes, launch by launch, recorded and not."""
    setting = scale.setting(scale.windows)
    batches = make_batches(setting)
    rows, said = rows_of(setting, batches, RECORDED)
    result["rows"], text = {}, list[str]()
    for name, row in rows.items():
        for _ in range(3):
            row.step(batches)
        host, whole = host_and_device(setting, row, batches)
        with profiled(setting) as profiler:
            row.step(batches)
            setting.synchronise()
        kernels = profiler.key_averages()
        on_device = [
            event
            for event in kernels
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
        result["rows"][name] = {
            "host_ms": 1e3 * host,
            "step_ms": 1e3 * whole,
            "kernels": sum(event.count for event in on_device),
            "busy_ms": sum(event.self_device_time_total for event in on_device) / 1e3,
        }
        how = {"sort_by": f"self_{setting.device}_time_total", "row_limit": KERNELS, "max_name_column_width": 80}
        text.append(f"{name}: {result['rows'][name]}\n{kernels.table(**how)}")
        if not name.endswith("_recorded"):  # a replay has no operations, and so no shapes
            shapes = profiler.key_averages(group_by_input_shape=True)
            text.append(f"{name}, by shapes\n{shapes.table(**how, max_shapes_column_width=120)}")
        (folder / PROFILE).write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return not said


def host_and_device(setting: Setting, row: Row, batches: list[MicroBatch], steps: int = 5) -> tuple[float, float]:
    """Seconds of a step until the host has launched it, and until the device is done."""
    setting.synchronise()
    began = time.perf_counter()
    for _ in range(steps):
        row.step(batches)
    launched = time.perf_counter()
    setting.synchronise()
    return (launched - began) / steps, (time.perf_counter() - began) / steps


@contextlib.contextmanager
def profiled(setting: Setting) -> Iterator[torch.profiler.profile]:
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (setting.device == "cuda")]
    with without_stderr(), torch.profiler.profile(activities=kinds, record_shapes=True) as profiler:
        yield profiler
