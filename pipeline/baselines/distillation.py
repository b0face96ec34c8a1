"""Logit distillation: the student learns the teacher's distribution over the vocabulary."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.encoder import Form, Tensors, encode
from pipeline.models.loss import LossOf, accuracy_of, masked_lm_loss


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


def distillation_of(
    form: Form, teacher: Tensors, teacher_form: Form, temperature: float = 2.0, mlm_share: float = 0.0
) -> LossOf:
    """The loss of a micro-batch: (1 - share) x soft targets + share x masked-language modelling.

    Student and teacher see the same masked windows and are compared at the predicted positions. The teacher runs
    without gradient and without dropout.

    Args:
        form: of the student.
        teacher: tensors of the teacher, over the same vocabulary.
        teacher_form: the rest of it.
        temperature: T > 0.
        mlm_share: in [0, 1).
    """

    def loss_of(tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        input_ids, positions, documents = batch["input_ids"], batch["positions"], batch.get("documents")
        with torch.no_grad():
            target = encode(teacher, teacher_form, input_ids, positions, documents=documents)
        logits = encode(tensors, form, input_ids, positions, documents=documents, training=True)
        soft = soft_target_loss(logits, target, temperature)
        if not mlm_share:
            return soft, accuracy_of(logits, batch["labels"])
        hard, accuracy = masked_lm_loss(logits, batch["labels"])
        return (1 - mlm_share) * soft + mlm_share * hard, accuracy

    return loss_of
