"""Logit distillation: the student learns the teacher's distribution over the vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.encoder import Bert


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of both distributions softened by T, mean over positions, computed in fp32 or wider.

    The factor keeps the size of the gradient independent of the temperature (Hinton, Vinyals, Dean 2015, section 2).

    Args:
        student_logits: (..., vocab).
        teacher_logits: (..., vocab), the same positions; no gradient flows into them.
        temperature: T > 0.
    """
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    student = F.log_softmax(student_logits.flatten(0, -2).to(wide) / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach().flatten(0, -2).to(wide) / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def distillation_loss(
    student: Bert, teacher: Bert, input_ids: Tensor, positions: Tensor, temperature: float = 2.0
) -> Tensor:
    """The loss of a step: teacher forward without gradient, student forward, both with the whole MLM head.

    Args:
        student: the model to train.
        teacher: the model whose logits it is to have, over the same vocabulary.
        input_ids: (batch, tokens), masked.
        positions: (batch, k), the predicted positions, on which the two are compared.
        temperature: T > 0.
    """
    with torch.no_grad():
        target = teacher.predict(teacher.before_last(input_ids), positions)
    return soft_target_loss(student.predict(student.before_last(input_ids), positions), target, temperature)
