"""Check the node this runs on before ranks train there, and print what was found as one line of JSON.

    srun --ntasks-per-node=1 ... python slurm/check_node.py RUN RECIPE [--section.key value ...] | \\
        python slurm/judge_nodes.py RUN --since SECONDS

GPUs seen and free, memory, disk space and writing at the run directory, shards readable, versions, code, clock.
`judge_nodes.py` says what is wrong: some faults show only beside the other nodes. It takes a second or two; the run's
own libraries are not loaded.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.environment import commit, versions
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import writing
from pipeline.recipe import Recipe, load_recipe

MEMORY_GIB = 2
"""Free main memory that a node needs at least."""
DISK_GIB = 5
"""Free disk space: the state of a run of BERT-base's size takes so much at most."""
USED_GPU_GIB = 1
"""Memory in use on a GPU that means a process of somebody else; drivers take a part of that."""
_GIB = 1 << 30


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description="Check this node; for slurm/train.sbatch.", allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="what will be trained")
    return parser.parse_known_args()


def main() -> int:
    arguments, options = parse_arguments()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the warning before a time limit is for the ranks
    recipe = load_recipe(arguments.recipe, options)
    own = [*gpu_faults(), *memory_faults()]
    common = [*disk_faults(arguments.run), *shard_faults(recipe)]
    found = {
        "node": os.environ.get("SLURMD_NODENAME", "this node"),
        "own": own,
        "common": common,
        "versions": versions(),
        "commit": commit(),
        "time": time.time(),
    }
    print(json.dumps(found), flush=True)
    return EXIT_DONE


def gpu_faults() -> Iterator[str]:
    """Whether the GPUs that SLURM gave are there and nobody computes on them; nothing on a node without any."""
    given = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if not given or os.environ.get("DS_ACCELERATOR") == "cpu":
        return
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield f"nvidia-smi does not answer ({type(error).__name__})"
        return
    if done.returncode:
        yield f"nvidia-smi fails: {(done.stdout + done.stderr).strip()[:200]}"
        return
    used = dict(map(str.strip, line.split(",", 1)) for line in done.stdout.splitlines() if "," in line)
    # Where SLURM does not hide the others, all GPUs of the node are listed; the variable names ours.
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    ours = [index for index in named if index in used] if len(used) > given else list(used)
    if len(ours) < given:
        yield f"{len(ours)} of {given} GPUs are seen"
    for index in ours:
        gib = float(used[index]) / 1024 if used[index].replace(".", "", 1).isdigit() else 0
        if gib > USED_GPU_GIB:
            yield f"GPU {index} is in use by another process ({gib:.1f} GiB)"


def memory_faults() -> Iterator[str]:
    """Whether main memory is left."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next((int(line.split()[1]) / (1 << 20) for line in lines if line.startswith("MemAvailable:")), MEMORY_GIB)
    if free < MEMORY_GIB:
        yield f"{free:.1f} GiB of main memory are free, and {MEMORY_GIB} are needed"


def disk_faults(run: Path) -> Iterator[str]:
    """Whether the run directory can be written and has room. A quota shows only when something is written."""
    probe = run / f".check.{os.environ.get('SLURMD_NODENAME', '')}.{os.getpid()}.tmp"
    try:
        with writing(run):
            run.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(bytes(1 << 20))
            probe.unlink()
    except UserError as error:
        yield str(error)
        return
    free = shutil.disk_usage(run).free / _GIB
    if free < DISK_GIB:
        yield f"{free:.1f} GiB of disk space are free at {run}, and {DISK_GIB} are needed"


def shard_faults(recipe: Recipe) -> Iterator[str]:
    """Whether manifest, headers and sizes of every shard directory are right, and a byte of every body can be read."""
    from pipeline.data.manifest import quick_check

    heldout = [Path(recipe.data.heldout)] if isinstance(recipe.data.heldout, str) else []
    try:
        for directory in [*(path for path, _ in recipe.data.sources()), *heldout]:
            for shard in quick_check(directory).shards:
                with open(directory / f"{shard.name}.bin", "rb") as body:
                    body.read(1)
    except UserError as error:
        yield str(error)
    except OSError as error:
        yield f"{error.filename}: cannot read: {error.strerror}"


if __name__ == "__main__":
    run_entry_point(main)
