"""Compactors and weights multiplied into one ordinary small BERT (structural re-parameterisation).

With K the kept dimensions of a group: W' = (R W L)[K_out, K_in], b' = (R b)[K_out], E' = (E R_e^T)[:, K], LayerNorm
gain and bias indexed by K. Attention scores were divided by sqrt(teacher head size), the student divides by
sqrt(student head size): Q' is scaled by sqrt(student / teacher head size).
"""

import copy
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from pipeline.compaction.groups import Gates, Kind
from pipeline.compaction.model import CompactedBert
from pipeline.errors import UserError
from pipeline.models.encoder import encode
from pipeline.models.huggingface import bert_of

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


def open_indices(gates: Gates) -> dict[Kind, Tensor]:
    """The dimensions that stay, (groups, target size) by kind, ascending.

    Raises:
        UserError: a gate stands between 0 and 1, or the target width is not reached.
    """
    try:
        return gates.open_indices()
    except ValueError as error:
        group = gates.groups[str(error)]
        raise UserError(
            f"group {group.name} still has {int(gates.split(gates.value)[group.name].count_nonzero())} of {group.size} "
            f"dimensions open and should have {group.target_size}: the narrowing schedule has not ended, train on and "
            "fold then"
        ) from None


@torch.no_grad()
def fold(model: CompactedBert) -> tuple[BertForMaskedLM, dict[str, list[int]]]:
    """The student in float64, and which of the teacher's dimensions it has, per group, ascending.

    It is what the narrowed model composes, from the parameters as they are (hand in fp32 masters, not bf16 copies).

    Raises:
        UserError: the schedule has not ended, see `open_indices`.
    """
    wide = copy.deepcopy(model).double().cpu()
    wide.gates.move_to("cpu")
    if not wide.narrowed:
        wide.narrow(open_indices(wide.gates))
    wide.gates.record_gradient(False)
    tensors = wide()
    query_scale = math.sqrt(model.target.head_size / model.shape.head_size)
    for name in ("qkv", "qkv_bias"):
        tensors[name][:, : model.target.hidden] *= query_scale
    return bert_of(tensors, student_config(model)), wide.gates.kept_by_group()


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
        wrapped.gates.move_to("cpu")
        tensors = wrapped()
        worst = 0.0
        for input_ids in batches:
            expected, got = encode(tensors, wrapped.form, input_ids), folded(input_ids=input_ids).logits
            worst = max(worst, float((expected - got).abs().max()))
            largest = max(largest, float(expected.abs().max()))
        differences[dtype] = worst
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return FoldReport(differences[torch.float64], differences[torch.float32], largest)
