"""The report's tables and picture from hand-made runs and evaluations."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import yaml

from pipeline.shapes import BertShape
from tests.support import ROOT


def write_run(directory: Path, selections: tuple[int, ...] = ()) -> Path:
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump({"method": "wid"}))
    speeds = [5.0, 100.0, 300.0, 200.0]
    lines = [
        {"step": s, "tokens": 64 * s, "loss": 5 - s / 10, "accuracy": 0.1, "tokens_per_s": speed, "kept": {}}
        for s, speed in zip((1, 10, 20, 30), speeds, strict=True)
    ]
    for line, data, checkpoint in zip(lines, (50.0, 1.0, 2.0, 4.0), (0.0, 0.0, 100.0, 0.0), strict=True):
        rest = {"log": 5.0, "evaluate": 0.0, "checkpoint": checkpoint, "step": 105 + checkpoint}
        line["time_ms"] = {"data": data, **rest}
    lines[2] |= {"heldout_loss": 4.5, "heldout_accuracy": 0.2}
    lines[3] |= {"heldout_loss": 4.25, "heldout_accuracy": 0.321}
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 31, "lo')
    (directory / "selection.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in selections))
    return directory


def write_evaluation(directory: Path, hidden: int, loss: float, seeds: dict[str, float]) -> Path:
    shape = {"num_hidden_layers": 2, "hidden_size": hidden, "num_attention_heads": 2, "intermediate_size": 4 * hidden}
    rest = {"vocab_size": 100, "max_position_embeddings": 32, "type_vocab_size": 2}
    model = directory.with_name(f"{directory.name}_model")
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({**shape, **rest}))
    tasks = {
        "mlm own": {"data": "x", "loss": {"mean": loss, "std": 0.0, "seeds": {"0": loss}}},
        "mlm other": {"data": "y", "loss": {"mean": loss + 1, "std": 0.0, "seeds": {"0": loss + 1}}},
        "sst2": {"data": "full", "accuracy": {"mean": 0.8, "std": 0.01, "seeds": seeds}},
    }
    directory.mkdir()
    (directory / "results.json").write_text(json.dumps({"model": str(model), "tasks": tasks}))
    return directory


def report(*directories: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipeline" / "report.py"), "--runs", *map(str, directories)]
    return subprocess.run([*command, "--output", str(output)], capture_output=True, text=True)


def test_tables_numbers_and_picture(tmp_path):
    run = write_run(tmp_path / "run_a", selections=(5, 5, 15))
    teacher = write_evaluation(tmp_path / "teacher", 32, 3.5, {"1": 0.79, "2": 0.81})
    student = write_evaluation(tmp_path / "student", 16, 4.0, {"1": 0.79, "2": 0.81})
    result = report(run, teacher, student, output=tmp_path / "out")
    assert result.returncode == 0, result.stderr

    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert numbers["runs"]["run_a"] == {
        "method": "wid",
        "step": 30,
        "tokens": 1920,
        "tokens_per_s": 200.0,
        "data_wait": pytest.approx((9 * 1 + 10 * 2 + 10 * 4) / (29 * 100)),
        "heldout_loss": 4.25,
        "heldout_accuracy": 0.321,
    }
    shape = BertShape(2, 16, 2, 64, vocab_size=100, positions=32)
    assert numbers["evaluations"]["student_model"]["parameters"] == shape.parameters
    markdown = (tmp_path / "out" / "report.md").read_text()
    for cell in (
        f"{shape.parameters:,}",
        "3.500",
        "4.000",
        "5.000",
        "mlm other loss",
        "0.800 ± 0.010",
        "32.1 %",
        "2.4 %",
        "1,920",
    ):
        assert cell in markdown, cell
    picture = matplotlib.image.imread(tmp_path / "out" / "report.png")
    assert picture.shape[0] > 500 and picture.shape[1] > 1500 and len(set(picture[..., 0].flatten().tolist())) > 20


@pytest.mark.parametrize("what", ["nothing", "empty"])
def test_what_is_no_run_is_refused(tmp_path, what):
    directory = tmp_path / "x"
    if what == "empty":
        directory.mkdir()
    result = report(directory, output=tmp_path / "out")
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    assert result.stderr.count("error: ") == 1 and "neither a run" in result.stderr and "Traceback" not in result.stderr
