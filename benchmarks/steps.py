"""The steps that `step_time.py` and `scaling.py` measure: models of a shape, their optimizers, a row for each form.

Models have random weights and no dropout; batches are random tokens, masked by the project's own masking. The
micro-steps are the trainer's own: WID composes once in a step, all its micro-batches run on what came out, and their
gradients add up in fp32.
"""

import contextlib
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch._dynamo
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from pipeline.baselines.chained import ChainedBert
from pipeline.baselines.distillation import distillation_of
from pipeline.baselines.minilm import minilm_loss
from pipeline.compaction.fold import open_indices
from pipeline.compaction.model import CompactedBert, is_compactor
from pipeline.compaction.selection import choose, random_scores
from pipeline.cost import Batch, Variant
from pipeline.data.masking import Vocabulary, mask_windows
from pipeline.engine import micro_step as micro_steps
from pipeline.engine.micro_step import MicroStep
from pipeline.engine.optimizer import build_optimizer, parameter_groups
from pipeline.errors import UserError
from pipeline.methods.scratch import BERT_BASE_HIDDEN, BERT_BASE_RANGE
from pipeline.models.encoder import Bert, Form, Tensors, encode
from pipeline.models.loss import LossOf, decoder_loss, masked_lm_loss, masked_lm_of
from pipeline.models.plain import PlainBert
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
    """What is measured, on what; each step in so many micro-batches."""

    teacher: BertShape
    student: BertShape
    batch: Batch
    device: str
    precision: str
    micro_batches: int = 1

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
    parts = (torch.from_numpy(a).to(setting.device).chunk(setting.micro_batches) for a in arrays)
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
    )
    return BertForMaskedLM(config).to(device).train()


@torch.no_grad()
def randomise_compactors(model: CompactedBert) -> None:
    """Deltas that matter: at 0, a form that forgot them would pass the check."""
    for name, parameter in model.named_parameters():
        if is_compactor(name):
            parameter.normal_(0.0, 0.3 / parameter.shape[-1] ** 0.5)


def close_gates(model: CompactedBert) -> None:
    """Retire random dimensions, as many as the target asks for, at once."""
    gates = model.gates
    gone = torch.zeros(len(gates.value), dtype=torch.bool)
    for name, part in gates.split(gone).items():
        part[choose(gates.groups[name], random_scores(gates.groups[name], 1, seed=1), part, 1, 1)] = True
    gates.set((~gone).float(), gone)


def build_models(setting: Setting, check: MicroBatch) -> dict[str, nn.Module]:
    """Teacher, student and the three forms of WID, which have passed the check, in the precision asked for."""
    torch.manual_seed(1)
    teacher, student = (random_bert(shape, setting.device) for shape in (setting.teacher, setting.student))
    composed = CompactedBert(copy.deepcopy(teacher), setting.student, "dim").to(setting.device)
    composed.gates.move_to(setting.device)
    randomise_compactors(composed)
    chained = ChainedBert(composed)
    check_equal("chained and composed", chained, composed, check)
    closed = copy.deepcopy(composed)
    close_gates(closed)
    narrowed = copy.deepcopy(closed)
    narrowed.narrow(open_indices(closed.gates))
    check_equal("composed with closed gates and narrowed", closed, narrowed, check)
    models = {"teacher": PlainBert(teacher), "student": PlainBert(student)}
    models |= {"chained": chained, "composed": composed, "narrowed": narrowed}
    return {name: model.to(PRECISIONS[setting.precision]) for name, model in models.items()}


def logits_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    """MLM logits (batch, k, vocab) of a model in any form."""
    if isinstance(model, ChainedBert):
        logits: Tensor = model(*batch[:2])
        return logits
    assert isinstance(model, (PlainBert, CompactedBert))
    return encode(model(), model.form, *batch[:2])


@torch.no_grad()
def check_equal(what: str, one: nn.Module, other: nn.Module, check: MicroBatch) -> None:
    """Refuse to time forms that do not compute the same.

    The logits are compared, not only the loss: that of random weights is log(vocabulary) whatever the encoder does.
    """
    ours, theirs = logits_of(one, check), logits_of(other, check)
    spread = float(ours.std())
    worst = float((ours - theirs).abs().max())
    losses = [float(masked_lm_loss(logits, check[2])[0]) for logits in (ours, theirs)]
    # Written so that NaN fails.
    if not (spread > 0 and worst <= TOLERANCE * spread and abs(losses[0] - losses[1]) <= TOLERANCE):
        raise UserError(
            f"{what} differ: logits by {worst:.2e} at a standard deviation of {spread:.2e}, losses are "
            f"{losses[0]:.6f} and {losses[1]:.6f}; nothing was timed"
        )


class Optimizer:
    """AdamW in fp32 for a module in any precision, as DeepSpeed's mixed precision does it."""

    def __init__(self, module: nn.Module) -> None:
        groups = parameter_groups(module, weight_decay=0.01, head_apart=False)
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
        pairs = zip(self.masters, self.parameters, strict=True)
        learnt = [(m, p) for m, p in pairs if m is not p and p.grad is not None]
        masters, parameters = [m for m, _ in learnt], [p for _, p in learnt]
        for master in masters:
            master.grad = torch.empty_like(master)
        if learnt:
            torch._foreach_copy_([m.grad for m in masters], [p.grad for p in parameters])
        self.adamw.step()
        if learnt:
            torch._foreach_copy_(parameters, masters)
        for parameter in parameters:
            parameter.grad = None
        self.adamw.zero_grad()

    def bytes_held(self) -> int:
        """Moments and master weights."""
        state = [t for values in self.adamw.state.values() for t in values.values()]
        masters = [m for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        return sum(tensor.nbytes for tensor in (*state, *masters))


def named(batch: MicroBatch) -> dict[str, Tensor]:
    """As the trainer's micro-steps take it."""
    return dict(zip(("input_ids", "positions", "labels"), batch, strict=True))


def untimed(_: str) -> contextlib.AbstractContextManager[None]:
    """The clock of phases that nobody reads."""
    return contextlib.nullcontext()


def micro_step_of(
    setting: Setting, loss_of: LossOf, recorded: bool = False, say: Callable[[str], None] = print
) -> MicroStep:
    """The trainer's own, for the micro-batches of this setting."""
    on_gpu = setting.device == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return MicroStep(loss_of, setting.micro_batches, device, untimed, recorded, say)


def forward_and_backward(model: nn.Module, micro_step: MicroStep, batches: list[MicroBatch]) -> None:
    """Leave the gradients of the mean loss over all micro-batches in the model's parameters."""
    # WID as published composes nothing that its micro-batches could share: they run on the parameters themselves.
    chained = isinstance(model, ChainedBert)
    micro_step.begin({} if chained else model())
    for number, batch in enumerate(batches):
        micro_step.run(named(batch), number)
    carried = micro_step.carried_loss()
    if not chained:
        carried.backward()


def loss_of_variant(variant: Variant, model: nn.Module, teacher: PlainBert | None = None) -> LossOf:
    """What a row trains on; the distilled ones need the teacher."""
    if isinstance(model, ChainedBert):
        return lambda _, batch: decoder_loss(
            model.before_decoder(batch["input_ids"], batch["positions"]), *model.decoder(), batch["labels"]
        )
    assert isinstance(model, (PlainBert, CompactedBert))
    form: Form = model.form
    if variant not in DISTILLED:
        return masked_lm_of(form, training=True)
    assert teacher
    known, known_form = dict(teacher.named_parameters()), teacher.form
    if variant == "kd":
        return distillation_of(form, known, known_form)

    def relations(tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss = minilm_loss(Bert(tensors, form), Bert(known, known_form), batch["input_ids"], known_form.heads)
        return loss, loss.detach()  # there is no accuracy

    return relations


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
    teacher = models["teacher"]
    assert isinstance(teacher, PlainBert)
    optimizers = {name: Optimizer(model) for name, model in models.items() if name in variants or name == "student"}

    def row(variant: Variant, through: Callable[[LossOf], LossOf] = lambda loss_of: loss_of) -> Row:
        name = "student" if variant in DISTILLED else variant
        model, optimizer = models[name], optimizers[name]
        modules = (model, teacher) if variant in DISTILLED else (model,)
        micro_step = micro_step_of(setting, through(loss_of_variant(variant, model, teacher)))

        def step(batches: list[MicroBatch]) -> None:
            forward_and_backward(model, micro_step, batches)
            optimizer.step()

        def held() -> int:
            return optimizer.bytes_held() + sum(p.nbytes for module in modules for p in module.parameters())

        return Row(variant, step, held)

    rows: dict[str, Row] = {}
    for variant in variants:
        rows[variant] = row(variant)
        if compiled and variant not in (*DISTILLED, "chained"):
            rows[f"{variant}_compiled"] = row(variant, micro_steps.compiled)
    return rows


def measure(
    setting: Setting,
    rows: dict[str, Row],
    batches: list[MicroBatch],
    rounds: int,
    before_step: Callable[[str], None] = lambda name: None,
) -> float:
    """Warm up, then fill in the memory and times of every row.

    Args:
        setting: what the rows were made for.
        rows: see `make_rows`.
        batches: the micro-batches of a step.
        rounds: timed steps of every row.
        before_step: called with the name of the row before each of them.

    Returns:
        The matrix peak, in floating-point operations per second.
    """
    tiny = [tuple(t[:1] for t in batches[0])]
    for name, row in rows.items():
        # Creates the moments, which are held from then on, or compiles or records for the shapes to come.
        row.step(batches if name.endswith(("_compiled", "_recorded")) else tiny)
        row.peak = row.held() + peak_allocation(setting, lambda row=row: row.step(batches))
    peak = 0.0
    with torch._dynamo.config.patch(error_on_recompile=True):  # compiled steps must have settled by now
        for _ in range(rounds):
            peak = max(peak, matrix_rate(setting))
            for name, row in rows.items():
                before_step(name)
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
