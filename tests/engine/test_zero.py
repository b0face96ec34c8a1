"""Real 2-rank jobs under every ZeRO stage: the same training, exact resume, a fold that is the trained model.

All jobs of the module share two process groups (2 ranks and 1 rank), because starting processes costs more than the
runs do. What is compared: stage 0 to 3 with each other, resumed with uninterrupted, 1 rank with 2, accumulation 1
with 4.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support import ROOT
from tests.support import runs as tiny
from tests.support.models import random_teacher
from tests.support.shards import tiny_shards

STAGES = [0, 1, 2, 3]
STEPS, CHECKPOINT, LATER_CHECKPOINT = 12, 4, 8
"""The first lies in the warm-up; between the two the schedule ends and the model is narrowed."""


TRAIN = {
    **{"steps": STEPS, "global_batch": 16, "warmup": 0.5, "dropout": 0.1},
    **{"checkpoint_every": CHECKPOINT, "evaluate_every": 5, "keep_checkpoints": 9},
}
COMPACTION = {"start_step": 2, "increments": 3, "decay_steps": 2}


def write_recipe(directory: Path, name: str, **sections: dict) -> Path:
    """A recipe for the shards and the teacher in `directory`."""
    sections["compaction"] = {**COMPACTION, **sections.get("compaction", {})}
    sections["train"] = {**TRAIN, **sections.get("train", {})}
    values = tiny.recipe_values(directory / "shards", directory / "teacher", **sections)
    return tiny.write_recipe(directory / f"{name}.yaml", values)


def write_deepspeed(directory: Path, stage: int, micro: int, precision: str = "fp32") -> Path:
    path = directory / f"zero{stage}_{precision}_{micro}.json"
    enabled = {} if precision == "fp32" else {precision: {"enabled": True}}
    return tiny.write_deepspeed(
        path,
        train_micro_batch_size_per_gpu=micro,
        gradient_clipping=1.0,
        zero_optimization={"stage": stage},
        **enabled,
    )


def run_jobs(directory: Path, ranks: int, jobs: dict[str, tuple[Path, Path]]) -> None:
    """Train every job (name -> recipe, DeepSpeed configuration) into directory/name, in one process group.

    Those whose names begin with `whole` are trained without narrowing.
    """
    lines = [
        [
            *(["whole"] if name.startswith("whole") else []),
            *("--config", str(recipe), "--deepspeed_config", str(config), "--output", str(directory / name)),
        ]
        for name, (recipe, config) in jobs.items()
    ]
    listing = directory / f"jobs_{ranks}_{next(iter(jobs))}.json"
    listing.write_text(json.dumps(lines))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    worker = str(ROOT / "tests" / "support" / "train_worker.py")
    result = subprocess.run([sys.executable, *command, worker, str(listing)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]


def interrupt(run: Path, copy: Path, at: int = CHECKPOINT) -> None:
    """Copy a finished run as it was when the checkpoint of step `at` had just been written."""
    shutil.copytree(run, copy)
    for step in range(at + 1, STEPS + 1):
        shutil.rmtree(copy / "checkpoints" / f"step_{step}", ignore_errors=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("zero")
    shards = tiny_shards(directory / "shards", words=800)
    vocab = json.loads((shards / "manifest.json").read_text())["vocab_size"]
    random_teacher(2, 24, 3, vocab=vocab).save_pretrained(directory / "teacher")

    recipe = write_recipe(directory, "recipe")
    no_dropout = write_recipe(directory, "no_dropout", train={"dropout": 0.0})
    penalty = write_recipe(
        directory,
        "penalty",
        compaction={"decay": "penalty", "selection": "norm", "strategy": "head"},
        target={"hidden": 16, "head_size": 8},
    )
    configs = {stage: write_deepspeed(directory, stage, micro=2) for stage in STAGES}
    jobs = {f"zero{stage}": (recipe, config) for stage, config in configs.items()}
    jobs["bf16"] = (recipe, write_deepspeed(directory, 0, 2, "bf16"))
    jobs |= {f"bf16_zero{stage}": (recipe, write_deepspeed(directory, stage, 2, "bf16")) for stage in (1, 2, 3)}
    jobs["penalty_zero3"] = (penalty, configs[3])
    jobs["ranks2_accumulation4"] = (no_dropout, configs[1])
    jobs["whole_zero1"] = (no_dropout, configs[1])
    jobs["ranks2_accumulation1"] = (no_dropout, write_deepspeed(directory, 1, micro=8))
    run_jobs(directory, 2, jobs)

    resumed = {}
    interrupt(directory / "ranks2_accumulation4", directory / "changed_stage")
    interrupt(directory / "ranks2_accumulation4", directory / "changed_ranks")
    for name in [f"zero{stage}" for stage in STAGES] + ["bf16", "bf16_zero1", "bf16_zero2", "bf16_zero3"]:
        interrupt(directory / name, directory / f"{name}_resumed")
        resumed[f"{name}_resumed"] = jobs[name]
        interrupt(directory / name, directory / f"{name}_later", LATER_CHECKPOINT)
        resumed[f"{name}_later"] = jobs[name]
    resumed["changed_stage"] = (no_dropout, configs[3])
    run_jobs(directory, 2, resumed)
    alone = {name: (no_dropout, configs[1]) for name in ("ranks1_accumulation8", "changed_ranks")}
    run_jobs(directory, 1, alone)
    return directory


def epochs(run: Path, step: int) -> set[int]:
    """The epochs that the samples of one step, counted from 1, belong to."""
    from pipeline.data.open import open_training_data
    from pipeline.recipe import load_recipe

    recipe = load_recipe(run / "config.yaml", [])
    data, _, _ = open_training_data(recipe.data, recipe.train.seed)
    size = recipe.train.global_batch
    return set(data.locate(np.arange((step - 1) * size, step * size))[1].tolist())


def checkpoint(run: Path, kind: str = "parameters") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{STEPS}" / f"{kind}.safetensors")


def metrics(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def choices(run: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]
    return [(line["step"], line["group"], line["retired"]) for line in lines]


def test_every_resumed_run_goes_on_within_an_epoch_and_ends_in_a_later_one(runs):
    """What makes the bit-for-bit comparison below one of orders and masks across an epoch's end."""
    for name, begins_after in (("zero1_resumed", CHECKPOINT), ("zero1_later", LATER_CHECKPOINT)):
        (first,) = epochs(runs / name, begins_after)
        assert first in epochs(runs / name, begins_after + 1)
        assert first < min(epochs(runs / name, STEPS))


@pytest.mark.parametrize("stage", STAGES[1:])
def test_every_stage_trains_the_same(runs, stage):
    np.testing.assert_allclose(metrics(runs / f"zero{stage}", "loss"), metrics(runs / "zero0", "loss"), rtol=1e-5)
    assert choices(runs / f"zero{stage}") == choices(runs / "zero0") != []
    norms = metrics(runs / f"zero{stage}", "gradient_norm"), metrics(runs / "zero0", "gradient_norm")
    np.testing.assert_allclose(*norms, rtol=1e-3)


@pytest.mark.parametrize("name", [f"zero{s}" for s in STAGES] + ["bf16"] + [f"bf16_zero{s}" for s in (1, 2, 3)])
@pytest.mark.parametrize("when", ["resumed", "later"])
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(runs, name, when):
    for kind in ("parameters", "exp_avg", "exp_avg_sq", "compaction"):
        straight, resumed = checkpoint(runs / name, kind), checkpoint(runs / f"{name}_{when}", kind)
        assert straight.keys() == resumed.keys() and straight
        assert [key for key in straight if not torch.equal(straight[key], resumed[key])] == []
    for key in ("loss", "heldout_loss", "tokens"):
        assert metrics(runs / name, key) == metrics(runs / f"{name}_{when}", key)
    assert choices(runs / name) == choices(runs / f"{name}_{when}")


def test_a_narrowed_run_trains_like_one_at_full_width(runs):
    whole, narrow = runs / "whole_zero1", runs / "ranks2_accumulation4"
    assert metrics(whole, "loss")[:CHECKPOINT] == metrics(narrow, "loss")[:CHECKPOINT]
    for key in ("loss", "heldout_loss", "gradient_norm"):
        np.testing.assert_allclose(metrics(narrow, key), metrics(whole, key), rtol=2e-5)
    wide = checkpoint(whole)
    for kind in ("parameters", "exp_avg", "exp_avg_sq"):
        for name, tensor in checkpoint(narrow, kind).items():
            full = checkpoint(whole, kind)[name]
            if name == "qkv_bias":  # the gradient of a key's bias is 0 in exact arithmetic; what it has is noise
                tensor, full = (torch.stack(t.chunk(3, 1))[[0, 2]] for t in (tensor, full))
            if tensor.shape == full.shape:
                assert float((tensor - full).abs().max()) <= 1e-3 * float(full.abs().max()), (kind, name)
    cut = [name for name, tensor in checkpoint(narrow).items() if tensor.shape != wide[name].shape]
    assert sum(name.endswith("_delta") for name in cut) == sum(name.endswith("_delta") for name in wide)


@pytest.mark.slow
def test_fifty_narrowed_steps_follow_those_at_full_width_under_every_stage(tmp_path):
    shards = tiny_shards(tmp_path / "shards", words=800)
    vocab = json.loads((shards / "manifest.json").read_text())["vocab_size"]
    random_teacher(2, 24, 3, vocab=vocab).save_pretrained(tmp_path / "teacher")
    recipe = write_recipe(tmp_path, "recipe", train={"dropout": 0.0, "steps": 58})
    jobs = {
        f"{kind}_{stage}": (recipe, write_deepspeed(tmp_path, stage, micro=8))
        for stage in STAGES
        for kind in ("whole", "narrow")
    }
    run_jobs(tmp_path, 2, jobs)
    for stage in STAGES:
        whole, narrow = tmp_path / f"whole_{stage}", tmp_path / f"narrow_{stage}"
        np.testing.assert_allclose(metrics(narrow, "loss"), metrics(whole, "loss"), rtol=1e-4)
        assert metrics(narrow, "loss") != metrics(whole, "loss")
        shapes = [
            load_file(run / "checkpoints" / "step_58" / "parameters.safetensors")["tables_column_delta"].shape
            for run in (whole, narrow)
        ]
        assert shapes == [(24, 24), (15, 24)]


@pytest.mark.parametrize(
    "name", [f"zero{s}" for s in STAGES] + ["bf16"] + [f"bf16_zero{s}" for s in (1, 2, 3)] + ["penalty_zero3"]
)
def test_the_student_is_the_trained_model_under_every_stage(runs, name):
    from pipeline.engine.student import fold_run

    student = runs / f"student_{name}"
    fold_run(runs / name, student)
    report = json.loads((student / "fold.json").read_text())
    assert report["max_logit_diff_fp64"] <= 1e-10
    assert report["max_logit_diff_fp32"] <= 1e-4 * max(1.0, report["max_abs_logit"])
    assert report["step"] == STEPS and report["target"]["hidden"] in (15, 16)


def test_the_trainer_measures_what_the_student_scores(runs):
    """The last held-out loss of a run is that of the student, computed here from the student alone."""
    from transformers import AutoModelForMaskedLM

    from pipeline.data.open import open_training_data
    from pipeline.engine.student import fold_run
    from pipeline.recipe import load_recipe

    student = runs / "student_measured"
    fold_run(runs / "zero2", student)
    model = AutoModelForMaskedLM.from_pretrained(student).eval()
    recipe = load_recipe(runs / "zero2" / "config.yaml", [])
    _, heldout, _ = open_training_data(recipe.data, recipe.train.seed)
    losses = []
    for batch, valid in heldout.batches(5):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(batch.input_ids)).logits
        for row in range(valid):
            at = logits[row, torch.from_numpy(batch.positions[row])]
            losses.append(float(torch.nn.functional.cross_entropy(at, torch.from_numpy(batch.labels[row]))))
    assert len(losses) == 10
    assert metrics(runs / "zero2", "heldout_loss")[-1] == pytest.approx(np.mean(losses), rel=1e-5)


def test_scores_and_training_do_not_depend_on_ranks_or_accumulation(runs):
    """Taylor scores after three steps, and what follows from them."""

    def first_scores(name: str) -> np.ndarray:
        lines = [json.loads(line) for line in (runs / name / "selection.jsonl").read_text().splitlines()]
        return np.concatenate([line["scores"] for line in lines if line["increment"] == 1])

    reference = first_scores("ranks2_accumulation4")
    assert reference.max() > 0
    for name in ("ranks2_accumulation1", "ranks1_accumulation8"):
        np.testing.assert_allclose(first_scores(name), reference, rtol=2e-3, atol=1e-6 * reference.max())
        np.testing.assert_allclose(
            metrics(runs / name, "loss"), metrics(runs / "ranks2_accumulation4", "loss"), rtol=1e-4
        )
        assert choices(runs / name) == choices(runs / "ranks2_accumulation4")


@pytest.mark.parametrize("name", ["changed_stage", "changed_ranks"])
def test_a_run_goes_on_at_another_stage_and_on_another_number_of_ranks(runs, name):
    straight = runs / "ranks2_accumulation4"
    assert metrics(runs / name, "loss")[:CHECKPOINT] == metrics(straight, "loss")[:CHECKPOINT]
    np.testing.assert_allclose(metrics(runs / name, "loss"), metrics(straight, "loss"), rtol=1e-4)
    assert choices(runs / name) == choices(straight)


def test_penalty_and_norm_select_whole_heads(runs):
    attention = {}
    for _, group, retired in choices(runs / "penalty_zero3"):
        if group.startswith("attention"):
            attention.setdefault(group, []).extend(retired)
    assert [len(retired) for retired in attention.values()] == [8, 8]
    assert all(len({index // 8 for index in retired}) == 1 for retired in attention.values())


def test_run_directory_is_complete(runs):
    run = runs / "zero1"
    expected = {"config.yaml", "ds_config.json", "environment.txt", "metrics.jsonl", "selection.jsonl", "tensorboard"}
    assert expected <= {path.name for path in run.iterdir()}
    assert (run / "checkpoints" / "latest").read_text().strip() == f"step_{STEPS}"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == STEPS and last["tokens"] == STEPS * 16 * 16 and last["tokens_per_s"] > 0
    assert last["kept"] == {"residual": 15, "attention.0": 15, "ffn.0": 31, "attention.1": 15, "ffn.1": 31}


def test_tensorboard_holds_the_curves(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(runs / "zero1" / "tensorboard"))
    board.Reload()
    scalars = set(board.Tags()["scalars"])
    optimizer = {"optimizer/gradient_norm", "optimizer/lr_weights", "optimizer/lr_compactor", "optimizer/lr_head"}
    mlm = {"mlm/loss", "mlm/accuracy", "mlm/heldout_loss", "mlm/heldout_accuracy"}
    assert optimizer | mlm | {"speed/tokens_per_s", "width/residual", "width/ffn.1"} <= scalars
    losses = board.Scalars("mlm/loss")
    assert [event.step for event in losses] == list(range(1, STEPS + 1))
    assert [event.value for event in losses] == pytest.approx(metrics(runs / "zero1", "loss"))
