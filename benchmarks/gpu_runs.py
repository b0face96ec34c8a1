"""The sections of `gpu.py` that start the trainer: skipped steps, ZeRO stages and precisions, its own speed.

Teachers and shards are random, and made here. Every run is a process of its own, and what is said of it is read from
the files that it leaves.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.gpu_steps import Result, Scale
from benchmarks.steps import random_bert
from pipeline.data.indexed import IndexedWriter
from pipeline.data.manifest import TOKENIZER_NAME, Manifest, tokenizer_fingerprint
from pipeline.engine.student import fold_run
from pipeline.errors import UserError
from pipeline.records import NOT_TRAINING, read_json_lines
from pipeline.shapes import BertShape
from pipeline.stages import ROOT
from preprocessing.tokenizing.tokenizer import save_tokenizer

TRAIN, SPOILED = ROOT / "pipeline" / "train.py", ROOT / "benchmarks" / "gpu_spoiled.py"
SMALL = BertShape(layers=2, hidden=64, heads=4, intermediate=256, vocab_size=200, positions=64)
"""Teacher of the runs that are not timed."""
SMALL_TARGET = {"hidden": 32, "head_size": 8}
SMALL_BATCH, SMALL_MICRO = 16, 8
SMALL_TOKENS = 20_000
STATE = ("parameters", "exp_avg", "exp_avg_sq", "compaction")
PHASES = ("full width, scored", "closing", "narrowed")
"""Of a timed run."""
OTHER_MASKS = 0.01
"""Relative difference of losses that other dropout makes: compiled code draws its own."""
MINUTES = 5
"""After so many a run is ended."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Inputs:
    """Shards, a teacher and a recipe for them, in `folder`.

    Attributes:
        folder: runs, and what they say, lie there too.
        device: where they run, cuda or cpu.
        threads: of each.
    """

    folder: Path
    device: str
    threads: int

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def make(self, teacher: BertShape, tokens: int, sections: dict[str, dict[str, Any]]) -> None:
        """Write them; what `sections` does not say of the recipe is its default."""
        make_shards(self.folder / "shards", teacher.vocab_size, tokens)
        torch.manual_seed(1)
        random_bert(teacher, "cpu").save_pretrained(self.folder / "teacher")
        data = {"shards": str(self.folder / "shards"), **sections.pop("data")}
        recipe = {"method": "wid", "teacher": {"path": str(self.folder / "teacher")}, "data": data, **sections}
        self.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def deepspeed(self, stage: int, precision: str, micro_batch: int) -> Path:
        """One of ds_configs/ with another micro-batch."""
        name = f"zero{stage}_{precision}"
        content = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text(encoding="utf-8"))
        path = self.folder / f"{name}_{micro_batch}.json"
        path.write_text(json.dumps(content | {"train_micro_batch_size_per_gpu": micro_batch}), encoding="utf-8")
        return path

    def command(self, run: str, deepspeed: Path, *options: object, script: Iterable[object] = (TRAIN,)) -> list[str]:
        """What trains into `run`."""
        how = ("--config", self.recipe, "--deepspeed_config", deepspeed, "--output", self.folder / run)
        return [sys.executable, *map(str, (*script, *how, *options))]

    def train(self, commands: dict[str, list[str]], at_once: int) -> dict[str, str]:
        """Run the commands, by name of the run; what went wrong with those that failed."""
        with ThreadPoolExecutor(at_once) as pool:
            errors = dict(zip(commands, pool.map(self._train, commands, commands.values()), strict=True))
        return {name: error for name, error in errors.items() if error}

    def _train(self, run: str, command: list[str]) -> str | None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(self.threads)}
        if self.device == "cpu":
            environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        # Each is one rank of its own, whatever started this process.
        environment = {name: value for name, value in environment.items() if name not in ("RANK", "MASTER_PORT")}
        with open(self.log(run), "ab") as log:
            try:
                code = subprocess.run(
                    command, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=60 * MINUTES
                ).returncode
            except subprocess.TimeoutExpired:
                return f"not done in {MINUTES} minutes: {self.said(run)[-1500:]}"
        return f"exit code {code}: {self.said(run)[-1500:]}" if code else None

    def log(self, run: str) -> Path:
        return self.folder / f"{run}.log"

    def said(self, run: str) -> str:
        """Everything that a run and its resumptions have said."""
        return self.log(run).read_text(encoding="utf-8", errors="replace")

    def metrics(self, run: str) -> list[dict[str, Any]]:
        return list(read_json_lines(self.folder / run / "metrics.jsonl"))

    def about(self, run: str) -> Result:
        """On which device a run was, whether that recorded its micro-steps, and what it said of being narrowed."""
        on_gpu = all("gpu" in line["memory_gib"] for line in self.metrics(run))
        lines = self.said(run).splitlines()
        refused = [line for line in lines if "cannot be recorded" in line]
        graph = refused[0] if refused else "recorded" if on_gpu else "no GPU"
        narrowed = [line.split(":")[0] for line in lines if "narrowed to" in line]
        return {"device": "cuda" if on_gpu else "cpu", "graph": graph, "narrowed_at": narrowed}

    def state(self, run: str, step: int) -> dict[str, torch.Tensor]:
        """Every tensor of a checkpoint."""
        path = self.folder / run / "checkpoints" / f"step_{step}"
        files = {kind: load_file(path / f"{kind}.safetensors") for kind in STATE}
        return {f"{kind}.{name}": tensor for kind, tensors in files.items() for name, tensor in tensors.items()}


def make_shards(directory: Path, vocabulary: int, tokens: int) -> None:
    """A shard directory of random documents over made-up words, as build_shards.py would leave it."""
    tokenizer = directory / TOKENIZER_NAME
    tokenizer.mkdir(parents=True)
    words = [*SPECIAL, *(f"w{number}" for number in range(vocabulary - len(SPECIAL)))]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    save_tokenizer(directory / "vocab.txt", tokenizer, cased=False)
    draw = np.random.default_rng(1)
    lengths = draw.integers(50, 800, tokens // 425)
    writer = IndexedWriter(directory / "s0", vocabulary)
    writer.add(draw.integers(len(SPECIAL), vocabulary, lengths.sum()), lengths)
    Manifest("0" * 64, tokenizer_fingerprint(tokenizer), vocabulary, {}, (writer.finish(),)).write(directory)


def small_inputs(scale: Scale, folder: Path, steps: int, compaction: dict[str, Any], **train: Any) -> Inputs:
    """For runs of a few steps, of which several run side by side."""
    inputs = Inputs(folder, scale.device, threads=1)
    train = {"steps": steps, "global_batch": SMALL_BATCH, "lr": 1e-3, "compactor_lr": 2e-3, "log_every": 1, **train}
    data = {"seq_len": 32, "heldout_windows": 8}
    sections = {"data": data, "target": SMALL_TARGET, "compaction": compaction, "train": train}
    inputs.make(SMALL, SMALL_TOKENS, sections)
    return inputs


def every_stage(scale: Scale, inputs: Inputs) -> dict[str, Path]:
    """DeepSpeed configurations of every stage and precision, by name."""
    pairs = [(stage, precision) for stage in scale.stages for precision in scale.precisions]
    return {f"zero{stage}_{precision}": inputs.deepspeed(stage, precision, SMALL_MICRO) for stage, precision in pairs}


def skip(scale: Scale, result: Result, folder: Path) -> bool:
    """Whether a step without a finite gradient leaves everything as it was, and the training goes on."""
    spoiled, steps = {"full width": 2, "narrowed": 6}, 8
    schedule = {"start_step": 3, "increments": 1, "decay_steps": 1}
    inputs = small_inputs(scale, folder, steps, schedule, checkpoint_every=1, keep_checkpoints=steps)
    script = (SPOILED, ",".join(map(str, spoiled.values())))
    configs = every_stage(scale, inputs)
    commands = {name: inputs.command(name, config, script=script) for name, config in configs.items()}
    errors = inputs.train(commands, scale.at_once)
    runs = result["runs"] = {name: {"error": error} for name, error in errors.items()}
    runs |= {name: skipped(inputs, name, spoiled, steps) for name in configs if name not in errors}
    return all(found.get("skipped") and found["device"] == scale.device for found in runs.values())


def skipped(inputs: Inputs, run: str, spoiled: dict[str, int], steps: int) -> Result:
    """What the spoiled steps of a run have changed."""
    lines = {line["step"]: line for line in inputs.metrics(run)}
    found: Result = inputs.about(run)
    for where, step in spoiled.items():
        # The gates' schedule and their scores follow the step number; neither moves at these steps.
        changed = differing(inputs.state(run, step - 1), inputs.state(run, step))
        found[where] = {"event": lines[step].get("event"), "changed": changed}
    after = differing(inputs.state(run, steps - 1), inputs.state(run, steps))
    found["finite_and_learning_at_the_end"] = bool(np.isfinite(lines[steps]["loss"])) and bool(after)
    found["skipped_steps"] = lines[steps]["skipped_steps"]
    quiet = all(found[where]["changed"] == [] and found[where]["event"] for where in spoiled)
    found["skipped"] = quiet and found["finite_and_learning_at_the_end"]
    return found


def differing(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    return sorted(name for name in ones.keys() | others.keys() if not same(ones.get(name), others.get(name)))


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def zero(scale: Scale, result: Result, folder: Path) -> bool:
    """Whether every stage and precision trains, narrows, resumes and folds here."""
    return resumed_and_folded(scale, result, folder, compiled=False)


def zero_compiled(scale: Scale, result: Result, folder: Path) -> bool:
    """The same of ZeRO 1 in bf16, compiled. A rehearsal needs no compiler."""
    one = replace(scale, stages=(1,), precisions=("bf16",))
    return resumed_and_folded(one, result, folder, compiled=scale.device == "cuda")


def resumed_and_folded(scale: Scale, result: Result, folder: Path, compiled: bool) -> bool:
    """Whether the stages and precisions of `scale` train, narrow, resume bit for bit and fold on its device."""
    steps, interrupted = 12, 4
    schedule = {"start_step": 2, "interval_steps": 1, "increments": 3, "decay_steps": 2}
    keep = {"checkpoint_every": interrupted, "keep_checkpoints": 9, "evaluate_every": 5, "compile": compiled}
    inputs = small_inputs(scale, folder, steps, schedule, **keep)
    configs = every_stage(scale, inputs)
    errors = inputs.train({name: inputs.command(name, config) for name, config in configs.items()}, scale.at_once)
    runs = result["runs"] = {name: {"error": error} for name, error in errors.items()}
    trained = [name for name in configs if name not in errors]
    for name in trained:
        interrupt(folder / name, folder / f"{name}_resumed", interrupted)
    resumed = {f"{name}_resumed": inputs.command(f"{name}_resumed", configs[name]) for name in trained}
    errors = inputs.train(resumed, scale.at_once)
    for name in trained:
        runs[name] = stage_result(inputs, name, steps, errors.get(f"{name}_resumed"))
    return all(
        found.get("resumes") == "bit for bit" and "target" in found["folds"] and found["device"] == scale.device
        for found in runs.values()
    )


def interrupt(run: Path, copy: Path, at: int) -> None:
    """Copy a finished run as it was when its checkpoint of step `at` had just been written."""
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").glob("step_*"):
        if int(checkpoint.name[5:]) > at:
            shutil.rmtree(checkpoint)


def stage_result(inputs: Inputs, run: str, steps: int, resumption_error: str | None) -> Result:
    again = f"{run}_resumed"
    found: Result = {**inputs.about(run), "losses": [line["loss"] for line in inputs.metrics(run)]}
    found["resumed_losses"] = [line["loss"] for line in inputs.metrics(again)]
    found["resumes"] = resumption_error
    if not resumption_error:
        differ = differing(inputs.state(run, steps), inputs.state(again, steps))
        found["resumes"] = f"differs in {len(differ)}: {', '.join(differ[:5])}" if differ else "bit for bit"
    student = inputs.folder / f"{run}_student"
    try:
        fold_run(inputs.folder / run, student)
        folded = json.loads((student / "fold.json").read_text(encoding="utf-8"))
        found["folds"] = {name: folded[name] for name in ("max_logit_diff_fp64", "max_abs_logit", "target")}
    except UserError as error:
        found["folds"] = str(error)
    return found


def trainer(scale: Scale, result: Result, folder: Path) -> bool:
    """How fast the trainer is, and what it waits for.

    At full width its steps score gates until they begin to close, as in recipes/fast_bert_base_to_11m.yaml.
    """
    sizes = (scale.windows, 2 * scale.windows) if scale.device == "cuda" else (scale.windows,)
    return time_runs(scale, result, folder, {f"micro_batch_{size}": (size, False) for size in sizes})


def trainer_compiled(scale: Scale, result: Result, folder: Path) -> bool:
    """How much faster with train.compile, whose losses must be as without. A rehearsal needs no compiler."""
    size, on_gpu = 2 * scale.windows, scale.device == "cuda"
    plain, compiled = f"micro_batch_{size}", f"micro_batch_{size}_compiled"
    if not time_runs(scale, result, folder, {plain: (size, False), compiled: (size, on_gpu)}):
        return False
    runs = result["runs"]
    pairs = zip(runs[plain]["losses"], runs[compiled]["losses"], strict=True)
    result["losses_apart"] = max(abs(one - other) / one for one, other in pairs)
    result["times_as_fast"] = {
        phase: runs[compiled][phase]["tokens_per_s"] / runs[plain][phase]["tokens_per_s"] for phase in PHASES
    }
    return result["losses_apart"] < OTHER_MASKS and (not on_gpu or min(result["times_as_fast"].values()) > 1)


def time_runs(scale: Scale, result: Result, folder: Path, runs: dict[str, tuple[int, bool]]) -> bool:
    """The speed of runs one after the other, by name, with so large a micro-batch, compiled or not."""
    result["setting"] = {"global_batch": 2 * scale.windows, "seq_len": scale.seq_len, "zero": 1, "precision": "bf16"}
    result["runs"] = {}
    for name, (micro_batch, compiled) in runs.items():
        inputs, began = timed_inputs(scale, folder / name, compiled), time.monotonic()
        errors = inputs.train({"run": inputs.command("run", inputs.deepspeed(1, "bf16", micro_batch))}, at_once=1)
        result["runs"][name] = {"error": errors["run"]} if errors else speeds(inputs, name, scale.phase)
        result["runs"][name]["took_seconds"] = round(time.monotonic() - began, 1)
        shutil.rmtree(inputs.folder)
    graph = "recorded" if scale.device == "cuda" else "no GPU"
    return all(found.get("graph") == graph for found in result["runs"].values())


def timed_inputs(scale: Scale, folder: Path, compiled: bool) -> Inputs:
    """As many steps at full width as in closing, and twice as many narrowed."""
    phase, interval = scale.phase, scale.phase // 3
    inputs = Inputs(folder, scale.device, threads=max(1, (os.cpu_count() or 2) // 2))
    train = {"steps": 4 * phase, "global_batch": 2 * scale.windows, "log_every": max(phase // 6, 1)}
    train |= {"checkpoint_every": 4 * phase, "evaluate_every": 4 * phase, "compile": compiled}
    schedule = {"start_step": phase, "interval_steps": interval, "increments": 2, "decay_steps": phase - interval}
    data = {"seq_len": scale.seq_len, "heldout_windows": min(scale.windows, 64)}
    target = {"hidden": scale.target, "head_size": scale.target // scale.teacher.heads}
    inputs.make(scale.teacher, scale.tokens, {"data": data, "target": target, "compaction": schedule, "train": train})
    return inputs


def speeds(inputs: Inputs, label: str, phase: int) -> Result:
    """Medians over the logged intervals of each phase, without its first.

    The model's form changes once more while gates close. The median ignores that interval.
    """
    lines = inputs.metrics("run")
    ends = dict(zip(PHASES, (phase, 2 * phase, lines[-1]["step"]), strict=True))
    found, begins = {**inputs.about("run"), "losses": [line["loss"] for line in lines]}, 1
    for name, end in ends.items():
        of_phase = [line for line in lines if begins < line["step"] <= end][1:]
        speed = [line["tokens_per_s"] for line in of_phase]
        times = {key: statistics.median(line["time_ms"][key] for line in of_phase) for key in lines[-1]["time_ms"]}
        training = [line["time_ms"]["step"] - sum(line["time_ms"][p] for p in NOT_TRAINING) for line in of_phase]
        waiting = [line["time_ms"]["data"] / whole for line, whole in zip(of_phase, training, strict=True)]
        found[name] = {
            "tokens_per_s": statistics.median(speed),
            "tokens_per_s_range": [min(speed), max(speed)],
            "waiting_for_data": statistics.median(waiting),
            "model_flop_utilisation": statistics.median(line["model_flop_utilisation"] for line in of_phase),
            "memory_gib": of_phase[-1]["memory_gib"],
            "time_ms": times,
        }
        begins = end
        print(f"{label}, {name}: {found[name]['tokens_per_s']:,.0f} tokens/s", flush=True)
    return found
