"""Numbers that the host wants to know some time, without stopping the device for them."""

import torch
from torch import Tensor


class Readback:
    """A copy in main memory, on its way from when this is made.

    Reading it waits for what the device was given before that, and for nothing that it was given since; `.item()` of
    a tensor on a GPU would wait for everything.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._event = None
        if numbers.device.type != "cuda":
            self._copy = numbers.clone()
            return
        self._copy = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._copy.copy_(numbers, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def read(self) -> Tensor:
        """The numbers, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy
