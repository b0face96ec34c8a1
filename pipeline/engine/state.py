"""One portable training state: fp32 parameters and both Adam moments, tensor by tensor, under their own names.

It knows nothing of ranks, ZeRO stages or precisions, so the same files serve resuming anywhere, folding, and any
other tool. At stages 1 to 3 DeepSpeed's public `safe_get_*` and `safe_set_*` reach the fp32 state; at stage 0 torch's
optimizer holds it, in the order of the names in its parameter groups.
"""

from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from pipeline.engine.distributed import World

MOMENTS = ("exp_avg", "exp_avg_sq")
Tensors = dict[str, Tensor]


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer below DeepSpeed's wrapper."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def create_moments(engine: Any) -> None:
    """Make Adam's moments exist before the first step, as torch itself would at that step, and count from 0.

    A run may be saved or narrowed before any step was taken: fp16 skips the first ones. And at ZeRO 1 and 2 DeepSpeed
    ties moments to parameters as soon as the first of several parameter groups has stepped, and never finds those of
    the others. Some of its wrappers take a step with gradient 0 when they are made. (0.19.8)
    """
    inner, stage = inner_optimizer(engine), engine.zero_optimization_stage()
    masters = [master for group in inner.param_groups for master in group["params"]]
    if stage == 3:  # where the groups of the inner optimizer are filled for the time of a step only
        masters = engine.optimizer.fp32_partitioned_groups_flat
    for master in masters:
        # The fused kernel wants the count beside the parameter.
        count = torch.tensor(0.0, device=master.device)
        inner.state[master] = {"step": count, **{moment: torch.zeros_like(master) for moment in MOMENTS}}
    if stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def gather_state(engine: Any, keep: bool) -> dict[str, Tensors]:
    """Collect `parameters`, `exp_avg` and `exp_avg_sq`, each name -> fp32 CPU tensor. All ranks must call.

    Args:
        engine: DeepSpeed's.
        keep: whether this rank wants the result (rank 0); the others take part and get empty dictionaries.
    """
    state: dict[str, Tensors] = {"parameters": {}, **{moment: {} for moment in MOMENTS}}
    masters = _stage_0_masters(engine)
    for name, parameter in engine.module.named_parameters():
        if masters:
            own = inner_optimizer(engine).state[masters[parameter]]
            values = [masters[parameter], *(own[moment] for moment in MOMENTS)]
        else:
            values = [safe_get_full_fp32_param(parameter)]
            values += [safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS]
        if keep:
            for kind, value in zip(state, values, strict=True):
                # A copy: at stage 0 the values are the live tensors themselves.
                state[kind][name] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    return state


def restore_state(engine: Any, state: dict[str, Tensors], steps: int, world: World) -> None:
    """Put a gathered state back. All ranks must call, each with the whole state.

    The module must have been given `state["parameters"]` before DeepSpeed took it, which sets the working copies;
    here follow the fp32 masters and the moments.

    Args:
        engine: DeepSpeed's, just made.
        state: what `gather_state` returned, on every rank.
        world: this rank and the others.
        steps: what `optimizer_steps` returned.
    """
    masters = _stage_0_masters(engine)
    for name, parameter in engine.module.named_parameters():
        values = {kind: tensors[name].to(parameter.device) for kind, tensors in state.items()}
        if masters:
            masters[parameter].data.copy_(values["parameters"])
            for moment in MOMENTS:
                inner_optimizer(engine).state[masters[parameter]][moment].copy_(values[moment])
        elif engine.zero_optimization_stage() == 3:
            _set_partitions(parameter, values, world)
        else:
            safe_set_full_fp32_param(parameter, values["parameters"])
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, values[moment], moment)
    for own in inner_optimizer(engine).state.values():
        own["step"].fill_(steps)


def optimizer_steps(engine: Any) -> int:
    """Steps that Adam has counted (skipped ones are not)."""
    return next((int(own["step"]) for own in inner_optimizer(engine).state.values() if "step" in own), 0)


class LossScaler:
    """fp16's loss scale, wherever DeepSpeed keeps it. In other precisions there is none."""

    _STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
    """`cur_hysteresis` (overflows before the scale is lowered) is there at the stages 1 to 3 alone."""

    def __init__(self, engine: Any) -> None:
        optimizer = engine.optimizer
        own = getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)
        self._own = own if engine.fp16_enabled() else None
        self._is_dynamic = bool(getattr(own, "dynamic", False) or getattr(own, "dynamic_loss_scale", False))

    @property
    def scale(self) -> float | None:
        """The factor on the loss; None unless fp16."""
        return None if self._own is None else float(self._own.cur_scale)

    @property
    def can_lower(self) -> bool:
        """Whether an overflow is answered by a lower scale."""
        if self._own is None or not self._is_dynamic:
            return False
        least = getattr(self._own, "min_scale", None) or getattr(self._own, "min_loss_scale", None) or 1.0
        return float(self._own.cur_scale) > least

    def never_raise(self) -> None:
        """At its least value DeepSpeed ends the run with a traceback; the trainer counts skipped steps instead."""
        if self._own is not None and hasattr(self._own, "raise_error_at_min_scale"):
            self._own.raise_error_at_min_scale = False

    def state_dict(self) -> dict[str, float] | None:
        """Plain values that `load_state_dict` takes at any ZeRO stage; None where there is nothing to remember."""
        if self._own is None or not self._is_dynamic:
            return None
        return {name: getattr(self._own, name) for name in self._STATE if hasattr(self._own, name)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with the scale of a checkpoint; one that the JSON fixes stays."""
        if self._is_dynamic:
            for name in self._STATE:
                if name in state and hasattr(self._own, name):
                    setattr(self._own, name, state[name])


def _stage_0_masters(engine: Any) -> dict[nn.Parameter, Tensor]:
    """Parameter -> the fp32 tensor that torch's optimizer updates; empty at the stages that partition it.

    In fp32 they are the same tensor, in half precision DeepSpeed keeps a copy at the same place of the same group.
    """
    if engine.zero_optimization_stage() > 0:
        return {}
    return {
        engine.module.get_parameter(name): master
        for group in inner_optimizer(engine).param_groups
        for name, master in zip(group["names"], group["params"], strict=True)
    }


def _set_partitions(parameter: nn.Parameter, values: Tensors, world: World) -> None:
    """Write this rank's part at ZeRO-3.

    DeepSpeed's own setter of whole tensors fails where the ranks do not divide the size (0.19.8): the last part is
    padded.
    """
    size = safe_get_local_fp32_param(parameter).numel()
    for kind, value in values.items():
        padded = F.pad(value.flatten(), (0, size * world.size - value.numel()))
        part = padded.narrow(0, size * world.rank, size)
        if kind == "parameters":
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, kind)
