"""The task list: parts, records, and any number of processes in one output directory."""

import json
import multiprocessing
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
from pipeline.evaluation.items import Item, Outcome, Part, When
from pipeline.evaluation.records import compose
from pipeline.evaluation.store import ResultStore
from tests.support import ROOT
from tests.support.runs import run_main

WORDS = [f"w{i}" for i in range(20)]
SHORT = ["--epochs", "1", "--batch-size", "8", "--max-length", "16"]


def item(name, seed, **fields):
    return Item(name, seed, entries={name: {"data": "full", "data_sha256": "0"}}, flops=1.0, **fields)


def store(path, *items):
    made = ResultStore(path, path.parent / "model", "0", {})
    for each in items:
        made.plan(each)
    return made


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "1/2/3", "-1/2", " 1/2"])
def test_a_part_is_spelled_i_of_n(text):
    with pytest.raises(UserError, match="--items"):
        Part.parse(text)


@pytest.mark.parametrize(("parts", "ranks"), [(1, 1), (3, 1), (1, 4), (3, 2), (20, 2)])
def test_parts_and_ranks_have_every_item_once(parts, ranks):
    items = [item("rte", seed) for seed in range(7)] + [item("submission", 1, when=When.LAST)]
    shares = [
        Part(number, parts).within(rank, ranks).of(items) for number in range(1, parts + 1) for rank in range(ranks)
    ]
    assert sorted(each.seed for share in shares for each in share[:-1]) == list(range(7))
    assert all(share[-1].when is When.LAST for share in shares)  # whoever finds the others done


def test_a_record_makes_results_whoever_wrote_it(tmp_path):
    first, second = (store(tmp_path / "out", item("rte", 1), item("rte", 2)) for _ in range(2))
    for made in (first, second):
        made.open(1.0)
    second.finish(second.items[1], Outcome({"rte": {"accuracy": {2: 0.5}}}), {"seconds": 1.0})
    assert not second.complete
    first.finish(first.items[0], Outcome({"rte": {"accuracy": {1: 1.0}}}), {"seconds": 1.0})
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["complete"] and found["tasks"]["rte"]["accuracy"]["seeds"] == {"1": 1.0, "2": 0.5}
    assert found["cost"] == {"items": 2, "done": 2, "teraflops": 0.0, "estimated_seconds": 2.0, "seconds": 2.0}
    third = store(tmp_path / "out", item("rte", 3))
    assert third.complete and third.scores("rte")["accuracy"]["mean"] == 0.75
    third.open(1.0)
    assert not third.complete


def test_what_is_finished_while_another_process_starts_stays(tmp_path):
    slow, quick = (store(tmp_path / "out", item("rte", 1), item("rte", 2)) for _ in range(2))
    quick.open(1.0)
    quick.finish(quick.items[0], Outcome({"rte": {"accuracy": {1: 1.0}}}), {"seconds": 1.0})
    slow.open(1.0)  # it read the directory before there was anything
    assert slow.is_done(slow.items[0]) and slow.scores("rte")["accuracy"]["seeds"] == {"1": 1.0}
    assert slow.undone == ["rte_2"]


def test_scores_stay_until_they_are_made_again(tmp_path):
    made = store(tmp_path / "out", item("rte", 1))
    made.open(1.0)
    made.finish(made.items[0], Outcome({"rte": {"accuracy": {1: 1.0}}}), {"seconds": 1.0})
    again = store(tmp_path / "out", item("rte", 1, files=["models/rte_1"]))
    again.open(1.0)
    assert not again.is_done(again.items[0]) and again.scores("rte")["accuracy"]["mean"] == 1.0


def test_two_evaluations_that_begin_in_one_directory_do_not_mix(tmp_path):
    first = store(tmp_path / "out", item("rte", 1))
    second = ResultStore(tmp_path / "out", tmp_path / "model", "another", {})
    second.plan(item("rte", 1))
    first.open(1.0)
    with pytest.raises(UserError, match="results of another model"):
        second.open(1.0)
    (tmp_path / "out/results.json").unlink()  # as if both had looked before either wrote it
    with pytest.raises(UserError, match="results of another model or of other hyper-parameters"):
        second.open(1.0)


def test_a_score_is_told_by_the_rows_it_is_of(tmp_path):
    old = store(tmp_path / "out", item("rte", 1), item("rte", 2))
    old.open(1.0)
    new = ResultStore(tmp_path / "out", tmp_path / "model", "0", {})
    new.plan(Item("rte", 2, entries={"rte": {"data": "others", "data_sha256": "1"}}))
    new.open(1.0)
    new.finish(new.items[0], Outcome({"rte": {"accuracy": {2: 1.0}}}), {"seconds": 1.0})
    assert new.data("rte") == "others"


def test_a_claimed_item_is_left_alone_until_its_process_is_gone(tmp_path):
    mine = store(tmp_path / "out", item("rte", 1))
    mine.open(1.0)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def hold():
        with mine.claim(mine.items[0]) as free:
            theirs.send(free)
            time.sleep(60)

    process = context.Process(target=hold)
    process.start()
    assert ours.recv()
    with mine.claim(mine.items[0]) as free:
        assert not free
    process.kill()
    process.join()
    with mine.claim(mine.items[0]) as free:
        assert free
        mine.finish(mine.items[0], Outcome({"rte": {"accuracy": {1: 1.0}}}), {"seconds": 1.0})
    with mine.claim(mine.items[0]) as free:
        assert not free
    assert [path.name for path in (tmp_path / "out/items").iterdir() if path.suffix != ".lock"] == ["rte_1.json"]


def test_an_item_whose_file_is_gone_or_that_is_to_leave_more_is_not_done(tmp_path):
    made = store(tmp_path / "out", item("rte", 1, files=["predictions/rte_1.jsonl"]))
    made.open(1.0)
    made.finish(made.items[0], Outcome(), {"seconds": 1.0})
    assert not made.is_done(made.items[0])
    (tmp_path / "out/predictions/rte_1.jsonl").touch()
    assert made.is_done(made.items[0])
    assert not made.is_done(item("rte", 1, files=["predictions/rte_1.jsonl", "models/rte_1"]))


def test_a_directory_that_another_process_makes_at_this_moment_is_taken(tmp_path):
    for folder in ("items", "predictions"):
        (tmp_path / "out" / folder).mkdir(parents=True, exist_ok=True)
        store(tmp_path / "out", item("rte", 1)).open(1.0)
        (tmp_path / "out/results.json").unlink()
    (tmp_path / "out/notes.txt").touch()
    with pytest.raises(UserError, match="it holds other files"):
        store(tmp_path / "out", item("rte", 1))


def test_a_damaged_record_is_named(tmp_path):
    made = store(tmp_path / "out", item("rte", 1))
    made.open(1.0)
    (tmp_path / "out/items/rte_1.json").write_text("{")
    with pytest.raises(UserError, match=r"items/rte_1\.json: it cannot be read; remove it"):
        store(tmp_path / "out", item("rte", 1))


def test_the_best_point_stands_for_its_task_when_all_are_done():
    def record(point, rate, seed, selection, accuracy):
        settings = {"learning_rate": rate, "batch_size": 32}
        done = {"scores": {"rte": {"accuracy": {str(seed): accuracy}}}, "verdicts": {}, "selection": selection}
        done |= {"submission": None, "failure": None, "seconds": 1.0}
        entries = {"rte": {"data": "full", "data_sha256": "0"}}
        base = {"task": "rte", "seed": seed, "point": point, "chosen_on": "dev", "settings": settings, "missing": {}}
        return {**base, "entries": entries, "teraflops": 1.0, "estimated_seconds": 1.0, "done": done}

    records = [
        record("a", 1e-4, 1, 0.5, 0.1),
        record("a", 1e-4, 2, 0.6, 0.2),
        record("b", 2e-4, 1, 0.7, 0.3),
        record("b", 2e-4, 2, 0.4, 0.4),
        record("c", 3e-4, 1, 0.9, 0.9),
    ]
    waiting = [{**record("c", 3e-4, seed, 0.0, 0.9), "done": None} for seed in (1, 2)]
    none = compose({}, [*records[:4], *waiting], [], {})
    assert none["grid"]["rte"]["chosen"] is None and "accuracy" not in none["tasks"]["rte"]
    partly = compose({}, [*records, waiting[1]], [], {})  # seed 1 is done at every point
    assert partly["grid"]["rte"]["chosen"] == "c" and not partly["complete"]
    assert partly["tasks"]["rte"]["accuracy"]["seeds"] == {"1": 0.9}
    assert [point["seeds"] for point in partly["grid"]["rte"]["points"]] == [1, 1, 1]
    found = compose({}, [*records, record("c", 3e-4, 2, 0.1, 0.9)], [], {})
    assert found["grid"]["rte"]["chosen"] == "a"  # of three equal means (0.55, 0.55, 0.5) the lowest rate
    assert found["tasks"]["rte"]["accuracy"]["seeds"] == {"1": 0.1, "2": 0.2}
    assert found["task_settings"]["rte"]["learning_rate"] == 1e-4


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
    workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
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
    workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
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


def test_ctrl_c_ends_the_workers_at_once(tmp_path, model, data):
    arguments = options(model, data, tmp_path / "out", "--jobs", "2", "--epochs", "400", tasks="sst2", seeds="1,2,3,4")
    process = start(arguments)
    while "fine-tuning on" not in process.stdout.readline():
        pass
    workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
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
