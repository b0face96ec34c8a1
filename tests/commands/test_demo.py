"""`make demo`'s program with a few steps: every stage for real, and a second start that repeats nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.support import ROOT


def demo(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # As `make demo` does: the environment's programs first on PATH.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "demo.run", "--quick", "--output", str(output), *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("demo") / "demo"
    return output, demo(output)


def test_the_demo_leaves_a_student_a_table_and_a_picture(finished):
    output, result = finished
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    student = AutoModelForMaskedLM.from_pretrained(output / "student")
    teacher = AutoModelForMaskedLM.from_pretrained(output / "teacher")
    assert student.config.hidden_size == 108 and teacher.config.hidden_size == 192
    assert AutoTokenizer.from_pretrained(output / "student").mask_token == "[MASK]"
    evaluations = json.loads((output / "report" / "report.json").read_text())["evaluations"]
    assert list(evaluations) == ["teacher", "continued", "student", "slice", "scratch"]
    sizes = {name: model["encoder_parameters"] for name, model in evaluations.items()}
    assert sizes["student"] == sizes["slice"] == sizes["scratch"] < 0.34 * sizes["teacher"] == 0.34 * sizes["continued"]
    for model in evaluations.values():
        scores = {name: score["mean"] for name, score in model["scores"].items()}
        assert 0 < scores["mlm heldout loss"] < 10 and 0 < scores["mlm prose loss"] < 10
        assert 0 <= scores["mlm prose accuracy"] < 1 and 0 < scores["word_order accuracy"] < 1
        assert model["scores"]["word_order accuracy"]["seeds"] == 2 and 0 < scores["latency milliseconds"] < 1000
    # A few steps change little: the teacher still knows its prose best, and one from scratch knows nothing.
    prose = {name: model["scores"]["mlm prose loss"]["mean"] for name, model in evaluations.items()}
    assert prose["teacher"] < 5.7 and abs(prose["continued"] - prose["teacher"]) < 0.5 and prose["scratch"] > 6.2
    runs = json.loads((output / "report" / "report.json").read_text())["runs"]
    assert len({run["tokens"] for run in runs.values()}) == 1 and len(runs) == 4
    assert (output / "report" / "report.png").stat().st_size > 20_000
    for text in ("| student", "tensorboard --logdir", str(output / "student")):
        assert text in result.stdout


def test_the_demo_ends_by_naming_its_page(finished):
    output, result = finished
    page = output / "report" / "report.html"
    assert result.stdout.endswith(f"page:      {page}\n")
    words = ("Compressed from teacher", "Kept dimensions over time", "Machine and versions")
    assert all(word in page.read_text() for word in words)


def test_a_second_start_trains_nothing_again(finished):
    output, first = finished
    before = (output / "student" / "model.safetensors").stat().st_mtime_ns
    started = time.time()
    result = demo(output)
    assert result.returncode == 0, result.stderr
    assert (output / "student" / "model.safetensors").stat().st_mtime_ns == before
    assert "pipeline/train.py" not in result.stdout
    table = [line for line in first.stdout.splitlines() if line.strip().startswith("| ")]
    assert table and [line for line in result.stdout.splitlines() if line.strip().startswith("| ")] == table
    assert all(path.stat().st_mtime <= started for path in (output / "runs").rglob("metrics.jsonl"))


def test_a_demo_of_other_text_is_not_overwritten(finished, tmp_path):
    output, _ = finished
    (tmp_path / "text.txt").write_text("something else\nentirely\n")
    result = demo(output, "--data", f"lines:{tmp_path / 'text.txt'}")
    assert result.returncode == 2 and result.stderr.count("error: ") == 1 and "another teacher" in result.stderr
