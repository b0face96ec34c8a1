"""Freed memory is kept for the next tensor, where the C library is glibc."""

import platform
import subprocess
import sys

import pytest

from tests.support import ROOT

SCRIPT = """
import resource, sys
from pipeline.launch import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
held = [bytearray(24 << 20) for _ in range(3)]
del held
before = faults()
for _ in range(5):
    held = [bytearray(24 << 20) for _ in range(3)]
    del held
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_not_asked_for_again():
    counts = {}
    for way in ("leave", "keep"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, way], cwd=ROOT, capture_output=True, text=True, check=True)
        counts[way] = int(done.stdout)
    assert counts["leave"] > 50 * max(counts["keep"], 1), counts
