"""Small checkpoints, for the tests of what is written and read."""

from pathlib import Path

import torch

from pipeline.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def state(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    names = {"layers.0.weight": (3, 4), "bias": (5,)}
    tensors = {
        kind: {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
        for kind in ("parameters", "exp_avg", "exp_avg_sq")
    }
    tensors["compaction"] = {"selected_at.residual": torch.arange(4), "taylor.steps": torch.tensor(3)}
    return Checkpoint(tensors, {"step": step, "optimizer_steps": step - 1}, {"vocab_size": 61})


def save(directory: Path, *steps: int, keep: int = 9, keep_every: int = 0) -> Path:
    for step in steps:
        path = save_checkpoint(directory, state(step), keep, keep_every)
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def assert_is(path: Path, step: int) -> None:
    found, wanted = load_checkpoint(path), state(step)
    assert found.step == step and found.trainer == wanted.trainer and found.bert_config == wanted.bert_config
    for kind, tensors in wanted.tensors.items():
        assert found.tensors[kind].keys() == tensors.keys()
        for name, value in tensors.items():
            assert found.tensors[kind][name].dtype == value.dtype and torch.equal(found.tensors[kind][name], value)
