"""What every entry script shares because a launcher may have started it.

The `deepspeed` launcher starts its script once per rank and adds `--local_rank=N`. A script that is one
process by nature runs on rank 0 and returns at once elsewhere.
"""

import argparse
import contextlib
import ctypes
import os
import random
import socket
import sys

from pipeline.errors import UserError

_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
"""What other launchers call the rank, the number of ranks and the rank on this node. SLURM sets most of these in the
batch script too, which is one process: only inside a step of srun do they count."""


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""glibc's numbers for mallopt(3)."""
_KEPT_MIB = (128, 32)
"""The larger one where it is accepted, which older versions of glibc do up to 32."""


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed tensors of up to 128 MiB for the next ones.

    By default it gives every large one back to the kernel, which hands it out page by page again and zeroes it: 9 % of
    the time of a training step on a CPU (4 layers of 192, micro-batches of 64 x 128 tokens), for as much memory.
    Elsewhere than under glibc nothing happens.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        kept = next((size << 20 for size in _KEPT_MIB if library.mallopt(_MMAP_THRESHOLD, size << 20)), None)
        if kept:  # set alone, the other one would fix the first at 128 KiB
            library.mallopt(_TRIM_THRESHOLD, 4 * kept)


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Accept, and hide from `--help`, the options that launchers add to a script's command line."""
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def only_rank_zero() -> bool:
    """True in a process that was started alone or as rank 0."""
    return os.environ.get("RANK", "0") == "0"


def positive_int(text: str) -> int:
    """Type of an argparse option that counts something."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def find_ranks() -> tuple[int, int, int]:
    """Rank, number of ranks and rank on this node, from whatever started this process; alone: 0, 1, 0."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = next((own for own in (names, *_LAUNCHERS) if all(name in os.environ for name in own)), None)
    rank, ranks, local = (int(os.environ[name]) for name in found) if found else (0, 1, 0)
    return rank, ranks, local


def adopt_launcher_environment() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK and MASTER_* from whatever started this process; alone: one rank.

    Raises:
        UserError: ranks run on several nodes, and none was told where rank 0 is.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    launcher = next((own for own in _LAUNCHERS if all(name in os.environ for name in own)), None)
    if "RANK" not in os.environ and launcher:
        os.environ.update({name: os.environ[own] for name, own in zip(names, launcher, strict=True)})
    if "MASTER_ADDR" not in os.environ and os.environ.get("WORLD_SIZE", "1") != "1" and _spans_nodes():
        raise UserError(
            "the ranks run on several nodes and MASTER_ADDR is not set: set it to the name of the first node, on all "
            "(mpirun -x MASTER_ADDR=NODE; slurm/train.sbatch does it by itself)"
        )
    for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, alone)
    if os.environ["WORLD_SIZE"] == "1" and "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    os.environ.setdefault("MASTER_PORT", "29500")


def free_port() -> int:
    """A port of this machine for the ranks to meet at, some seconds from now.

    It lies below those that systems hand out by themselves, or another process might be given it in between.
    """
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def _spans_nodes() -> bool:
    """Whether Open MPI, MPICH or SLURM has started ranks on other nodes too."""
    own = os.environ
    ranks = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"), ("PMI_SIZE", "MPI_LOCALNRANKS"))
    return own.get("SLURM_STEP_NUM_NODES", "1") != "1" or any(
        here in own and own.get(everywhere) != own[here] for everywhere, here in ranks
    )
