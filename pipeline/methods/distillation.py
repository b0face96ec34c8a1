"""`kd` and `minilmv2`: a new BERT that learns from a teacher beside it, which is frozen and runs in bf16.

A checkpoint holds the student alone. A run that goes on reads the teacher anew, and makes sure that it is the same.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig

from pipeline.baselines.distillation import distillation_of
from pipeline.baselines.minilm import minilm_loss
from pipeline.cost import TRAINING, Batch, minilm_macs, step_macs
from pipeline.errors import UserError
from pipeline.methods.scratch import Scratch
from pipeline.methods.teacher import teacher_of
from pipeline.models.encoder import Bert, Tensors
from pipeline.models.huggingface import form_of, shape_of, tensors_of
from pipeline.models.loss import LossOf


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
        teacher, head_is_new, _ = teacher_of(self.recipe, config.vocab_size, dropout=0.0)
        self.check(teacher.config, head_is_new)
        tensors = tensors_of(teacher)
        sha256 = _sha256(tensors)
        if self._sha256 not in (None, sha256):
            raise UserError(
                f"teacher {path} is not the one that this run learned from so far: put the old one back, or begin anew "
                "in another --output"
            )
        self._sha256 = sha256
        self.teacher = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
        self.teacher_form, self.teacher_shape = form_of(teacher.config), shape_of(teacher.config)

    @abstractmethod
    def check(self, teacher: BertConfig, head_is_new: bool) -> None:
        """Refuse a teacher that cannot teach this student.

        Raises:
            UserError: with the reason.
        """

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

    def check(self, teacher: BertConfig, head_is_new: bool) -> None:
        if head_is_new:
            raise UserError(
                f"teacher {self.recipe.teacher.path} has no MLM head, whose predictions method kd learns: take one "
                "that has, or method minilmv2"
            )

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

    def check(self, teacher: BertConfig, head_is_new: bool) -> None:
        wanted, path = self.recipe.distillation, self.recipe.teacher.path
        if wanted.teacher_layer is not None and wanted.teacher_layer > teacher.num_hidden_layers:
            raise UserError(
                f"distillation.teacher_layer is {wanted.teacher_layer} and teacher {path} has "
                f"{teacher.num_hidden_layers} layers"
            )
        heads = wanted.relation_heads or teacher.num_attention_heads
        for size, whose in ((teacher.hidden_size, f"teacher {path}"), (self.model.config.hidden_size, "the student")):
            if size % heads:
                raise UserError(
                    f"{heads} relation heads do not divide the {size} hidden dimensions of {whose}: set "
                    "distillation.relation_heads to a number that divides those of teacher and student"
                )
        self._heads = heads
        self._layer = (wanted.teacher_layer or teacher.num_hidden_layers) - 1

    def loss_of(self) -> LossOf:
        def loss_of(tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            loss = self._loss(tensors, batch, training=True)
            return loss, torch.full_like(loss, torch.nan)  # nothing is predicted

        return loss_of

    def measure(self, tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (self._loss(tensors, batch, training=False),)

    def _loss(self, tensors: Tensors, batch: Mapping[str, Tensor], training: bool) -> Tensor:
        student = Bert(tensors, self.model.form, training)
        teacher = Bert(self.teacher, self.teacher_form)
        return minilm_loss(student, teacher, batch["input_ids"], self._heads, self._layer, batch.get("documents"))

    def macs(self, batch: Batch) -> int:
        teacher = replace(self.teacher_shape, layers=self._layer + 1)
        return minilm_macs(teacher, batch) + TRAINING * minilm_macs(self.shape, batch)


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
