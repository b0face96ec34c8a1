"""What a user can get wrong: one sentence, the exit code of the design, and nothing of theirs lost or half-written.

The entry points run in this process, framed by `run_entry_point` as the scripts are; a few cases run as real scripts.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from transformers import RobertaConfig

from pipeline import fold, train
from pipeline.compaction.schedule import Schedule
from pipeline.config import load_recipe
from pipeline.data.manifest import read_manifest
from pipeline.data.vocabulary import load_tokenizer
from pipeline.engine import checkpoint, student
from pipeline.engine.checkpoint import Checkpoint, save_checkpoint
from pipeline.engine.run_directory import LOCK, record_start
from pipeline.errors import EXIT_DATA, EXIT_USAGE, UserError
from pipeline.launch import adopt_launcher_environment
from pipeline.models import build_model, save_config
from preprocessing import build_shards, train_tokenizer
from tests.support import ROOT
from tests.support.models import random_teacher
from tests.support.runs import make_shards, prepare, run_main, train_command, vocabulary_of, write_deepspeed
from tests.support.shards import contents, flip_bit


@pytest.fixture(scope="module", autouse=True)
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


def rewrite(inputs: dict[str, Path], **sections: dict) -> None:
    values = yaml.safe_load(inputs["recipe"].read_text())
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    inputs["recipe"].write_text(yaml.safe_dump(values))


def refused(monkeypatch, main, arguments, code: int, *parts: str) -> None:
    """The command ends with `code` and exactly one sentence on stderr, which holds the parts."""
    found, _, err = run_main(monkeypatch, main, *arguments)
    assert_one_sentence(found, err, code, *parts)


def assert_one_sentence(found: int, err: str, code: int, *parts: str) -> None:
    assert found == code, err
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert all(part in err for part in parts), err


def break_key(inputs):
    rewrite(inputs, train={"setps": 3})


def break_target(inputs):
    rewrite(inputs, target={"hidden": 16, "head_size": 8})


def break_teacher(inputs):
    shutil.rmtree(inputs["teacher"])
    RobertaConfig(vocab_size=90).save_pretrained(inputs["teacher"])


def break_vocabulary(inputs):
    shutil.rmtree(inputs["shards"])
    make_shards(inputs["shards"], extra=("zebra", "yak", "gnu"))


def break_tokenizer(inputs):
    """As many tokens as the shards', but others."""
    shutil.copytree(inputs["shards"] / "tokenizer", inputs["teacher"], dirs_exist_ok=True)
    path = inputs["teacher"] / "tokenizer.json"
    path.write_text(path.read_text().replace('"quick"', '"quack"'))


def truncate_shard(inputs):
    path = inputs["shards"] / "s1.bin"
    path.write_bytes(path.read_bytes()[:-6])


def damage_index(inputs):
    flip_bit(inputs["shards"] / "s0.idx", 8 * 17)


def damage_manifest(inputs):
    flip_bit(inputs["shards"] / "manifest.json", 8 * 100)


def swap_tokenizer(inputs):
    path = inputs["shards"] / "tokenizer" / "vocab.txt"
    path.write_text(path.read_text() + "gnu\n")


def use_deepspeed(**changes):
    return lambda inputs: write_deepspeed(inputs["deepspeed"], **changes)


def remove(name):
    return lambda inputs: shutil.rmtree(path) if (path := inputs[name]).is_dir() else path.unlink()


MISTAKES = {
    "missing recipe": (remove("recipe"), EXIT_USAGE, ["recipe.yaml cannot be read: No such file"]),
    "missing deepspeed": (remove("deepspeed"), EXIT_USAGE, ["deepspeed.json cannot be read: No such file"]),
    "missing shards": (remove("shards"), EXIT_USAGE, ["inputs/shards", "no finished shard directory"]),
    "missing teacher": (remove("teacher"), EXIT_USAGE, ["inputs/teacher does not exist"]),
    "unknown key": (break_key, EXIT_USAGE, ["there is no key train.setps, did you mean train.steps"]),
    "no BERT target": (break_target, EXIT_USAGE, ["strategy dim keeps the teacher's 3 heads"]),
    "no BERT teacher": (break_teacher, EXIT_USAGE, ["is a roberta model; only model_type bert"]),
    "other vocabulary": (break_vocabulary, EXIT_USAGE, ["tokens and the shards have"]),
    "other tokenizer": (break_tokenizer, EXIT_USAGE, ["has another vocabulary than"]),
    "truncated shard": (truncate_shard, EXIT_DATA, ["s1.bin: byte", "expected a file of"]),
    "damaged index": (damage_index, EXIT_DATA, ["s0.idx: byte 17: expected dtype code"]),
    "damaged manifest": (damage_manifest, EXIT_DATA, ["manifest.json", "byte"]),
    "swapped tokenizer": (swap_tokenizer, EXIT_DATA, ["is not the tokenizer that made these shards"]),
    "too little text": (lambda i: rewrite(i, data={"heldout_windows": 10**6}), EXIT_USAGE, ["too few to keep"]),
    "long windows": (
        lambda i: rewrite(i, data={"seq_len": 64}),
        EXIT_USAGE,
        ["longer than the teacher's 32 positions"],
    ),
    "unknown deepspeed key": (use_deepspeed(gradient_cliping=1), EXIT_USAGE, ["unknown key gradient_cliping"]),
    "unknown inner key": (use_deepspeed(zero_optimization={"stag": 1}), EXIT_USAGE, ["DeepSpeed refuses the key stag"]),
    "contradiction": (use_deepspeed(train_batch_size=64), EXIT_USAGE, ["train_batch_size is 64, but the recipe"]),
    "second optimizer": (use_deepspeed(optimizer={"type": "Adam"}), EXIT_USAGE, ["optimizer belongs to the recipe"]),
    "fp16 on a CPU": (use_deepspeed(fp16={"enabled": True}), EXIT_USAGE, ["fp16 does not run on this machine's cpu"]),
    "offload at stage 0": (
        use_deepspeed(zero_optimization={"stage": 0, "offload_optimizer": {"device": "cpu"}}),
        EXIT_USAGE,
        ["offload_optimizer needs stage 1 or more"],
    ),
    "parameters offloaded at stage 2": (
        use_deepspeed(zero_optimization={"stage": 2, "offload_param": {"device": "cpu"}}),
        EXIT_USAGE,
        ["offload_param needs stage 3"],
    ),
    "offload to a disk": (
        use_deepspeed(zero_optimization={"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/tmp"}}),
        EXIT_USAGE,
        ["to nvme is not supported"],
    ),
    "bf16 masters": (
        use_deepspeed(zero_optimization={"stage": 1}, bf16={"enabled": True, "bf16_master_weights_and_grads": True}),
        EXIT_USAGE,
        ["bf16_master_weights_and_grads"],
    ),
    "unchecked gradients": (
        use_deepspeed(bf16={"enabled": True, "check_grad_overflow": False}),
        EXIT_USAGE,
        ["check_grad_overflow must stay on"],
    ),
    "unmeasured gradients": (
        use_deepspeed(zero_optimization={"stage": 1, "compute_grad_norm": False}),
        EXIT_USAGE,
        ["compute_grad_norm must stay on"],
    ),
    "missing replay": (
        lambda i: rewrite(i, compaction={"replay": "/nowhere/selection.jsonl"}),
        EXIT_USAGE,
        ["compaction.replay /nowhere/selection.jsonl does not exist"],
    ),
    "one checkpoint": (lambda i: rewrite(i, train={"keep_checkpoints": 1}), EXIT_USAGE, ["must be at least 2, not 1"]),
    "kept at odd steps": (
        lambda i: rewrite(i, train={"keep_every": 3}),
        EXIT_USAGE,
        ["train.keep_every 3 is not a multiple of train.checkpoint_every 2"],
    ),
    "ZeRO stage 4": (use_deepspeed(zero_optimization={"stage": 4}), EXIT_USAGE, ["stage must be 0, 1, 2 or 3, not 4"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_training_refuses(inputs, tmp_path, monkeypatch, mistake):
    breaking, code, parts = MISTAKES[mistake]
    breaking(inputs)
    before = contents(tmp_path)
    refused(monkeypatch, train.main, train_command(inputs, tmp_path / "run"), code, *parts)
    assert contents(tmp_path) == before and not (tmp_path / "run").exists()


def test_a_damaged_token_id_is_named_while_training(inputs, tmp_path, monkeypatch):
    """No quick check reads the body; the window that meets the id does."""
    path = inputs["shards"] / "s0.bin"
    path.write_bytes(b"\xff\xff" * (path.stat().st_size // 2))
    done = subprocess.run(
        [sys.executable, ROOT / "pipeline" / "train.py", *train_command(inputs, tmp_path / "run")],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == EXIT_DATA and len(errors) == 1
    assert "s0.bin: byte 0: expected a token id below the vocabulary size" in errors[0]


def clean_environment() -> dict[str, str]:
    """Without the variables that train.main set in this process."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    }


@pytest.mark.parametrize(
    "arguments,part",
    [
        (["--train.setps=3"], "there is no key train.setps"),
        (["--train.steps"], "--train.steps needs a value"),
        (["surplus"], "unexpected argument 'surplus'"),
        (["--deepspeed_conf", "x"], "there is no key deepspeed_conf"),
    ],
)
def test_mistakes_on_the_command_line(inputs, tmp_path, monkeypatch, arguments, part):
    refused(monkeypatch, train.main, [*train_command(inputs, tmp_path / "run"), *arguments], EXIT_USAGE, part)
    assert not (tmp_path / "run").exists()


# Directories that hold something


@pytest.fixture
def unfinished(inputs, tmp_path) -> Path:
    """A run directory as a killed run leaves it: one checkpoint, nothing retired yet."""
    recipe = load_recipe(inputs["recipe"], []).with_absolute_paths()
    built = build_model(recipe, vocabulary_of(inputs["shards"]))
    parameters = {name: value.detach().clone() for name, value in built.module.named_parameters()}
    moments = {name: torch.zeros_like(value) for name, value in parameters.items()}
    schedule = Schedule(recipe.compaction, built.module.gates, recipe.train.compactor_lr)
    selected = {f"selected_at.{name}": value for name, value in schedule.state_dict().items()}
    tensors = {"parameters": parameters, "exp_avg": moments, "exp_avg_sq": moments, "compaction": selected}
    run = tmp_path / "run"
    record_start(run, recipe, {}, ["train.py"])
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    save_checkpoint(
        run / "checkpoints", Checkpoint(tensors, {"step": 1, "narrowed": False}, save_config(built.bert_config)), keep=2
    )
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
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    before = but_lock(contents(unfinished))
    part = "step_1 is of format 1 and this program reads format 2"
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


# Preprocessing


def test_preprocessing_refuses(inputs, tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text("\n\n")
    empty, missing = f"lines:{tmp_path}/empty.txt", f"lines:{tmp_path}/missing.txt"
    tokenizer = ["--tokenizer", inputs["shards"] / "tokenizer", "--workers", "1", "--output", tmp_path / "out"]
    refused(monkeypatch, build_shards.main, ["--input", empty, *tokenizer], EXIT_DATA, "holds no document")
    refused(monkeypatch, build_shards.main, ["--input", missing, *tokenizer], EXIT_USAGE, "missing.txt", "no such file")
    training = ["--vocab-size", "200", "--output", tmp_path / "out"]
    refused(monkeypatch, train_tokenizer.main, ["--input", empty, *training], EXIT_DATA, "no")
    refused(monkeypatch, train_tokenizer.main, ["--input", missing, *training], EXIT_USAGE, "no such file")
    assert not (tmp_path / "out").exists()
    before = contents(inputs["shards"])
    (tmp_path / "text.txt").write_text("the quick brown fox\n")
    tokenizer[-1] = inputs["shards"]
    arguments = ["--input", f"lines:{tmp_path}/text.txt", *tokenizer]
    refused(monkeypatch, build_shards.main, arguments, EXIT_USAGE, "holds finished shards of other input")
    assert contents(inputs["shards"]) == before


def test_the_frame_itself_as_a_script(inputs, tmp_path):
    """Without the in-process frame: code, one line on stderr, nothing on stdout."""
    rewrite(inputs, train={"setps": 3})
    command = [sys.executable, ROOT / "pipeline" / "train.py", *train_command(inputs, tmp_path / "run")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=clean_environment())
    assert_one_sentence(done.returncode, done.stderr, EXIT_USAGE, "there is no key train.setps")
    assert done.stdout == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
        | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2"},
    ],
    ids=["mpirun", "srun"],
)
def test_ranks_on_several_nodes_must_know_the_first(monkeypatch, variables):
    monkeypatch.setattr(os, "environ", dict(variables))
    with pytest.raises(UserError, match="MASTER_ADDR is not set: set it to the name of the first node"):
        adopt_launcher_environment()
    monkeypatch.setattr(os, "environ", variables | {"MASTER_ADDR": "node1"})
    adopt_launcher_environment()
    assert os.environ["RANK"] == "1" and os.environ["WORLD_SIZE"] == "4" and os.environ["MASTER_ADDR"] == "node1"
