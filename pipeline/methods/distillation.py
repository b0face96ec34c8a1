"""`kd` and `minilmv2`: a new BERT that learns from a teacher beside it, which is frozen and runs in bf16.

A checkpoint holds the student alone. A run that goes on reads the teacher anew, and makes sure that it is the same.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.baselines.distillation import distillation_of
from pipeline.baselines.minilm import minilm_loss
from pipeline.cost import TRAINING, Batch, minilm_macs, step_macs
from pipeline.errors import UserError
from pipeline.methods.scratch import Scratch
from pipeline.methods.teacher import teacher_of
from pipeline.models.encoder import Bert, Tensors
from pipeline.models.huggingface import form_of, shape_of, tensors_of
from pipeline.models.loss import LossOf
from pipeline.teacher_files import check_distillation
from pipeline.teachers import NEW_HEAD


class Distilled(Scratch):
    """A new BERT whose loss asks a teacher.

    Attributes:
        teacher: its tensors, in bf16.
    """

    teacher: dict[str, Tensor]
    _sha256: str | None = None
    """Of the teacher's tensors; in a run that goes on, that of the one it learned from so far."""

    def get_ready(self) -> None:
        path, config = self.recipe.teacher.path, self.model.config
        teacher, head_is_new, notices = teacher_of(self.recipe, config.vocab_size, dropout=0.0)
        self.notices += [notice for notice in notices if notice != NEW_HEAD]
        self.teacher_form, self.teacher_shape = form_of(teacher.config), shape_of(teacher.config)
        check_distillation(self.recipe, self.teacher_shape, not head_is_new, self.shape)
        tensors = tensors_of(teacher)
        # A head that the teacher lacks is another one at every start.
        lacking = ("transform", "decoder") if head_is_new else ()
        sha256 = _digest({name: tensor for name, tensor in tensors.items() if not name.startswith(lacking)})
        if self._sha256 not in (None, sha256):
            raise UserError(
                f"teacher {path} is not the one that this run learned from so far: put the old one back, or begin anew "
                "in another --output"
            )
        self._sha256 = sha256
        self.teacher = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}

    def move_to(self, device: torch.device) -> None:
        self.teacher = {name: tensor.to(device) for name, tensor in self.teacher.items()}

    def describe(self) -> list[str]:
        return [f"student, from scratch: {shape_of(self.model.config)}"]

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"teacher_sha256": self._sha256}

    def load_state_dict(self, step: int, facts: Mapping[str, Any], state: dict[str, Tensor]) -> None:
        self._sha256 = facts["teacher_sha256"]


class LogitDistillation(Distilled):
    """Knowledge distillation as Hinton et al. 2015: soft targets beside masked-language modelling."""

    title = "knowledge distillation (soft targets)"
    objective = "masked-language modelling and its teacher's predictions"

    def loss_of(self) -> LossOf:
        wanted = self.recipe.distillation
        return distillation_of(self.model.form, self.teacher, self.teacher_form, wanted.temperature, wanted.mlm_share)

    def macs(self, batch: Batch) -> int:
        return step_macs("kd", self.teacher_shape, self.shape, batch)


class RelationDistillation(Distilled):
    """MiniLMv2: the relations among queries, keys and values of one layer, see `pipeline.baselines.minilm`."""

    title = "MiniLMv2 (self-attention relations)"
    objective = "the relations among its teacher's queries, keys and values"
    caution = "Its MLM head, and what follows the projections of its last layer, are not trained: fine-tune it."
    measures = ("heldout_relation_loss",)
    """The loss it trains on; the MLM head learns nothing that could be measured."""

    def loss_of(self) -> LossOf:
        def loss_of(tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            loss = self._loss(tensors, batch, training=True)
            return loss, torch.full_like(loss, torch.nan)  # nothing is predicted

        return loss_of

    def measure(self, tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (self._loss(tensors, batch, training=False),)

    def _loss(self, tensors: Tensors, batch: Mapping[str, Tensor], training: bool) -> Tensor:
        heads = self.recipe.distillation.relation_heads or self.teacher_shape.heads
        student = Bert(tensors, self.model.form, training)
        teacher = Bert(self.teacher, self.teacher_form)
        return minilm_loss(student, teacher, batch["input_ids"], heads, self.teacher_layer - 1, batch.get("documents"))

    @property
    def teacher_layer(self) -> int:
        """The one whose relations are learned, from 1."""
        return self.recipe.distillation.teacher_layer or self.teacher_shape.layers

    def macs(self, batch: Batch) -> int:
        teacher = replace(self.teacher_shape, layers=self.teacher_layer)
        return minilm_macs(teacher, batch) + TRAINING * minilm_macs(self.shape, batch)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
