"""Run directories: one run at a time goes on where it stopped, and what belongs to others is left alone."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.engine import checkpoint as checkpoint_module
from pipeline.engine.run_directory import DirectoryLock, record_start, resume_point
from pipeline.environment import commit
from pipeline.errors import DataError, UserError
from pipeline.parsing import build
from pipeline.recipe import Recipe
from tests.support.checkpoints import names, save
from tests.support.runs import recipe_values
from tests.support.shards import contents, flip_bit


def recipe(**train) -> Recipe:
    return build(Recipe, recipe_values(Path("/shards"), Path("/teacher"), train=train), "test")


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints at steps 2 and 4."""
    directory = tmp_path / "run"
    record_start(directory, recipe(), {"train_batch_size": 4}, ["train.py", "--config", "r.yaml"])
    save(directory / "checkpoints", 2, 4)
    return directory


def test_a_new_run_starts_anywhere_empty(tmp_path):
    assert resume_point(tmp_path / "new", recipe()) == (None, [])
    assert resume_point(tmp_path, recipe()) == (None, [])
    assert names(tmp_path) == []
    (tmp_path / ".config.yaml.77.tmp").write_text("metho")  # a run killed at its very first write
    assert resume_point(tmp_path, recipe()) == (None, [])


def test_the_start_is_recorded(run):
    assert yaml.safe_load((run / "config.yaml").read_text()) == recipe().to_dict()
    assert json.loads((run / "ds_config.json").read_text()) == {"train_batch_size": 4}
    environment = (run / "environment.txt").read_text()
    assert "command: train.py --config r.yaml" in environment and "torch: " in environment
    assert f"commit: {commit()}" in environment and "not installed" not in environment


def test_the_same_recipe_goes_on_and_may_grow_or_be_compiled(run):
    before = contents(run)
    assert resume_point(run, recipe()) == (run / "checkpoints" / "step_4", [])
    assert resume_point(run, recipe(steps=9)) == (run / "checkpoints" / "step_4", [])
    assert resume_point(run, recipe(compile=True)) == (run / "checkpoints" / "step_4", [])
    with pytest.raises(UserError, match=r"started for 4 steps; train\.steps may grow, not shrink to 3"):
        resume_point(run, recipe(steps=3))
    with pytest.raises(UserError, match=r"holds another run: its train\.lr is 0\.001, not 0\.5"):
        resume_point(run, recipe(lr=0.5))
    assert contents(run) == before


def test_what_reads_the_text_is_no_part_of_the_run(run):
    """Also of a run from before the key was there."""
    newest = run / "checkpoints" / "step_4"
    for reader in ("process", "thread", None):
        wanted = build(Recipe, recipe_values(Path("/shards"), Path("/teacher"), data={"reader": reader}), "test")
        assert wanted.data.reader == reader and resume_point(run, wanted) == (newest, [])
        recorded = yaml.safe_load((run / "config.yaml").read_text())
        recorded["data"].pop("reader", None)
        (run / "config.yaml").write_text(yaml.safe_dump(recorded))
        assert resume_point(run, wanted) == (newest, [])
        record_start(run, wanted, {}, [])
    with pytest.raises(UserError, match=r"^test: data\.reader must be one of process, thread, not 'both'$"):
        build(Recipe, {"data": {"reader": "both"}}, "test")


def test_a_run_of_another_format_is_refused_as_such_whatever_its_recipe_holds(run, monkeypatch):
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    recorded["train"]["optimiser"] = recorded["train"].pop("keep_every")
    (run / "config.yaml").write_text(yaml.safe_dump(recorded))
    with pytest.raises(UserError, match=r"holds another run: its train\.keep_every is None, not 0"):
        resume_point(run, recipe())
    monkeypatch.setattr(checkpoint_module, "FORMAT", 3)
    with pytest.raises(UserError, match="step_4 is of format 2 and this program reads formats 1 and 3"):
        resume_point(run, recipe())
    flip_bit(run / "checkpoints" / "step_4" / "trainer.json", 3)  # what is damaged says nothing of its format
    with pytest.raises(UserError, match="step_2 is of format 2"):
        resume_point(run, recipe())


def test_one_run_at_a_time(tmp_path):
    """The lock is the process's, and gone with it; a run that was killed before anything else may begin anew."""
    (tmp_path / "run").mkdir()
    with DirectoryLock(tmp_path / "run") as first, DirectoryLock(tmp_path / "run") as second:
        first.take(create=False)
        assert names(tmp_path / "run") == []
        first.take(create=True)
        first.take(create=True)
        assert resume_point(tmp_path / "run", recipe()) == (None, [])
        for create in (False, True):
            with pytest.raises(
                UserError, match=rf"run is in use by another run \(process {os.getpid()} on .*wait for its"
            ):
                second.take(create)
        first.release()
        second.take(create=False)
        with pytest.raises(UserError, match="in use by another run"):
            record_start(tmp_path / "run", recipe(), {}, [], first)
        assert names(tmp_path / "run") == ["lock"]


def test_what_another_run_wrote_before_it_let_go_is_seen(run):
    class Held(DirectoryLock):
        """Held by a run that ends, after one more checkpoint, when somebody waits for it."""

        def take(self, create: bool) -> None:
            save(run / "checkpoints", 6, keep=1)
            super().take(create)

    with Held(run) as lock:
        assert resume_point(run, recipe(), lock) == (run / "checkpoints" / "step_6", [])
        assert lock.held


def test_a_run_that_began_in_the_meantime_is_not_overwritten(tmp_path):
    with DirectoryLock(tmp_path / "run") as lock:
        assert resume_point(tmp_path / "run", recipe(), lock) == (None, []) and not lock.held
        record_start(tmp_path / "run", recipe(lr=0.5), {}, [])
        before = contents(tmp_path / "run")
        with pytest.raises(UserError, match=r"another run has just begun in .*run: wait for its end"):
            record_start(tmp_path / "run", recipe(), {}, [], lock)
        assert contents(tmp_path / "run") == {**before, "lock": contents(tmp_path / "run")["lock"]}


def test_directories_that_are_no_run_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is no directory"):
        resume_point(tmp_path / "file", recipe())
    for content in (None, "", "- a", "a: [", b"\xff"):
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        other.mkdir()
        (other / "thesis.txt").write_text("mine")
        if content is not None:
            (other / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match="not empty and no run directory"):
            resume_point(other, recipe())
    (tmp_path / "other" / "config.yaml").write_text("batch_size: 3\n")
    with pytest.raises(UserError, match="holds another run"):
        resume_point(tmp_path / "other", recipe())


def test_a_run_whose_checkpoints_are_all_broken_is_not_begun_anew(run):
    flip_bit(run / "checkpoints" / "step_4" / "trainer.json", 3)
    path, faults = resume_point(run, recipe())
    assert path == run / "checkpoints" / "step_2" and "step_4/trainer.json" in faults[0]
    flip_bit(run / "checkpoints" / "step_2" / "trainer.json", 3)
    with pytest.raises(DataError, match=r"no older checkpoint is whole: delete .* to begin anew"):
        resume_point(run, recipe())


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    record_start(tmp_path / "run", recipe(), {}, [])
    (tmp_path / "run" / "checkpoints" / ".step_2.5.tmp").mkdir()
    assert resume_point(tmp_path / "run", recipe()) == (None, [])
