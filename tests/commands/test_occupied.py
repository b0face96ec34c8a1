"""Directories that hold something already: a run, a student, a user's own files. Nothing of it is lost."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import fold, train
from pipeline.data.manifest import read_manifest
from pipeline.data.vocabulary import load_tokenizer
from pipeline.engine import checkpoint, student
from pipeline.engine.checkpoint import Checkpoint, save_checkpoint
from pipeline.engine.run_directory import LOCK, record_start
from pipeline.errors import EXIT_DATA, EXIT_USAGE, UserError
from pipeline.models.huggingface import save_config
from pipeline.recipe import load_recipe
from tests.support import ROOT
from tests.support.methods import build_method
from tests.support.models import random_teacher
from tests.support.refusals import clean_environment, refused
from tests.support.runs import make_shards, train_command, vocabulary_of
from tests.support.shards import contents, flip_bit

pytestmark = pytest.mark.usefixtures("own_process_group")


@pytest.fixture
def unfinished(inputs, tmp_path) -> Path:
    """A run directory as a killed run leaves it: one checkpoint, nothing retired yet."""
    recipe = load_recipe(inputs["recipe"], []).with_absolute_paths()
    built = build_method(recipe, vocabulary_of(inputs["shards"]))
    parameters = {name: value.detach().clone() for name, value in built.model.named_parameters()}
    moments = {name: torch.zeros_like(value) for name, value in parameters.items()}
    tensors = {"parameters": parameters, "exp_avg": moments, "exp_avg_sq": moments, "compaction": built.state_dict()}
    run = tmp_path / "run"
    record_start(run, recipe, {}, ["train.py"])
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    trainer = {"step": 1, "narrowed": False, "head_is_new": False}
    save_checkpoint(run / "checkpoints", Checkpoint(tensors, trainer, save_config(built.model.config)), keep=2)
    return run


def but_lock(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the one file that a refused start may write: who holds the directory."""
    return {name: content for name, content in files.items() if name != LOCK}


def test_a_run_directory_of_another_recipe_is_left_alone(inputs, unfinished, tmp_path, monkeypatch):
    before = contents(unfinished)
    for options, part in (
        (["--train.lr=0.5"], "holds another run: its train.lr is 0.001, not 0.5"),
        (["--train.steps=3"], "may grow, not shrink"),
        (["--data.seq_len=24"], "holds another run: its data.seq_len"),
    ):
        refused(monkeypatch, train.main, [*train_command(inputs, unfinished), *options], EXIT_USAGE, part)
    assert contents(unfinished) == before


def test_a_run_with_broken_checkpoints_only_is_left_alone(inputs, unfinished, monkeypatch):
    flip_bit(unfinished / "checkpoints" / "step_1" / "parameters.safetensors", 99_999)
    before = but_lock(contents(unfinished))
    part = "step_1/parameters.safetensors is not what was written"
    refused(monkeypatch, train.main, train_command(inputs, unfinished), EXIT_DATA, part, "to begin anew")
    assert but_lock(contents(unfinished)) == before


@pytest.mark.parametrize("door", ["train", "fold"])
def test_a_checkpoint_of_another_format_is_refused(inputs, unfinished, tmp_path, monkeypatch, door):
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    before = but_lock(contents(unfinished))
    part = "step_1 is of format 2 and this program reads formats 1 and 3"
    if door == "train":
        refused(monkeypatch, train.main, train_command(inputs, unfinished), EXIT_USAGE, part)
    else:
        arguments = ["--run", unfinished, "--output", tmp_path / "student"]
        refused(monkeypatch, fold.main, arguments, EXIT_USAGE, part)
    assert but_lock(contents(unfinished)) == before


def test_shards_that_are_no_longer_those_of_the_run_are_refused(inputs, tmp_path, monkeypatch):
    """Built anew with the documents in another order: the run would take some windows twice and some never."""
    run = tmp_path / "run"
    script = [sys.executable, ROOT / "pipeline" / "train.py", *train_command(inputs, run)]
    subprocess.run(script, check=True, capture_output=True, env=clean_environment())
    manifest = read_manifest(inputs["shards"])
    replace(manifest, shards=manifest.shards[::-1]).write(inputs["shards"])
    before = but_lock(contents(run))
    part = "holds other tokens than those that this run was trained on up to step 4: put the old shards back"
    refused(monkeypatch, train.main, [*train_command(inputs, run), "--train.steps=6"], EXIT_USAGE, part)
    assert but_lock(contents(run)) == before


def test_a_directory_or_file_of_the_users_is_left_alone(inputs, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    before = contents(tmp_path)
    refused(monkeypatch, train.main, train_command(inputs, home), EXIT_USAGE, "home is not empty and no run directory")
    refused(monkeypatch, train.main, train_command(inputs, home / "thesis.txt"), EXIT_USAGE, "is no directory")
    assert contents(tmp_path) == before


def test_fold_refuses_an_unfinished_run(unfinished, tmp_path, monkeypatch):
    before = contents(unfinished)
    arguments = ["--run", unfinished, "--output", tmp_path / "student"]
    refused(monkeypatch, fold.main, arguments, EXIT_USAGE, "the narrowing schedule has not ended")
    assert contents(unfinished) == before
    assert not list(tmp_path.glob("*student*")) and not list(tmp_path.glob(".*"))


def test_fold_refuses_what_is_no_run_and_names_what_is_broken(unfinished, tmp_path, monkeypatch):
    arguments = ["--run", tmp_path / "missing", "--output", tmp_path / "student"]
    refused(monkeypatch, fold.main, arguments, EXIT_USAGE, "missing is no run directory")
    arguments[1] = unfinished
    other = make_shards(tmp_path / "other", extra=("zebra",))
    refused(monkeypatch, fold.main, [*arguments, "--shards", other], EXIT_USAGE, "not the shards it was trained on")
    refused(
        monkeypatch, fold.main, [*arguments, "--shards", tmp_path / "0: {x"], EXIT_USAGE, "no finished shard directory"
    )
    refused(monkeypatch, fold.main, [*arguments, "--step", 7], EXIT_USAGE, "has no checkpoint of step 7; there are: 1")
    flip_bit(unfinished / "checkpoints" / "step_1" / "exp_avg.safetensors", 9999)
    refused(monkeypatch, fold.main, arguments, EXIT_USAGE, "no usable checkpoint", "exp_avg.safetensors")
    refused(monkeypatch, fold.main, [*arguments, "--step", 1], EXIT_USAGE, "exp_avg.safetensors")
    shutil.rmtree(unfinished / "checkpoints")
    refused(monkeypatch, fold.main, arguments, EXIT_USAGE, "no usable checkpoint; train on")
    assert not (tmp_path / "student").exists()


def test_fold_never_writes_over_anything(unfinished, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    for output in (home, home / "thesis.txt"):
        arguments = ["--run", unfinished, "--output", output]
        refused(monkeypatch, fold.main, arguments, EXIT_USAGE, "exists and is not an empty directory")
    assert contents(home) == {"thesis.txt": b"mine"}


def test_a_failed_fold_leaves_nothing_behind(tmp_path, monkeypatch):
    """The disk fills up while the student is written."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(student, "model_card", fail)
    tokenizer = load_tokenizer(make_shards(tmp_path / "shards") / "tokenizer")
    with pytest.raises(UserError, match="student: cannot write: No space left"):
        student.write_student(random_teacher(), tokenizer, {}, tmp_path / "student")
    assert not [path for path in tmp_path.iterdir() if "student" in path.name]
