"""`benchmarks/compare_commits.py`: its comparison can fail, and names what differs; its commands run for minutes."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch.utils.tensorboard import SummaryWriter

from benchmarks.compare_cases import COMMANDS
from benchmarks.compare_files import Allowed, Side, compare, excused, read_allowed
from pipeline.errors import UserError
from tests.support import ROOT

REPORT = "| run | tokens/s | held-out loss |\n|---|---:|---:|\n| a | {} | {} |\n"


def write_side(folder, loss=2.5, speed=1.0, weight=0.5):
    """A side with a file of every kind whose times and place are its own."""
    run = folder / "out" / "runs" / "a"
    (run / "tensorboard").mkdir(parents=True)
    save_file({"w": np.array([weight, 1], np.float32), "n": np.array([3])}, run / "parameters.safetensors")
    line = {"step": 1, "loss": loss, "tokens_per_s": speed, "time_ms": {"data": speed}}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (run / "config.yaml").write_text(f"data: {{shards: {folder}/out/shards}}\n")
    with SummaryWriter(str(run / "tensorboard")) as writer:
        writer.add_scalar("mlm/loss", loss, 1)
        writer.add_scalar("speed/tokens_per_s", speed, 1)
        writer.add_text("run/recipe", f"{folder}/out")
    (folder / "out" / "report").mkdir()
    (folder / "out" / "report" / "report.md").write_text(REPORT.format(speed, loss))
    (folder / "out" / "shards.bin").write_bytes(bytes([1, 2, round(10 * weight)]))
    return Side(folder / "out", {str(folder): "$SIDE"})


def differences(before, after):
    return {f"{found.file}: {found.key}" for found in compare(before, after)[0]}


def test_times_and_places_are_no_differences(tmp_path):
    found, count = compare(write_side(tmp_path / "a"), write_side(tmp_path / "b", speed=2.0))
    assert found == [] and count["files"] == 6 and count["values"] > 8


def test_every_difference_is_named(tmp_path):
    before = write_side(tmp_path / "a")
    assert differences(before, write_side(tmp_path / "b", loss=2.5000001)) == {
        "runs/a/metrics.jsonl: 1.loss",
        "report/report.md: 3 a.held-out loss",
    }  # the event holds fp32
    assert differences(before, write_side(tmp_path / "c", loss=3.0)) >= {"runs/a/tensorboard: 1.1.mlm/loss"}
    least = float(np.nextafter(np.float32(0.5), np.float32(1)))
    assert differences(before, write_side(tmp_path / "d", weight=least)) == {"runs/a/parameters.safetensors: w"}
    assert differences(before, write_side(tmp_path / "e", weight=0.7)) >= {"shards.bin: bytes"}


def test_files_keys_and_types_that_are_gone_or_new_are_differences(tmp_path):
    before, after = write_side(tmp_path / "a"), write_side(tmp_path / "b")
    (after.output / "shards.bin").unlink()
    (after.output / "new").touch()
    (after.output / "runs" / "a" / "metrics.jsonl").write_text('{"step": 1.0, "loss": 2.5, "tokens_per_s": 1}\n')
    assert [str(found) for found in compare(before, after)[0]] == [
        "new: file: (missing) -> 0 bytes",
        "runs/a/metrics.jsonl: 1.step: 1 -> 1.0",
        "runs/a/metrics.jsonl: 1.time_ms.data: (not compared) -> (missing)",
        "shards.bin: file: 3 bytes -> (missing)",
    ]


def test_allowed_differences_have_a_reason_and_are_counted(tmp_path):
    path = tmp_path / "allowed.yaml"
    path.write_text("- {file: '*.jsonl', key: '*.loss', reason: better}\n- {file: none, reason: old}\n")
    allowed = read_allowed(path)
    found, _ = compare(write_side(tmp_path / "a"), write_side(tmp_path / "b", loss=3.0))
    assert {d.file for d in (excused(d, allowed) for d in found) if d.reason == "better"} == {"runs/a/metrics.jsonl"}
    assert allowed == [Allowed("*.jsonl", "better", "*.loss", 1), Allowed("none", "old", "*", 0)]


@pytest.mark.parametrize(
    "text", ["- {file: a}", "- {file: a, reason: ''}", "- a", "{", "- {file: a, reason: b, why: c}"]
)
def test_a_wrong_list_of_allowed_differences_is_refused(tmp_path, text):
    (tmp_path / "allowed.yaml").write_text(text)
    with pytest.raises(UserError, match=r"allowed\.yaml: expected a list"):
        read_allowed(tmp_path / "allowed.yaml")


def test_commands_have_names_of_their_own_and_scripts_that_exist():
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)
    assert all((ROOT / command.script).is_file() for command in COMMANDS)
    assert read_allowed(ROOT / "benchmarks" / "allowed_differences.yaml") is not None
