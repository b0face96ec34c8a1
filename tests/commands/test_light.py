"""What a login node without torch can do: read every recipe, refuse what cannot run, show the help, list stages."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.record import JobRecord, Record
from tests.support import ROOT

FORBIDDEN = ("torch", "transformers", "deepspeed")
REFUSING = "raise ImportError(f'{__name__} is not to be imported here')\n"


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, str]:
    """An environment in which importing any of the heavy libraries fails."""
    folder = tmp_path_factory.mktemp("bare")
    for name in FORBIDDEN:
        (folder / f"{name}.py").write_text(REFUSING)
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(bare: dict[str, str], *command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, command)], env=bare, cwd=cwd, capture_output=True, text=True)


def test_the_environment_does_refuse(bare):
    for name in FORBIDDEN:
        assert run(bare, "-c", f"import {name}").returncode == 1
    assert run(bare, "-c", "import pipeline.engine.trainer").returncode == 1


@pytest.mark.parametrize("door", ["train", "fold", "evaluate", "export", "report"])
def test_help_needs_nothing_heavy(bare, door, tmp_path):
    result = run(bare, ROOT / "pipeline" / f"{door}.py", "--help", cwd=tmp_path)
    assert result.returncode == 0 and "--help" in result.stdout, result.stderr


@pytest.fixture
def login_node(bare, tmp_path, record_property):
    """Runs a door of slurm/ in less than a second of processor time; other tests may run beside. SLURM knows no job."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "squeue").write_text("#!/bin/bash\n")
    (commands / "squeue").chmod(0o755)
    variables = {**bare, "PATH": f"{commands}{os.pathsep}{bare['PATH']}"}

    def call(door, *arguments):
        begin, before = time.monotonic(), os.times()
        result = run(variables, ROOT / "slurm" / f"{door}.py", *arguments, cwd=tmp_path)
        after, seconds = os.times(), time.monotonic() - begin
        used = after.children_user + after.children_system - before.children_user - before.children_system
        record_property("processor_seconds", round(used, 2))
        record_property("wall_seconds", round(seconds, 2))
        assert result.returncode == 0, result.stderr
        assert used < 1
        return result.stdout

    return call


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text("one line\n")
    (tmp_path / "recipe.yaml").write_text(
        f"extends: {ROOT}/recipes/cluster_11m.yaml\nteacher: {{path: {ROOT}/teachers/wiki_books_4x192}}\n"
        "target: {hidden: 108, head_size: 18}\nsources: {inputs: ['lines:text.txt']}\n"
    )
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("door", ["submit", "status", "cancel"])
def test_a_login_node_needs_nothing_heavy(login_node, door):
    assert "--help" in login_node(door, "--help")


def test_a_chain_is_shown_without_torch(login_node, recipe, tmp_path):
    shown = login_node("submit", recipe, "--run", tmp_path / "run", "--dry-run", "--allow-dirty")
    assert shown.count("==> ") == 7


def test_the_state_of_a_run_is_shown_without_torch(login_node, recipe, tmp_path):
    record = Record(tmp_path / "run")
    record.folder.mkdir(parents=True)
    recipe.rename(record.folder / "recipe.yaml")
    (record.folder / "site.yaml").write_bytes((ROOT / "slurm" / "site.yaml").read_bytes())
    record.note(JobRecord("train", "train-1", "7"))
    shown = login_node("status", record.run).splitlines()
    assert any(line.split()[:4] == ["train", "7", "not", "run"] for line in shown), shown


def test_every_recipe_is_read(bare):
    program = """
from pathlib import Path
from pipeline.recipe import CHECKS, load_recipe

for path in sorted(Path("recipes").glob("*.yaml")):
    print(path.name, load_recipe(path, []).method)
"""
    result = run(bare, "-c", program)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(list((ROOT / "recipes").glob("*.yaml"))) > 10


def test_a_pipeline_is_listed(bare):
    program = """
from pathlib import Path
from pipeline.stages import fold_stage, train_stage

run = Path("runs/x")
recipe = "recipes/bert_base_to_11m.yaml"
stages = [train_stage("train", recipe, "ds_configs/zero1_bf16.json", run), fold_stage("fold", run, Path("student"))]
print(*(" ".join(stage.command) for stage in stages), sep="\\n")
"""
    result = run(bare, "-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1] == "pipeline/fold.py --run runs/x --output student"


def test_impossible_settings_are_refused_all_at_once_before_anything_heavy(bare, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "teacher: {path: x}\ntarget: {params: lots}\ntrain: {steps: 100, global_batch: 30}\n"
    )
    how = ("--config", tmp_path / "recipe.yaml", "--deepspeed_config", ROOT / "ds_configs" / "zero1_bf16.json")
    result = run(bare, ROOT / "pipeline" / "train.py", *how, "--output", tmp_path / "run")
    assert result.returncode == 2, result.stderr
    said = result.stderr.splitlines()
    assert said[0] == "error: 4 settings cannot work:" and len(said) == 5
    for part in ("schedule ends at step 8500", "data.shards", "target.params must be", "train.global_batch 30 is not"):
        assert sum(part in line for line in said) == 1, part
    assert not (tmp_path / "run").exists()


def test_a_wrong_value_does_not_hide_another(bare, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "method: scratch\ntrain: {stesp: 3, lr: -1, dropout: 2}\ndata: {seq_len: x}\n"
    )
    how = ("--config", tmp_path / "recipe.yaml", "--deepspeed_config", ROOT / "ds_configs" / "zero1_bf16.json")
    first = run(bare, ROOT / "pipeline" / "train.py", *how, "--output", tmp_path / "run")
    assert first.stderr.startswith("error: 2 settings cannot work:") and "train.stesp" in first.stderr
    assert "data.seq_len must be a whole number" in first.stderr
    (tmp_path / "recipe.yaml").write_text("method: scratch\ntrain: {lr: -1, dropout: 2}\ndata: {seq_len: 4}\n")
    second = run(bare, ROOT / "pipeline" / "train.py", *how, "--output", tmp_path / "run")
    assert second.stderr.startswith("error: 3 settings cannot work:"), second.stderr


def test_a_schedule_before_the_head_is_warm_is_said_together_with_the_rest(bare, tmp_path):
    make_teacher = """
import json
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

save_file({"bert.embeddings.word_embeddings.weight": np.zeros((2, 2))}, Path(sys.argv[1]) / "model.safetensors")
sizes = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48}
sizes |= {"model_type": "bert", "vocab_size": 9, "max_position_embeddings": 64, "type_vocab_size": 2}
(Path(sys.argv[1]) / "config.json").write_text(json.dumps(sizes))
"""
    assert run(bare, "-c", make_teacher, tmp_path).returncode == 0
    (tmp_path / "recipe.yaml").write_text(
        f"teacher: {{path: {tmp_path}}}\ntarget: {{hidden: 18, head_size: 6}}\ndata: {{shards: s}}\n"
        "compaction: {start_step: 7}\ntrain: {global_batch: 31}\n"
    )
    how = ("--config", tmp_path / "recipe.yaml", "--deepspeed_config", ROOT / "ds_configs" / "zero1_bf16.json")
    result = run(bare, ROOT / "pipeline" / "train.py", *how, "--output", tmp_path / "run")
    assert result.returncode == 2 and result.stderr.startswith("error: 3 settings cannot work:"), result.stderr
    assert "72, four times hidden by default, which is wider" in result.stderr
    assert "teacher.head_warmup_steps 500" in result.stderr and "compaction.start_step is 7" in result.stderr
