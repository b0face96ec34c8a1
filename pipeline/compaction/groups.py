"""Groups of dimensions that are retired together, and the gates, one for each dimension of each group.

Dimensions that meet in a sum or in a contraction belong to one group: the residual stream of the whole network,
the attention of each layer (Q, K, V into the attention output), the FFN of each layer. Groups of one kind have one
size and lie behind one another in a single buffer, so that setting, scoring and narrowing are a few operations for all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pipeline.shapes import BertShape, Strategy, check_target

Kind = Literal["residual", "attention", "ffn"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of their gates."""


@dataclass(frozen=True)
class Group:
    """Dimensions 0..size-1 of one group and how many of them the student has.

    The dimensions lie in `blocks` blocks with a quota of their own each (heads, under strategy dim), and are
    retired in units of `unit` neighbours (a whole head, under strategy head).
    """

    name: str
    size: int
    target_size: int
    blocks: int = 1
    unit: int = 1

    @property
    def kind(self) -> Kind:
        kind: Kind = self.name.partition(".")[0]  # type: ignore[assignment]
        return kind

    @property
    def units_to_retire(self) -> int:
        """Units each block loses over the whole schedule."""
        return (self.size - self.target_size) // (self.blocks * self.unit)


def build_groups(teacher: BertShape, target: BertShape, strategy: Strategy) -> dict[str, Group]:
    """The groups of a teacher on its way to `target`: `residual`, `attention.N`, `ffn.N`."""
    check_target(teacher, target, strategy)
    blocks, unit = (teacher.heads, 1) if strategy == "dim" else (1, teacher.head_size)
    groups = [Group("residual", teacher.hidden, target.hidden)]
    for layer in range(teacher.layers):
        groups.append(Group(f"attention.{layer}", teacher.hidden, target.hidden, blocks, unit))
        groups.append(Group(f"ffn.{layer}", teacher.intermediate, target.intermediate))
    return {group.name: group for group in groups}


class Gates:
    """One number in [0, 1] per dimension of every group: 1 in use, falling while it is retired, 0 gone.

    A plain object with plain tensors, no parameter or buffer: ZeRO would partition a parameter and a half-precision
    engine would round a buffer. It carries what the composition must know of the groups and what the host must know
    without asking the device.

    Attributes:
        groups: by name.
        value: (all dimensions,) fp32, the groups in the order of their kinds.
        retired: like `value`, bool; selected for retirement, whatever the value is by now.
        all_open: every value is 1, so nothing need be multiplied.
        open_count: dimensions not selected for retirement, by group.
        kept: (groups of the kind, target size) int64 by kind, ascending: which of the groups' dimensions are left once
            the model is narrowed; empty before that.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self.groups = dict(groups)
        self.kept: dict[Kind, Tensor] = {}
        self._lay_out({name: group.size for name, group in groups.items()})
        self._whole_places = self.places

    def _lay_out(self, sizes: dict[str, int], device: torch.device | str = "cpu") -> None:
        """All open, in a new buffer."""
        self.places: dict[str, slice] = {}
        start = 0
        for name in sorted(sizes, key=lambda name: KINDS.index(self.groups[name].kind)):
            self.places[name] = slice(start, start + sizes[name])
            start += sizes[name]
        self.value = torch.ones(start, device=device)
        self.retired = torch.zeros(start, dtype=torch.bool, device=device)
        self.all_open = True
        self.open_count = dict(sizes)

    @property
    def idle(self) -> bool:
        """True if multiplying by the gates neither changes anything nor is asked for a gradient."""
        return self.all_open and not self.value.requires_grad

    @property
    def narrowed(self) -> bool:
        return bool(self.kept)

    def of(self, kind: Kind) -> Tensor:
        """The gates of all groups of a kind, with their gradient: (groups, size)."""
        return self._of(kind, self.value)

    def retired_of(self, kind: Kind) -> Tensor:
        """Likewise what is selected for retirement."""
        return self._of(kind, self.retired)

    def _of(self, kind: Kind, flat: Tensor) -> Tensor:
        places = [self.places[name] for name, group in self.groups.items() if group.kind == kind]
        return flat[places[0].start : places[-1].stop].view(len(places), -1)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """A tensor like `value` as views by group."""
        return {name: flat[self.places[name]] for name in self.groups}

    def whole(self, dtype: torch.dtype, fill: int = 0) -> Tensor:
        """A new tensor like `value` at full width, narrowed or not, on the CPU."""
        return torch.full((sum(group.size for group in self.groups.values()),), fill, dtype=dtype)

    def split_whole(self, flat: Tensor) -> dict[str, Tensor]:
        """A tensor like those of `whole` as views by group."""
        return {name: flat[self._whole_places[name]] for name in self.groups}

    def move_to(self, device: torch.device | str) -> None:
        self.value = self.value.detach().to(device).requires_grad_(self.value.requires_grad)
        self.retired = self.retired.to(device)
        self.kept = {kind: index.to(device) for kind, index in self.kept.items()}

    def record_gradient(self, on: bool) -> None:
        """Let autograd fill `value.grad`, which the Taylor scores are made of."""
        self.value.requires_grad_(on)
        self.value.grad = None

    def set(self, value: Tensor, retired: Tensor) -> None:
        """Take new values and the mask of what is being retired, both like `value`, on the CPU."""
        with torch.no_grad():
            # The host need not wait: from ordinary memory, CUDA returns once it has its own copy.
            self.value.copy_(value, non_blocking=True)
            self.retired.copy_(retired, non_blocking=True)
        self.all_open = bool((value == 1).all())
        self.open_count = {name: int((~part).sum()) for name, part in self.split(retired.cpu()).items()}

    def open_indices(self) -> dict[Kind, Tensor]:
        """The dimensions that are open, (groups, target size) by kind, on the CPU.

        Raises:
            ValueError: names the first group that still has others than its target size, or gates between 0 and 1.
        """
        for name, value in self.split(self.value.detach().cpu()).items():
            if not bool(((value == 0) | (value == 1)).all()) or int(value.sum()) != self.groups[name].target_size:
                raise ValueError(name)
        open_ones = {kind: self.of(kind).detach().cpu() == 1 for kind in KINDS}
        return {kind: mask.nonzero()[:, 1].view(len(mask), -1) for kind, mask in open_ones.items()}

    def narrow(self, kept: Mapping[Kind, Tensor]) -> None:
        """Forget all dimensions but `kept`, see the attribute; they are open."""
        device = self.value.device
        self.kept = {kind: index.to(device) for kind, index in kept.items()}
        self._lay_out({name: group.target_size for name, group in self.groups.items()}, device)

    def kept_by_group(self) -> dict[str, list[int]]:
        """Which of the groups' dimensions are left, once the model is narrowed."""
        rows = {kind: iter(index.tolist()) for kind, index in self.kept.items()}
        return {name: next(rows[group.kind]) for name, group in self.groups.items()}
