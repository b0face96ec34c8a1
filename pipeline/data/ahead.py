"""Micro-batches as tensors, read ahead of the training beside it: in a process of its own, or in a thread.

A thread shares the interpreter with the loop that launches work on a GPU, and takes most of its time. A process does
not; it costs a tenth of a second of one core at the start. So by default GPUs are fed by a process, CPUs by a thread.
Both hand out the same micro-batches.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from pipeline.config import ReaderKind
from pipeline.data import reader
from pipeline.data.loader import Share, TrainingData, micro_batches
from pipeline.data.masking import MaskedBatch
from pipeline.data.slots import FAILED, FREE, READY, SLOTS, Shapes, new_memory, open_slots, slot_shapes
from pipeline.errors import LostError

_HELD_OFF = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that terminals and batch systems send to every process of a job."""
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 27),
}
"""Of the reader: no threads that it has no use for, and memory that goes from batch to batch instead of back to the
system, which would cost it a third of its speed."""
_LIKELY = {
    signal.SIGKILL: "the machine may have run out of memory",
    signal.SIGBUS: "a shard may have been cut short, its disk may fail, or memory may have run out",
}
"""What a signal that ended the reader says."""
_INSTEAD = "set data.reader to thread"


class BatchReader(Iterator[dict[str, Tensor]]):
    """Micro-batches by name, each to be used before the next is asked for. A context that ends the reading ahead."""

    @abstractmethod
    def close(self) -> None:
        """Stop reading."""

    def __enter__(self) -> "BatchReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_ahead(
    data: TrainingData, first_step: int, share: Share, documents: bool, kind: ReaderKind | None = None
) -> BatchReader:
    """Start to read what one rank trains on.

    Args:
        data: of the run.
        first_step: optimizer steps that are done.
        share: which samples of each step are this rank's.
        documents: whether micro-batches say which document each token is of.
        kind: by default a process where there is a GPU and a thread where there is none.

    Returns:
        What yields `input_ids`, `positions`, `labels` and perhaps `documents`, and raises what reading raises.
    """
    if (kind or ("process" if torch.cuda.is_available() else "thread")) == "process":
        return ProcessReader(data, first_step, share, documents)
    return ThreadReader(data, first_step, share, documents)


def collate(batch: MaskedBatch, documents: bool) -> dict[str, Tensor]:
    """`input_ids`, `positions`, `labels` and, if asked for, `documents` as tensors.

    They lie in memory that a GPU can fetch while the host goes on.
    """
    names = ("input_ids", "positions", "labels", *(("documents",) if documents else ()))
    tensors = {name: torch.from_numpy(getattr(batch, name)) for name in names}
    return {name: t.pin_memory() for name, t in tensors.items()} if torch.cuda.is_available() else tensors


class ThreadReader(BatchReader):
    """Reads one micro-batch ahead in a thread."""

    def __init__(self, data: TrainingData, first_step: int, share: Share, documents: bool) -> None:
        self._batches, self._documents = micro_batches(data, first_step, share), documents
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._ahead = self._thread.submit(self._read)

    def _read(self) -> dict[str, Tensor]:
        return collate(next(self._batches), self._documents)

    def __next__(self) -> dict[str, Tensor]:
        tensors = self._ahead.result()
        self._ahead = self._thread.submit(self._read)
        return tensors

    def close(self) -> None:
        self._thread.shutdown()


class ProcessReader(BatchReader):
    """Reads some micro-batches ahead in a process, into memory that both share; see `slots`.

    Where there is a GPU that memory is pinned. A slot is given back when the next one is taken and the copies that were
    queued on the current stream before are done.
    """

    def __init__(self, data: TrainingData, first_step: int, share: Share, documents: bool) -> None:
        self._rank, self._ready, self._taken, self._held = share.rank, 0, 0, False
        self._error: Exception | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._copying: deque[torch.cuda.Event] = deque()
        self._gpu, self._pinned = torch.cuda.is_available(), False
        shapes = slot_shapes(data, share.micro_batch, documents)
        self._connection, theirs = socket.socketpair()
        with theirs:
            try:
                self._start(theirs, shapes, pickle.dumps(sys.path) + pickle.dumps((data, first_step, share, shapes)))
            except (OSError, RuntimeError) as error:
                # It is raised with the first micro-batch, where the other ranks learn of it.
                why = getattr(error, "strerror", None) or error
                self._error = LostError(f"rank {self._rank} cannot start its reader process: {why}; {_INSTEAD}")

    def _start(self, theirs: socket.socket, shapes: Shapes, job: bytes) -> None:
        """Make the slots and the process.

        Raises:
            OSError: the system has no memory or no process for it.
        """
        with open(new_memory(shapes), "r+b") as memory, open(os.memfd_create("job"), "r+b") as words:
            words.write(job)
            words.seek(0)
            self._slots = [
                {name: torch.from_numpy(array) for name, array in slot.items()}
                for slot in open_slots(memory.fileno(), shapes)
            ]
            passed = [stream.fileno() for stream in (theirs, memory, words)]
            command = [sys.executable, str(Path(reader.__file__)), *map(str, passed)]
            # What is held off here stays held off in a process that is started now.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_OFF)
            try:
                self._process = subprocess.Popen(command, pass_fds=passed, env={**os.environ, **_ENVIRONMENT})
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._pinned = self._gpu and self._pin()

    def __next__(self) -> dict[str, Tensor]:
        self._give_back()
        while not self._ready:
            if self._error:
                raise self._error
            self._listen()
        slot = self._slots[self._taken % SLOTS]
        self._ready, self._taken, self._held = self._ready - 1, self._taken + 1, True
        return {name: tensor.pin_memory() for name, tensor in slot.items()} if self._gpu and not self._pinned else slot

    def _listen(self) -> None:
        """Wait for word from the reader: slots that it filled, or why it ended."""
        said = self._receive()
        ready, failed, message = said.partition(FAILED)
        self._ready += ready.count(READY)
        if failed:
            while more := self._receive():
                message += more
            self._error = pickle.loads(message)
        elif not said:
            self._error = self._lost()

    def _receive(self) -> bytes:
        """What has come from the reader, as soon as something has; nothing if it has ended and all was received."""
        try:
            return self._connection.recv(1 << 16)
        except ConnectionResetError:  # it left words of ours unread
            return b""

    def _give_back(self) -> None:
        """Let the reader fill the slot that was handed out last, or those before it, whose copies are done."""
        free = int(self._held)
        if self._held and self._pinned:
            copied = torch.cuda.Event()
            copied.record()
            self._copying.append(copied)
            free = 0
            # The reader must have a slot to fill, whatever the device has left to do.
            while self._copying and (self._copying[0].query() or len(self._copying) > SLOTS - 2):
                self._copying.popleft().synchronize()
                free += 1
        self._held = False
        with suppress(BrokenPipeError, ConnectionResetError):  # it is gone, and what it filled before is still good
            self._connection.sendall(FREE * free)

    def _lost(self) -> LostError:
        """What is to be said of a reader that ended without a word."""
        assert self._process
        code = self._process.wait()
        how, likely = f"exit code {code}", "its words are above"
        if code < 0:
            how, likely = signal.Signals(-code).name, _LIKELY.get(signal.Signals(-code), "something ended it")
        return LostError(
            f"the reader process of rank {self._rank} is lost ({how}): {likely}; start the run again, and it goes on "
            f"from its last checkpoint, or {_INSTEAD}"
        )

    def _pin(self) -> bool:
        """Pin the memory of all slots as it lies there; False where the system does not allow it."""
        begin, last = self._slots[0]["input_ids"].data_ptr(), list(self._slots[-1].values())[-1]
        torch.cuda.cudart().cudaHostRegister(begin, last.data_ptr() + last.nbytes - begin, 0)
        if last.is_pinned():
            return True
        with suppress(RuntimeError):  # the error would else be taken for one of the next kernel
            torch.zeros(1, device="cuda")
        return False

    def close(self) -> None:
        self._connection.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        if self._pinned:
            with suppress(RuntimeError):  # of a device that has failed; what it has to say was said before
                torch.cuda.synchronize()
                torch.cuda.cudart().cudaHostUnregister(self._slots[0]["input_ids"].data_ptr())
        self._slots = []
