"""The norm of the gradient, clipping by it, and leaving out bad steps, without the host reading a number.

DeepSpeed reads the norm on the host, once for every optimizer group and up to twice more, and has the ranks add it up
group by group (0.19.8); on a GPU each of these waits until the device has done all it was given. So where DeepSpeed can
be told to leave the norm alone, it is taken here, and the fused AdamW clips: it divides gradients by its `grad_scale`,
and changes nothing where its `found_inf` is 1.

In fp16 the loss scale follows the norm, on the host. At stage 3, at stage 0 in bf16, and with offloaded moments,
DeepSpeed reads the norm whatever it is told. There it clips and skips by itself, and `found_inf` says what it does not
know.
"""

from typing import Any

import torch
from deepspeed.runtime.constants import GRADIENT_CLIPPING, GRADIENT_CLIPPING_DEFAULT
from torch import Tensor

from pipeline.engine.deepspeed_config import precision
from pipeline.engine.distributed import World

EPSILON = 1e-6
"""Added to the norm before clipping, as DeepSpeed does."""


def clips_here(config: dict[str, Any]) -> bool:
    """Whether the norm is ours to take, by the complete DeepSpeed configuration."""
    zero, kind = config.get("zero_optimization", {}), precision(config)
    if zero.get("stage", 0) == 0:
        return kind == "fp32"
    offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    return zero["stage"] < 3 and kind != "fp16" and not offloaded


def limit_of(config: dict[str, Any]) -> float:
    """The norm that gradients are clipped to; 0 for none. DeepSpeed clips where the configuration says nothing."""
    return float(config.get(GRADIENT_CLIPPING, GRADIENT_CLIPPING_DEFAULT))


def without_norm(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration for a DeepSpeed that takes no norm."""
    told = {**config, GRADIENT_CLIPPING: 0.0}
    if told.get("zero_optimization", {}).get("stage", 0):
        told["zero_optimization"] = {**told["zero_optimization"], "compute_grad_norm": False}
    if precision(config) == "bf16":
        told["bf16"] = {**told["bf16"], "check_grad_overflow": False}
    return told


def gradient_norm(engine: Any, world: World) -> Tensor:
    """Norm () of the whole gradient, averaged over the ranks, on the device. All ranks must call.

    Args:
        engine: DeepSpeed's, after its backward pass.
        world: this rank and the others.
    """
    if engine.zero_optimization_stage() == 0:
        return _norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    own = _norm([part for group in engine.optimizer.averaged_gradients.values() for part in group])
    return world.sum(own.square()).sqrt()


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float32)))


def prepare_step(optimizer: Any, unsound: Tensor, norm: Tensor | None, limit: float) -> Tensor:
    """Let an optimizer clip in its next step, and leave parameters, moments and its count of steps alone if it must.

    The fused kernel reads both where the numbers are. DeepSpeed goes through all its motions then.

    Args:
        optimizer: torch's, with its moments.
        unsound: not 0 if the step is to be left out; a number ().
        norm: of the gradient, unless DeepSpeed takes it; where it is not finite, the step is left out as well.
        limit: the norm that gradients are clipped to; 0 for none.

    Returns:
        1 for a step that is left out, else 0, where `unsound` was.
    """
    out = unsound != 0
    if norm is not None:
        out = out | ~norm.isfinite()
        optimizer.grad_scale = ((norm + EPSILON) / limit).clamp(min=1.0) if limit else None
    skipped = out.to(torch.float32)
    # Offloaded moments are on the host: torch would copy without waiting, and read what has not come yet.
    optimizer.found_inf = skipped.to(next(iter(optimizer.state)).device)
    return skipped
