"""On what a number was measured, and how: hardware by its type, versions, commit, command; compilers."""

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from sysconfig import get_path
from typing import Any

from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "tensorboard")
SETTINGS = re.compile(r"(MALLOC|KMP|MKL|ONEDNN|ATEN|CUBLAS|PYTORCH(?!_NVML))_\w+|OMP_NUM_THREADS|GOMP_CPU_AFFINITY")
"""Environment variables that decide how fast the same code is. DeepSpeed sets PYTORCH_NVML_... itself."""


def versions() -> dict[str, str]:
    """Python and the packages that decide about results, installed or not."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> str:
    """Processor type and cores, and the GPUs if there are any: `AMD EPYC, 2 cores`."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    parts = [f"{model}, {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    return ", ".join(parts)


def commit() -> str:
    """The commit this code is at, with `-dirty` when files changed, or `unknown` outside a git clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    except OSError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def require_compiler(option: str, device: str) -> None:
    """Refuse `option`, which uses torch.compile, where that has nothing to compile with on `device`, cpu or cuda.

    Raises:
        UserError: there is no compiler, or no headers of Python. On CPUs torch writes C++; on GPUs triton writes C, to
            start its kernels from Python.
    """
    language, variable, compilers = ("C++", "CXX", ["g++"]) if device == "cpu" else ("C", "CC", ["gcc", "clang"])
    named = os.environ.get(variable)
    found = any(map(shutil.which, [named] if named else compilers))
    if not found or not Path(get_path("include"), "Python.h").is_file():
        raise UserError(
            f"{option} needs a {language} compiler ({compilers[0]}, or what {variable} names) and Python's headers "
            f"(Debian: apt-get install {compilers[0]} python3-dev)"
        )


def measured(not_measured: str) -> dict[str, Any]:
    """The head of a results file: how this process measured what it writes. Call it before measuring.

    Args:
        not_measured: what a reader could take for measured, in a few words.

    Returns:
        machine, versions, commit, date (YYYY-MM-DD), command, environment (of `SETTINGS`, what is set), not_measured.
    """
    return {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": shell_form(sys.argv),
        "environment": {
            name: _public(value) if "/" in value else value
            for name, value in sorted(os.environ.items())
            if SETTINGS.fullmatch(name)
        },
        "not_measured": not_measured,
    }


def shell_form(arguments: Sequence[str]) -> str:
    """The command line of a Python script, without the paths of the machine it ran on.

    Paths in the repository are written from its root, others as `$DATA/` and their last part. A path is what has a
    slash, after `--option=` and `FORMAT:` if there are any; names on the hub are none.
    """
    return " ".join(["python", *map(_public, arguments)])


def _public(argument: str) -> str:
    parts = re.fullmatch(r"((?:--[\w.-]+=)?(?:\w+:)?)(.*/.*)", argument, re.DOTALL)
    if not parts or parts[1].endswith("hub:"):
        return shlex.quote(argument)
    # Links are followed: one in the repository may lead to the data.
    path = Path(os.path.realpath(parts[2]))
    if path.is_relative_to(ROOT):
        return shlex.quote(parts[1] + str(path.relative_to(ROOT)))
    return f"{parts[1]}$DATA/{shlex.quote(path.name)}"
