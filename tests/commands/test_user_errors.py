"""What a user can get wrong: one sentence, the exit code of the design, and nothing of theirs lost or half-written.

The entry points run in this process, framed by `run_entry_point` as the scripts are; a few cases run as real scripts.
"""

import os
import shutil
import subprocess
import sys

import pytest
from transformers import RobertaConfig

from pipeline import train
from pipeline.errors import EXIT_DATA, EXIT_USAGE, UserError
from pipeline.launch import adopt_launcher_environment
from preprocessing import build_shards, train_tokenizer
from tests.support import ROOT
from tests.support.refusals import assert_one_sentence, clean_environment, refused, rewrite
from tests.support.runs import make_shards, train_command, write_deepspeed
from tests.support.shards import contents, flip_bit

pytestmark = pytest.mark.usefixtures("own_process_group")


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
@pytest.mark.usefixtures("no_fp16")
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
