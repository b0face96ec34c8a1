"""What a method of training is: all that differs between the runs of one recipe and another.

1. A new run's model comes from `build`; one that goes on, or is folded, from `rebuild`, `load_state_dict` and
   `load_parameters`. Only who trains calls `get_ready` and `move_to`.
2. An optimizer step begins with `before_step` and, where one is due, a `successor`. Micro-batches are trained on
   `loss_of()`; once the parameters have moved, `after_step` follows.
3. A checkpoint holds `facts` and `state_dict` beside the parameters.
4. `export` is the student.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from pipeline.compaction.model import CompactedBert
from pipeline.compaction.schedule import Schedule
from pipeline.cost import Batch, step_macs
from pipeline.data.loader import TrainingData
from pipeline.errors import UserError
from pipeline.models.encoder import Tensors
from pipeline.models.huggingface import shape_of
from pipeline.models.loss import LossOf, masked_lm_of
from pipeline.models.plain import PlainBert
from pipeline.recipe import Recipe
from pipeline.shapes import BertShape

State = dict[str, dict[str, Tensor]]
"""Parameters and both moments, each by the parameters' names."""


class Ranks(Protocol):
    """The processes of a run, as far as a method needs them. Every rank makes the same calls."""

    def mean(self, values: Tensor) -> Tensor:
        """Average over ranks, in place."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable `value`, on every rank."""

    def said_once(self, error: UserError) -> UserError:
        """An error that every rank raises, marked so that rank 0 alone says it."""

    def whole(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """Context in which the parameters are whole on every rank."""


class Method(ABC):
    """One run's way of training.

    Attributes:
        model: what is trained now. Calling it composes the tensors of a BERT.
        head_is_new: the MLM head has never been trained, and is warmed up alone.
        notices: what the user should know.
        schedule: by which dimensions are retired; None where none are.
        title: what it is called in a model card.
        objective: what it trained on, for the card.
        caution: what whoever takes its student must know.
        measures: what is measured on held-out windows, by the names in metrics.jsonl.
    """

    title: ClassVar[str]
    objective: ClassVar[str] = "masked-language modelling only"
    caution: ClassVar[str] = ""
    measures: ClassVar[tuple[str, ...]] = ("heldout_loss", "heldout_accuracy")

    def __init__(self, recipe: Recipe, model: PlainBert | CompactedBert, head_is_new: bool = False) -> None:
        self.recipe, self.model, self.head_is_new = recipe, model, head_is_new
        self.notices: list[str] = []
        self.schedule: Schedule | None = None

    @classmethod
    @abstractmethod
    def build(cls, recipe: Recipe, data: TrainingData, vocab_size: int) -> Self:
        """For a new run.

        Raises:
            UserError: the teacher cannot be used, or the target is no BERT that can be made.
        """

    @classmethod
    @abstractmethod
    def rebuild(cls, recipe: Recipe, config: BertConfig, head_is_new: bool) -> Self:
        """As `build` made it, without weights to start from: a checkpoint brings them."""

    def get_ready(self) -> None:
        """Read what training needs beside the model.

        Raises:
            UserError: it is not there, or cannot be used.
        """

    def move_to(self, device: torch.device) -> None:
        """Take what is no parameter to the device that trains."""

    def describe(self) -> list[str]:
        """The sizes of what is trained and of what is to come of it, in sentences."""
        return [f"teacher: {shape_of(self.model.config)}"]

    def loss_of(self) -> LossOf:
        """What a micro-batch is trained on, dropout on."""
        return masked_lm_of(self.model.form, training=True)

    def measure(self, tensors: Tensors, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The mean of each of `measures` over held-out windows, dropout off."""
        return masked_lm_of(self.model.form, training=False)(tensors, batch)

    def before_step(self, step: int, ranks: Ranks) -> list[dict[str, Any]]:
        """Do what is due before optimizer step `step` (from 0); returns records for selection.jsonl."""
        return []

    def after_step(self, ranks: Ranks, loss_scale: float) -> None:
        """Take notice of the gradients of a step that was not skipped.

        Args:
            ranks: all call.
            loss_scale: that the gradients have in them.
        """

    def successor(self, step: int) -> PlainBert | CompactedBert | None:
        """A model, without values, to go on with from `step` on; None to go on as it is."""
        return None

    def hand_over(self, successor: Any, state: State) -> State:
        """Go on with what `successor` returned; returns the state of training cut to its parameters."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"head_is_new": self.head_is_new, "narrowed": False}

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint, besides parameters and moments."""
        return {}

    def load_state_dict(self, step: int, facts: Mapping[str, Any], state: dict[str, Tensor]) -> None:
        """Be as `facts` and `state` say that it was after `step` steps. Parameters follow."""

    @abstractmethod
    def export(self, windows: list[Tensor]) -> tuple[BertForMaskedLM, dict[str, Any]]:
        """The student, and what fold.json is to say of how it was made.

        Args:
            windows: token ids, each (batch, tokens), to compare it with the trained model on.

        Raises:
            UserError: there is no student yet, or it is not the trained model.
        """

    @property
    def shape(self) -> BertShape:
        """Of what is trained at present."""
        return shape_of(self.model.config)

    def macs(self, batch: Batch) -> int:
        """Multiply-accumulates that an optimizer step cannot do without, see `pipeline.cost`."""
        return step_macs("student", self.shape, self.shape, batch)

    def open_count(self) -> dict[str, int]:
        """Dimensions not retired, by group."""
        return self.schedule.open_count() if self.schedule else {}

    def norms(self, ranks: Ranks) -> dict[str, Tensor]:
        """Histograms for TensorBoard: how far what the method adds has moved, on the CPU. All ranks must call."""
        return {}


@torch.no_grad()
def load_parameters(module: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Copy a checkpoint's parameters in.

    Raises:
        UserError: the names are not those of this model.
    """
    own = dict(module.named_parameters())
    if own.keys() != parameters.keys():
        odd = sorted(own.keys() ^ parameters.keys())[0]
        raise UserError(f"the checkpoint does not fit the recipe's model: {odd} is in one of them only")
    for name, parameter in own.items():
        parameter.copy_(parameters[name])
