"""What a step is trained on: this rank's micro-batches, on the device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.data.masking import MaskedBatch
from pipeline.engine.faults import Faults


class Feed:
    """Hands over one micro-batch after the other.

    Args:
        batches: of this rank, without end.
        empty: makes the micro-batch that keeps step with the other ranks once this one cannot read, until all of them
            raise its fault.
        device: where they are wanted.
        faults: takes what goes wrong.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, Tensor]],
        empty: Callable[[], dict[str, Tensor]],
        device: torch.device,
        faults: Faults,
    ) -> None:
        self._batches, self._empty, self._device, self._faults = batches, empty, device, faults

    def next(self) -> dict[str, Tensor]:
        """The next micro-batch."""
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in self._read().items()}

    def _read(self) -> dict[str, Tensor]:
        if not self._faults.met:
            with self._faults.kept():
                return next(self._batches)
        return self._empty()


def empty_windows(data: DataConfig, count: int) -> MaskedBatch:
    """Windows of the shape of real ones, with nothing in them."""
    shapes = ((data.seq_len,), (data.predicted,), (data.predicted,), (data.seq_len,), ())
    return MaskedBatch(*(np.zeros((count, *shape), dtype=np.int64) for shape in shapes))
