"""A run goes on, and is folded, after its teacher is gone and its shards have moved.

The checkpoint has the weights, and knows by their hashes what the shards hold.
"""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM
from transformers.utils import logging as library_logging

from pipeline import fold
from pipeline.data.manifest import read_manifest
from pipeline.engine import session
from pipeline.engine.checkpoint import Checkpoint, save_checkpoint
from pipeline.engine.run_directory import record_start, resume_point
from pipeline.errors import UserError
from pipeline.models.huggingface import save_config
from pipeline.parsing import build
from pipeline.recipe import Recipe, load_recipe
from tests.engine.faults.processes import environment, launch
from tests.support import ROOT
from tests.support.methods import build_method
from tests.support.runs import (
    make_shards,
    make_teacher,
    prepare,
    recipe_values,
    run_main,
    train_command,
    vocabulary_of,
    write_deepspeed,
    write_recipe,
)
from tests.support.shards import contents

# Two ranks


def train_on_two_ranks(directory: Path, *jobs: list[str]) -> None:
    (directory / "jobs.json").write_text(json.dumps(jobs))
    command = launch("torchrun", ROOT / "tests" / "support" / "train_worker.py", directory / "jobs.json")
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def moved(tmp_path_factory) -> Path:
    """Runs of two methods, trained to their end in `straight_`, and in `moved_` on from step 2 after the move."""
    directory = tmp_path_factory.mktemp("moved")
    old, new = directory / "old", directory / "new"
    for seed, name in enumerate(("a", "b", "heldout")):
        make_shards(old / name, seed=seed)
    teacher = make_teacher(directory / "teacher", vocabulary_of(old / "a"))
    wid = recipe_values(old / "a", teacher, data={"heldout": str(old / "heldout")})
    two = [{"path": str(old / name), "weight": weight} for name, weight in (("a", 1.0), ("b", 2.0))]
    further = recipe_values(old / "a", teacher, "continue", target=None, data={"shards": two, "heldout_windows": 5})
    deepspeed = write_deepspeed(directory / "deepspeed.json")
    inputs = {
        method: {"recipe": write_recipe(directory / f"{method}.yaml", values), "deepspeed": deepspeed}
        for method, values in (("wid", wid), ("continue", further))
    }
    train_on_two_ranks(directory, *(train_command(inputs[m], directory / f"straight_{m}") for m in inputs))

    for method in inputs:
        shutil.copytree(directory / f"straight_{method}", directory / f"moved_{method}")
        shutil.rmtree(directory / f"moved_{method}" / "checkpoints" / "step_4")
    shutil.rmtree(directory / "teacher")
    old.rename(new)
    places = {
        "wid": [f"--data.shards={new / 'a'}", f"--data.heldout={new / 'heldout'}"],
        "continue": [f"--data.shards=[{{path: {new / 'a'}, weight: 1.0}}, {{path: {new / 'b'}, weight: 2.0}}]"],
    }
    train_on_two_ranks(directory, *([*train_command(inputs[m], directory / f"moved_{m}"), *places[m]] for m in inputs))
    return directory


@pytest.mark.parametrize("method", ["wid", "continue"])
def test_a_run_goes_on_without_its_teacher_and_with_moved_shards_to_the_same_bytes(moved, method):
    straight, resumed = (
        contents(moved / f"{how}_{method}" / "checkpoints" / "step_4") for how in ("straight", "moved")
    )
    assert straight == resumed
    recorded = yaml.safe_load((moved / f"moved_{method}" / "config.yaml").read_text())
    assert str(moved / "old") not in json.dumps(recorded["data"]) and str(moved / "new" / "a") in json.dumps(recorded)
    assert recorded["teacher"]["path"] == str(moved / "teacher")


@pytest.mark.parametrize("method,how", [("wid", "moved"), ("continue", "moved"), ("wid", "straight")])
def test_it_folds_without_its_teacher_and_says_nothing_on_stderr(moved, tmp_path, monkeypatch, method, how):
    """Where the run itself does not know of the move, --shards says it."""
    library_logging.enable_progress_bar()
    library_logging.set_verbosity_warning()
    arguments = ["--run", moved / f"{how}_{method}", "--output", tmp_path / "student"]
    if how == "straight":
        code, _, err = run_main(monkeypatch, fold.main, *arguments)
        assert code == 2 and "no finished shard directory" in err
        arguments += ["--shards", moved / "new" / "a"]
    code, out, err = run_main(monkeypatch, fold.main, *arguments)
    assert code == 0 and err == "" and "layers, hidden" in out
    hidden = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").config.hidden_size
    assert hidden == (15 if method == "wid" else 24)


# Which runs are the same


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """Beside what every run reads, two more shard directories."""
    found = prepare(tmp_path_factory.mktemp("inputs"))
    for seed, name in ((1, "more"), (2, "heldout")):
        found[name] = make_shards(found["shards"].parent / name, seed=seed)
    return found


def recipe(inputs: dict[str, Path], method: str = "wid", **data: object) -> Recipe:
    small = {"layers": 1, "hidden": 16, "head_size": 8, "intermediate": None}
    target = {"wid": {}, "continue": None, "scratch": small}[method]
    teacher = None if method == "scratch" else inputs["teacher"]
    values = recipe_values(inputs["shards"], teacher, method, data=data, target=target)
    return build(Recipe, values, "test").with_absolute_paths()


def start(directory: Path, wanted: Recipe, spoil: str | None = None) -> Path:
    """A run with a checkpoint of step 1, nothing retired yet; a parameter whose name holds `spoil` has a NaN."""
    record_start(directory, wanted, {}, ["train.py"])
    module = (built := build_method(wanted, vocabulary_of(wanted.data.sources()[0][0]))).model
    parameters = {name: value.detach().clone() for name, value in module.named_parameters()}
    if spoil:
        next(value for name, value in parameters.items() if spoil in name).view(-1)[0] = float("nan")
    hashes = [read_manifest(path).tokens_hash for path, _ in wanted.data.sources()]
    heldout = read_manifest(Path(wanted.data.heldout)).tokens_hash if wanted.data.heldout else hashes[0]
    trainer = {"step": 1, "head_is_new": False, "narrowed": False, "shards": hashes, "heldout": heldout}
    tensors = {"parameters": parameters, "exp_avg": {}, "exp_avg_sq": {}, "compaction": built.state_dict()}
    save_checkpoint(directory / "checkpoints", Checkpoint(tensors, trainer, save_config(built.model.config)), keep=2)
    return directory


def go_on(run: Path, wanted: Recipe, inputs: dict[str, Path]) -> session.Inputs:
    """What train.py does before the first step of a resumed run."""
    path, faults = resume_point(run, wanted)
    assert path and not faults
    return session.prepare(wanted, inputs["deepspeed"], 1, path)


def elsewhere(tmp_path: Path, directory: Path) -> str:
    return str(shutil.copytree(directory, tmp_path / "elsewhere" / directory.name))


@pytest.mark.parametrize("method", ["wid", "continue", "scratch"])
def test_the_restored_model_is_the_checkpoints_and_reads_no_teacher(inputs, tmp_path, monkeypatch, method):
    run = start(tmp_path / "run", recipe(inputs, method))
    built = build_method(recipe(inputs, method), vocabulary_of(inputs["shards"]))
    monkeypatch.setattr("pipeline.methods.teacher.load_teacher", None)
    found = go_on(run, recipe(inputs, method, shards=elsewhere(tmp_path, inputs["shards"])), inputs)
    own = dict(found.method.model.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in built.model.named_parameters())
    assert save_config(found.method.model.config) == save_config(built.model.config)
    assert found.method.describe() == built.describe() and not found.method.head_is_new
    assert all(source.directory == tmp_path / "elsewhere" / "shards" for source in found.data.sources)


def test_several_sources_and_the_heldout_directory_may_move(inputs, tmp_path):
    def wanted(first, second, heldout):
        shards = [{"path": str(first), "weight": 1.0}, {"path": str(second), "weight": 3.0}]
        return recipe(inputs, shards=shards, heldout=str(heldout))

    run = start(tmp_path / "run", wanted(inputs["shards"], inputs["more"], inputs["heldout"]))
    more, heldout = elsewhere(tmp_path, inputs["more"]), elsewhere(tmp_path, inputs["heldout"])
    found = go_on(run, wanted(inputs["shards"], more, heldout), inputs)
    assert str(found.data.sources[1].directory) == more and str(found.heldout.source.directory) == heldout
    swapped, other_heldout = (more, inputs["shards"], heldout), (inputs["shards"], more, more)
    for paths, what in ((swapped, "trained"), (other_heldout, "measured")):
        sentence = f"{more} holds other tokens than those that this run was {what} on up to step 1: put the old shards"
        with pytest.raises(UserError, match=sentence):
            go_on(run, wanted(*paths), inputs)


def test_shards_of_other_content_are_refused_wherever_they_lie(inputs, tmp_path):
    run = start(tmp_path / "run", recipe(inputs))
    other = Path(elsewhere(tmp_path, inputs["shards"]))
    manifest = read_manifest(other)
    replace(manifest, shards=manifest.shards[::-1]).write(other)  # the same text in another order
    larger = make_shards(tmp_path / "larger", extra=("zebra",))
    with pytest.raises(UserError, match="elsewhere/shards holds other tokens than those that this run was trained on"):
        go_on(run, recipe(inputs, shards=str(other)), inputs)
    with pytest.raises(UserError, match=r"larger has a vocabulary of .*: these are not the shards it was trained on"):
        go_on(run, recipe(inputs, shards=str(larger)), inputs)


def test_what_is_no_move_is_another_recipe(inputs, tmp_path):
    """Other weights, another number of sources, held-out text from elsewhere: each trains on other samples."""

    def shards(weight):
        return [{"path": str(inputs["shards"]), "weight": weight}, {"path": str(inputs["more"]), "weight": 1.0}]

    run, heldout = start(tmp_path / "run", recipe(inputs, shards=shards(1.0))), str(inputs["heldout"])
    for data in (
        {"shards": shards(2.0)},
        {"shards": str(inputs["shards"])},
        {"shards": shards(1.0), "heldout": heldout},
    ):
        with pytest.raises(UserError, match=r"holds another run: its data\.(shards|heldout) is"):
            resume_point(run, recipe(inputs, **data))
    single = start(tmp_path / "single", recipe(inputs, heldout=str(inputs["heldout"])))
    with pytest.raises(UserError, match=r"holds another run: its data\.heldout is"):
        resume_point(single, recipe(inputs))


def test_before_the_first_checkpoint_nothing_knows_what_the_shards_held(inputs, tmp_path):
    record_start(tmp_path / "run", recipe(inputs), {}, [])
    assert resume_point(tmp_path / "run", recipe(inputs)) == (None, [])
    with pytest.raises(UserError, match=r"holds another run: its data\.shards is"):
        resume_point(tmp_path / "run", recipe(inputs, shards=elsewhere(tmp_path, inputs["shards"])))


def test_a_relative_path_of_a_teacher_that_is_gone_stays_the_same_path(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(inputs["teacher"], "models/bert")
    config = tmp_path / "recipe.yaml"
    values = recipe_values(inputs["shards"], Path("models/bert"))
    write_recipe(config, values)
    run = start(tmp_path / "run", load_recipe(config, []).with_absolute_paths())
    shutil.rmtree("models")
    wanted = load_recipe(config, []).with_absolute_paths()
    assert wanted.teacher.path == "models/bert"
    found = go_on(run, wanted, inputs)
    record_start(run, wanted, found.deepspeed_config, [])
    assert yaml.safe_load((run / "config.yaml").read_text())["teacher"]["path"] == os.path.abspath("models/bert")
    values["teacher"]["path"] = "models/other"
    with pytest.raises(UserError, match=r"holds another run: its teacher\.path is"):
        resume_point(run, build(Recipe, values, "test"))


# Numbers that are none


@pytest.mark.parametrize("method,name", [("wid", "row_delta"), ("continue", "norm_bias"), ("scratch", "decoder_bias")])
@pytest.mark.parametrize("door", ["train", "fold"])
def test_a_checkpoint_with_a_nan_is_refused_and_the_tensor_named(inputs, tmp_path, monkeypatch, method, name, door):
    wanted = recipe(inputs, method)
    run = start(tmp_path / "run", wanted, spoil=name)
    sentence = rf"the checkpoint of step 1 holds NaN or infinity in \S*{name}: take an earlier one"
    if door == "train":
        with pytest.raises(UserError, match=sentence):
            go_on(run, wanted, inputs)
        return
    code, _, err = run_main(monkeypatch, fold.main, "--run", run, "--output", tmp_path / "student")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "student").exists()
    assert f"{name}: take an earlier one (fold with --step" in err
