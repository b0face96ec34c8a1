"""The DeepSpeed JSON: checked against the recipe and the machine, and completed with what follows from both."""

import copy
import json
import os
import shutil
from pathlib import Path
from sysconfig import get_path
from typing import Any

from pipeline.config import TrainConfig
from pipeline.errors import UserError

# What a DeepSpeed JSON may say here. DeepSpeed ignores top-level keys it does not know, typing errors among them.
_KNOWN = {
    "train_micro_batch_size_per_gpu",
    "zero_optimization",
    "bf16",
    "fp16",
    "gradient_clipping",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "activation_checkpointing",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "steps_per_print",
    "dump_state",
}
_SECTIONS = {"zero_optimization", "bf16", "fp16", "activation_checkpointing", "comms_logger", "flops_profiler"}


def load_deepspeed_config(path: Path, train: TrainConfig, ranks: int) -> dict[str, Any]:
    """The configuration to hand to `deepspeed.initialize`, with accumulation and batch size filled in.

    Raises:
        UserError: the file is missing or no JSON, a key is unknown or contradicts the recipe, the global batch
            does not divide, or the machine cannot run the precision.
    """
    config = _read(path)
    micro = config.get("train_micro_batch_size_per_gpu")
    if type(micro) is not int or micro < 1:
        raise UserError(f"{path}: set train_micro_batch_size_per_gpu to the sequences one rank takes at a time")
    if train.global_batch % (micro * ranks):
        fitting = [size for size in range(1, micro) if train.global_batch % (size * ranks) == 0]
        advice = f": {fitting[-1]} would do" if fitting else ""
        raise UserError(
            f"{path}: train.global_batch {train.global_batch} is not a multiple of train_micro_batch_size_per_gpu "
            f"{micro} x {ranks} ranks{advice}"
        )
    accumulation = train.global_batch // (micro * ranks)
    for key, value in (("gradient_accumulation_steps", accumulation), ("train_batch_size", train.global_batch)):
        if config.setdefault(key, value) != value:
            raise UserError(f"{path}: {key} is {config[key]}, but the recipe and {ranks} ranks make it {value}")
    for key in ("optimizer", "scheduler"):
        if key in config:
            raise UserError(f"{path}: {key} belongs to the recipe (its train section), remove it here")
    unknown = set(config) - _KNOWN - {"gradient_accumulation_steps", "train_batch_size"}
    if unknown:
        raise UserError(f"{path}: unknown key {sorted(unknown)[0]}; known are {', '.join(sorted(_KNOWN))}")
    _check_sections(path, config)
    _check_machine(path, config)
    _check_combination(path, config)
    if train.compile:
        _check_compile(path, config)
    config.setdefault("steps_per_print", 10**9)
    # Offloaded or not, the optimizer is torch's AdamW: DeepSpeed's own for CPUs has to be compiled first.
    config["zero_force_ds_cpu_optimizer"] = False
    return config


def precision(config: dict[str, Any]) -> str:
    """fp32, bf16 or fp16."""
    return next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"DeepSpeed configuration {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"DeepSpeed configuration {path} is no JSON: byte {error.start} is no UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise UserError(f"DeepSpeed configuration {path} is no JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(config, dict):
        raise UserError(f"DeepSpeed configuration {path} must be a JSON object")
    return config


def _check_machine(path: Path, config: dict[str, Any]) -> None:
    from deepspeed.accelerator import get_accelerator

    if config.get("bf16", {}).get("enabled") and config.get("fp16", {}).get("enabled"):
        raise UserError(f"{path}: bf16 and fp16 are both enabled, choose one")
    accelerator = get_accelerator()
    name = accelerator.device_name()
    if precision(config) == "fp16" and not accelerator.is_fp16_supported():
        raise UserError(f"{path}: fp16 does not run on this machine's {name}; use a bf16 or fp32 configuration")
    if precision(config) == "bf16" and not accelerator.is_bf16_supported():
        raise UserError(f"{path}: bf16 does not run on this machine's {name}; use an fp32 configuration")


def _check_combination(path: Path, config: dict[str, Any]) -> None:
    """Refuse what the training could not keep its promises under."""
    zero = config.get("zero_optimization", {})
    for name, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = (zero.get(name) or {}).get("device", "none")
        if device == "nvme":
            raise UserError(f"{path}: zero_optimization.{name} to nvme is not supported; offload to cpu")
        if device != "none" and zero.get("stage", 0) < least:
            raise UserError(f"{path}: zero_optimization.{name} needs stage {least}{' or more' if least < 3 else ''}")
    if zero.get("compute_grad_norm") is False:
        raise UserError(f"{path}: zero_optimization.compute_grad_norm must stay on: without it gradients go unchecked")
    if config.get("bf16", {}).get("check_grad_overflow") is False:
        raise UserError(f"{path}: bf16.check_grad_overflow must stay on, it skips steps whose gradient is not finite")
    for section, key in (
        ("fp16", "fp16_master_weights_and_grads"),
        ("bf16", "bf16_master_weights_and_grads"),
        ("bf16", "bf16_optimizer_states"),
    ):
        if config.get(section, {}).get(key):
            raise UserError(f"{path}: {section}.{key} is not supported: checkpoints hold fp32 weights and moments")


def _check_compile(path: Path, config: dict[str, Any]) -> None:
    """Refuse `train.compile` where it does not work."""
    if config.get("zero_optimization", {}).get("stage", 0) == 3:
        raise UserError(
            f"{path}: train.compile does not go with ZeRO stage 3, which fetches every layer's parameters in Python "
            "while the model runs; use stage 0, 1 or 2"
        )
    if not shutil.which(os.environ.get("CXX", "g++")) or not Path(get_path("include"), "Python.h").is_file():
        raise UserError("train.compile needs g++ and Python's headers (Debian: apt-get install g++ python3-dev)")


def _check_sections(path: Path, config: dict[str, Any]) -> None:
    """Refuse what DeepSpeed itself would end with a traceback for: wrong types, keys and values in its sections."""
    from deepspeed import DeepSpeedConfig
    from pydantic import ValidationError

    for name in sorted(_SECTIONS & config.keys()):
        if not isinstance(config[name], dict):
            raise UserError(f"{path}: {name} must be a section with keys, not {config[name]!r}")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, not {stage!r}")
    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: DeepSpeed refuses the key {where}: {first['msg']}") from error
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: DeepSpeed refuses this configuration: {(str(error).splitlines() or [repr(error)])[0]}"
        ) from error
