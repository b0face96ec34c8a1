"""What a run reads, to be broken by tests of commands."""

import os
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.support.refusals import rewrite
from tests.support.runs import prepare


@pytest.fixture(scope="module")
def own_process_group():
    """train.main joins a process group of one and sets variables for it; neither may outlast this file."""
    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    return prepare(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def inputs(sound, tmp_path) -> dict[str, Path]:
    """A copy of everything a run reads, so that a test may break it; the recipe names the copies."""
    directory = shutil.copytree(sound["recipe"].parent, tmp_path / "inputs")
    copied = {name: directory / path.name for name, path in sound.items()}
    rewrite(copied, data={"shards": str(copied["shards"])}, teacher={"path": str(copied["teacher"])})
    return copied
