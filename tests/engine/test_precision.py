"""Loss scaling, offloading and steps without finite numbers, in real 2-rank jobs that share one process group."""

import json
import math
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.open import open_training_data
from pipeline.engine.student import fold_run
from pipeline.recipe import load_recipe
from tests.support import ROOT
from tests.support.runs import make_shards, make_teacher, recipe_values, vocabulary_of, write_recipe

WORKER = str(Path(__file__).with_name("spoiling_worker.py"))
STEPS, CHECKPOINT = 8, 2
"""The schedule ends, and the model is narrowed, between the first checkpoint and the next."""
SPOILED = 5
"""This step, counted from 1, has no finite loss or gradient on rank 1."""
SCORED_STEPS = 4
"""Before the first choice, of the runs whose scores are compared."""
FP16 = [f"zero{stage}_fp16" for stage in range(4)]
OFFLOADED = [f"offload_zero{stage}_bf16" for stage in (1, 2, 3)]
UNSOUND = [
    "zero0_fp32-loss",
    "zero0_fp32-gradient",
    "zero2_fp32-gradient",
    "zero0_bf16-loss",
    "zero0_bf16-gradient",
    "zero1_bf16-gradient",
    "zero1_fp16-loss",
    "offload_zero2_bf16-gradient",
    "zero3_fp32-loss",
    "zero3_bf16-gradient",
]
"""Configuration, and what is not finite."""


def deepspeed_config(name: str) -> dict:
    """A shipped configuration, for micro-batches of this size."""
    config = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
    config["train_micro_batch_size_per_gpu"] = 2
    return config


def job(
    directory: Path,
    name: str,
    config: dict,
    train: dict | None = None,
    compaction: dict | None = None,
    **spoil: object,
) -> dict:
    """What the worker needs to train into directory/name."""
    length = {"steps": STEPS, "global_batch": 8, "evaluate_every": 4}
    kept = {"checkpoint_every": CHECKPOINT, "keep_checkpoints": 9}
    sections = {"compaction": {"increments": 2, **(compaction or {})}, "train": {**length, **kept, **(train or {})}}
    values = recipe_values(directory / "shards", directory / "teacher", **sections)
    recipe = write_recipe(directory / f"{name}.yaml", values)
    deepspeed = directory / f"{name}.json"
    deepspeed.write_text(json.dumps(config))
    arguments = ["--config", str(recipe), "--deepspeed_config", str(deepspeed), "--output", str(directory / name)]
    return {"arguments": arguments, **spoil}


def run_jobs(directory: Path, jobs: dict[str, dict]) -> dict[str, str]:
    """Train each in turn; returns how each ended: `done`, or the sentence of its error."""
    listing, results = directory / "jobs.json", directory / f"results_{next(iter(jobs))}.jsonl"
    listing.write_text(json.dumps(list(jobs.values())))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", WORKER]
    command += [str(listing), str(results)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return dict(zip(jobs, map(json.loads, results.read_text().splitlines()), strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("precision")
    make_teacher(directory / "teacher", vocabulary_of(make_shards(directory / "shards")))

    jobs = {}
    every_step = {"checkpoint_every": 1, "steps": SPOILED + 1}
    for name in UNSOUND:
        config, what = name.split("-")
        changed = deepspeed_config(config)
        if "fp16" in changed:
            changed["fp16"] |= {"initial_scale_power": 8}  # no overflow of its own
        jobs[name] = job(directory, name, changed, every_step, spoil=what, steps=[SPOILED])
    few = {"max_skipped_in_a_row": 2}
    chosen_before = {"increments": 1}
    spoilt = {"spoil": "loss", "steps": [2, 4, 5, 6]}
    jobs["given_up"] = job(directory, "given_up", deepspeed_config("zero0_fp32"), few, chosen_before, **spoilt)
    overflowing = deepspeed_config("zero1_fp16")
    overflowing["fp16"] |= {"initial_scale_power": 24}
    jobs["unscored"] = job(directory, "unscored", overflowing)
    long = {"steps": 56, "checkpoint_every": 100, "evaluate_every": 100}
    jobs["spike"] = job(directory, "spike", deepspeed_config("zero0_fp32"), long, spoil="spike", steps=[55])
    for precision, changes in {"fp16": {"initial_scale_power": 8, "loss_scale_window": 1}, "fp32": {}}.items():
        config = deepspeed_config(f"zero1_{precision}")
        if changes:
            config[precision] |= changes  # no overflow; from the second step on, each doubles the scale
        first_choice = {"start_step": SCORED_STEPS, "increments": 1}
        scored = {"steps": SCORED_STEPS + 1, "dropout": 0.0}
        jobs[f"scores_{precision}"] = job(directory, f"scores_{precision}", config, scored, first_choice)
    straight = {}
    for name in FP16 + OFFLOADED:
        config = deepspeed_config(name)
        if "fp16" in config:
            # So high that the first steps overflow, and the scale goes up again within the run.
            config["fp16"] |= {"initial_scale_power": 18, "hysteresis": 1, "loss_scale_window": 2}
        # Skipping every step before the first choice, fp16 leaves no gradients to choose by.
        selection = {"selection": "norm" if "fp16" in config else "taylor"}
        straight[name] = job(directory, name, config, compaction=selection)
    outcomes = run_jobs(directory, {**jobs, **straight})
    (directory / "outcomes.json").write_text(json.dumps(outcomes))

    for name in straight:
        shutil.copytree(directory / name, directory / f"{name}_straight")
        for step in range(CHECKPOINT + 1, STEPS + 1):
            shutil.rmtree(directory / name / "checkpoints" / f"step_{step}", ignore_errors=True)
    again = run_jobs(directory, straight)
    assert set(again.values()) == {"done"}
    return directory


def outcome(runs: Path, name: str) -> str:
    return json.loads((runs / "outcomes.json").read_text())[name]


def checkpoint(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, under file and name."""
    directory = run / "checkpoints" / f"step_{step}"
    return {f"{p.stem}/{n}": t for p in directory.glob("*.safetensors") for n, t in load_file(p).items()}


def trainer(run: Path, step: int) -> dict:
    return json.loads((run / "checkpoints" / f"step_{step}" / "trainer.json").read_text())


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys() and one
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("name", UNSOUND)
def test_a_step_without_finite_numbers_changes_nothing_on_any_rank(runs, name):
    run = runs / name
    assert outcome(runs, name) == "done"
    assert differences(checkpoint(run, SPOILED - 1), checkpoint(run, SPOILED)) == []
    assert trainer(run, SPOILED - 1)["optimizer_steps"] == trainer(run, SPOILED)["optimizer_steps"] == SPOILED - 1
    after = checkpoint(run, SPOILED + 1)
    assert differences(checkpoint(run, SPOILED), after) and all(t.isfinite().all() for t in after.values())
    *_, spoiled, last = records(run)
    assert spoiled["event"] == "skipped" and "event" not in last
    assert spoiled["skipped_steps"] == last["skipped_steps"] == 1
    assert (spoiled["loss"] is None) == name.endswith("-loss") and math.isfinite(last["loss"])


def test_a_skipped_step_names_its_windows(runs):
    recipe = load_recipe(runs / "zero0_fp32-loss" / "config.yaml", [])
    data, _, _ = open_training_data(recipe.data, recipe.train.seed)
    _, _, windows = data.locate(np.arange((SPOILED - 1) * 8, SPOILED * 8))
    assert records(runs / "zero0_fp32-loss")[SPOILED - 1]["windows"] == [windows.tolist()]


def test_a_spike_is_in_the_log_with_its_windows(runs):
    found = records(runs / "spike")
    assert [record["step"] for record in found if "event" in record] == [55]
    assert found[54]["event"] == "spike" and len(found[54]["windows"][0]) == 8 and found[55]["skipped_steps"] == 0


def test_too_many_in_a_row_end_the_run_with_a_sentence(runs):
    """The second step is one alone; the fourth and fifth are two in a row."""
    sentence = outcome(runs, "given_up")
    assert sentence.startswith(
        "loss or gradient was no finite number in 2 steps in a row, up to step 5, which had wind"
    )
    windows = records(runs / "given_up")[-1]["windows"][0]
    assert ", ".join(map(str, windows)) in sentence
    assert [record.get("event") for record in records(runs / "given_up")] == [
        None,
        "skipped",
        None,
        "skipped",
        "skipped",
    ]


def test_nothing_is_chosen_by_scores_that_no_step_has_given(runs):
    sentence = outcome(runs, "unscored")
    assert sentence.startswith("increment 1 is due and no step since the last one had finite gradients")
    assert not (runs / "unscored" / "selection.jsonl").read_text()


@pytest.mark.parametrize("name", FP16)
def test_fp16_finds_its_loss_scale(runs, name):
    assert outcome(runs, name) == "done"
    found = records(runs / f"{name}_straight")
    skipped = [record.get("event") == "overflow" for record in found]
    scales = [record["loss_scale"] for record in found]
    assert scales[0] == 2**18 and skipped[0] and not all(skipped)
    ratios = [after / before for before, after in pairwise(scales)]
    assert all(ratio == 0.5 if bad else ratio in (1.0, 2.0) for ratio, bad in zip(ratios, skipped, strict=False))
    assert 2.0 in ratios
    assert trainer(runs / f"{name}_straight", STEPS)["optimizer_steps"] == STEPS - sum(skipped)
    assert found[-1]["skipped_steps"] == sum(skipped)
    norms = [record["gradient_norm"] for record, bad in zip(found, skipped, strict=True) if not bad]
    assert all(0.5 < norm < 10 for norm in norms)  # of the gradient itself, not of the scaled one


@pytest.mark.parametrize("name", FP16[1:])
def test_fp16_trains_the_same_at_every_stage(runs, name):
    losses = [[record["loss"] for record in records(runs / f"{n}_straight")] for n in (name, FP16[0])]
    np.testing.assert_allclose(*losses, rtol=5e-3)


def test_fp16_scores_dimensions_by_the_gradients_themselves(runs):
    """Of the loss, not of the scaled loss, whose scale changes between the steps that are scored."""
    found = records(runs / "scores_fp16")
    assert [record["loss_scale"] for record in found[:SCORED_STEPS]] == [256, 256, 512, 1024]
    assert all("event" not in record for record in found)
    scores = [first_scores(runs / f"scores_{precision}") for precision in ("fp16", "fp32")]
    assert scores[0].keys() == scores[1].keys() == {"residual", "attention.0", "ffn.0", "attention.1", "ffn.1"}
    for group, expected in scores[1].items():
        # Scores far below the others of their group carry what fp16 loses of large ones.
        np.testing.assert_allclose(scores[0][group], expected, rtol=0.01, atol=0.01 * expected.max())


def first_scores(run: Path) -> dict[str, np.ndarray]:
    """Group -> the scores (size,) that its first dimensions were retired by."""
    lines = [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]
    return {line["group"]: np.array(line["scores"]) for line in lines if line["increment"] == 1}


@pytest.mark.parametrize("name", FP16 + OFFLOADED)
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(runs, name):
    straight, resumed = runs / f"{name}_straight", runs / name
    assert differences(checkpoint(straight, STEPS), checkpoint(resumed, STEPS)) == []
    assert trainer(straight, STEPS) == trainer(resumed, STEPS)
    for key in ("loss", "heldout_loss", "loss_scale", "event"):
        assert [r.get(key) for r in records(straight)] == [r.get(key) for r in records(resumed)]


@pytest.mark.parametrize("name", FP16 + OFFLOADED)
def test_the_student_is_the_trained_model(runs, name):
    fold_run(runs / name, runs / f"student_{name}")
    report = json.loads((runs / f"student_{name}" / "fold.json").read_text())
    assert report["max_logit_diff_fp64"] <= 1e-10 and report["step"] == STEPS
    assert (trainer(runs / name, STEPS)["loss_scale"] is None) == (name not in FP16)


def test_offloading_changes_where_not_what(runs):
    """Moments were found, and are those of training: no zeros."""
    for name in OFFLOADED:
        moments = [t for n, t in checkpoint(runs / name, STEPS).items() if n.startswith("exp_avg")]
        assert moments and all(float(moment.abs().max()) > 0 for moment in moments)
    losses = [[record["loss"] for record in records(runs / name)] for name in OFFLOADED]
    for others in losses[1:]:
        np.testing.assert_allclose(others, losses[0], rtol=5e-3)
