"""Start TensorBoard for runs, say how to reach it from outside the cluster, and end it with this process.

    python slurm/tensorboard.py DIR...

A DIR is a run or a folder of runs. Each run appears under its own name, with its parents' where two have the same. Runs
that begin later are added. On a compute node the cluster's network can reach the page, since the tunnel comes from the
login node; elsewhere only this machine can.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import NoReturn

# This file's own folder on the path would hide the library of its name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import temporary_folder
from pipeline.launch import free_port

EVENTS = "tensorboard"
"""Folder of a run that TensorBoard reads."""
DEPTH = 3
"""How far below a DIR runs are looked for. Each holds many files, and a file system may be slow."""
SECONDS = 10.0
"""Between looks for new runs."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="TensorBoard for runs, side by side, and the tunnel to it.")
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="a run, or a folder of runs")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, _end)
    with temporary_folder() as folder:
        link(folder, find_runs(arguments.directories))
        port = free_port()
        try:
            return serve(folder, arguments.directories, port)
        except KeyboardInterrupt:
            return EXIT_DONE


def serve(folder: Path, directories: list[Path], port: int) -> int:
    """Run TensorBoard until it ends, or this process.

    Raises:
        UserError: it ended by itself.
    """
    compute_node = "SLURM_JOB_ID" in os.environ
    reach = ["--bind_all"] if compute_node else ["--host", "127.0.0.1"]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port), *reach]
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "wb") as output, subprocess.Popen(command, stdout=output, stderr=output, cwd=folder) as board:
        try:
            for sentence in directions(port, compute_node):
                print(sentence, flush=True)
            while board.poll() is None:
                time.sleep(SECONDS)
                link(folder, find_runs(directories))
        finally:
            board.terminate()
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            log.unlink()
    raise UserError(f"TensorBoard ended with code {board.returncode}: {said[-500:]}")


def directions(port: int, compute_node: bool) -> list[str]:
    """How to reach the page, in lines to copy."""
    host = socket.gethostname()
    through, target = (os.environ.get("SLURM_SUBMIT_HOST", "LOGIN_NODE"), host) if compute_node else (host, "127.0.0.1")
    return [
        f"on your own computer: ssh -N -L {port}:{target}:{port} {through}",
        f"then open http://127.0.0.1:{port}",
    ]


def find_runs(directories: Iterable[Path]) -> list[Path]:
    """The runs among and below directories, absolute and each once."""
    found = []
    for directory in directories:
        root = Path(os.path.abspath(directory))
        for depth in range(DEPTH + 1):
            found += [path.parent for path in sorted(root.glob("*/" * depth + EVENTS)) if path.is_dir()]
    return list(dict.fromkeys(found))


def names_of(runs: list[Path]) -> dict[str, Path]:
    """The runs by their last parts, as few as tell each from the others."""
    for parts in range(1, max((len(run.parts) for run in runs), default=0) + 1):
        names = ["/".join(run.parts[-parts:]) for run in runs]
        if len(set(names)) == len(names):
            return dict(zip(names, runs, strict=True))
    return {}


def link(folder: Path, runs: list[Path]) -> None:
    """Make `folder` show the runs and nothing else."""
    wanted = names_of(runs)
    for path in [path for path in folder.rglob("*") if path.is_symlink()]:
        if str(path.relative_to(folder)) not in wanted:
            path.unlink()
    for name, run in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            path.symlink_to(run / EVENTS)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_entry_point(main)
