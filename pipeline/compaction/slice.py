"""The untrained slice: the kept dimensions of a teacher that learnt nothing since, a trained student's control."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformers import BertForMaskedLM

from pipeline.compaction.fold import fold
from pipeline.compaction.groups import Group
from pipeline.compaction.model import CompactedBert
from pipeline.errors import UserError
from pipeline.models.huggingface import shape_of
from pipeline.shapes import Strategy


def slice_teacher(
    teacher: BertForMaskedLM,
    hidden: int,
    heads: int,
    intermediate: int,
    strategy: Strategy,
    kept: Mapping[str, Sequence[int]],
) -> BertForMaskedLM:
    """What a run that never trained folds to, in float64.

    Args:
        teacher: is used up, see `CompactedBert`.
        hidden: of the student.
        heads: of the student.
        intermediate: of the student.
        strategy: that the dimensions were chosen by.
        kept: group -> which of the teacher's dimensions stay.

    Raises:
        UserError: the teacher has no such student, or these are not the dimensions of one.
    """
    target = replace(shape_of(teacher.config), hidden=hidden, heads=heads, intermediate=intermediate)
    model = CompactedBert(teacher, target, strategy)
    groups = model.gates.groups
    if kept.keys() != groups.keys():
        raise UserError(f"dimensions of {len(groups)} groups were expected, not of {len(kept)}")
    value = torch.empty_like(model.gates.value)
    for name, part in model.gates.split(value).items():
        part.copy_(_open(groups[name], kept[name]))
    model.gates.set(value, value == 0)
    return fold(model)[0]


def _open(group: Group, kept: Sequence[int]) -> torch.Tensor:
    """Gates (size,): 1 for what is kept, else 0.

    Raises:
        UserError: that is not what the group's schedule could have left.
    """
    value = torch.zeros(group.size)
    if all(0 <= index < group.size for index in kept):
        value[list(kept)] = 1.0
    units = value.view(group.blocks, -1, group.unit).mean(2)  # (blocks, units of a block)
    left = units.shape[1] - group.units_to_retire
    if not bool(((units == 0) | (units == 1)).all() & (units.sum(1) == left).all()) or len(kept) != group.target_size:
        raise UserError(
            f"group {group.name}: these are not {group.target_size} of the teacher's {group.size} dimensions"
        )
    return value
