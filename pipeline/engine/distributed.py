"""Processes: who we are, on which device, and the few collectives the trainer needs."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipeline.errors import UserError
from pipeline.launch import adopt_launcher_environment


@dataclass(frozen=True)
class World:
    """This process among the processes of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average over ranks, in place."""
        dist.all_reduce(values)
        return values.div_(self.size)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place."""
        dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable `value`, by rank, on every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable `value`, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def on_all(self, action: Callable[[], Any]) -> Any:
        """This rank's result of `action`, if it went well on every rank; else every rank raises the first error.

        Where one rank alone gave up, the others would wait for it in the next collective and report a lost
        connection. Rank 0 says the error, whoever met it. All ranks must call, and `action` must not communicate.
        """
        result, error = None, None
        try:
            result = action()
        except UserError as caught:
            error = caught
        except Exception as caught:
            # No mistake of the user's: this rank shows where it was, the others need not wait for it.
            self.gather(RuntimeError(f"rank {self.rank} failed: {caught!r}"))
            raise
        first = next((error for error in self.gather(error) if error is not None), None)
        if first is not None:
            raise self.said_once(first) if isinstance(first, UserError) else first
        return result

    def said_once(self, error: UserError) -> UserError:
        """An error that every rank raises, marked so that rank 0 alone says it."""
        error.said_elsewhere = not self.is_main
        return error

    def on_main(self, action: Callable[[], Any]) -> Any:
        """What `action` returns on rank 0, on every rank; errors as in `on_all`."""
        return self.broadcast(self.on_all(lambda: action() if self.is_main else None))

    def barrier(self) -> None:
        dist.barrier()

    def whole(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """Context in which the parameters are whole on every rank (they always are below ZeRO-3)."""
        import deepspeed

        partitioned = any(hasattr(parameter, "ds_id") for parameter in parameters)
        context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters, enabled=partitioned)
        return context


def start(timeout_minutes: float = 30) -> World:
    """Join the process group: nccl on GPUs, gloo on CPUs."""
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    adopt_launcher_environment()
    on_cpu = get_accelerator().device_name() == "cpu"
    if on_cpu:
        # Otherwise the first collective compiles a shared-memory extension and needs a C++ compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        device = torch.device("cpu")
    else:
        # Some clusters let every rank see its own GPU alone. DeepSpeed reads LOCAL_RANK too.
        local_rank = int(os.environ["LOCAL_RANK"]) % max(get_accelerator().device_count(), 1)
        os.environ["LOCAL_RANK"] = str(local_rank)
        device = torch.device(get_accelerator().device_name(local_rank))
        get_accelerator().set_device(local_rank)
    deepspeed.init_distributed(
        dist_backend="gloo" if on_cpu else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(minutes=timeout_minutes),
    )
    return World(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    """Leave together, so that no rank's exit is taken for a failure by another."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
