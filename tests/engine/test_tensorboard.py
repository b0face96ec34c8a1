"""TensorBoard as a user sees it: a run that was killed and went on, read back through the server's HTTP interface.

The first part runs alone at ZeRO 0 and is killed past a checkpoint, so that it leaves events of steps which the second
part, two ranks at ZeRO 3, takes again.
"""

import contextlib
import html
import io
import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.engine import telemetry
from pipeline.engine.board import CLOSING, KEPT, RETIRED, Board, width_map
from pipeline.engine.telemetry import PhaseClock, measure_peak
from tests.support import ROOT
from tests.support.runs import prepare, recipe_values, train_command, write_deepspeed, write_recipe

STEPS, EVALUATE, CHECKPOINT = 30, 5, 4
SCHEDULE = {"start_step": 2, "interval_steps": 2, "increments": 3, "decay_steps": 2}
CHOICES = [2, 4, 6]
NARROWED_AT = 8
GROUPS = {"residual": (24, 15), "attention.0": (24, 15), "attention.1": (24, 15), "ffn.0": (96, 31), "ffn.1": (96, 31)}
"""Size in the teacher and in the student."""
GLOBAL_BATCH, TOKENS, PREDICTED = 4, 16, 2


def train_until_killed(command: list[str], run: Path) -> int:
    """Train, and kill the run where it has logged steps behind its newest checkpoint; returns the last step logged."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while process.poll() is None:
            time.sleep(0.005)
            if last_step(run) < 6:
                continue
            process.send_signal(signal.SIGSTOP)
            last = last_step(run)
            if last > newest_checkpoint(run) >= CHECKPOINT:
                return last
            process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        errors = process.communicate()[1]
    raise AssertionError(f"ended with {process.returncode} before it could be killed: {errors.decode()[-3000:]}")


def last_step(run: Path) -> int:
    """The last step logged, 0 if there is none. A line that is just being written does not count."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def newest_checkpoint(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")), default=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("board")
    inputs = prepare(directory)
    train = {"steps": STEPS, "checkpoint_every": CHECKPOINT, "evaluate_every": EVALUATE}
    values = recipe_values(inputs["shards"], inputs["teacher"], compaction=SCHEDULE, train=train)
    write_recipe(inputs["recipe"], values)
    script, run = str(ROOT / "pipeline" / "train.py"), directory / "run"

    last = train_until_killed([sys.executable, script, *train_command(inputs, run)], run)
    assert newest_checkpoint(run) < last < STEPS

    inputs["deepspeed"] = write_deepspeed(directory / "zero3.json", zero_optimization={"stage": 3})
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*ranks, script, *train_command(inputs, run)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return run


@pytest.fixture(scope="module")
def get(run):
    """A function from a path of the server's data and its query to the answer."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run), "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = next(found for line in server.stderr if (found := re.search(r"http://[\d.]+:\d+/", line)))[0]

        def get(path: str, **query: object) -> bytes:
            question = urllib.parse.urlencode({"run": "tensorboard", **query})
            with urllib.request.urlopen(f"{address}data/plugin/{path}?{question}") as answer:
                return answer.read()

        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.HTTPError):  # no such tag yet
                if json.loads(get("scalars/scalars", tag="mlm/loss"))[-1][1] == STEPS:
                    break
            time.sleep(0.2)
        yield get
    finally:
        server.kill()
        server.communicate()


def tags(get: Callable[..., bytes], kind: str) -> list[str]:
    return list(json.loads(get(f"{kind}/tags"))["tensorboard"])


def scalars(get: Callable[..., bytes], tag: str) -> dict[int, float]:
    """Values by step, if no step comes twice or goes back."""
    points = json.loads(get("scalars/scalars", tag=tag))
    steps = [step for _, step, _ in points]
    assert steps == sorted(set(steps))
    return {step: value for _, step, value in points}


def histograms(get: Callable[..., bytes], tag: str) -> dict[int, list[list[float]]]:
    """By step: bins of [left, right, count]; no step comes twice or goes back."""
    points = json.loads(get("histograms/histograms", tag=tag))
    steps = [step for _, step, _ in points]
    assert steps == sorted(set(steps))
    return {step: bins for _, step, bins in points}


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def selections(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]


def test_no_curve_overlaps_after_a_resume_and_each_is_what_the_run_recorded(run, get):
    records = metrics(run)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    evaluated = list(range(EVALUATE, STEPS + 1, EVALUATE))
    for tag in tags(get, "scalars"):
        steps = evaluated if "heldout" in tag else list(range(1, STEPS + 1))
        assert list(scalars(get, tag)) == steps, tag
    for tag, key in (
        ("mlm/loss", "loss"),
        ("mlm/heldout_loss", "heldout_loss"),
        ("optimizer/gradient_norm", "gradient_norm"),
        ("speed/tokens_per_s", "tokens_per_s"),
    ):
        expected = [record[key] for record in records if key in record]
        np.testing.assert_allclose(list(scalars(get, tag).values()), expected, rtol=1e-6)
    for group, (size, keep) in GROUPS.items():
        width = list(scalars(get, f"width/{group}").values())
        assert width == [record["kept"][group] for record in records]
        assert (width[0], width[-1]) == (size, keep)


def test_every_tag_is_documented_and_every_documented_tag_exists(get):
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z_]+/[^`]+)`(.*)", text, re.MULTILINE)
    patterns = {tag: re.compile(re.sub("[A-Z]+", r"[\\w.]+", re.escape(tag)) + "$") for tag, _ in documented}
    shown = [tag for kind in ("scalars", "histograms", "images", "text") for tag in tags(get, kind)]
    shown = [tag.removesuffix("/text_summary") for tag in shown]
    assert [tag for tag in shown if not any(p.match(tag) for p in patterns.values())] == []
    elsewhere = {tag for tag, rest in documented if "fp16" in rest or "on GPUs" in rest or "minilmv2" in rest}
    assert elsewhere == {tag for tag, p in patterns.items() if not any(p.match(tag) for tag in shown)}


def test_the_masked_lm_curves_come_first(get):
    charts = [tag for kind in ("scalars", "histograms", "images") for tag in tags(get, kind)]
    assert min(charts).startswith("mlm/")


def test_the_phases_add_up_and_the_speed_is_that_of_the_model_in_training(run, get):
    for record in metrics(run):
        parts = dict(record["time_ms"])
        assert parts.pop("step") == pytest.approx(sum(parts.values()), rel=1e-6)
        assert min(parts.values()) >= 0
        assert parts["forward"] > 0 and parts["backward"] > 0 and parts["optimizer"] > 0
        training = sum(value for name, value in parts.items() if name not in ("log", "evaluate", "checkpoint"))
        assert record["tokens_per_s"] == pytest.approx(GLOBAL_BATCH * TOKENS / (training / 1000), rel=1e-6)
        assert (parts["evaluate"] > 0) == (record["step"] % EVALUATE == 0)
    compaction = [record["time_ms"]["compaction"] for record in metrics(run)]
    assert compaction[NARROWED_AT] > 10 * np.median(compaction[NARROWED_AT + 1 :])

    speed, flops = scalars(get, "speed/tokens_per_s"), scalars(get, "speed/model_tflop_per_s")
    vocabulary = json.loads((run / "checkpoints" / f"step_{STEPS}" / "config.json").read_text())["vocab_size"]
    for step in flops:
        hidden, intermediate = (24, 96) if step <= NARROWED_AT else (15, 31)
        # In the last layer, what comes after the projections is for the predicted alone.
        layer = TOKENS * (4 * hidden**2 + 2 * hidden * intermediate) + 2 * TOKENS**2 * hidden
        passed_over = (TOKENS - PREDICTED) * (2 * TOKENS * hidden + hidden**2 + 2 * hidden * intermediate)
        window = 6 * (2 * layer - passed_over + PREDICTED * (hidden**2 + hidden * vocabulary))
        assert flops[step] == pytest.approx(speed[step] * window / TOKENS / 1e12, rel=1e-5)
    peaks = [flops[step] / used for step, used in scalars(get, "speed/model_flop_utilisation").items()]
    assert len({float(f"{peak:.3g}") for peak in peaks}) == 2  # one measured by each part of the run
    assert min(peaks) > 1e-3
    assert 0.1 < min(scalars(get, "system/host_memory_gib").values()) < 100


def test_gates_close_and_compactors_move(run, get):
    for group, (size, keep) in GROUPS.items():
        gates = histograms(get, f"width_gates/{group}")
        assert list(gates) == sorted({*(step + 1 for step in CHOICES), *range(EVALUATE, STEPS + 1, EVALUATE)})
        assert all(sum(count for *_, count in bins) == pytest.approx(size) for bins in gates.values())
        open_at = {step: sum(count for left, _, count in bins if left > 0.9) for step, bins in gates.items()}
        closed_at = {step: sum(count for _, right, count in bins if right < 0.1) for step, bins in gates.items()}
        assert open_at[CHOICES[0] + 1] == pytest.approx(size)
        assert (open_at[STEPS], closed_at[STEPS]) == pytest.approx((keep, size - keep))

    parameters = load_file(run / "checkpoints" / f"step_{STEPS}" / "parameters.safetensors")
    found = Counter()
    rows, columns = {"attention_out": "attention", "ffn_out": "ffn"}, {"qkv": "attention", "ffn_in": "ffn"}
    for name, delta in parameters.items():
        if name.endswith("_row_delta"):
            kind = rows.get(name.removesuffix("_row_delta"), "residual")
            found[f"row_{kind}"] += delta.norm(dim=-2).sum().item()
        elif name.endswith("_column_delta"):
            kind = columns.get(name.removesuffix("_column_delta"), "residual")
            found[f"column_{kind}"] += delta.norm(dim=-1).sum().item()
    assert len(found) == 6
    for name, total in found.items():
        bins = histograms(get, f"width_compactors/{name}")[STEPS]
        middle = sum((left + right) / 2 * count for left, right, count in bins)
        assert middle == pytest.approx(total, rel=0.1) and total > 0


def test_scores_of_every_increment_are_those_that_were_in_play(run, get):
    retired = Counter()
    for line in selections(run):
        bins = histograms(get, f"width_scores/{line['group']}")[line["step"] + 1]
        in_play = GROUPS[line["group"]][0] - retired[line["group"]]
        assert sum(count for *_, count in bins) == pytest.approx(in_play)
        assert bins[0][0] < 0 < bins[-1][1]
        retired[line["group"]] += len(line["retired"])


def test_the_map_shows_what_is_left_after_each_increment(run, get):
    for group, (size, _) in GROUPS.items():
        shown = json.loads(get("images/images", tag=f"width_map/{group}", sample=0))
        assert [image["step"] for image in shown] == [step + 1 for step in CHOICES]
        query = dict(urllib.parse.parse_qsl(shown[-1]["query"]))
        picture = np.asarray(Image.open(io.BytesIO(get("images/individualImage", **query))))
        height, width, _ = picture.shape
        assert width >= 384 and width % size == 0 and height % (len(CHOICES) + 1) == 0
        rows = picture[:: height // (len(CHOICES) + 1), :: width // size]
        expected = np.broadcast_to(np.uint8(KEPT), rows.shape).copy()
        for line in selections(run):
            if line["group"] == group:
                expected[line["increment"] + 1 :, line["retired"]] = RETIRED
                expected[line["increment"], line["retired"]] = CLOSING
        np.testing.assert_array_equal(rows, expected)
        assert np.array_equal(picture, rows.repeat(height // len(rows), 0).repeat(width // size, 1))


def test_an_increment_that_retires_nothing_has_a_row_and_those_to_come_are_transparent():
    picture = width_map(torch.tensor([-1, 6]), moments=[2, 6, 10], increments=5)
    rows = picture[:: len(picture) // 6, :: picture.shape[1] // 2]
    nothing = (0, 0, 0, 0)
    expected = [[KEPT, KEPT], [KEPT, KEPT], [KEPT, CLOSING], [KEPT, RETIRED], [nothing, nothing], [nothing, nothing]]
    np.testing.assert_array_equal(rows, np.uint8(expected))


def test_the_configuration_is_there_as_text(run, get):
    def text(name: str) -> list[tuple[int, str]]:
        entries = json.loads(get("text/text", tag=f"run/{name}/text_summary"))
        return [(entry["step"], html.unescape(re.sub("<[^>]*>", "", entry["text"])).strip()) for entry in entries]

    first, second = text("recipe")
    assert first[0] == 1 and second[0] % CHECKPOINT == 1
    assert yaml.safe_load(second[1]) == yaml.safe_load((run / "config.yaml").read_text())
    assert json.loads(text("deepspeed")[-1][1]) == json.loads((run / "ds_config.json").read_text())
    assert "commit: " in text("environment")[-1][1]
    cells = [[cell.strip() for cell in re.split(r"\n+", content)] for _, content in text("hyperparameters")]
    tables = [dict(zip(row[::2], row[1::2], strict=True)) for row in cells]
    assert [(table["run.ranks"], table["run.zero_stage"]) for table in tables] == [("1", "0"), ("2", "3")]
    assert tables[0]["compaction.increments"] == "3" and tables[0]["run.precision"] == "fp32"


def test_a_run_killed_before_its_first_checkpoint_leaves_no_curve_behind(tmp_path):
    (tmp_path / "config.yaml").write_text("method: wid\ntrain: {steps: 3}\n")
    numbers = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "train_batch_size": 4}
    (tmp_path / "ds_config.json").write_text(json.dumps(numbers))
    (tmp_path / "environment.txt").write_text("machine: any\n")
    record = {"accuracy": 0.5, "loss_scale": 4096.0, "tokens_per_s": 1.0, "kept": {}, "time_ms": {}, "memory_gib": {}}
    record |= {"model_flop_utilisation": 0.3, "model_tflop_per_s": 1.0, "gradient_norm": None}
    for attempt, steps in ((1, 3), (2, 2)):
        board = Board(tmp_path, first_step=0)
        for step in range(1, steps + 1):
            board.step({**record, "step": step, "loss": attempt}, {"weights": 1e-3})
        # Not closed: a kill does not wait for that.
        time.sleep(1.1)  # event files are named by the second
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("mlm/loss")] == [(1, 2.0), (2, 2.0)]
    assert [event.value for event in events.Scalars("optimizer/loss_scale")] == [4096.0, 4096.0]
    assert "optimizer/gradient_norm" not in events.Tags()["scalars"]


def test_the_clock_adds_up_each_phase_and_starts_anew():
    clock = PhaseClock(torch.device("cpu"))
    for _ in range(2):
        with clock("forward"):
            time.sleep(0.02)
    with clock("backward"):
        pass
    seconds = clock.take()
    assert list(seconds) == ["forward", "backward"]
    assert seconds["forward"] >= 0.04 > seconds["backward"] >= 0
    assert clock.take() == {}


def test_waiting_for_a_busy_machine_does_not_pass_for_its_peak(monkeypatch):
    """A device of 1e11 operations per second on which every product waits 10 ms before it begins."""
    seconds = 0.0

    def product(matrix: torch.Tensor, _: torch.Tensor, out: torch.Tensor) -> None:
        nonlocal seconds
        seconds += 0.01 + 2 * len(matrix) ** 3 / 1e11

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(telemetry, "_now", lambda device: seconds)
    assert 0.5e11 < measure_peak(torch.device("cpu"), torch.float32) < 1e11
