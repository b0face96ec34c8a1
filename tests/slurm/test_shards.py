"""slurm/shards.sbatch on a real SLURM, as an array and by hand under MPI."""

import shlex

import pytest

from tests.preprocessing.test_parts import contents
from tests.preprocessing.test_scale import needs_mpi
from tests.slurm.runs import TEACHER
from tests.support import ROOT


@pytest.mark.slow
@needs_mpi
def test_an_array_of_four_and_two_ranks_of_mpi_give_the_same_bytes(slurm, tmp_path, monkeypatch):
    """Ranks that MPI did not connect would refuse each other the directory."""
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setitem(slurm.variables, name, "1")
    prose = f"lines:{ROOT / 'demo' / 'prose.txt'}"
    options = ["--input", prose, "--tokenizer", str(TEACHER), "--shard-tokens", "1000"]
    log = ("--cpus-per-task=1", "--open-mode=append", f"--output={tmp_path}/log")
    array, by_mpi = [*options, "--output", str(tmp_path / "array")], [*options, "--output", str(tmp_path / "mpi")]
    job = slurm.submit(*log, "--array=1-4", "slurm/shards.sbatch", *array)
    slurm.submit(*log, f"--dependency=afterok:{job}", "slurm/shards.sbatch", *array, "--merge")
    command = shlex.join(["mpirun", "-n", "2", "python", "preprocessing/build_shards.py", *by_mpi])
    ranks = slurm.submit(*log, "--ntasks=2", f"--wrap={command}")
    slurm.wait_until_empty(240)
    said = (tmp_path / "log").read_text()
    assert "part 4/4 is built" in said and slurm.job(ranks)["JobState"] == "COMPLETED", said
    assert len(contents(tmp_path / "array")) > 10, said
    assert contents(tmp_path / "array") == contents(tmp_path / "mpi"), said
