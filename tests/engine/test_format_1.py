"""Runs that a program with checkpoints of format 1 wrote go on as they did there, and fold to the same students.

format_1/README.txt says how the directories were made.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import fold
from pipeline.records import read_json_lines
from tests.support.runs import make_shards, run_main, run_train_worker, train_command, write_deepspeed

OLD = Path(__file__).parent / "format_1"
RESUMED = ("wid", 5), ("wid", 10), ("continue", 10)
"""Method and step: gates closing, with Taylor scores since the last choice; narrowed; a BERT without compactors."""
NOISE = 1e-5
"""Of fp32, relative; 1e-7 on the kind of machine that wrote the directories."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """The old runs' text; a run whose text is another is refused."""
    return make_shards(tmp_path_factory.mktemp("text") / "shards")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, shards) -> Path:
    """Copies of the old runs, each trained to its end from one of its checkpoints."""
    directory = tmp_path_factory.mktemp("resumed")
    deepspeed, jobs = write_deepspeed(directory / "deepspeed.json"), []
    for method, step in RESUMED:
        run = shutil.copytree(OLD / method, directory / f"{method}_{step}")
        for path in run.glob("checkpoints/step_*"):
            if path.name != f"step_{step}":
                shutil.rmtree(path)
        (run / "metrics.jsonl").unlink()  # what is compared is of the new run alone
        command = train_command({"recipe": OLD / method / "config.yaml", "deepspeed": deepspeed}, run)
        jobs.append([*command, f"--data.shards={shards}"])
    run_train_worker(directory, *jobs)
    return directory


def lines(run: Path, after: int) -> list[dict]:
    return [line for line in read_json_lines(run / "metrics.jsonl") if line["step"] > after]


@pytest.mark.parametrize("method,step", RESUMED)
def test_it_goes_on_as_it_did(resumed, method, step):
    old, new = lines(OLD / method, step), lines(resumed / f"{method}_{step}", step)
    assert [line["step"] for line in new] == list(range(step + 1, 14))
    assert [line["kept"] for line in new] == [line["kept"] for line in old]
    for name in ("loss", "gradient_norm"):
        assert [line[name] for line in new] == pytest.approx([line[name] for line in old], rel=NOISE), name
    assert new[-1]["heldout_loss"] == pytest.approx(old[-1]["heldout_loss"], rel=NOISE)


def test_it_retires_the_same_dimensions(resumed):
    """The second choice is made after the checkpoint, by scores of steps on both sides of it."""
    old, new = (read_json_lines(run / "selection.jsonl") for run in (OLD / "wid", resumed / "wid_5"))
    for line, other in zip(new, old, strict=True):
        assert line.pop("scores") == pytest.approx(other.pop("scores"), rel=1e-3, abs=1e-9)
    assert new == old and {line["step"] for line in new} == {3, 6}


@pytest.mark.parametrize("method", ["wid", "continue"])
def test_it_folds_to_the_same_student(shards, tmp_path, monkeypatch, method):
    run, output, student = shutil.copytree(OLD / method, tmp_path / "run"), tmp_path / "new", OLD / f"student_{method}"
    code, _, err = run_main(monkeypatch, fold.main, "--run", run, "--output", output, "--shards", shards)
    assert code == 0, err
    old, new = (load_file(path / "model.safetensors") for path in (student, output))
    assert new.keys() == old.keys()
    for name, tensor in old.items():
        torch.testing.assert_close(new[name], tensor, rtol=0, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}")
    old, new = (json.loads((path / "config.json").read_text()) for path in (student, output))
    sizes = "hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size"
    assert [new[size] for size in sizes] == [old[size] for size in sizes]
    if method == "wid":
        kept = (json.loads((path / "fold.json").read_text())["kept"] for path in (student, output))
        assert next(kept) == next(kept)
