"""One micro-batch at a time, on tensors that stand apart from the model: the inner level of an optimizer step.

1. The model composes its tensors under DeepSpeed, once per optimizer step; `begin` makes leaves of them.
2. `run` takes a micro-batch forward and backward on these leaves, where the gradients of all micro-batches add up.
3. `carried_loss` is a scalar whose gradient with respect to the composed tensors is what has added up: DeepSpeed goes
   backward from it, through the composition.

So accumulation composes nothing anew, and nothing of DeepSpeed's runs inside a micro-step: a GPU can record it once
and replay it (`Recording`), which spares the host its launches.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.encoder import Tensors
from pipeline.models.loss import LossOf
from pipeline.models.precision import accumulation_dtype

WARM_UPS = 2
"""Passes before one is recorded: libraries set themselves up in the first."""


def dropout_seed(*keys: int) -> int:
    """A seed that is a function of the keys, so that no state of random numbers needs saving."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seeding_of(device: torch.device) -> Callable[[int], object]:
    """What seeds the one generator that dropout on the device draws from. torch.manual_seed seeds those of all."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index].manual_seed
    return torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed


def compiled(loss_of: LossOf, backend: str = "inductor") -> LossOf:
    """The same through torch.compile.

    Shapes are fixed, so the number of graphs is that of the model's forms (residual gate absent, there, there with a
    gradient, narrowed), not of the steps.
    """
    through: LossOf = torch.compile(loss_of, backend=backend, dynamic=False)
    return through


class Carry(torch.autograd.Function):
    """A scalar whose gradient with respect to the tensors is what is handed in, whatever the scalar is multiplied by.

    The gradients have fp16's loss scale in them from where they were made. DeepSpeed multiplies the scalar by it once
    more at ZeRO 1 to 3, and not at stage 0, but divides by it once everywhere (0.19.8).
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upward: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # what nobody else holds becomes `.grad` without a copy
        return None, None, *gradients


class MicroStep:
    """Forward and backward of the micro-batches of one optimizer step after the other.

    Args:
        loss_of: what is trained on; a mean over the micro-batch.
        accumulation: micro-batches per optimizer step.
        device: where it runs.
        clock: of the phases `forward` and `backward`; a replayed micro-step is all `backward`.
        recorded: let the device record the step, if it can.
        say: takes a sentence for the user.

    Raises:
        UserError: (by `run`) recording broke off in its middle, after which nothing can go on.
    """

    def __init__(
        self,
        loss_of: LossOf,
        accumulation: int,
        device: torch.device,
        clock: Callable[[str], AbstractContextManager[None]],
        recorded: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self._loss_of, self._accumulation, self._clock = loss_of, accumulation, clock
        self._seed = seeding_of(device)
        self._records, self._say = recorded, say
        self._recording: Recording | None = None

    def begin(self, composed: Tensors, loss_scale: float = 1.0) -> None:
        """Begin an optimizer step.

        Args:
            composed: what the model composed. Gradients are wanted where it requires one.
            loss_scale: fp16's.
        """
        self._composed = {name: tensor for name, tensor in composed.items() if tensor.requires_grad}
        self._leaves = {name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in composed.items()}
        self._sums: dict[str, Tensor] = {}
        self._result: Tensor | None = None
        self._scale = loss_scale / self._accumulation
        if self._recording and not self._recording.fits(self._leaves):
            self._recording = None
        if self._recording:
            self._recording.begin(self._leaves, self._scale)

    def run(self, batch: Mapping[str, Tensor], seed: int) -> None:
        """One micro-batch.

        Args:
            batch: on the device; of the same shapes every time.
            seed: decides dropout.
        """
        if self._records and self._recording is None:
            self._record(batch)
        self._seed(seed)
        if self._recording:
            with self._clock("backward"):
                self._recording.run(batch)
            return
        with self._clock("forward"):
            loss, accuracy = self._loss_of(self._leaves, batch)
        with self._clock("backward"):
            loss.backward(torch.full_like(loss, self._scale))
            self._add_up()
            result = torch.stack([loss.detach(), accuracy])
            self._result = result if self._result is None else self._result.add_(result)

    def means(self) -> Tensor:
        """Loss and accuracy (2,) over the micro-batches, on the device."""
        result = self._recording.result if self._recording else self._result
        assert result is not None
        return result / self._accumulation

    def carried_loss(self) -> Tensor:
        """What to go backward from, see `Carry`; ends this optimizer step."""
        # DeepSpeed wants a gradient of every parameter, also of one that the loss does not depend on.
        gradients = [
            torch.zeros_like(tensor) if (gradient := self._gradient(name, tensor.dtype)) is None else gradient
            for name, tensor in self._composed.items()
        ]
        carried: Tensor = Carry.apply(self.means()[0], gradients, *self._composed.values())
        self._composed, self._leaves, self._sums = {}, {}, {}
        return carried

    def _add_up(self) -> None:
        """In a type wide enough autograd adds up by itself; half precision would lose what many micro-batches add."""
        for name in self._composed if self._accumulation > 1 else ():
            leaf, wide = self._leaves[name], accumulation_dtype(self._leaves[name].dtype)
            if leaf.grad is None or leaf.dtype == wide:
                continue
            self._sums[name] = self._sums[name].add_(leaf.grad) if name in self._sums else leaf.grad.to(wide)
            leaf.grad = None

    def _gradient(self, name: str, dtype: torch.dtype) -> Tensor | None:
        total = self._recording.sums[name] if self._recording else self._sums.get(name, self._leaves[name].grad)
        return None if total is None else total.to(dtype)

    def _record(self, batch: Mapping[str, Tensor]) -> None:
        """Before the first micro-batch in this form, whose gradients and random numbers the recording leaves alone."""
        try:
            self._recording = Recording(self._loss_of, self._leaves, batch)
            self._recording.begin(self._leaves, self._scale)
        except RuntimeError as error:
            self._records, self._recording = False, None
            self._say(f"the training step cannot be recorded as a CUDA graph, and runs without: {_first_line(error)}")


class Recording:
    """A micro-step in memory of its own, as a CUDA graph: tensors and batch are copied in, gradients add up in fp32.

    Replays draw the random numbers that the generator's seed says at that moment, as a step that is not recorded does.

    Attributes:
        sums: of the gradients, by name.
        result: sums of loss and accuracy (2,).
    """

    def __init__(self, loss_of: LossOf, leaves: Tensors, batch: Mapping[str, Tensor]) -> None:
        self._loss_of = loss_of
        self._leaves = {name: leaf.detach().clone().requires_grad_(leaf.requires_grad) for name, leaf in leaves.items()}
        self._batch = {name: tensor.clone() for name, tensor in batch.items()}
        self._learning = {name: leaf for name, leaf in self._leaves.items() if leaf.requires_grad}
        self.sums = {
            name: torch.zeros_like(leaf, dtype=accumulation_dtype(leaf.dtype), requires_grad=False)
            for name, leaf in self._learning.items()
        }
        any_leaf = next(iter(self._leaves.values()))
        self._scale = torch.ones((), device=any_leaf.device)
        self.result = any_leaf.new_zeros(2, dtype=accumulation_dtype(any_leaf.dtype), requires_grad=False)
        self._replay = self._capture()

    def fits(self, leaves: Tensors) -> bool:
        """Whether the recorded step is one for such tensors."""
        return _form_of(leaves) == _form_of(self._leaves)

    def begin(self, leaves: Tensors, scale: float) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(self._leaves.values()), [leaves[name].detach() for name in self._leaves])
            torch._foreach_zero_([*self.sums.values(), self.result])
            self._scale.fill_(scale)

    def run(self, batch: Mapping[str, Tensor]) -> None:
        for name, tensor in self._batch.items():
            tensor.copy_(batch[name], non_blocking=True)
        self._replay()

    def _work(self) -> None:
        loss, accuracy = self._loss_of(self._leaves, self._batch)
        scale, learning = self._scale.to(loss.dtype), list(self._learning.values())
        gradients = torch.autograd.grad(loss, learning, scale, allow_unused=True)
        pairs = [(s, g.to(s.dtype)) for s, g in zip(self.sums.values(), gradients, strict=True) if g is not None]
        torch._foreach_add_([total for total, _ in pairs], [gradient for _, gradient in pairs])
        self.result += torch.stack([loss.detach(), accuracy])

    def _capture(self) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (reading ahead, watching the other ranks) may call CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._work()
        except RuntimeError as error:
            # A recording that breaks off leaves the stream, the allocator and the generator in the middle of it.
            reason = _first_line(error)
            raise UserError(
                f"the training step cannot be recorded as a CUDA graph: set train.cuda_graph to off ({reason})"
            ) from error
        return graph.replay


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


def _form_of(leaves: Tensors) -> dict[str, tuple[torch.Size, bool]]:
    return {name: (leaf.shape, leaf.requires_grad) for name, leaf in leaves.items()}
