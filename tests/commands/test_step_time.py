"""`benchmarks/step_time.py` as a process on small shapes, and the parts of it that could deceive."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from tests.support import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import scaling, step_time, steps
from pipeline.cost import VARIANTS, Batch, step_macs
from pipeline.environment import require_compiler, shell_form
from pipeline.errors import UserError
from pipeline.models.loss import masked_lm_loss
from pipeline.shapes import BertShape

SMALL = ["--device", "cpu", "--layers", "1", "--hidden", "24", "--heads", "3", "--vocab-size", "50", "--seq-len", "16"]
SMALL += ["--target-hidden", "12", "--rounds", "2"]


def run(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "step_time.py"), *SMALL, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_TOP_PAD_": "65536"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def setting(precision: str = "fp32") -> steps.Setting:
    teacher, student = BertShape(2, 24, 3, 96, 50), BertShape(2, 12, 3, 48, 50)
    return steps.Setting(teacher, student, Batch(8, 16, 2), "cpu", precision, micro_batches=2)


def models(of: steps.Setting) -> dict[str, torch.nn.Module]:
    return steps.build_models(of, steps.make_batches(of)[0])


def test_one_run_gives_every_row_with_ratios_within_the_run(tmp_path):
    path = tmp_path / "out.json"
    beside = ("--beside", str(ROOT))
    done = run("--tokens", "256", "--micro-tokens", "128", *beside, "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    results = json.loads(path.read_text())
    assert results.keys() >= {"machine", "versions", "commit", "not_measured", "setting", "matrix_peak_flops", "rows"}
    options = "--tokens 256 --micro-tokens 128 --beside . --json $DATA/out.json"
    assert results["command"] == f"python benchmarks/step_time.py {' '.join(SMALL)} {options}"
    assert str(tmp_path) not in path.read_text()
    assert results["environment"].items() >= {"OMP_NUM_THREADS": "1", "MALLOC_TOP_PAD_": "65536"}.items()
    assert "PATH" not in results["environment"]
    assert 0 <= time.time() - time.mktime(time.strptime(results["date"], "%Y-%m-%d")) < 48 * 3600
    rows = results["rows"]
    assert rows.keys() == set(VARIANTS)
    assert results["beside"] == results["commit"]
    for name, row in rows.items():
        assert len(row["seconds"]) == 2 and name in done.stdout
        assert row["tokens_per_s_range"][0] <= row["tokens_per_s"] <= row["tokens_per_s_range"][1]
        assert row["peak_bytes"] > 12 * rows["student"]["trained_parameters"]  # parameters and moments
        assert row["utilisation"] > 0
        pairs = [there / here for there, here in zip(row["beside_seconds"], row["seconds"], strict=True)]
        assert row["times_as_fast_as_beside_range"] == [min(pairs), max(pairs)] and len(pairs) == 2
    assert rows["chained"]["times_faster_than_chained"] == rows["student"]["times_student_step"] == 1.0
    seconds = zip(rows["chained"]["seconds"], rows["narrowed"]["seconds"], strict=True)
    each = [chained / narrowed for chained, narrowed in seconds]
    assert rows["narrowed"]["times_faster_than_chained"] == pytest.approx(sum(each) / 2)
    against = [
        own / student for own, student in zip(rows["narrowed"]["seconds"], rows["student"]["seconds"], strict=True)
    ]
    assert rows["narrowed"]["times_student_step_range"] == pytest.approx(sorted(against))
    assert rows["narrowed"]["times_student_step"] == pytest.approx(sum(against) / 2)


def test_the_table_shows_the_range_of_the_ratio_beside_its_median_and_what_was_counted():
    of = setting()
    seconds = {"student": [1.0, 2.0, 4.0], "narrowed": [3.0, 4.0, 4.0]}
    rows = {name: steps.Row(name, print, int, seconds=seconds[name]) for name in seconds}
    summary = step_time.summarise(of, rows, peak=1e9, beside={})
    # Paired within rounds: 3, 2 and 1; of the medians 4 and 2 it would be 2 as well, of the others not.
    assert summary["narrowed"]["times_student_step"] == 2 and summary["narrowed"]["times_student_step_range"] == [1, 3]
    macs = [step_macs(name, of.teacher, of.student, of.batch) for name in ("narrowed", "student")]
    header, _, narrowed = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in step_time.table({name: summary[name] for name in ("narrowed", "student")}).splitlines()[:3]
    )
    shown = dict(zip(header, narrowed, strict=True))
    assert shown["times the student's step"] == "2.00" and shown["least to most"] == "1.00 to 3.00"
    assert shown["counted"] == f"{macs[0] / macs[1]:.2f}" and shown["times faster than chained"] == ""
    alone = step_time.summarise(of, {"narrowed": rows["narrowed"]}, peak=1e9, beside={})
    assert alone["narrowed"]["times_student_step_range"] is None
    cells = [cell.strip() for cell in step_time.table(alone).splitlines()[2].strip("|").split("|")]
    assert cells[3:7] == [""] * 4  # no ratios where there is no student and no chained


def test_rows_can_be_left_out_and_steps_run_in_bf16():
    of = setting("bf16")
    batches = steps.make_batches(of)
    rows = steps.make_rows(of, models(of), ("narrowed", "kd"))
    assert rows.keys() == {"narrowed", "kd"}
    assert steps.measure(of, rows, batches, rounds=1) > 0
    assert all(len(row.seconds) == 1 and row.peak > row.held() > 0 for row in rows.values())


def test_what_cannot_be_is_one_sentence():
    done = run("--tokens", "100")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --tokens 100 must be a multiple of --micro-tokens 100, and that of --seq-len")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options,message",
    [
        (["--tokens", "128", "--micro-tokens", "48"], "must be a multiple of --micro-tokens 48"),
        (["--tokens", "128", "--target-hidden", "13"], "is not a multiple of"),
        (["--tokens", "128", "--target-hidden", "48"], "is wider than the teacher"),
    ],
)
def test_sizes_must_fit(monkeypatch, options, message):
    monkeypatch.setattr(sys, "argv", ["step_time.py", *SMALL, *options])
    with pytest.raises(UserError, match=message):
        step_time.read_setting(step_time.parse_arguments())


@pytest.fixture()
def no_compiler(monkeypatch, tmp_path):
    """Nothing on PATH, which is this directory."""
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_compiling_without_a_compiler_is_one_sentence(monkeypatch, no_compiler):
    monkeypatch.setattr(sys, "argv", ["step_time.py", *SMALL, "--tokens", "128", "--compile"])
    with pytest.raises(
        UserError, match=r"^--compile needs a C\+\+ compiler \(g\+\+, or what CXX names\) and [^\n]*\)$"
    ):
        step_time.read_setting(step_time.parse_arguments())


@pytest.mark.parametrize("device,compiler", [("cpu", "g++"), ("cuda", "gcc"), ("cuda", "clang")])
def test_compiling_needs_the_compiler_of_its_device_and_the_headers(monkeypatch, no_compiler, device, compiler):
    (no_compiler / compiler).write_text("#!/bin/sh\n")
    (no_compiler / compiler).chmod(0o755)
    (no_compiler / "Python.h").touch()
    monkeypatch.setattr("pipeline.environment.get_path", lambda name: str(no_compiler))
    require_compiler("--compile", device)
    other = "cpu" if device == "cuda" else "cuda"
    with pytest.raises(UserError):
        require_compiler("--compile", other)
    (no_compiler / "Python.h").unlink()
    with pytest.raises(UserError):
        require_compiler("--compile", device)


@pytest.mark.parametrize(
    "argument,shown",
    [
        (str(ROOT / "benchmarks" / "x.py"), "benchmarks/x.py"),
        ("runs/../teachers/small", "teachers/small"),
        ("/home/someone/glue/", "$DATA/glue"),
        ("../someone/out.json", "$DATA/out.json"),
        ("lines:/home/someone/wiki *.txt", "lines:$DATA/'wiki *.txt'"),
        ("--text=mediawiki:/home/someone/dump.bz2", "--text=mediawiki:$DATA/dump.bz2"),
        ("--json=/home/someone/out.json", "--json=$DATA/out.json"),
        ("hub:Salesforce/wikitext?config=a&split=test", "'hub:Salesforce/wikitext?config=a&split=test'"),
        ("wid taylor anneal", "'wid taylor anneal'"),
        ("2.5e-4", "2.5e-4"),
    ],
)
def test_the_command_of_a_results_file_names_no_path_outside_the_repository(monkeypatch, argument, shown):
    monkeypatch.chdir(ROOT)
    assert shell_form([argument]) == f"python {shown}"


@pytest.mark.parametrize("form", ["chained", "narrowed"])
def test_forms_that_differ_are_not_timed(form):
    of = setting()
    built, check = models(of), steps.make_batches(of)[0]
    other = copy.deepcopy(built[form])
    steps.check_equal("twins", built[form], other, check)
    with torch.no_grad():
        name = "row_compactor" if form == "chained" else "row_delta"
        other.get_parameter(f"ffn_in_{name}")[0, 3, 3].add_(0.05)
    with pytest.raises(UserError, match="nothing was timed"):
        steps.check_equal("strangers", built[form], other, check)


@pytest.mark.parametrize("form", ["composed", "narrowed"])
def test_composing_once_gives_the_gradients_of_composing_in_every_micro_batch(form):
    of = setting()
    model, batches = models(of)[form].double(), steps.make_batches(of)
    plain = [masked_lm_loss(steps.logits_of(model, batch), batch[2])[0] for batch in batches]
    (sum(plain) / len(plain)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    micro_step = steps.micro_step_of(of, steps.loss_of_variant(form, model))
    steps.forward_and_backward(model, micro_step, batches)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("form", ["student", "narrowed"])
def test_in_bf16_the_gradients_of_micro_batches_add_up_as_in_the_trainer(form):
    """Equal ones must come to the same as one alone, which sums in bf16 round away."""
    found = []
    for times in (1, 8):
        of = dataclasses.replace(setting("bf16"), micro_batches=times)
        model = models(of)[form]
        micro_step = steps.micro_step_of(of, steps.loss_of_variant(form, model))
        steps.forward_and_backward(model, micro_step, times * steps.make_batches(setting())[:1])
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_bf16_steps_add_up_in_the_master_weights():
    model = models(setting("bf16"))["student"]
    optimizer = steps.Optimizer(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    before = [m.clone() for m in optimizer.masters]
    for parameter in optimizer.parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # AdamW moves by the learning rate, which bf16 weights of this size could not follow.
    moved = [float((m - b).abs().max()) for m, b in zip(optimizer.masters, before, strict=True)]
    assert all(0.5 * steps.LEARNING_RATE < step < 2 * steps.LEARNING_RATE for step in moved)
    assert all(p.grad is None for p in optimizer.parameters)
    assert optimizer.bytes_held() >= 12 * sum(p.numel() for p in model.parameters())


def test_a_compiled_step_that_compiles_again_is_not_timed():
    double = torch.compile(lambda tensor, late: tensor * 2 if late else tensor + tensor, backend="eager")
    calls = []

    def step(batches: list[steps.MicroBatch]) -> None:
        calls.append(batches)
        double(torch.ones(2), len(calls) > 2)  # two steps of warm-up

    of = setting()
    with pytest.raises(torch._dynamo.exc.RecompileError):
        steps.measure(of, {"student_compiled": steps.Row("student", step, int)}, steps.make_batches(of), rounds=1)


def test_peak_allocation_counts_what_lives_at_the_same_time():
    def work() -> None:
        first = torch.empty(1 << 20)
        del first
        second, third = torch.empty(1 << 19), torch.empty(1 << 18)
        del second, third

    assert steps.peak_allocation(setting(), work) == 4 << 20


def test_a_point_of_the_sweeps_is_counted_and_measured_in_the_same_setting():
    point = scaling.Point("width", hidden=64, layers=1, tokens=256)
    teacher, student = scaling.shapes(64, 1)
    counted, batch = point.counted(), Batch(2, 128, 19)
    assert counted["narrowed"] * step_macs("student", teacher, student, batch) == pytest.approx(
        step_macs("narrowed", teacher, student, batch)
    )
    measured = point.timed("cpu", "fp32", rounds=1)
    assert measured.keys() == counted.keys() and all(value > 0 for value in measured.values())


@pytest.mark.slow
def test_scaling_writes_numbers_and_a_picture(tmp_path):
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--device", "cpu", *files]
    command += ["--measure-up-to", "10", "--rounds", "1"]
    subprocess.run(command, check=True, timeout=500)
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["command"].startswith("python benchmarks/scaling.py ") and results["precision"] == "fp32"
    rows = results["rows"]
    assert [name for name, row in rows.items() if "measured" in row] == ["width 64"]
    assert rows["tokens 262144"]["counted"]["narrowed"] < rows["tokens 1024"]["counted"]["narrowed"]
    assert rows["ranks 1"]["sent_bytes"]["narrowed"] == [0, 0, 0, 0]
    first, second = rows["ranks 2"], rows["ranks 64"]
    assert first["sent_bytes"]["narrowed"][3] == 1.5 * first["sent_bytes"]["narrowed"][0]
    assert (
        second["macs"]["narrowed"] > first["macs"]["narrowed"] / 32
        and second["macs"]["student"] * 32 == first["macs"]["student"]
    )
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
