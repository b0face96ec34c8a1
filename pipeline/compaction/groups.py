"""Groups of dimensions that are retired together, and the gate that each group shares.

Dimensions that meet in a sum or in a contraction belong to one group: the residual stream of the whole network,
the attention of each layer (Q, K, V into the attention output), the FFN of each layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.shapes import BertShape, Strategy, check_target


@dataclass(frozen=True)
class Group:
    """Dimensions 0..size-1 of one group and how many of them the student keeps.

    The dimensions lie in `blocks` blocks with a quota of their own each (heads, under strategy dim), and are
    retired in units of `unit` neighbours (a whole head, under strategy head).
    """

    name: str
    size: int
    keep: int
    blocks: int = 1
    unit: int = 1

    @property
    def units_to_retire(self) -> int:
        """Units each block loses over the whole schedule."""
        return (self.size - self.keep) // (self.blocks * self.unit)


def build_groups(teacher: BertShape, target: BertShape, strategy: Strategy) -> dict[str, Group]:
    """The groups of a teacher on its way to `target`: `residual`, `attention.N`, `ffn.N`."""
    check_target(teacher, target, strategy)
    blocks, unit = (teacher.heads, 1) if strategy == "dim" else (1, teacher.head_size)
    groups = [Group("residual", teacher.hidden, target.hidden)]
    for layer in range(teacher.layers):
        groups.append(Group(f"attention.{layer}", teacher.hidden, target.hidden, blocks, unit))
        groups.append(Group(f"ffn.{layer}", teacher.intermediate, target.intermediate))
    return {group.name: group for group in groups}


class Gate:
    """One number in [0, 1] per dimension of a group: 1 in use, falling while it is retired, 0 gone.

    A plain object with a plain leaf tensor, not a parameter or buffer: ZeRO would partition a parameter and a
    half-precision engine would round a buffer. It carries what the layers must know about their group and what
    the host must know without asking the device.

    Attributes:
        value: (size,) fp32; (kept,) once the group is narrowed.
        retired: like `value`, bool; selected for retirement, whatever the value is by now.
        all_open: every value is 1, so the fused kernels serve.
        kept: dimensions not selected for retirement.
        index: (kept,) int64, which of the group's dimensions are left once it is narrowed; None before that.
        stops_gradient: decay `penalty`: compactor rows and columns of retired dimensions learn no more.
    """

    def __init__(self, group: Group, stops_gradient: bool = False) -> None:
        self.group = group
        self.value = torch.ones(group.size)
        self.retired = torch.zeros(group.size, dtype=torch.bool)
        self.all_open = True
        self.kept = group.size
        self.index: Tensor | None = None
        self.stops_gradient = stops_gradient

    @property
    def idle(self) -> bool:
        """True if multiplying by the gate neither changes anything nor is asked for a gradient."""
        return self.all_open and not self.value.requires_grad

    def to(self, device: torch.device | str) -> None:
        self.value = self.value.detach().to(device).requires_grad_(self.value.requires_grad)
        self.retired = self.retired.to(device)
        self.index = None if self.index is None else self.index.to(device)

    def record_gradient(self, on: bool) -> None:
        """Let autograd fill `value.grad`, which the Taylor scores are made of."""
        self.value.requires_grad_(on)
        self.value.grad = None

    def set(self, value: Tensor, retired: Tensor) -> None:
        """Take new values (size,) and the mask (size,) of what is being retired, both on the CPU."""
        with torch.no_grad():
            # The host need not wait: from ordinary memory, CUDA returns once it has its own copy.
            self.value.copy_(value, non_blocking=True)
            self.retired.copy_(retired, non_blocking=True)
        self.all_open = bool((value == 1).all())
        self.kept = int((~retired).sum())

    def narrow(self, index: Tensor) -> None:
        """Forget all dimensions but `index` (kept,), which are open."""
        device = self.value.device
        self.index = index.to(device)
        self.value = torch.ones(len(index), device=device)
        self.retired = torch.zeros(len(index), dtype=torch.bool, device=device)
        self.all_open, self.kept = True, len(index)
