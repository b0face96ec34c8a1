"""Records like those of `make demo`, with the numbers of its committed results, for the tests of the page."""

import json
import math
from pathlib import Path

import yaml

from tests.support import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "2026-11-22_demo.json"
SIZES = {"num_hidden_layers": 4, "num_attention_heads": 6, "vocab_size": 4096}
ROWS = {
    "word_order": "train: train.tsv, 2,988 rows; dev: dev.tsv, 996 rows",
    "mlm heldout": "512 windows of 128 tokens",
    "mlm prose": "29 windows of 128 tokens",
    "latency": "batch 1, 128 tokens, CPU, 1 thread",
}
STEPS, TOKENS = 250, 4096


def write_demo(directory: Path) -> tuple[list[Path], list[Path]]:
    """Run directories and evaluation directories of the demo's models."""
    recorded = json.loads(RESULTS.read_text())
    evaluations = [_evaluation(directory, name, row) for name, row in recorded["rows"].items()]
    runs = [_run(directory, name, run) for name, run in recorded["runs"].items()]
    return runs, evaluations


def _evaluation(directory: Path, name: str, row: dict) -> Path:
    model, evaluation = directory / name, directory / "evaluations" / name
    model.mkdir(parents=True)
    evaluation.mkdir(parents=True)
    hidden = {"hidden_size": row["hidden"], "intermediate_size": 4 * row["hidden"]}
    rest = {"max_position_embeddings": 512, "type_vocab_size": 2}
    (model / "config.json").write_text(json.dumps({**SIZES, **hidden, **rest}))
    if name != "teacher":
        method = {"continued": "continue", "scratch": "scratch"}.get(name, "wid")
        fold = {"method": method, "source_run": str(directory / "runs" / name)}
        (model / "fold.json").write_text(json.dumps(fold))
    tasks: dict[str, dict] = {}
    for score, value in row["scores"].items():
        task, _, metric = score.rpartition(" ")
        entry = tasks.setdefault(task, {"data": ROWS[task]})
        entry[metric] = {**value, "seeds": {str(seed): value["mean"] for seed in range(value["seeds"])}}
    settings = {"epochs": 2.0, "batch_size": 32, "learning_rate": 1e-3, "max_length": 128, "warmup": 0.1}
    results = {"model": str(model), "settings": settings, "complete": True, "tasks": tasks, "not_available": {}}
    (evaluation / "results.json").write_text(json.dumps(results))
    return evaluation


def _run(directory: Path, name: str, run: dict) -> Path:
    path = directory / "runs" / name
    path.mkdir(parents=True)
    narrows = run["method"] == "wid"
    lines = [_line(step, run, narrows) for step in range(10, STEPS + 1, 10)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if narrows:
        (path / "selection.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in range(20, 100, 20)))
    rates = {"steps": STEPS, "lr": 2e-3, "compactor_lr": 0.0 if name == "slice" else 2e-3}
    target = {"hidden": 108, "head_size": 18} if narrows else {}
    teacher = {"path": None if name == "scratch" else str(directory / "teacher")}
    recipe = {"method": run["method"], "teacher": teacher, "target": target, "train": rates}
    (path / "config.yaml").write_text(yaml.safe_dump(recipe))
    command = f"command: pipeline/train.py --output runs/{name}\n"
    (path / "environment.txt").write_text(f"{command}machine: AMD EPYC, 2 cores\ntorch: 2.13.0+cpu\ncommit: 7c38e0c\n")
    return path


def _line(step: int, run: dict, narrows: bool) -> dict:
    end = run["heldout_loss"]
    loss = end + 3 * math.exp(-step / 60) + 0.1 * math.sin(step)
    gone = min(4, max(0, step - 20) // 20) / 4 if narrows else 0.0
    kept = {"residual": round(192 - 84 * gone)}
    kept |= {f"attention.{layer}": round(192 - 84 * gone) for layer in range(4)}
    kept |= {f"ffn.{layer}": round(768 - 336 * gone) for layer in range(4)}
    times = {"data": 1.0, "log": 0.0, "evaluate": 0.0, "checkpoint": 0.0, "step": 400.0}
    line = {"step": step, "tokens": TOKENS * step, "loss": loss, "tokens_per_s": run["tokens_per_s"], "time_ms": times}
    if step % 50 == 0:
        line |= {"heldout_loss": loss - 0.1 * math.sin(step), "heldout_accuracy": run["heldout_accuracy"]}
    return {**line, "kept": kept}
