"""Handing a model to DeepSpeed."""

import logging
import warnings
from typing import Any

import deepspeed
from torch import nn

from pipeline.config import TrainConfig
from pipeline.engine.clipping import clips_here, without_norm
from pipeline.engine.optimizer import build_optimizer, parameter_groups
from pipeline.engine.state import LossScaler, create_moments


def initialize_engine(module: nn.Module, train: TrainConfig, config: dict[str, Any], head_apart: bool) -> Any:
    """The DeepSpeed engine around `module`, with our AdamW.

    Learning rates are set step by step.

    Args:
        module: calling it composes the tensors that are trained on.
        train: the recipe's.
        config: as `load_deepspeed_config` completed it.
        head_apart: see `parameter_groups`.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch announces the renaming of a collective that DeepSpeed uses, once per rank.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    optimizer = build_optimizer(parameter_groups(module, train.weight_decay, head_apart))
    engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=_told(config))
    create_moments(engine)
    LossScaler(engine).never_raise()
    return engine


def _told(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration for an engine that composes, and that meets no micro-batch: one pass per optimizer step.

    At ZeRO 3 DeepSpeed would also swap torch's linear function, for the rest of the process: that is for the weights
    that it fetches layer by layer, of which there are none.
    """
    accumulation = config["gradient_accumulation_steps"]
    told = {**config, "gradient_accumulation_steps": 1, "train_batch_size": config["train_batch_size"] // accumulation}
    zero = config.get("zero_optimization", {})
    if zero.get("stage") == 3:
        told["zero_optimization"] = {**zero, "memory_efficient_linear": False}
    return without_norm(told) if clips_here(told) else told
