"""What a rank and its reader process share: memory in slots, each for one micro-batch, and words about them.

The memory has no name, so nothing is left of it when the two are gone, however they ended. The words go through a
socket, and the end of either process is the end of its side: neither can wait for one that is no longer there.

    reader to rank   READY for every slot that was filled, in turn; at the end perhaps FAILED and a pickled exception
    rank to reader   FREE for every slot that may be filled anew, in turn
"""

import mmap
import os

import numpy as np

from pipeline.data.loader import TrainingData
from pipeline.shapes import predicted_positions

SLOTS = 8
"""Micro-batches that may lie ready or be on their way to a device: a disk that pauses is not felt at once."""
READY, FAILED, FREE = b"\0", b"\1", b"\0"
_ALIGNMENT = 64

Shapes = dict[str, tuple[int, int]]
"""Of the arrays in a slot, all int64, by name."""


def slot_shapes(data: TrainingData, micro_batch: int, documents: bool) -> Shapes:
    """What a micro-batch consists of, `documents` among it if asked for."""
    tokens = data.sources[0].content + 2
    predicted = predicted_positions(tokens, data.masking.fraction)
    shapes = {
        "input_ids": (micro_batch, tokens),
        "positions": (micro_batch, predicted),
        "labels": (micro_batch, predicted),
    }
    return shapes | ({"documents": (micro_batch, tokens)} if documents else {})


def new_memory(shapes: Shapes) -> int:
    """A file descriptor of memory for all slots.

    Raises:
        OSError: there is not enough, or the system has no such memory.
    """
    descriptor = os.memfd_create("micro-batches")
    os.ftruncate(descriptor, SLOTS * sum(_room(shape) for shape in shapes.values()))
    return descriptor


def open_slots(descriptor: int, shapes: Shapes) -> list[dict[str, np.ndarray]]:
    """The slots as arrays, which keep the memory."""
    memory = mmap.mmap(descriptor, 0)
    slots, at = [], 0
    for _ in range(SLOTS):
        slot = {}
        for name, shape in shapes.items():
            slot[name] = np.ndarray(shape, np.int64, memory, at)
            at += _room(shape)
        slots.append(slot)
    return slots


def _room(shape: tuple[int, int]) -> int:
    return -(-8 * shape[0] * shape[1] // _ALIGNMENT) * _ALIGNMENT
