"""Checkpoints: what was written is read, damage is noticed, and nothing is lost over it."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine import checkpoint as checkpoint_module
from pipeline.engine.checkpoint import (
    MARKER,
    TENSOR_FILES,
    all_checkpoints,
    load_checkpoint,
    newest_complete,
    require_checkpoint,
    save_checkpoint,
    why_incomplete,
)
from pipeline.errors import DataError, UserError
from pipeline.files import sha256_of
from tests.support import ROOT
from tests.support.checkpoints import assert_is, names, save, state
from tests.support.shards import contents, flip_bit


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path / "checkpoints", 7)
    assert path == tmp_path / "checkpoints" / "step_7" and names(tmp_path / "checkpoints") == ["latest", "step_7"]
    assert_is(path, 7)
    marker = json.loads((path / MARKER).read_text())
    assert sorted([*marker, MARKER]) == names(path)
    assert all(entry["bytes"] == (path / name).stat().st_size for name, entry in marker.items())


def test_a_run_without_compaction_is_saved_too(tmp_path):
    plain = state(3)
    plain.tensors["compaction"] = {}
    assert load_checkpoint(save_checkpoint(tmp_path, plain, 1)).tensors["compaction"] == {}


def test_every_flipped_bit_of_every_file_is_noticed(tmp_path):
    path = save(tmp_path, 1)
    for file in sorted(path.iterdir()):
        original = file.read_bytes()
        bits = range(8 * len(original)) if len(original) < 100 else range(0, 8 * len(original), 131)
        for bit in bits:
            flip_bit(file, bit)
            fault = why_incomplete(path)
            assert fault and str(path) in fault and "\n" not in fault, (file.name, bit)
            file.write_bytes(original)
    assert why_incomplete(path) is None


@pytest.mark.parametrize("change", ["cut", "empty", "longer", "missing"])
def test_every_file_must_be_there_in_full(tmp_path, change):
    path = save(tmp_path, 1)
    for file in sorted(path.iterdir()):
        original = file.read_bytes()
        changed = {"cut": original[:-1], "empty": b"", "longer": original + b"x", "missing": None}[change]
        file.unlink() if changed is None else file.write_bytes(changed)
        fault = why_incomplete(path)
        if (file.name, change) == (MARKER, "cut"):  # only the newline at its end is gone
            assert fault is None
        else:
            assert fault and str(path) in fault
            with pytest.raises(DataError):
                load_checkpoint(path)
        file.write_bytes(original)


def test_a_marker_that_leaves_a_file_out_is_no_marker(tmp_path):
    path = save(tmp_path, 1)
    for content in ("[]", "3", "{}", json.dumps({"parameters.safetensors": {}})):
        (path / MARKER).write_text(content)
        assert why_incomplete(path)
    marker = json.loads((save(tmp_path, 2) / MARKER).read_text())
    marker.pop("exp_avg.safetensors")
    (tmp_path / "step_2" / MARKER).write_text(json.dumps(marker))
    assert "does not list exp_avg.safetensors" in str(why_incomplete(tmp_path / "step_2"))


def test_broken_newest_ones_are_named_and_the_one_before_is_used(tmp_path):
    save(tmp_path, 2, 4, 10)
    flip_bit(tmp_path / "step_10" / "exp_avg.safetensors", 999)
    (tmp_path / "step_4" / MARKER).unlink()
    path, faults = newest_complete(tmp_path)
    assert path == tmp_path / "step_2" and len(faults) == 2
    assert "step_10/exp_avg.safetensors" in faults[0] and "step_4" in faults[1]
    shutil.rmtree(tmp_path / "step_2")
    assert newest_complete(tmp_path)[0] is None
    assert newest_complete(tmp_path / "missing") == (None, [])


def test_other_names_are_no_checkpoints(tmp_path):
    save(tmp_path, 2)
    for name in (".step_9.123.tmp", "step_9.old", "step_", "step_x", "step_-3", "step_9²", "global_step9"):
        shutil.copytree(tmp_path / "step_2", tmp_path / name)
    (tmp_path / "step_11").write_text("a file")
    assert all_checkpoints(tmp_path) == [tmp_path / "step_2"]
    assert newest_complete(tmp_path) == (tmp_path / "step_2", [])


def test_the_last_k_stay_in_numerical_order(tmp_path):
    save(tmp_path, 2, 9, 10, 100, keep=2)
    assert names(tmp_path) == ["latest", "step_10", "step_100"]
    assert (tmp_path / "latest").read_text() == "step_100\n"
    save(tmp_path, 101, keep=1)
    assert names(tmp_path) == ["latest", "step_101"]
    assert_is(tmp_path / "step_101", 101)


def test_every_nth_stays_for_ever(tmp_path):
    save(tmp_path, *range(1, 13), keep=2, keep_every=5)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["step_5", "step_10", "step_11", "step_12"]
    for step in (10, 11, 12):
        flip_bit(tmp_path / f"step_{step}" / "config.json", 9)
    save(tmp_path, 7, keep=2, keep_every=5)  # resumed at 5
    assert [path.name for path in all_checkpoints(tmp_path)] == ["step_5", "step_7"]


def test_room_is_made_sure_of_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 2)
    needed = sum((tmp_path / "step_2" / f"{name}.safetensors").stat().st_size for name in TENSOR_FILES)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert needed > 100
    with pytest.raises(
        UserError, match=r"step_4: cannot write: it needs 0\.0 MB and that disk has 0\.0 MB left; make room"
    ):
        save(tmp_path, 4)
    assert names(tmp_path) == ["latest", "step_2"]
    monkeypatch.undo()
    assert_is(save(tmp_path, 4), 4)


def test_the_format_is_written_and_another_one_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "checkpoints", 3)
    assert json.loads((path / "trainer.json").read_text())["format"] == checkpoint_module.FORMAT == 2
    (tmp_path / "config.yaml").write_text("{}")
    monkeypatch.setattr(checkpoint_module, "FORMAT", 3)
    sentence = r"step_3 is of format 2 and this program reads formats 1 and 3 .*: use the version that wrote it"
    for read in (load_checkpoint, lambda _: require_checkpoint(tmp_path), lambda _: require_checkpoint(tmp_path, 3)):
        with pytest.raises(UserError, match=sentence) as refused:
            read(path)
        assert refused.value.exit_code == 2 and "\n" not in str(refused.value)


def test_a_checkpoint_without_a_format_is_refused(tmp_path):
    path = save(tmp_path, 3)
    trainer = json.loads((path / "trainer.json").read_text())
    del trainer["format"]
    (path / "trainer.json").write_text(json.dumps(trainer))
    sign(path, "trainer.json")
    with pytest.raises(UserError, match="step_3 is of format None and this program reads formats 1 and 2"):
        load_checkpoint(path)


def sign(path: Path, name: str) -> None:
    """Put a changed file of a checkpoint into its marker."""
    marker = json.loads((path / MARKER).read_text())
    marker[name] = {"bytes": (path / name).stat().st_size, "sha256": sha256_of(path / name)}
    (path / MARKER).write_text(json.dumps(marker))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_broken_newer_one_never_pushes_out_a_good_one(tmp_path, keep):
    """Resumed at 4 because 10 is broken, stopped at 5: 5 must be there for the next start."""
    save(tmp_path, 2, 4, 10)
    flip_bit(tmp_path / "step_10" / "exp_avg.safetensors", 999)
    assert newest_complete(tmp_path)[0] == tmp_path / "step_4"
    save(tmp_path, 5, keep=keep)
    assert newest_complete(tmp_path) == (tmp_path / "step_5", [])
    assert names(tmp_path) == ["latest", *["step_4", "step_5"][-keep:]]


def test_a_step_saved_again_replaces_the_broken_one(tmp_path):
    save(tmp_path, 2, 4)
    flip_bit(tmp_path / "step_4" / "parameters.safetensors", 999)
    save(tmp_path, 4)
    assert names(tmp_path) == ["latest", "step_2", "step_4"]
    assert_is(tmp_path / "step_4", 4)


def test_leftovers_of_killed_runs_are_removed_at_the_next_save(tmp_path):
    save(tmp_path, 2)
    shutil.copytree(tmp_path / "step_2", tmp_path / ".step_4.99999.tmp")
    save(tmp_path, 6)
    assert names(tmp_path) == ["latest", "step_2", "step_6"]


@pytest.mark.parametrize("moment", ["save_file", "write_atomically", "sync_directory"])
def test_a_failure_at_any_moment_leaves_the_previous_one_in_charge(tmp_path, monkeypatch, moment):
    save(tmp_path, 2)
    before = contents(tmp_path / "step_2")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, moment, fail)
    with pytest.raises(UserError, match="cannot write: No space left on device"):
        save(tmp_path, 4, keep=1)
    monkeypatch.undo()
    assert contents(tmp_path / "step_2") == before
    path, faults = newest_complete(tmp_path)
    assert path is not None and faults == []  # step_4 only if it was whole
    assert_is(path, 4 if moment == "sync_directory" else 2)
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["latest", "step_4"]


KILLED_WRITER = """
import itertools, os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.support.checkpoints import save

calls = fatal = 0

def counted(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

for name in ("fsync", "replace", "mkdir", "rmdir", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
for fatal in itertools.count(1):
    child = os.fork()
    if child == 0:
        save(Path(sys.argv[1]) / str(fatal), 2, 4, keep=1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(fatal)
"""


def test_a_disk_that_fills_up_under_the_tensors_is_said_in_a_sentence(tmp_path):
    """safetensors reports it as an error of its own; here from the system's limit on the size of a file."""
    save(tmp_path, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=r"step_4: cannot write: .*File too large"):
            save(tmp_path, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest_complete(tmp_path) == (tmp_path / "step_2", [])
    assert names(save(tmp_path, 4).parent) == ["latest", "step_2", "step_4"]


def test_one_that_was_cut_since_does_not_count_among_those_that_stay(tmp_path):
    save(tmp_path, 2, 4, keep=2)
    os.truncate(tmp_path / "step_4" / "exp_avg.safetensors", 99)
    save(tmp_path, 6, keep=2)
    assert names(tmp_path) == ["latest", "step_2", "step_4", "step_6"]
    save(tmp_path, 8, keep=2)
    assert names(tmp_path) == ["latest", "step_6", "step_8"]


def test_a_newer_one_that_is_whole_after_all_is_not_deleted(tmp_path):
    """It could not be read for a moment, and the run went on from an older one."""
    save(tmp_path, 2, 4)
    save(tmp_path, 3, keep=2)
    assert names(tmp_path) == ["latest", "step_2", "step_3", "step_4"]


def test_an_old_one_that_cannot_be_deleted_yet_goes_the_next_time(tmp_path, monkeypatch):
    """As on NFS, where a file that another process reads keeps its directory."""
    save(tmp_path, 2, 4)
    monkeypatch.setattr(os, "rmdir", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOTEMPTY, "not empty")))
    save(tmp_path, 6, keep=2)
    monkeypatch.undo()
    assert names(tmp_path) == ["latest", "step_2", "step_4", "step_6"]
    save(tmp_path, 8, keep=2)
    assert names(tmp_path) == ["latest", "step_6", "step_8"]


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """Saving steps 2 and 4, keep 1, killed before each call that changes the disk until one goes through."""
    script = tmp_path / "writer.py"
    script.write_text(KILLED_WRITER.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    survived = []
    for fatal in range(1, int(done.stdout) + 1):
        directory = tmp_path / str(fatal)
        path, faults = newest_complete(directory)
        assert faults == []
        survived.append(0 if path is None else load_checkpoint(path).step)
        if (directory / "latest").exists():
            assert (directory / "latest").read_text() in ("step_2\n", "step_4\n")
            assert (directory / (directory / "latest").read_text().strip()).is_dir()
    assert survived == sorted(survived) and set(survived) == {0, 2, 4} and len(survived) > 30


def test_a_run_that_must_have_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        require_checkpoint(tmp_path)
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match="has no usable checkpoint; train on"):
        require_checkpoint(tmp_path)
    save(tmp_path / "checkpoints", 2, 4)
    flip_bit(tmp_path / "checkpoints" / "step_4" / "config.json", 9)
    path, faults = require_checkpoint(tmp_path)
    assert path.name == "step_2" and len(faults) == 1
    flip_bit(tmp_path / "checkpoints" / "step_2" / "config.json", 9)
    with pytest.raises(UserError, match=r"has no usable checkpoint: .*step_4/config\.json is not what was written"):
        require_checkpoint(tmp_path)
