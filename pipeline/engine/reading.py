"""Numbers on their way from the device to the host."""

import torch
from torch import Tensor


class Reading:
    """The numbers in a tensor as they are now. The device sends them; the host waits when it asks, and not before.

    What is launched in between need not be done then: a plain `tolist` would wait for that too.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._sent = numbers, None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._sent = torch.cuda.Event()
            self._sent.record()

    def values(self) -> list[float]:
        """The numbers."""
        if self._sent:
            self._sent.synchronize()
        values: list[float] = self._numbers.tolist()
        return values
