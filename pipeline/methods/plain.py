"""What the methods have in common that train a BERT as it is."""

from typing import Any, Self

from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from pipeline.methods.method import Method
from pipeline.methods.teacher import new_bert
from pipeline.models.plain import PlainBert
from pipeline.recipe import Recipe


class Plain(Method):
    """A BERT that is trained as it is, and is its own student."""

    model: PlainBert

    @classmethod
    def rebuild(cls, recipe: Recipe, config: BertConfig, head_is_new: bool) -> Self:
        return cls(recipe, PlainBert(new_bert(config)), head_is_new)

    def export(self, windows: list[Tensor]) -> tuple[BertForMaskedLM, dict[str, Any]]:
        return self.model.bert(), {}
