"""On what a number was measured: hardware by its type, versions, commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "tensorboard")


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
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    parts = [f"{model}, {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    return ", ".join(parts)


def commit() -> str:
    """The commit this code is at, with `-dirty` when files changed, or `unknown` outside a git clone."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return described.stdout.strip() or "unknown"
