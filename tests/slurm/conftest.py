"""A SLURM for the tests of a module."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, cluster


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """Three nodes, requeue allowed."""
    with cluster() as running:
        yield running
