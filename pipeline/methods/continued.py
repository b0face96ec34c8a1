"""`continue`: a teacher is trained on as it is, which shows what more of the same text would have brought."""

from typing import Self

import torch

from pipeline.data.loader import TrainingData
from pipeline.methods.plain import Plain
from pipeline.methods.teacher import teacher_of
from pipeline.models.plain import PlainBert
from pipeline.recipe import Recipe


class Continued(Plain):
    """Masked-language modelling from a teacher's weights."""

    title = "further pre-training"

    @classmethod
    def build(cls, recipe: Recipe, data: TrainingData, vocab_size: int) -> Self:
        torch.manual_seed(recipe.train.seed)
        teacher, head_is_new, notices = teacher_of(recipe, vocab_size, recipe.train.dropout)
        method = cls(recipe, PlainBert(teacher), head_is_new)
        method.notices = notices
        return method
