"""What a training step costs, counted: multiply-accumulates, parameters, bytes sent between ranks.

Only matrix products are counted (one multiply-accumulate is two floating-point operations); what comes on top is
bound by memory: softmax, LayerNorm, GELU, the loss over the vocabulary, and AdamW, which reads and writes every trained
parameter. A backward pass costs twice its forward pass: one product for the gradient of each operand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.shapes import BertShape

Variant = Literal["teacher", "chained", "composed", "narrowed", "student", "kd", "minilm"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""Masked-LM training of the teacher and of the student; WID as published, composed, and narrowed; logit distillation;
MiniLM."""

TRAINING = 3
"""Forward and backward in units of the forward pass."""


@dataclass(frozen=True)
class Batch:
    """What one rank computes on in one optimizer step.

    Attributes:
        windows: sequences.
        seq_len: tokens of each.
        predicted: positions of each at which the last layer, after its projections, the MLM head and the loss compute.
    """

    windows: int
    seq_len: int
    predicted: int

    @property
    def tokens(self) -> int:
        return self.windows * self.seq_len


def linear_layers(shape: BertShape) -> Iterator[tuple[int, int]]:
    """(out, in) of every linear layer that has compactors: those of the encoder, and the MLM transform."""
    h, i = shape.hidden, shape.intermediate
    for _ in range(shape.layers):
        yield from [(h, h)] * 4
        yield i, h
        yield h, i
    yield h, h


def encoder_macs(shape: BertShape, batch: Batch) -> int:
    """Forward pass of the layers: projections, and scores and weighted sums of attention.

    What follows the projections of the last layer is computed at the predicted positions alone.
    """
    h, i = shape.hidden, shape.intermediate
    passed_over = batch.windows * (batch.seq_len - batch.predicted)
    return _whole_encoder_macs(shape, batch) - passed_over * (2 * batch.seq_len * h + h * h + 2 * h * i)


def _whole_encoder_macs(shape: BertShape, batch: Batch) -> int:
    """The same at all positions."""
    return batch.windows * shape.encoder_flops(batch.seq_len) // 2


def head_macs(shape: BertShape, batch: Batch) -> int:
    """Forward pass of the MLM head on the predicted positions: transform and decoder."""
    return batch.windows * batch.predicted * (shape.hidden**2 + shape.vocab_size * shape.hidden)


def compactor_macs(shape: BertShape, batch: Batch) -> int:
    """Forward pass of the chained compactors alone: in^2 + out^2 per linear layer and row of activations.

    With intermediate = 4 x hidden = 4 d that is 42 d^2 per token and layer, on top of BERT's 12 d^2. The compactor of
    the embeddings meets every token, and every predicted position again in the tied decoder.
    """
    *encoder, (out, into) = linear_layers(shape)
    predicted = batch.windows * batch.predicted
    per_token = sum(o * o + i * i for o, i in encoder) + shape.hidden**2
    return batch.tokens * per_token + predicted * (out * out + into * into + shape.hidden**2)


def composes_rows_first(whole: Sequence[int], kept: Sequence[int]) -> bool:
    """Whether R (W L) takes fewer multiply-accumulates than (R W) L.

    Args:
        whole: (out, in) of W.
        kept: how many of each are left.
    """
    (out, into), (kept_out, kept_in) = whole, kept
    return out * kept_in * (into + kept_out) < into * kept_out * (out + kept_in)


def composition_macs(teacher: BertShape, kept: BertShape) -> int:
    """Forward pass of one composition: R W L of every matrix in the cheaper order, R b, and the embedding tables.

    Args:
        teacher: the shape whose matrices are composed.
        kept: the teacher's own shape before narrowing, the student's after it.
    """
    rows = teacher.vocab_size + teacher.positions + teacher.segments
    total = rows * teacher.hidden * kept.hidden
    for whole, left in zip(linear_layers(teacher), linear_layers(kept), strict=True):
        (out, into), (kept_out, kept_in) = whole, left
        if composes_rows_first(whole, left):
            total += out * kept_in * (into + kept_out)
        else:
            total += into * kept_out * (out + kept_in)
        total += kept_out * out
    return total


def minilm_macs(shape: BertShape, batch: Batch) -> int:
    """Forward pass up to the queries, keys and values of the last layer, and their three relations."""
    h, i, n = shape.hidden, shape.intermediate, batch.seq_len
    behind = batch.tokens * (h * h + 2 * h * i + 2 * n * h)
    return _whole_encoder_macs(shape, batch) - behind + 3 * batch.tokens * n * h


def step_macs(variant: Variant, teacher: BertShape, student: BertShape, batch: Batch) -> int:
    """Multiply-accumulates of one optimizer step on one rank, forward and backward, without recomputation.

    WID composes once in a step, in however many micro-batches it comes. In its published form, chained, it computes
    the last layer at all positions like the others.
    """

    def plain(shape: BertShape) -> int:
        return encoder_macs(shape, batch) + head_macs(shape, batch)

    if variant == "teacher":
        return TRAINING * plain(teacher)
    if variant == "chained":
        whole = _whole_encoder_macs(teacher, batch) + head_macs(teacher, batch)
        return TRAINING * (whole + compactor_macs(teacher, batch))
    if variant == "composed":
        return TRAINING * (plain(teacher) + composition_macs(teacher, teacher))
    if variant == "narrowed":
        return TRAINING * (plain(student) + composition_macs(teacher, student))
    if variant == "student":
        return TRAINING * plain(student)
    if variant == "kd":
        return plain(teacher) + TRAINING * plain(student)
    return minilm_macs(teacher, batch) + TRAINING * minilm_macs(student, batch)


def plain_parameters(shape: BertShape) -> int:
    """Trained parameters of a BERT with its MLM head: transform, its LayerNorm, decoder bias."""
    return shape.parameters + shape.hidden**2 + 3 * shape.hidden + shape.vocab_size


def trained_parameters(variant: Variant, teacher: BertShape, student: BertShape) -> int:
    """Parameters with a gradient and moments: what the optimizer walks over and what ranks exchange.

    After narrowing the teacher's matrices, biases and tables still train at their full size; compactors and LayerNorms
    have lost what was dropped.
    """
    if variant in ("student", "kd", "minilm"):
        return plain_parameters(student)
    if variant == "teacher":
        return plain_parameters(teacher)
    kept = student if variant == "narrowed" else teacher
    compactors = teacher.hidden * kept.hidden
    for (out, into), (kept_out, kept_in) in zip(linear_layers(teacher), linear_layers(kept), strict=True):
        compactors += out * kept_out + into * kept_in
    norms = 2 * teacher.layers + 2
    return plain_parameters(teacher) + compactors - norms * 2 * (teacher.hidden - kept.hidden)


def sent_elements(parameters: int, stage: int, ranks: int) -> float:
    """Numbers that each rank sends per optimizer step under a ZeRO stage, with bandwidth-optimal (ring) collectives.

    Micro-batches make no difference: DeepSpeed sees one backward pass in a step, that of the composition.

    With P parameters and N ranks a reduce-scatter or an all-gather is P (N - 1)/N and an all-reduce twice that
    (Patarasuk and Yuan 2009). Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
    Models", section 7: stage 0 all-reduces the gradients, 2 P; stages 1 and 2 could scatter them and gather the new
    parameters, 2 P again; stage 3 gathers parameters for the forward and for the backward pass and scatters gradients,
    3 P. DeepSpeed's stages 1 and 2 all-reduce the gradients as well unless `use_multi_rank_bucket_allreduce` is off,
    hence 3 P.
    """
    return (2 if stage == 0 else 3) * parameters * (ranks - 1) / ranks


@dataclass(frozen=True)
class RunCost:
    """A whole run of a recipe, all ranks together, in floating-point operations.

    Attributes:
        full_width: up to the step at which the last gate closes.
        narrowed: from there to the end.
    """

    full_width: float
    narrowed: float

    def gpu_hours(self, peak: float, utilisation: float) -> float:
        """Operations / (peak x utilisation x 3600).

        Args:
            peak: of one GPU, in floating-point operations per second.
            utilisation: the share of it that a step reaches, between 0 and 1.
        """
        return (self.full_width + self.narrowed) / (peak * utilisation * 3600)


def run_cost(
    teacher: BertShape, student: BertShape, steps: int, end_step: int, batch: Batch, ranks: int = 1
) -> RunCost:
    """The cost of `steps` optimizer steps, narrowed from `end_step` on.

    Args:
        teacher: the shape before narrowing.
        student: the shape after it.
        steps: of the whole run.
        end_step: the first narrowed step.
        batch: of one rank.
        ranks: each composes for itself, so that part grows with them.
    """
    full, narrow = (2 * ranks * step_macs(v, teacher, student, batch) for v in ("composed", "narrowed"))
    return RunCost(float(full * end_step), float(narrow * (steps - end_step)))
