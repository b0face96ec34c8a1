"""The held-out windows of a run, and what the model is worth on them."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.data.loader import HeldOutData
from pipeline.data.masking import MaskedBatch
from pipeline.engine.distributed import World
from pipeline.methods.method import Method
from pipeline.models.encoder import Tensors

Collate = Callable[[MaskedBatch], dict[str, Tensor]]


class HeldOut:
    """This rank's part of the held-out windows, read once and kept, so that a fault in them shows before training.

    Args:
        data: all of them.
        micro_batch: windows that are measured at once.
        collate: what makes tensors of windows.
        world: all ranks construct one and measure together.
        beat: called now and then while it measures.

    Raises:
        DataError: they cannot be read.
    """

    def __init__(
        self, data: HeldOutData, micro_batch: int, collate: Collate, world: World, beat: Callable[[], None]
    ) -> None:
        self.tokens_hash = data.source.tokens_hash
        self._world, self._beat = world, beat
        read = world.on_all(lambda: list(data.batches(micro_batch, world.rank, world.size)))
        self._batches = [(collate(batch), valid) for batch, valid in read if valid]

    @torch.no_grad()
    def measure(self, method: Method, tensors: Tensors) -> dict[str, float]:
        """The method's `measures`, means over all windows.

        Args:
            method: of the run.
            tensors: what its model composes at present.
        """
        sums = torch.zeros(len(method.measures) + 1, dtype=torch.float64, device=self._world.device)
        for batch, valid in self._batches:
            self._beat()
            rows = {name: tensor[:valid].to(self._world.device) for name, tensor in batch.items()}
            means = method.measure(tensors, rows)
            sums += valid * torch.stack([*means, torch.ones_like(means[0])]).double()
        *totals, windows = self._world.sum(sums).tolist()
        return {name: total / windows for name, total in zip(method.measures, totals, strict=True)}
