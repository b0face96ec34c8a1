"""The steps that `step_time.py` and `scaling.py` measure: models of a shape, their optimizers, a row for each form.

Models have random weights and no dropout; batches are random tokens, masked by the project's own masking.
"""

import contextlib
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from pipeline.baselines.chained import ChainedBert
from pipeline.baselines.distillation import distillation_loss
from pipeline.baselines.minilm import minilm_loss
from pipeline.compaction.fold import kept_indices
from pipeline.compaction.layers import CompactedEmbeddings, CompactedLinear
from pipeline.compaction.model import CompactedBert, is_compactor
from pipeline.compaction.selection import choose, random_scores
from pipeline.cost import Batch, Variant
from pipeline.data.masking import Vocabulary, mask_windows
from pipeline.engine.optimizer import build_optimizer, parameter_groups
from pipeline.errors import UserError
from pipeline.models import BERT_BASE_HIDDEN, BERT_BASE_RANGE, PlainBert
from pipeline.shapes import BertShape

LEARNING_RATE = 1e-6
TOLERANCE = 1e-3
"""Of the logits of two forms, relative to their standard deviation; fp32 sums in another order are far below."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MATRIX = {"cpu": 2048, "cuda": 8192}
"""Size of the square matrices whose product measures the peak."""
DISTILLED: tuple[Variant, ...] = ("kd", "minilm")

MicroBatch = tuple[Tensor, Tensor, Tensor]
"""input_ids (batch, tokens), positions (batch, k), labels (batch, k)."""


@dataclass(frozen=True)
class Setting:
    """What is measured, on what."""

    teacher: BertShape
    student: BertShape
    batch: Batch
    device: str
    precision: str

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def make_batches(setting: Setting) -> list[MicroBatch]:
    """The micro-batches of a step: random tokens, masked as in training."""
    batch, vocabulary_size = setting.batch, setting.teacher.vocab_size
    tokens = np.random.default_rng(1).integers(3, vocabulary_size, (batch.windows, batch.seq_len))
    tokens[:, 0], tokens[:, -1] = 0, 1
    continues = np.zeros(vocabulary_size, dtype=bool)
    vocabulary = Vocabulary(size=vocabulary_size, cls_id=0, sep_id=1, mask_id=2, continues_word=continues)
    windows = np.arange(batch.windows)
    masked = mask_windows(tokens, windows, np.zeros_like(windows), vocabulary, seed=1)
    arrays = (masked.input_ids, masked.positions, masked.labels)
    parts = (torch.from_numpy(a).to(setting.device).chunk(batch.micro_batches) for a in arrays)
    return list(zip(*parts, strict=True))


def random_bert(shape: BertShape, device: str) -> BertForMaskedLM:
    """An untrained BERT in fp32 without dropout, whose layers weigh as much against the residual as in BERT-base."""
    config = BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        initializer_range=BERT_BASE_RANGE * (BERT_BASE_HIDDEN / shape.hidden) ** 0.5,
        max_position_embeddings=shape.positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa" if device == "cuda" else "eager",
    )
    return BertForMaskedLM(config).to(device).train()


@torch.no_grad()
def randomise_compactors(model: CompactedBert) -> None:
    """Deltas that matter: at 0, a form that forgot them would pass the check."""
    for name, parameter in model.named_parameters():
        if is_compactor(name):
            parameter.normal_(0.0, 0.3 / len(parameter) ** 0.5)


def close_gates(model: CompactedBert) -> None:
    """Retire random dimensions, as many as the target asks for, at once."""
    for name, gate in model.gates.items():
        gone = torch.zeros(gate.group.size, dtype=torch.bool)
        gone[choose(model.groups[name], random_scores(gate.group, 1, seed=1), gone, 1, 1)] = True
        gate.set((~gone).float(), gone)


def build_models(setting: Setting, check: MicroBatch) -> dict[str, nn.Module]:
    """Teacher, student and the three forms of WID, which have passed the check, in the precision asked for."""
    torch.manual_seed(1)
    teacher, student = (random_bert(shape, setting.device) for shape in (setting.teacher, setting.student))
    composed = CompactedBert(copy.deepcopy(teacher), setting.student, "dim").to(setting.device)
    composed.move_gates(setting.device)
    randomise_compactors(composed)
    chained = ChainedBert(composed)
    check_equal("chained and composed", chained, composed, check)
    closed = copy.deepcopy(composed)
    close_gates(closed)
    narrowed = copy.deepcopy(closed)
    narrowed.narrow(kept_indices(closed))
    check_equal("composed with closed gates and narrowed", closed, narrowed, check)
    models = {"teacher": PlainBert(teacher), "student": PlainBert(student)}
    models |= {"chained": chained, "composed": composed, "narrowed": narrowed}
    return {name: model.to(PRECISIONS[setting.precision]) for name, model in models.items()}


def masked_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in fp32 of logits (batch, k, vocab) and labels (batch, k), as in training."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


@torch.no_grad()
def check_equal(what: str, one: nn.Module, other: nn.Module, check: MicroBatch) -> None:
    """Refuse to time forms that do not compute the same.

    The logits are compared, not only the loss: that of random weights is log(vocabulary) whatever the encoder does.
    """
    input_ids, positions, labels = check
    ours, theirs = one(input_ids, positions), other(input_ids, positions)
    spread = float(ours.std())
    worst = float((ours - theirs).abs().max())
    losses = [float(masked_lm_loss(logits, labels)) for logits in (ours, theirs)]
    # Written so that NaN fails.
    if not (spread > 0 and worst <= TOLERANCE * spread and abs(losses[0] - losses[1]) <= TOLERANCE):
        raise UserError(
            f"{what} differ: logits by {worst:.2e} at a standard deviation of {spread:.2e}, losses are "
            f"{losses[0]:.6f} and {losses[1]:.6f}; nothing was timed"
        )


class Optimizer:
    """AdamW in fp32 for a module in any precision, as DeepSpeed's mixed precision does it."""

    def __init__(self, module: nn.Module) -> None:
        groups = parameter_groups(module, weight_decay=0.01)
        self.parameters = [p for group in groups for p in group["params"]]
        for group in groups:
            group["params"] = [p if p.dtype == torch.float32 else p.detach().float() for p in group["params"]]
        self.masters = [p for group in groups for p in group["params"]]
        self.adamw = build_optimizer(groups)
        for group in self.adamw.param_groups:
            group["lr"] = LEARNING_RATE

    @torch.no_grad()
    def step(self) -> None:
        """Update from the gradients and drop them."""
        pairs = [(m, p) for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        for master, parameter in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self.adamw.step()
        for master, parameter in pairs:
            parameter.copy_(master)
            parameter.grad = None
        self.adamw.zero_grad()

    def bytes_held(self) -> int:
        """Moments and master weights."""
        state = [t for values in self.adamw.state.values() for t in values.values()]
        masters = [m for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        return sum(tensor.nbytes for tensor in (*state, *masters))


@contextlib.contextmanager
def composed_once(model: CompactedBert) -> Iterator[None]:
    """Compose every matrix now, for all micro-batches inside, and send their summed gradients back at the end.

    The micro-batches see leaf tensors, whose gradients add up in the model's precision.
    """
    whole: list[Tensor] = []
    leaves: list[Tensor] = []
    modules = [m for m in model.modules() if isinstance(m, (CompactedLinear, CompactedEmbeddings))]
    for module in modules:
        tensors = module.composed()
        stand_ins = tuple(t.detach().requires_grad_() for t in tensors)
        module.composed = lambda stand_ins=stand_ins: stand_ins  # type: ignore[method-assign, assignment]
        whole += tensors
        leaves += stand_ins
    yield
    for module in modules:
        del module.composed
    torch.autograd.backward(whole, [leaf.grad for leaf in leaves])


@dataclass
class Row:
    """One row of the table.

    Attributes:
        variant: what it is a form of, for the counts.
        step: does one optimizer step on micro-batches.
        held: bytes it holds between steps.
    """

    variant: Variant
    step: Callable[[list[MicroBatch]], None]
    held: Callable[[], int]
    peak: int = 0
    seconds: list[float] = field(default_factory=list)


def make_rows(
    setting: Setting, models: dict[str, nn.Module], variants: Sequence[Variant], compiled: bool = False
) -> dict[str, Row]:
    """The rows of the table, in its order."""
    relation_heads = setting.teacher.heads
    teacher, student = models["teacher"], models["student"]
    assert isinstance(teacher, PlainBert) and isinstance(student, PlainBert)
    optimizers = {name: Optimizer(model) for name, model in models.items() if name in variants or name == "student"}

    def row(variant: Variant, loss: Callable[..., Tensor], once: bool = False) -> Row:
        name = "student" if variant in DISTILLED else variant
        model, optimizer = models[name], optimizers[name]
        modules = (model, teacher) if variant in DISTILLED else (model,)

        def step(batches: list[MicroBatch]) -> None:
            with composed_once(model) if once else contextlib.nullcontext():
                for batch in batches:
                    (loss(*batch) / len(batches)).backward()
            optimizer.step()

        def held() -> int:
            return optimizer.bytes_held() + sum(p.nbytes for module in modules for p in module.parameters())

        return Row(variant, step, held)

    def masked_lm(model: nn.Module) -> Callable[..., Tensor]:
        return lambda ids, positions, labels: masked_lm_loss(model(ids, positions), labels)

    losses: dict[Variant, Callable[..., Tensor]] = {
        "kd": lambda ids, positions, labels: distillation_loss(student, teacher, ids, positions),
        "minilm": lambda ids, positions, labels: minilm_loss(student, teacher, ids, relation_heads),
    }
    rows: dict[str, Row] = {}
    for variant in variants:
        rows[variant] = row(variant, losses.get(variant) or masked_lm(models[variant]))
        if setting.batch.micro_batches > 1 and variant in ("composed", "narrowed"):
            rows[f"{variant}_once"] = row(variant, masked_lm(models[variant]), once=True)
        if compiled and variant not in (*DISTILLED, "chained"):
            rows[f"{variant}_compiled"] = row(variant, masked_lm(torch.compile(models[variant])))
    return rows


def measure(setting: Setting, rows: dict[str, Row], batches: list[MicroBatch], rounds: int) -> float:
    """Warm up, then fill in the memory and times of every row.

    Returns:
        The matrix peak, in floating-point operations per second.
    """
    tiny = [tuple(t[:1] for t in batches[0])]
    for name, row in rows.items():
        # Creates the moments, which are held from then on, or compiles for the shapes to come.
        row.step(batches if name.endswith("_compiled") else tiny)
        row.peak = row.held() + peak_allocation(setting, lambda row=row: row.step(batches))
    peak = 0.0
    with torch._dynamo.config.patch(error_on_recompile=True):  # compiled steps must have settled by now
        for _ in range(rounds):
            peak = max(peak, matrix_rate(setting))
            for row in rows.values():
                row.seconds.append(seconds_of(setting, lambda row=row: row.step(batches)))
    return peak


def seconds_of(setting: Setting, work: Callable[[], object]) -> float:
    setting.synchronise()
    began = time.perf_counter()
    work()
    setting.synchronise()
    return time.perf_counter() - began


def matrix_rate(setting: Setting) -> float:
    """Floating-point operations per second of a large product in the precision of the run, the best of five."""
    size = MATRIX[setting.device]
    left, right = (torch.randn(size, size, device=setting.device).to(PRECISIONS[setting.precision]) for _ in range(2))
    return 2 * size**3 / min(seconds_of(setting, lambda: left @ right) for _ in range(5))


def peak_allocation(setting: Setting, work: Callable[[], object]) -> int:
    """Bytes that torch allocates at most, at a time, on top of what there was."""
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with without_stderr(), torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        work()
    # CPUs have no such counter; the profiler's record of every allocation and release is the only account.
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda e: e.start_ns())
    return int(max(np.cumsum([e.nbytes() for e in changes]), default=0))


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Keep torch's profiler from announcing itself at every start, which no setting of it can."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def ratios(one: Row, other: Row) -> list[float]:
    """How many times as long a step of `one` takes as one of `other`, round by round, each within itself."""
    return [a / b for a, b in zip(one.seconds, other.seconds, strict=True)]
