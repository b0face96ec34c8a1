"""What the tests of training, checkpoints and user errors share: tiny shards, teachers and recipes, made in-process."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.data.manifest import Manifest, tokenizer_fingerprint
from pipeline.errors import run_entry_point
from preprocessing.tokenizing.tokenizer import load_fast, save_tokenizer, vocabulary_size
from tests.support import ROOT
from tests.support.models import random_teacher
from tests.support.shards import sentences, write_shard, write_vocabulary


def make_shards(directory: Path, words: int = 1600, seed: int = 0, extra: tuple[str, ...] = ()) -> Path:
    """A shard directory of made-up lines, as build_shards.py makes it but without a process of its own.

    Args:
        directory: where to, new.
        words: about how many.
        seed: decides which.
        extra: pieces to append to the vocabulary, for shards that do not fit the others.
    """
    (directory / "tokenizer").mkdir(parents=True)
    vocabulary = write_vocabulary(directory.parent / f"{directory.name}_vocab.txt")
    if extra:
        vocabulary.write_text(vocabulary.read_text() + "\n".join(extra) + "\n")
    save_tokenizer(vocabulary, directory / "tokenizer", False)
    vocabulary.unlink()
    tokenizer = load_fast(directory / "tokenizer")
    size = vocabulary_size(tokenizer)
    documents = [tokenizer.encode(line, add_special_tokens=False).ids for line in sentences(words // 20, seed)]
    half = len(documents) // 2
    shards = tuple(
        write_shard(directory / f"s{i}", part, size) for i, part in enumerate((documents[:half], documents[half:]))
    )
    Manifest("0" * 64, tokenizer_fingerprint(directory / "tokenizer"), size, {}, shards).write(directory)
    return directory


def vocabulary_of(shards: Path) -> int:
    return json.loads((shards / "manifest.json").read_text())["vocab_size"]


def make_teacher(directory: Path, vocab: int) -> Path:
    random_teacher(2, 24, 3, vocab=vocab).save_pretrained(directory)
    return directory


def recipe_values(
    shards: Path, teacher: Path | None, /, method: str = "wid", **sections: dict[str, Any] | None
) -> dict[str, Any]:
    """A recipe of four steps that retires everything in the first two.

    Args:
        shards: `data.shards`.
        teacher: `teacher.path`, or None for an empty section.
        method: what is trained.
        sections: keys of a section that are to be other than here, or None to empty it.
    """
    values: dict[str, Any] = {
        "teacher": {"path": str(teacher)} if teacher else {},
        "data": {"shards": str(shards), "seq_len": 16, "heldout_windows": 10},
        "target": {"hidden": 15, "head_size": 5, "intermediate": 31},
        "compaction": {"start_step": 1, "interval_steps": 1, "increments": 1, "decay_steps": 1},
        "train": {
            "steps": 4,
            "global_batch": 4,
            "lr": 1e-3,
            "compactor_lr": 2e-3,
            "checkpoint_every": 2,
            "log_every": 1,
        },
    }
    changed = {name: {} if keys is None else {**values[name], **keys} for name, keys in sections.items()}
    return {"method": method, **values, **changed}


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def write_deepspeed(path: Path, **changes: Any) -> Path:
    """A DeepSpeed configuration for two sequences at a time, ZeRO 0, fp32."""
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 0}, **changes}))
    return path


def train_command(inputs: dict[str, Path], output: Path, **changes: Path) -> list[str]:
    """The arguments of pipeline/train.py; `config` and `deepspeed_config` may be replaced."""
    values = {"config": inputs["recipe"], "deepspeed_config": inputs["deepspeed"], "output": output, **changes}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def prepare(directory: Path) -> dict[str, Path]:
    """Shards, teacher, recipe and DeepSpeed configuration that fit each other."""
    shards = make_shards(directory / "shards")
    teacher = make_teacher(directory / "teacher", vocabulary_of(shards))
    recipe = write_recipe(directory / "recipe.yaml", recipe_values(shards, teacher))
    deepspeed = write_deepspeed(directory / "deepspeed.json")
    return {"shards": shards, "teacher": teacher, "recipe": recipe, "deepspeed": deepspeed}


def run_main(monkeypatch: pytest.MonkeyPatch, main: Callable[[], int], *arguments: object) -> tuple[int, str, str]:
    """Run an entry point in this process as the script would: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as done:
        run_entry_point(main)
    return int(done.value.code or 0), out.getvalue(), err.getvalue()


def run_train_worker(directory: Path, *jobs: list[str]) -> str:
    """Train every job to its end in one single-rank process of its own; what it prints."""
    listing = directory / "jobs.json"
    listing.write_text(json.dumps(jobs))
    worker = [sys.executable, str(ROOT / "tests" / "support" / "train_worker.py"), str(listing)]
    result = subprocess.run(worker, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout
