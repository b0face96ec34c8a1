"""The task list at work: jobs, ranks, kills and grids, with any number of processes in one output directory."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from pipeline import evaluate
from pipeline.errors import UserError
from tests.support import ROOT
from tests.support.runs import run_main

WORDS = [f"w{i}" for i in range(20)]
SHORT = ["--epochs", "1", "--batch-size", "8", "--max-length", "16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(path)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=len(tokens), max_position_embeddings=32, **shape)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("glue")
    for folder, rows in (("SST-2", 60), ("CoLA", 40)):
        (root / folder).mkdir()
        for stem in ("train", "dev"):
            texts = [(f"{WORDS[i % 20]} {WORDS[(i * 7) % 20]}", i % 2) for i in range(rows)]
            lines = [f"{text}\t{label}" if folder == "SST-2" else f"x\t{label}\t*\t{text}" for text, label in texts]
            header = ["sentence\tlabel"] if folder == "SST-2" else []
            (root / folder / f"{stem}.tsv").write_text("\n".join([*header, *lines]) + "\n")
    return root


def options(model, data, output, *more, tasks="sst2,cola", seeds="1,2"):
    paths = ["--model", str(model), "--data", str(data), "--output", str(output)]
    return [*paths, "--tasks", tasks, "--seeds", seeds, *SHORT, *more]


@pytest.fixture
def run(monkeypatch, model, data):
    """Run the entry point in this process."""

    def call(output, *more, **others):
        monkeypatch.setattr(os, "environ", os.environ.copy())
        return run_main(monkeypatch, evaluate.main, *options(model, data, output, *more, **others))

    return call


def start(arguments, **environment):
    command = [sys.executable, "pipeline/evaluate.py", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A shell's background job ignores Ctrl-C, and so would what this test starts from one.
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, **streams, **heeds)


def workers_of(process):
    return [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]


def content(output):
    return {path.name: path.read_bytes() for path in (output / "predictions").iterdir()}


def test_jobs_ranks_and_one_process_predict_the_same(run, tmp_path, model, data):
    one = tmp_path / "one"
    assert run(one)[0] == 0
    expected = content(one)
    assert len(expected) == 4

    shared = tmp_path / "shared"
    launched = [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    processes = [
        start(options(model, data, tmp_path / "jobs", "--jobs", "2")),
        *(start(options(model, data, shared), **environment) for environment in launched),
    ]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], printed
    for output in (tmp_path / "jobs", shared):
        results = json.loads((output / "results.json").read_text())
        assert content(output) == expected and results["complete"] and results["cost"]["done"] == 4
        alone = json.loads((one / "results.json").read_text())
        assert results["tasks"] == alone["tasks"] and results["settings"] == alone["settings"]
    assert "".join(printed[1:]).count("fine-tuning on") == 4 == printed[0].count("fine-tuning on")
    assert printed[0].count("| sst2 accuracy") == 1  # the workers print no tables


def test_workers_end_with_a_parent_that_is_killed(tmp_path, model, data):
    output = tmp_path / "out"
    arguments = options(model, data, output, "--jobs", "2", "--epochs", "400", tasks="sst2", seeds="1,2,3")
    process = start(arguments)
    deadline = time.monotonic() + 60
    while "fine-tuning on" not in process.stdout.readline():
        assert time.monotonic() < deadline
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert not json.loads((output / "results.json").read_text())["complete"]


def test_a_worker_that_is_killed_is_said(tmp_path, model, data):
    arguments = options(model, data, tmp_path / "out", "--jobs", "2", "--epochs", "400", tasks="sst2", seeds="1,2")
    process = start(arguments)
    while "fine-tuning on" not in process.stdout.readline():
        pass
    workers = workers_of(process)
    workers[0].kill()
    rest = process.communicate()[0]
    assert process.returncode == 2 and "error: a process of --jobs was killed" in rest and "Traceback" not in rest


def test_a_failing_item_leaves_the_others(run, tmp_path, monkeypatch):
    from pipeline.evaluation import finetune

    whole = finetune.fine_tune

    def failing(task, encoder, seed, settings, keep):
        if seed == 1:
            raise UserError(f"{task.name}, seed 1: training diverged")
        return whole(task, encoder, seed, settings, keep)

    monkeypatch.setattr(finetune, "fine_tune", failing)
    code, _, err = run(tmp_path / "out", tasks="sst2,cola")
    assert (code, err) == (2, "error: sst2, seed 1: training diverged; 1 more failed\n")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert not results["complete"] and results["cost"]["done"] == 2
    assert list(results["tasks"]["cola"]["matthews"]["seeds"]) == ["2"]


def test_the_list_is_printed_and_nothing_is_written(run, tmp_path):
    code, out, _ = run(tmp_path / "out", "--list", tasks="latency,sst2,cola", seeds="1,2")
    assert code == 0 and not (tmp_path / "out").exists()
    expected = ["latency", "sst2_1", "sst2_2", "cola_1", "cola_2"]
    assert [line.split() for line in out.splitlines()] == [
        [str(number), name, "to", "do"] for number, name in enumerate(expected, 1)
    ]
    code, out, _ = run(tmp_path / "out", "--list", "--items", "2/2", tasks="latency,sst2,cola", seeds="1,2")
    assert [line.split()[1] for line in out.splitlines()] == ["sst2_1", "cola_1"]


@pytest.mark.parametrize("grid", ["split", "dev"])
def test_a_grid(run, tmp_path, grid):
    more = ("--grid", grid, "--learning-rate", "1e-4,1e-3")
    code, _, err = run(tmp_path / "out", *more, tasks="sst2", seeds="1")
    assert (code, err) == (0, "")
    results = json.loads((tmp_path / "out/results.json").read_text())
    found, entry = results["grid"]["sst2"], results["tasks"]["sst2"]
    assert [(point["learning_rate"], point["batch_size"]) for point in found["points"]] == [(1e-4, 8), (1e-3, 8)]
    assert found["chosen"] in {"lr0.0001_b8", "lr0.001_b8"} and found["chosen_on"] in entry["data"]
    assert sorted(content(tmp_path / "out")) == ["sst2_1_lr0.0001_b8.jsonl", "sst2_1_lr0.001_b8.jsonl"]
    best = max(point["selection"] for point in found["points"])
    assert next(p for p in found["points"] if p["point"] == found["chosen"])["selection"] == best
    if grid == "dev":
        assert entry["accuracy"]["mean"] == best
    else:
        assert best * 6 == pytest.approx(round(best * 6))  # a tenth of 60 rows
    code, _, err = run(tmp_path / "out", tasks="sst2", seeds="1")
    assert code == 2 and "other hyper-parameters" in err


def test_a_point_that_diverges_is_not_chosen(run, tmp_path):
    more = ("--grid", "dev", "--learning-rate", "1e-3,1e30")
    for _ in range(2):
        code, out, err = run(tmp_path / "out", *more, tasks="sst2", seeds="1")
        assert (code, err) == (0, "")
    assert "already done" in out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["complete"] and results["grid"]["sst2"]["chosen"] == "lr0.001_b8"


def test_a_point_that_meets_a_full_disk_is_not_taken_for_diverged(run, tmp_path, monkeypatch):
    from pipeline.evaluation import finetune

    def full(*more):
        raise UserError("predictions: cannot write: No space left on device")

    monkeypatch.setattr(finetune, "fine_tune", full)
    code, _, err = run(tmp_path / "out", "--grid", "dev", "--learning-rate", "1e-3", tasks="sst2", seeds="1")
    assert code == 2 and "No space left" in err
    assert json.loads((tmp_path / "out/results.json").read_text())["cost"]["done"] == 0


def test_ctrl_c_ends_the_workers_at_once(tmp_path, model, data):
    arguments = options(model, data, tmp_path / "out", "--jobs", "2", "--epochs", "400", tasks="sst2", seeds="1,2,3,4")
    process = start(arguments)
    while "fine-tuning on" not in process.stdout.readline():
        pass
    workers = workers_of(process)
    process.send_signal(signal.SIGINT)
    left = psutil.wait_procs(workers, timeout=30)[1]
    process.kill()  # what it leaves behind would run for minutes
    process.communicate()
    assert left == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--grid", "dev", "--keep-models"], "--grid keeps no models"),
        (["--learning-rate", "1e-4,2e-4"], "several values are a grid"),
        (["--batch-size", "8,x", "--grid", "dev"], "--batch-size '8,x': whole numbers were expected"),
        (["--items", "3/2"], "--items '3/2': I/N was expected"),
    ],
)
def test_mistakes_with_the_list_get_one_sentence(run, tmp_path, more, expected):
    code, out, err = run(tmp_path / "out", *more)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and expected in err


def test_bf16_is_recorded_or_refused(run, tmp_path):
    from pipeline.stages import cpu_precision

    code, _, err = run(tmp_path / "out", "--bf16", tasks="sst2", seeds="1")
    if cpu_precision() != "bf16" and not torch.cuda.is_available():
        assert code == 2 and "this device does not compute in bf16" in err
    else:
        assert (code, err) == (0, "")
        assert json.loads((tmp_path / "out/results.json").read_text())["settings"]["precision"] == "bf16"
