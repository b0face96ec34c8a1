"""`benchmarks/gpu.py --cpu`: everything that is to run on a GPU runs here first, with tiny shapes."""

import copy
import json

import pytest
import torch

from benchmarks import gpu, gpu_runs, gpu_steps
from benchmarks.steps import build_models, make_batches
from pipeline.engine.micro_step import MicroStep
from tests.support.runs import run_main

HEAD = {"machine", "versions", "commit", "date", "command", "not_measured", "device", "sections"}


def rehearse(monkeypatch, path, *sections: str) -> tuple[int, dict]:
    code, out, err = run_main(monkeypatch, gpu.main, "--cpu", "--only", ",".join(sections), "--json", path)
    results = json.loads(path.read_text())
    assert results.keys() >= HEAD and results["device"] == "cpu", out + err
    assert results["sections"].keys() == set(sections)
    assert [result["error"] for result in results["sections"].values() if "error" in result] == []
    return code, results["sections"]


def test_what_runs_in_one_process_is_rehearsed(monkeypatch, tmp_path):
    names = ("capture", "loss", "steps", "steps_double", "profile", "compiled")
    code, found = rehearse(monkeypatch, tmp_path / "out.json", *names)
    assert code == 0 and all(section["holds"] for section in found.values())
    assert found["capture"]["compared"] == "eager with eager: a CPU records nothing"
    assert len(found["capture"]["cases"]) == 20
    rows = {"chained", "composed", "narrowed", "student", "narrowed_recorded", "student_recorded"}
    for name, tokens in (("steps", 64), ("steps_double", 128)):
        batch = found[name]["setting"]["batch"]
        assert batch["windows"] * batch["seq_len"] == tokens and not found[name]["recorded"]
        assert found[name]["rows"].keys() == rows
        assert all(row["utilisation"] > 0 and len(row["seconds"]) == 1 for row in found[name]["rows"].values())
    assert found["compiled"]["rows"].keys() >= {"student_recorded", "student_compiled_recorded", "narrowed"}
    assert "aten::" in (tmp_path / "out_profile.txt").read_text()
    assert all(row["step_ms"] >= row["host_ms"] > 0 for row in found["profile"]["rows"].values())


def test_what_starts_the_trainer_is_rehearsed(monkeypatch, tmp_path):
    code, found = rehearse(
        monkeypatch, tmp_path / "out.json", "skip", "zero", "trainer", "trainer_compiled", "zero_compiled"
    )
    assert code == 0 and all(section["holds"] for section in found.values())
    for section in found.values():
        assert {run["device"] for run in section["runs"].values()} == {"cpu"}
    skipped = found["skip"]["runs"]["zero1_bf16"]
    assert skipped["skipped_steps"] == 2 and skipped["narrowed_at"] == ["step 4"]
    zero = found["zero"]["runs"]["zero1_bf16"]
    assert zero["losses"] == zero["resumed_losses"] and zero["folds"]["target"]["hidden"] == 32
    for phase in ("full width, scored", "closing", "narrowed"):
        speeds = [found["trainer"]["runs"]["micro_batch_4"], *found["trainer_compiled"]["runs"].values()]
        assert len(speeds) == 3 and all(speed[phase]["tokens_per_s"] > 0 for speed in speeds)
        assert all(0 < speed[phase]["waiting_for_data"] < 1 for speed in speeds)
    assert found["trainer_compiled"]["losses_apart"] == 0  # a rehearsal compiles nothing
    assert found["zero_compiled"]["runs"].keys() == {"zero1_bf16"}


def test_a_section_that_raises_is_written_down_and_the_next_one_runs(monkeypatch, tmp_path):
    path = tmp_path / "out.json"

    def good(scale, result, folder) -> bool:
        result["there"] = list(json.loads(path.read_text())["sections"])
        return True

    def bad(scale, result, folder) -> bool:
        result["found_before"] = 1
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "SECTIONS", {"bad": bad, "good": good})
    code, _, err = run_main(monkeypatch, gpu.main, "--cpu", "--json", path)
    found = json.loads(path.read_text())["sections"]
    assert code == gpu.EXIT_FAILED and "no such kernel" in err
    assert found["bad"]["error"] == "RuntimeError: no such kernel"
    assert found["bad"]["found_before"] == 1 and not found["bad"]["holds"]
    assert found["good"]["holds"] and found["good"]["there"] == ["bad"]  # written before the next one began


def test_arguments_that_cannot_be(monkeypatch, tmp_path):
    code, _, err = run_main(monkeypatch, gpu.main, "--cpu", "--only", "capture,captur", "--json", tmp_path / "x")
    assert code == 2 and "'captur' is none of capture, " in err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run_main(monkeypatch, gpu.main, "--json", tmp_path / "x")
    assert code == 2 and err == "error: torch finds no GPU here: give --cpu to rehearse without one\n"


@pytest.fixture()
def narrowed():
    setting = gpu_steps.REHEARSAL.setting(4, 1)
    batches = make_batches(setting)
    return build_models(setting, batches[0])["narrowed"], [gpu_steps.named(batch) for batch in batches]


def test_a_recorded_step_that_is_another_one_is_found(monkeypatch, narrowed):
    """What a stale copy of the tensors, a dropped gradient or a forgotten seed would look like."""
    run, begin = MicroStep.run, MicroStep.begin

    def verdict(dropout: float = 0.0) -> str:
        return gpu_steps.compared(*narrowed, dropout, recorded=True)["verdict"]

    def spoil(name: str, spoilt) -> None:
        honest = getattr(MicroStep, name)
        monkeypatch.setattr(
            MicroStep, name, lambda self, *given: (spoilt if self._records else honest)(self, *given), raising=True
        )

    monkeypatch.setattr(MicroStep, "_record", lambda self, batch: None)
    assert verdict() == "equal bit for bit"
    spoil("begin", lambda self, composed, scale=1.0: begin(self, composed, 1.02 * scale))
    assert verdict() == "differs"
    stale = {}

    def begin_stale(self, composed) -> None:
        for name, tensor in composed.items():
            tensor.data = stale.setdefault(name, tensor.detach().clone())
        begin(self, composed)

    monkeypatch.setattr(MicroStep, "begin", begin)
    spoil("begin", begin_stale)
    assert verdict() == "differs"
    monkeypatch.setattr(MicroStep, "begin", begin)
    spoil("run", lambda self, batch, seed: run(self, batch, 0))
    assert verdict(dropout=0.1) == "differs: seeds do not decide the loss"


def test_a_step_that_could_not_be_recorded_is_not_taken_for_one_that_was(narrowed):
    found = gpu_steps.compared(*narrowed, 0.0, recorded=True)["verdict"]
    assert found.startswith("not recorded: the training step cannot be recorded as a CUDA graph")


def test_tensors_that_changed_in_a_skipped_step_are_named():
    state = {"a": torch.ones(2), "b": torch.zeros(2)}
    moved = copy.deepcopy(state)
    moved["b"][1] = 1e-30
    assert gpu_runs.differing(state, moved) == ["b"] and gpu_runs.differing(state, {"a": state["a"]}) == ["b"]
    assert gpu_runs.differing(state, copy.deepcopy(state)) == []
