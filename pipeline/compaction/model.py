"""The teacher on its way to the student: weights, compactors and gates, which compose to the tensors of a BERT."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from pipeline.compaction.compose import compose, compose_bias, compose_tables, select
from pipeline.compaction.groups import Gates, Kind, build_groups
from pipeline.compaction.stacks import STACKS, Stack
from pipeline.models.encoder import GATE
from pipeline.models.huggingface import form_of, shape_of, tensors_of
from pipeline.shapes import BertShape, Strategy

UNCOMPOSED = ("norm_gain", "norm_bias", "transform_norm_gain", "transform_norm_bias", "decoder_bias")
"""The tensors that no compactor meets."""


@dataclass(frozen=True)
class Side:
    """A compactor, or a LayerNorm's gains or biases, and the group whose dimensions one side of it has.

    Attributes:
        name: of the parameter.
        dim: of the parameter, on which the group's dimensions lie.
        kind: of the group; where there is one for each layer, the parameter's dimension 0 counts the layers, or the
            matrices, of which each layer has several.
        is_row: a row compactor, whose columns read the group.
    """

    name: str
    dim: int
    kind: Kind
    is_row: bool = False


class CompactedBert(nn.Module):
    """The teacher with a compactor on each side of every linear layer and a gate for each dimension of each group.

    Its parameters are the tensors of the teacher's BERT, for each stack `STACK_row_delta` of L (matrices, in, in) and
    `STACK_column_delta` of R (matrices, out, out), and `tables_column_delta` (hidden, hidden). Once narrowed, L has the
    columns and R the rows of what is left.

    Calling it returns the tensors of a BERT, composed (see `pipeline.models.encoder`). At the start they are the
    teacher's; with every gate in {0, 1} they compute what the student that `fold` writes computes.

    Args:
        teacher: with `model_type` bert, absolute positions and a tied decoder (see `pipeline.teachers`).
        target: the student's shape.
        strategy: `dim` or `head`, see `groups`.
        stops_gradient: decay `penalty`: compactor rows and columns of retired dimensions learn no more.
    """

    def __init__(
        self, teacher: BertForMaskedLM, target: BertShape, strategy: Strategy, stops_gradient: bool = False
    ) -> None:
        super().__init__()
        self.config: BertConfig = teacher.config
        self.shape, self.target, self.strategy = shape_of(teacher.config), target, strategy
        self.stops_gradient = stops_gradient
        self.form = form_of(teacher.config)
        self.gates = Gates(build_groups(self.shape, target, strategy))

        for name, tensor in tensors_of(teacher).items():
            self.register_parameter(name, nn.Parameter(tensor))
        sizes: dict[Kind, int] = {group.kind: group.size for group in self.gates.groups.values()}
        for stack in STACKS:
            for side, size in (("row", sizes[stack.reads]), ("column", sizes[stack.writes])):
                delta = self.get_parameter("tables").new_zeros(stack.count(self.shape.layers), size, size)
                self.register_parameter(f"{stack.name}_{side}_delta", nn.Parameter(delta))
        delta = self.get_parameter("tables").new_zeros(sizes["residual"], sizes["residual"])
        self.tables_column_delta = nn.Parameter(delta)

    def forward(self) -> dict[str, Tensor]:
        """The tensors of `encoder.SHAPES`, gates applied, and the residual gate where it is not open.

        Once the model is narrowed, they are of the kept dimensions alone.
        """
        kept = self.gates.kept.get("residual")
        delta = self._stop_retired_gradient(self.tables_column_delta[None], "residual", 1)[0]
        composed = {"tables": compose_tables(self.get_parameter("tables"), delta, None if kept is None else kept[0])}
        for stack in STACKS:
            composed[stack.name], composed[f"{stack.name}_bias"] = self._composed(stack)
        for name in UNCOMPOSED:
            # An operation, not the parameter itself: ZeRO-3 takes that away again behind the module's back.
            composed[name] = self.get_parameter(name) * 1
        if not self.gates.idle:
            composed[GATE] = self.gates.of("residual")[0]
        return composed

    def _composed(self, stack: Stack) -> tuple[Tensor, Tensor]:
        """Weight (layers, rows, columns) and bias (layers, rows) of a stack; Q, K and V below one another."""
        whole, whole_bias = self.get_parameter(stack.name), self.get_parameter(f"{stack.name}_bias")
        layers, count = len(whole), stack.count(self.shape.layers)
        row_delta = self._stop_retired_gradient(self.get_parameter(f"{stack.name}_row_delta"), stack.reads, 2)
        column_delta = self._stop_retired_gradient(self.get_parameter(f"{stack.name}_column_delta"), stack.writes, 1)
        kept_in, kept_out = (self._kept(kind, count) for kind in (stack.reads, stack.writes))
        weight = compose(whole, row_delta, column_delta, kept_in, kept_out)
        bias = compose_bias(whole_bias.view(count, -1), column_delta, kept_out)
        if stack.gated == "rows" and not self.gates.idle:
            gate = self._of_matrices(self.gates.of(stack.writes), count)
            weight, bias = (weight * gate[:, :, None]).to(weight.dtype), (bias * gate).to(bias.dtype)
        elif stack.gated == "columns" and not self.gates.idle:
            weight = (weight * self.gates.of(stack.reads)[:, None, :]).to(weight.dtype)
        return weight.view(layers, -1, weight.shape[-1]), bias.view(layers, -1)

    def _kept(self, kind: Kind, count: int) -> Tensor | None:
        """The indices that are left for each of `count` matrices of a stack; None before the model is narrowed."""
        index = self.gates.kept.get(kind)
        return None if index is None else self._of_matrices(index, count)

    @staticmethod
    def _of_matrices(groups: Tensor, count: int) -> Tensor:
        """(groups, size) -> (count, size): a layer's group for each of its matrices, the one residual group for all."""
        return groups.expand(count, -1) if len(groups) == 1 else groups.repeat_interleave(count // len(groups), 0)

    def _stop_retired_gradient(self, delta: Tensor, kind: Kind, dim: int) -> Tensor:
        """`delta` (n, rows, columns), its gradient cut where `dim` belongs to retired dimensions, if that is asked for.

        The paper calls it the reset: the task may no longer pull on what is being removed. The mask is there before
        anything is retired, too: a number to look at would have torch.compile begin anew with every choice.
        """
        if not self.stops_gradient or self.gates.narrowed:
            return delta
        retired = self._of_matrices(self.gates.retired_of(kind), len(delta))
        return torch.where(retired[:, :, None] if dim == 1 else retired[:, None, :], delta.detach(), delta)

    def sides(self) -> Iterator[Side]:
        """Everything that has a side on a group: what narrowing cuts and norms are taken of."""
        yield Side("tables_column_delta", 0, "residual")
        for stack in STACKS:
            yield Side(f"{stack.name}_row_delta", 2, stack.reads, is_row=True)
            yield Side(f"{stack.name}_column_delta", 1, stack.writes)
        for name in ("norm_gain", "norm_bias"):
            yield Side(name, 1, "residual")
        for name in ("transform_norm_gain", "transform_norm_bias"):
            yield Side(name, 0, "residual")

    def cut(self, side: Side, whole: Tensor, kept: dict[Kind, Tensor]) -> Tensor:
        """What is left of a parameter, or of a tensor of its size, when its groups are cut to `kept`."""
        index = kept[side.kind].to(whole.device)
        if side.dim == 0:
            return whole.index_select(0, index[0])
        return select(whole, self._of_matrices(index, len(whole)), side.dim)

    def narrow(self, kept: dict[Kind, Tensor]) -> None:
        """Drop, for good, every dimension of every group but `kept` (kind -> (groups, kept), ascending).

        What remains of the compactors is rectangular, so the composed matrices and the activations have the student's
        size. The teacher's weights keep theirs. The function computed does not change if the gates of what is dropped
        were 0, and neither do the gradients of what stays. The scale of the scores stays the teacher's: the fold puts
        the student's into Q.
        """
        for side in self.sides():
            left = self.cut(side, self.get_parameter(side.name).detach(), kept)
            setattr(self, side.name, nn.Parameter(left.contiguous()))
        self.gates.narrow(kept)
        self.form = replace(self.form, heads=self.target.heads)

    @property
    def narrowed(self) -> bool:
        return self.gates.narrowed


def is_compactor(parameter_name: str) -> bool:
    """True for the parameters that WID adds to the teacher's own."""
    return parameter_name.endswith("_delta")
