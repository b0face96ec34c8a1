"""Shared by all tests: where the repository is, and the real data if this machine has it."""

import os
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

# Tests run on CPUs, on machines with GPUs too: most are of two ranks, which need two devices.
os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
# mpirun and deepspeed lie beside this Python, whether its environment is activated or not.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# Nothing here may reach for the internet, and single-process tests leave cores to the multi-process ones.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text, GLUE and SQuAD, where they are at hand (`WID_SHARED_DATA`, or beside the clone)."""
    path = Path(os.environ.get("WID_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set WID_SHARED_DATA")
    return path


@pytest.fixture
def no_fp16(monkeypatch):
    """A machine whose processor does not multiply fp16. One with avx512_fp16 does, and DeepSpeed then takes it."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
