"""Compactors and weights multiplied into one ordinary small BERT (structural re-parameterisation).

With K the kept dimensions of a group: W' = (R W L)[K_out, K_in], b' = (R b)[K_out], E' = (E R_e^T)[:, K], LayerNorm
gain and bias indexed by K. Attention scores were divided by sqrt(teacher head size), the student divides by
sqrt(student head size): Q' is scaled by sqrt(student / teacher head size).
"""

import copy
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from pipeline.compaction.layers import CompactedLinear, GatedLayerNorm
from pipeline.compaction.model import CompactedBert, shape_of
from pipeline.errors import UserError

FP64_LIMIT = 1e-8
FP32_LIMIT = 1e-4
"""Times max(1, largest logit)."""


@dataclass(frozen=True)
class FoldReport:
    """How far the logits of the folded student are from those of the compacted teacher."""

    max_logit_diff_fp64: float
    max_logit_diff_fp32: float
    max_abs_logit: float

    @property
    def passes(self) -> bool:
        return self.max_logit_diff_fp64 <= FP64_LIMIT and self.max_logit_diff_fp32 <= FP32_LIMIT * max(
            1.0, self.max_abs_logit
        )

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def student_config(model: CompactedBert) -> BertConfig:
    """The teacher's configuration with the student's sizes."""
    config = copy.deepcopy(model.config)
    config.hidden_size = model.target.hidden
    config.num_attention_heads = model.target.heads
    config.intermediate_size = model.target.intermediate
    return config


def kept_indices(model: CompactedBert) -> dict[str, Tensor]:
    """The dimensions that stay, per group, ascending.

    Raises:
        UserError: a gate stands between 0 and 1, or the target width is not reached.
    """
    kept = {}
    for name, gate in model.gates.items():
        value = gate.value.detach().cpu()
        indices = value.nonzero().squeeze(1)
        if not bool(((value == 0) | (value == 1)).all()) or len(indices) != gate.group.keep:
            raise UserError(
                f"group {name} still has {len(indices)} of {gate.group.size} dimensions open and should have "
                f"{gate.group.keep}: the narrowing schedule has not ended, train on and fold then"
            )
        kept[name] = indices
    return kept


def teacher_indices(model: CompactedBert) -> dict[str, list[int]]:
    """Which of the teacher's dimensions the student keeps, per group, ascending.

    Raises:
        UserError: the schedule has not ended, see `kept_indices`.
    """
    kept = kept_indices(model)
    # Once the model is narrowed, its gates count what is left of the teacher's dimensions.
    indices = {name: kept[name] if gate.index is None else gate.index for name, gate in model.gates.items()}
    return {name: index.tolist() for name, index in indices.items()}


@torch.no_grad()
def fold(model: CompactedBert) -> BertForMaskedLM:
    """The student in float64, from the parameters as they are (hand in fp32 masters, not bf16 copies).

    Raises:
        UserError: the schedule has not ended, see `kept_indices`.
    """
    kept = kept_indices(model)
    residual = kept["residual"]
    wide = copy.deepcopy(model).double().cpu()
    wide.move_gates("cpu")
    student = BertForMaskedLM(student_config(model)).double()

    word, position, segment = wide.embeddings.composed()
    embeddings = student.bert.embeddings
    for module, table in zip(
        (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings),
        (word, position, segment),
        strict=True,
    ):
        module.weight.copy_(table[:, residual])
    _fold_norm(wide.embeddings.norm, embeddings.LayerNorm, residual)

    teacher_head_size = shape_of(model.config).head_size
    query_scale = math.sqrt(model.target.head_size / teacher_head_size)
    for index, (source, target) in enumerate(zip(wide.layers, student.bert.encoder.layer, strict=True)):
        attention, ffn = kept[f"attention.{index}"], kept[f"ffn.{index}"]
        heads, student_heads = source.attention.self, target.attention.self
        _fold_linear(heads.query, student_heads.query, attention, residual, scale=query_scale)
        _fold_linear(heads.key, student_heads.key, attention, residual)
        _fold_linear(heads.value, student_heads.value, attention, residual)
        _fold_linear(source.attention.output.dense, target.attention.output.dense, residual, attention)
        _fold_norm(source.attention.output.LayerNorm, target.attention.output.LayerNorm, residual)
        _fold_linear(source.intermediate.dense, target.intermediate.dense, ffn, residual)
        _fold_linear(source.output.dense, target.output.dense, residual, ffn)
        _fold_norm(source.output.LayerNorm, target.output.LayerNorm, residual)

    head = student.cls.predictions
    _fold_linear(wide.transform, head.transform.dense, residual, residual)
    _fold_norm(wide.transform_norm, head.transform.LayerNorm, residual)
    head.decoder.bias.copy_(wide.decoder.bias)
    return student.eval()


def _fold_linear(source: CompactedLinear, target: nn.Linear, rows: Tensor, columns: Tensor, scale: float = 1.0) -> None:
    weight, bias = source.composed()
    target.weight.copy_(weight[rows][:, columns] * scale)
    target.bias.copy_(bias[rows] * scale)


def _fold_norm(source: GatedLayerNorm, target: nn.LayerNorm, kept: Tensor) -> None:
    target.weight.copy_(source.weight[kept])
    target.bias.copy_(source.bias[kept])


@torch.no_grad()
def compare(model: CompactedBert, student: BertForMaskedLM, batches: list[Tensor]) -> FoldReport:
    """Measure the difference in logits, in float64 and in fp32, dropout off.

    Args:
        model: what was folded.
        student: as `fold` returned it, in float64.
        batches: token ids, each (batch, tokens).
    """
    differences, largest = {}, 0.0
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in (torch.float64, torch.float32):
        wrapped, folded = (copy.deepcopy(m).to(device="cpu", dtype=dtype).eval() for m in (model, student))
        wrapped.move_gates("cpu")
        worst = 0.0
        for input_ids in batches:
            expected, got = wrapped(input_ids), folded(input_ids=input_ids).logits
            worst = max(worst, float((expected - got).abs().max()))
            largest = max(largest, float(expected.abs().max()))
        differences[dtype] = worst
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return FoldReport(differences[torch.float64], differences[torch.float32], largest)
