"""Runs that are killed, damaged and moved to other ranks end as the uninterrupted one; `faults.harness` says how."""

import json
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.engine.checkpoint import Checkpoint, all_checkpoints, load_checkpoint, save_checkpoint
from pipeline.engine.run_directory import record_start, resume_point
from pipeline.errors import DataError
from pipeline.models.huggingface import save_config
from pipeline.parsing import build
from pipeline.recipe import Recipe
from pipeline.records import read_json_lines
from tests.engine.faults.harness import HITS, Harness, differences, plan
from tests.engine.faults.processes import Job, launch
from tests.support import ROOT
from tests.support.methods import build_method
from tests.support.models import random_teacher
from tests.support.runs import make_shards, recipe_values, vocabulary_of, write_deepspeed, write_recipe
from tests.support.shards import flip_bit

QUICK_KILLS, ALL_KILLS = 3, 20


def test_killed_three_times_it_ends_as_if_nothing_had_happened(tmp_path):
    """One run, killed while a checkpoint is written, while the model is narrowed, and after some step."""
    harness = Harness(tmp_path)
    (aims,) = plan(QUICK_KILLS, seed=109)
    row = harness.run(1, "ZeRO 1, fp32", aims)
    assert len(row["kills"]) == QUICK_KILLS and row["differences"] == [], row
    hits = {kill["aim"]: kill["hit"] for kill in row["kills"]}
    assert hits.keys() == {"checkpoint", "narrowing", "step"}
    assert re.fullmatch(r"step_\d+ with \d of 7 files written", hits["checkpoint"])
    assert hits["narrowing"] == "while narrowing" and hits["step"] != "start-up"
    assert all(kill["nothing_left_after_s"] < 60 for kill in row["kills"])
    reference = harness.reference("ZeRO 1, fp32")[0]
    prove_that_differences_are_seen(harness.directory / "run_1", reference)
    prove_that_the_share_of_checkpoints_is_told(reference)


def prove_that_the_share_of_checkpoints_is_told(run: Path) -> None:
    """At the end; with the last checkpoint it is more than what was recorded before that was written."""
    log = run.with_name(f"{run.name}_life_1.log").read_text()
    share = float(re.search(r"^checkpoints took (\d+\.\d) % of the time\ndone: ", log, re.MULTILINE)[1])
    recorded = 100 * read_json_lines(run / "metrics.jsonl")[-1]["checkpoint_share"]
    assert 0 < recorded - 0.05 < share < 100


def prove_that_differences_are_seen(run: Path, reference: Path) -> None:
    """Without this, the comparison that every test here rests on could be one that never fails."""
    last = all_checkpoints(run / "checkpoints")[-1]
    metrics, selections = (run / name for name in ("metrics.jsonl", "selection.jsonl"))
    for path in (last / "exp_avg.safetensors", metrics, selections):
        original = path.read_bytes()
        if path == metrics:
            lines = read_json_lines(path)
            lines[8]["loss"] *= 1 + 1e-15
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            flip_bit(path, 8 * len(original) - 9)
        assert differences(run, reference), path
        path.write_bytes(original)
    assert differences(run, reference) == []


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_twenty_times_every_run_ends_as_if_nothing_had_happened(tmp_path):
    """Writes its results file."""
    from tests.engine.faults.run import run

    results = ROOT / "benchmarks" / "results" / f"{time.strftime('%Y-%m-%d')}_faults.json"
    report = run(ALL_KILLS, seed=1, directory=tmp_path, json_path=results)
    assert report["kills"] == ALL_KILLS and report["all_equal"], json.dumps(report["rows"], indent=1)
    assert all(report["hits"][what] > 0 for what in HITS.values()), report["hits"]


# Damaged checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Recipe]:
    """A run directory with three checkpoints of a real model, and its recipe."""
    directory = tmp_path_factory.mktemp("damage")
    shards = make_shards(directory / "shards")
    random_teacher(2, 24, 3, vocab=vocabulary_of(shards)).save_pretrained(directory / "teacher")
    recipe = build(Recipe, recipe_values(shards, directory / "teacher", train={"steps": 9}), "test")
    run = directory / "run"
    record_start(run, recipe, {}, ["train.py"])
    built = build_method(recipe, vocabulary_of(shards))
    state = {name: parameter.detach().clone() for name, parameter in built.model.named_parameters()}
    for step in (2, 4, 6):
        moved = {name: value + step for name, value in state.items()}
        tensors = {kind: moved for kind in ("parameters", "exp_avg", "exp_avg_sq")} | {"compaction": {}}
        trainer = {"step": step, "optimizer_steps": step, "head_is_new": False, "narrowed": False}
        save_checkpoint(run / "checkpoints", Checkpoint(tensors, trainer, save_config(built.model.config)), keep=3)
    return run, recipe


def damage(path: Path, draw: random.Random) -> str:
    """Flip a bit of one file of a checkpoint, or cut it short; the file's name.

    More than the last byte goes: at the end of a JSON file that is a newline, without which nothing is lost.
    """
    file = draw.choice(sorted(path.iterdir()))
    size = file.stat().st_size
    if draw.random() < 0.5:
        flip_bit(file, draw.randrange(8 * size))
    else:
        with open(file, "r+b") as stream:
            stream.truncate(draw.randrange(size - 1))
    return file.name


@pytest.mark.parametrize("seed", range(50))
def test_no_damaged_checkpoint_is_loaded(trained, tmp_path, seed):
    """A random one to three of three checkpoints, a random file, a random bit or length."""
    run, recipe = trained
    run = Path(shutil.copytree(run, tmp_path / "run"))
    draw = random.Random(seed)
    paths = all_checkpoints(run / "checkpoints")
    damaged = {path: damage(path, draw) for path in draw.sample(paths, draw.choice([1, 1, 2, 3]))}
    whole = [path for path in paths if path not in damaged]
    if not whole:
        with pytest.raises(DataError, match=r"no older checkpoint is whole: delete .* to begin anew") as refused:
            resume_point(run, recipe)
        assert "\n" not in str(refused.value)
        return
    found, faults = resume_point(run, recipe)
    assert found == whole[-1]
    newer = [path for path in reversed(paths) if path > found]
    assert len(faults) == len(newer) and all(str(path) in fault for path, fault in zip(newer, faults, strict=True))
    loaded, original = load_checkpoint(found), load_checkpoint(trained[0] / "checkpoints" / found.name)
    assert loaded.trainer == original.trainer
    for name, tensor in original.tensors["parameters"].items():
        assert torch.equal(loaded.tensors["parameters"][name], tensor)
    for path in damaged:
        with pytest.raises(DataError, match=path.name):
            load_checkpoint(path)


# Other ranks, other stages

MOVED_STEPS, MOVED_BATCH = 12, 8
"""Stopped after steps 4 (before the gates have closed) and 8 (after)."""


@pytest.mark.slow
def test_two_ranks_one_rank_two_ranks_and_zero_1_3_1_are_one_run(tmp_path):
    """Dropout 0; the moved run repeats the selections of the straight one, and reads the same windows in order."""
    shards = make_shards(tmp_path / "shards")
    random_teacher(2, 24, 3, vocab=vocabulary_of(shards)).save_pretrained(tmp_path / "teacher")
    train = {"steps": MOVED_STEPS, "global_batch": MOVED_BATCH, "dropout": 0.0, "checkpoint_every": 1}
    for name, replay in (("recipe", None), ("replay", str(tmp_path / "straight" / "selection.jsonl"))):
        schedule = {"start_step": 2, "increments": 3, "decay_steps": 2, "replay": replay}
        values = recipe_values(shards, tmp_path / "teacher", compaction=schedule, train=train)
        write_recipe(tmp_path / f"{name}.yaml", values)
    stages = {
        stage: write_deepspeed(tmp_path / f"zero{stage}.json", zero_optimization={"stage": stage}) for stage in (1, 3)
    }

    def train(name: str, recipe: str, ranks: int, stage: int, stop_after: int = 0) -> int:
        arguments = ("--config", tmp_path / recipe, "--deepspeed_config", stages[stage], "--output", tmp_path / name)
        worker = ROOT / "tests" / "engine" / "faults" / "train_and_trace.py"
        command = launch("torchrun", worker, *arguments, ranks=ranks)
        job = Job(command, tmp_path / f"{name}.log", TRACE=str(tmp_path / f"{name}_windows"), STOP=str(stop_after))
        try:
            code = job.wait()
            assert code == 0 or "stopped on request" in job.text(), job.text()[-4000:]
            return code
        finally:
            job.end()

    assert train("straight", "recipe.yaml", ranks=2, stage=1) == 0
    # torchrun itself ends with 1 when its ranks do not end with 0.
    assert train("moved", "replay.yaml", ranks=2, stage=1, stop_after=4) == 1
    assert train("moved", "replay.yaml", ranks=1, stage=3, stop_after=8) == 1
    # Asked in its last step, it is done, and leaves no request for the next start.
    assert train("moved", "replay.yaml", ranks=2, stage=1, stop_after=MOVED_STEPS) == 0
    assert not (tmp_path / "moved" / "stop").exists()

    straight, moved = tmp_path / "straight", tmp_path / "moved"
    windows = windows_in_order(tmp_path / "straight_windows")
    assert windows == windows_in_order(tmp_path / "moved_windows")
    assert len(windows) == MOVED_STEPS * MOVED_BATCH and len(set(windows)) > MOVED_STEPS
    choices = [[line["retired"] for line in read_json_lines(run / "selection.jsonl")] for run in (straight, moved)]
    assert choices[0] == choices[1] != []
    lines = [read_json_lines(run / "metrics.jsonl") for run in (straight, moved)]
    assert [line["step"] for line in lines[1]] == list(range(1, MOVED_STEPS + 1))
    for key in ("loss", "heldout_loss"):
        values = [[line[key] for line in run if key in line] for run in lines]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4)
    # Not one and the same computation: on one rank the sums are formed in another order.
    norms = [[line["gradient_norm"] for line in run] for run in lines]
    assert norms[0][4:8] != norms[1][4:8]


def windows_in_order(trace: Path) -> list[str]:
    """Window ids and a checksum of what the model was given, sample by sample in the order of training.

    The trace holds a line per micro-batch, rank by rank: step, accumulation, rank, and the samples.
    """

    def lines() -> Iterator[tuple[tuple[int, int, int], list[str]]]:
        for path in trace.glob("*.jsonl"):
            for line in read_json_lines(path):
                yield (line["step"], line["accumulation"], line["rank"]), line["samples"]

    return [sample for _, samples in sorted(lines()) for sample in samples]


# Configurations


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_shipped_configuration_trains_resumes_changes_ranks_and_folds(tmp_path):
    """Writes docs/configurations.md, every cell as it came out; only what does not run here may be missing."""
    from tests.engine.faults.configurations import COLUMNS, write_table

    table = write_table(tmp_path, ROOT / "docs" / "configurations.md")
    for name, cells in table.cells.items():
        if not cells["trains"].startswith("not measured"):
            good = [column for column in COLUMNS if cells.get(column, "").startswith(("yes", "bit for bit"))]
            assert good == list(COLUMNS), (name, cells)


def test_the_table_of_configurations_lists_what_is_shipped():
    page = (ROOT / "docs" / "configurations.md").read_text()
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert listed == sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
    from tests.engine.faults.configurations import ON_GPU

    on_gpu = json.loads((ROOT / ON_GPU).read_text())["sections"]["zero"]["runs"]
    shown = {line.split("`")[1]: line.split("|")[-2].strip() for line in page.splitlines() if line.startswith("| `")}
    assert shown == {name: on_gpu[name]["resumes"] if name in on_gpu else "not measured" for name in listed}
