"""The DeepSpeed JSON: checked against the recipe and the machine, and completed with what follows from both."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import TrainConfig
from pipeline.environment import require_compiler
from pipeline.errors import UserError


class _Kind(NamedTuple):
    """What the value of a key may be: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _whole(least: int, most: int = sys.maxsize) -> _Kind:
    """A whole number, also one written like 5e8, which JSON makes a float of."""
    words = f"a whole number from {least}" + (f" to {most}" if most < sys.maxsize else "")
    return _Kind(words, lambda value: type(value) in (int, float) and least <= value <= most and value % 1 == 0)


def _choice(*values: int | str) -> _Kind:
    words = f"{', '.join(map(str, values[:-1]))} or {values[-1]}"
    return _Kind(words, lambda value: type(value) is type(values[0]) and value in values)


_SWITCH = _Kind("true or false", lambda value: type(value) is bool)
_NUMBER = _Kind("a number from 0", lambda value: type(value) in (int, float) and 0 <= value <= sys.float_info.max)
_OFF = _Kind("false (true is not supported)", lambda value: value is False)
_OFFLOADED = {
    "device": _Kind("cpu or none (offloading to nvme is not supported)", lambda value: value in ("cpu", "none")),
    "pin_memory": _SWITCH,
}

_KEYS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": _whole(1),
    "gradient_accumulation_steps": _whole(1),
    "train_batch_size": _whole(1),
    "gradient_clipping": _NUMBER,
    "prescale_gradients": _OFF,
    "communication_data_type": _choice("fp32", "bf16", "fp16"),
    "bf16": {"enabled": _SWITCH, "check_grad_overflow": _SWITCH},
    "fp16": {
        "enabled": _SWITCH,
        "auto_cast": _OFF,
        "loss_scale": _NUMBER,
        "initial_scale_power": _whole(0, 32),
        "loss_scale_window": _whole(1),
        "hysteresis": _whole(1),
        "consecutive_hysteresis": _SWITCH,
        "min_loss_scale": _whole(1),
    },
    "zero_optimization": {
        "stage": _choice(0, 1, 2, 3),
        "compute_grad_norm": _SWITCH,
        "overlap_comm": _SWITCH,
        "contiguous_gradients": _SWITCH,
        "reduce_scatter": _SWITCH,
        "round_robin_gradients": _OFF,
        "allgather_partitions": _SWITCH,
        "reduce_bucket_size": _whole(1),
        "allgather_bucket_size": _whole(1),
        "offload_optimizer": _OFFLOADED,
        "offload_param": _OFFLOADED,
        "sub_group_size": _whole(1),
        "stage3_gather_16bit_weights_on_model_save": _SWITCH,
        "stage3_max_live_parameters": _whole(0),
        "stage3_max_reuse_distance": _whole(0),
        "stage3_model_persistence_threshold": _whole(0),
        "stage3_param_persistence_threshold": _whole(0),
        "stage3_prefetch_bucket_size": _whole(0),
    },
    "steps_per_print": _whole(1),
    "wall_clock_breakdown": _SWITCH,
    "flops_profiler": {"enabled": _SWITCH, "profile_step": _whole(1), "detailed": _SWITCH},
}
"""What a DeepSpeed JSON may say here: keys that leave the portable state (state.py) right and need no kernel that must
be compiled first, and some that change nothing but stand in most examples of such files. DeepSpeed itself ignores
top-level keys it does not know, and drops "auto" and takes "no" for false where `precision` would read "enabled".
"""


def load_deepspeed_config(path: Path, train: TrainConfig, ranks: int) -> dict[str, Any]:
    """The configuration to hand to `deepspeed.initialize`, with accumulation and batch size filled in.

    Raises:
        UserError: the file is missing or no JSON; a key is unknown, of another kind, or contradicts the recipe or
            another key; the global batch does not divide; the machine cannot run the precision, or not compile.
    """
    config = _read(path)
    for key in ("optimizer", "scheduler"):
        if key in config:
            raise UserError(f"{path}: {key} belongs to the recipe (its train section), remove it here")
    _complete_batch(path, config, train, ranks)
    _check_kinds(path, config, _KEYS)
    _check_with_deepspeed(path, config)
    _refuse_unknown(path, config, _KEYS)
    _check_machine(path, config)
    _check_combination(path, config)
    if train.compile:
        from deepspeed.accelerator import get_accelerator

        require_compiler("train.compile", get_accelerator().device_name())
    # Offloaded or not, the optimizer is torch's AdamW: DeepSpeed's own for CPUs has to be compiled first.
    config["zero_force_ds_cpu_optimizer"] = False
    # DeepSpeed's throughput timer waits for the device in every forward pass and step; the trainer has its own.
    config["timers"] = {"throughput": {"enabled": False}}
    return config


def check_batch(path: Path, train: TrainConfig, ranks: int) -> None:
    """Refuse batch sizes that do not go together; the part of `load_deepspeed_config` that needs no DeepSpeed."""
    _complete_batch(path, _read(path), train, ranks)


def precision(config: dict[str, Any]) -> str:
    """fp32, bf16 or fp16."""
    return next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: _section(path, pairs))
    except OSError as error:
        raise UserError(f"DeepSpeed configuration {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"DeepSpeed configuration {path} is no JSON: byte {error.start} is no UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise UserError(f"DeepSpeed configuration {path} is no JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(config, dict):
        raise UserError(f"DeepSpeed configuration {path} must be a JSON object")
    return config


def _section(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values for one key JSON keeps the second, without a word."""
    section: dict[str, Any] = {}
    for key, value in pairs:
        if key in section:
            raise UserError(f"{path}: {key} is there twice in one section")
        section[key] = value
    return section


def _complete_batch(path: Path, config: dict[str, Any], train: TrainConfig, ranks: int) -> None:
    """Fill in accumulation and batch size."""
    micro = config.get("train_micro_batch_size_per_gpu")
    if type(micro) is not int or micro < 1:
        raise UserError(f"{path}: set train_micro_batch_size_per_gpu to the sequences one rank takes at a time")
    if train.global_batch % (micro * ranks):
        sizes = range(1, min(micro, train.global_batch + 1))
        fitting = [size for size in sizes if train.global_batch % (size * ranks) == 0]
        advice = f": {fitting[-1]} would do" if fitting else ""
        raise UserError(
            f"{path}: train.global_batch {train.global_batch} is not a multiple of train_micro_batch_size_per_gpu "
            f"{micro} x {ranks} ranks{advice}"
        )
    accumulation = train.global_batch // (micro * ranks)
    for key, value in (("gradient_accumulation_steps", accumulation), ("train_batch_size", train.global_batch)):
        given = config.setdefault(key, value)
        if type(given) is not int or given != value:
            raise UserError(f"{path}: {key} is {given!r}, but the recipe and {ranks} ranks make it {value}")


def _check_kinds(path: Path, section: dict[str, Any], kinds: dict[str, Any], prefix: str = "") -> None:
    """Refuse values of another kind than their key's."""
    for key, value in section.items():
        kind = kinds.get(key)
        if isinstance(kind, dict):
            if not isinstance(value, dict):
                raise UserError(f"{path}: {prefix}{key} must be a section with keys, not {value!r}")
            _check_kinds(path, value, kind, f"{prefix}{key}.")
        elif kind is not None and not kind.holds(value):
            raise UserError(f"{path}: {prefix}{key} must be {kind.words}, not {value!r}")


def _refuse_unknown(path: Path, section: dict[str, Any], kinds: dict[str, Any], prefix: str = "") -> None:
    for key, value in section.items():
        if key not in kinds:
            raise UserError(f"{path}: unknown key {prefix}{key}; known are {', '.join(sorted(kinds))}")
        if isinstance(value, dict):
            _refuse_unknown(path, value, kinds[key], f"{prefix}{key}.")


def _check_with_deepspeed(path: Path, config: dict[str, Any]) -> None:
    """Refuse what DeepSpeed itself would end with a traceback for. Of keys that it has removed it says more than we."""
    from deepspeed import DeepSpeedConfig
    from deepspeed.runtime.config import DeepSpeedConfigError
    from pydantic import ValidationError

    try:
        DeepSpeedConfig(copy.deepcopy({key: value for key, value in config.items() if key in _KEYS}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: DeepSpeed refuses the key {where}: {first['msg']}") from error
    except (AssertionError, TypeError, ValueError, KeyError, DeepSpeedConfigError) as error:
        raise UserError(
            f"{path}: DeepSpeed refuses this configuration: {(str(error).splitlines() or [repr(error)])[0]}"
        ) from error


def _check_machine(path: Path, config: dict[str, Any]) -> None:
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    name = accelerator.device_name()
    if precision(config) == "fp16" and not accelerator.is_fp16_supported():
        raise UserError(f"{path}: fp16 does not run on this machine's {name}; use a bf16 or fp32 configuration")
    if precision(config) == "bf16" and not accelerator.is_bf16_supported():
        raise UserError(f"{path}: bf16 does not run on this machine's {name}; use an fp32 configuration")


def _check_combination(path: Path, config: dict[str, Any]) -> None:
    """Refuse what has no effect, and what the training could not keep its promises under."""
    zero = config.get("zero_optimization", {})
    for key in zero:
        needed = 3 if key.startswith("stage3_") or key in ("offload_param", "sub_group_size") else 0
        needed = 1 if key == "offload_optimizer" else needed
        if zero.get("stage", 0) < needed:
            raise UserError(f"{path}: zero_optimization.{key} needs stage {needed}{' or more' if needed < 3 else ''}")
    if zero.get("compute_grad_norm") is False:
        raise UserError(f"{path}: zero_optimization.compute_grad_norm must stay on: without it gradients go unchecked")
    if config.get("bf16", {}).get("check_grad_overflow") is False:
        raise UserError(f"{path}: bf16.check_grad_overflow must stay on, it skips steps whose gradient is not finite")
